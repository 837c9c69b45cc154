//! Edits: what a plan means for one graph, in terms that passes, verifier, search and reports share. They know no rules.

use std::{borrow::Cow, sync::Arc};

use miette::SourceSpan;
use rustc_hash::FxHashMap;

use super::{LoraFile, prune::Mask};
use crate::{
    analysis::{modules::ModuleId, skip::Redirect, splice::Splice, weights::Weight},
    ir::{Attribute, NodeId, ValueId},
    onnx::OnnxError,
};

/// The edits of a plan.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    /// Those of both networks.
    pub always: EditSet,
    /// Those of the network that amplification mixes with the dense one.
    pub other: EditSet,
}

impl Edits {
    /// Returns every change, those of both networks first.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.always.changes.iter().chain(&self.other.changes)
    }

    /// Returns what makes two graphs of one model the same but for the elements of weights that are masked.
    pub fn structure(&self) -> Structure {
        Structure {
            redirects: self.changes().flat_map(Change::redirects).collect(),
            attributes: self.changes().flat_map(Change::attributes).cloned().collect(),
            splices: self.changes().flat_map(Change::splices).cloned().collect(),
            merges: [&self.always, &self.other].map(|set| set.merges().cloned().collect()),
        }
    }

    /// Returns the notes of rules that change no module by itself, such as layers that a LoRA has for other networks; each
    /// once, however many rules have the file.
    pub fn notes(&self) -> Vec<String> {
        let rules = self.changes().filter(|change| change.module.is_none());
        let mut notes = Vec::new();
        for (subject, note) in rules.filter_map(|change| Some((&change.subject, change.note.as_ref()?))) {
            let note = format!("`{subject}`: {note}");
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        notes
    }

    /// Returns whether nothing is changed in either network.
    pub fn is_empty(&self) -> bool {
        self.changes().next().is_none()
    }

    /// Returns the weights that are changed, in the order of the changes.
    pub fn weights(&self) -> impl Iterator<Item = &WeightEdit> {
        self.changes().flat_map(Change::weights)
    }

    /// Makes masked weights of the other network those of an amplified one: multiplied by `1 - w`.
    pub fn amplify(&mut self, w: f64) {
        for edit in self.other.changes.iter_mut().flat_map(|change| &mut change.edits) {
            match edit {
                Edit::Transform(weights) => weights.scale = 1.0 - w,
                Edit::Redirect(_) | Edit::Attributes(_) | Edit::Splice(_) | Edit::Merge(_) => {}
            }
        }
    }

    /// Returns the values that are read in place of others in both networks.
    pub fn dense_skips(&self) -> Skips {
        Skips::of(self.always.changes.iter())
    }

    /// Returns the values that are read in place of others in the other network.
    pub fn skips(&self) -> Skips {
        Skips::of(self.changes())
    }
}

/// The edits of a plan without the masks of weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Structure {
    redirects: Vec<Redirect>,
    attributes: Vec<Attributes>,
    splices: Vec<Splice>,
    merges: [Vec<Merge>; 2],
}

/// The difference of one network from the graph as it came.
#[derive(Clone, Debug, Default)]
pub struct EditSet {
    /// Changes of modules in the order of the graph, then those of weights in the order of the plan.
    pub changes: Vec<Change>,
}

impl EditSet {
    /// Returns the weights that are changed, in the order of the changes.
    pub fn weights(&self) -> impl Iterator<Item = &WeightEdit> {
        self.changes.iter().flat_map(Change::weights)
    }

    /// Returns the low-rank sums that are added to weights, in the order of the changes.
    pub fn merges(&self) -> impl Iterator<Item = &Merge> {
        self.changes.iter().flat_map(Change::merges)
    }
}

/// The change that one rule makes to one module, or to the weights that it selects: a row of a report, and its edits.
#[derive(Clone, Debug)]
pub struct Change {
    /// The word of the rule in plans.
    pub rule: &'static str,
    /// Where the plan has the rule.
    pub span: SourceSpan,
    /// Path of the module, or the rule's selector of weights.
    pub subject: String,
    /// The module.
    pub module: Option<ModuleId>,
    /// The key and the value of the plan that say how the rule changes a module: `via` and `shortcut`.
    pub how: (&'static str, Cow<'static, str>),
    /// The participle for the head of a table: "bypassed".
    pub done: &'static str,
    /// The predicate of a module that the rule has not changed: "is not bypassed".
    pub undone: &'static str,
    /// The fate of the module as a whole.
    pub fate: Fate,
    /// Sizes at which the change is legal, if not at all.
    pub note: Option<String>,
    /// The edits.
    pub edits: Vec<Edit>,
}

/// The fate of a module that a rule changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing reads its results any more.
    Gone,
    /// It computes something else.
    Changed,
}

impl Change {
    /// Returns the weights that it changes.
    pub fn weights(&self) -> impl Iterator<Item = &WeightEdit> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Transform(weights) => Some(weights),
            Edit::Redirect(_) | Edit::Attributes(_) | Edit::Splice(_) | Edit::Merge(_) => None,
        })
    }

    /// Returns the low-rank sums that it adds to weights.
    pub fn merges(&self) -> impl Iterator<Item = &Merge> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Merge(merge) => Some(merge),
            Edit::Redirect(_) | Edit::Transform(_) | Edit::Attributes(_) | Edit::Splice(_) => None,
        })
    }

    /// Returns the values that are read in place of others.
    pub fn redirects(&self) -> impl Iterator<Item = Redirect> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Redirect(redirect) => Some(*redirect),
            Edit::Transform(_) | Edit::Attributes(_) | Edit::Splice(_) | Edit::Merge(_) => None,
        })
    }

    /// Returns which nodes get other attributes.
    pub fn attributes(&self) -> impl Iterator<Item = &Attributes> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Attributes(attributes) => Some(attributes),
            Edit::Redirect(_) | Edit::Transform(_) | Edit::Splice(_) | Edit::Merge(_) => None,
        })
    }

    /// Returns which nodes are put between values and those that read them.
    pub fn splices(&self) -> impl Iterator<Item = &Splice> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Splice(splice) => Some(splice),
            Edit::Redirect(_) | Edit::Transform(_) | Edit::Attributes(_) | Edit::Merge(_) => None,
        })
    }
}

/// One edit of a graph.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Everything that reads a value reads another one.
    Redirect(Redirect),
    /// Weights get other elements.
    Transform(WeightEdit),
    /// A node gets other attributes.
    Attributes(Attributes),
    /// Nodes are put between a value and those that read it.
    Splice(Splice),
    /// A low-rank sum is added to a weight, before masks are taken.
    Merge(Merge),
}

/// Attributes of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Attributes {
    /// The node.
    pub node: NodeId,
    /// The attributes in place of those of the same names; it keeps the others.
    pub set: Vec<Attribute>,
}

/// A low-rank sum that is added to a weight: `scale * alpha / rank * up * down`, of a layer of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Merge {
    /// The weight.
    pub weight: Weight,
    /// The file.
    pub file: Arc<LoraFile>,
    /// Which of its layers.
    pub layer: usize,
    /// The alpha of the layer.
    pub alpha: f64,
    /// The factor of the rule.
    pub scale: f64,
}

impl Merge {
    /// Returns what tells two sums of one weight apart, in the order in which they are added.
    pub fn key(&self) -> (&str, usize, u64, u64) {
        (self.file.digest(), self.layer, self.scale.to_bits(), self.alpha.to_bits())
    }

    /// Returns the square of the Frobenius norm of the sum.
    ///
    /// # Errors
    /// [`OnnxError`] if the file cannot be read.
    pub fn squared_norm(&self) -> Result<f64, OnnxError> {
        let Some(layer) = self.file.layers().get(self.layer) else { return Ok(0.0) };
        let factor = self.alpha / layer.rank as f64 * self.scale;
        Ok(factor * factor * layer.squared_norm()?)
    }
}

/// Weights whose elements are changed by one rule; which of them are can depend on all.
#[derive(Clone, Debug)]
pub struct WeightEdit {
    /// The weights, in the order of the graph.
    pub weights: Vec<Weight>,
    /// Which elements are masked.
    pub mask: Mask,
    /// The factor on masked elements.
    pub scale: f64,
}

/// Returns the values that are read in place of redirected ones.
#[derive(Clone, Debug, Default)]
pub struct Skips(FxHashMap<ValueId, ValueId>);

impl Skips {
    fn of<'a>(changes: impl Iterator<Item = &'a Change>) -> Self {
        let mut skips = FxHashMap::default();
        for redirect in changes.flat_map(Change::redirects) {
            // A block and the last branch in it end in the same value. The block comes first, and takes the branch
            // with it.
            skips.entry(redirect.from).or_insert(redirect.to);
        }
        Self(skips)
    }

    /// Returns what is read in place of `value`: itself, unless it is redirected. One redirect can lead to the value
    /// that another one begins at, so they are followed to a value that stays.
    pub fn follow(&self, mut value: ValueId) -> ValueId {
        while let Some(skip) = self.0.get(&value) {
            value = *skip;
        }
        value
    }
}
