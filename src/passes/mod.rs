//! The passes, in order. A new pass is one file, one line in `ORDERED` or `LAST` and one test file.

mod attributes;
mod computed_masks;
mod cut;
mod dce;
mod fuse;
pub mod mask;
mod mask_inputs;
mod mask_selection;
mod merge;
mod per_row_inputs;
mod prune;
mod redirect;
mod splice;
mod stamp;

use crate::{
    analysis::{cut::Cut, magnitude::MagnitudeError, per_row_inputs::PerRowInputs},
    ir::{CheckError, EditError, Editor, Graph},
    observer::Observer,
    onnx::OnnxError,
    plan::{Depth, Target},
    rules::{EditSet, Edits},
};
pub use fuse::{Sharing, WEIGHT_INPUT};
use mask::MaskError;
pub use mask_inputs::FedWeight;
pub(crate) use mask_selection::REPORTED_BINS;
pub use prune::{MaskedTensor, WeightOutcome};

/// A pass that could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// An edit was refused.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// A tensor could not be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// Magnitudes could not be ranked.
    #[error(transparent)]
    Magnitude(#[from] MagnitudeError),
    /// A weight could not be masked.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// The graph was broken after the pass: a defect of this crate.
    #[error("the {pass} pass left a broken graph ({error}); please report this")]
    Broken {
        /// The pass.
        pass: &'static str,
        /// The invariant that is broken.
        error: CheckError,
    },
}

/// How masked weights are in the emitted graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaskForm {
    /// As new elements.
    #[default]
    Stored,
    /// As the original and a threshold, masked by nodes when the model is loaded, where the mask allows it.
    Computed,
    /// As inputs of the graph, which its caller feeds: see [`Outcome::fed`].
    Fed,
}

/// A pass: its name, and what it does.
struct Pass {
    name: &'static str,
    run: fn(&mut Context<'_>, &mut Editor<'_>) -> Result<(), PassError>,
}

/// The passes, in order, [`LAST`] after them. Each looks at [`Recipe::target`] for whether it has anything to do.
const ORDERED: [Pass; 9] = [
    // First of all: redirects then move the operands of templates as those of any node. In a fused graph what both
    // networks have gets readers; the templates of the other network get theirs in copies.
    Pass {
        name: "splice",
        run: |context, editor| {
            let Recipe { edits, target, .. } = context.recipe;
            let both = splice::add(edits.always.changes.iter(), editor)?;
            let other = splice::add(edits.other.changes.iter(), editor)?;
            splice::connect(&both, editor)?;
            splice::forget_types(edits.always.changes.iter(), editor);
            match target.is_fused() {
                true => context.spliced = other,
                false => {
                    splice::connect(&other, editor)?;
                    splice::forget_types(edits.other.changes.iter(), editor);
                }
            }
            Ok(())
        },
    },
    // On values as the plan was resolved: later passes may add values, but never take a skip away. In a fused
    // graph only what both networks have: the other one's redirects are followed in copies.
    Pass {
        name: "redirect",
        run: |context, editor| {
            let Edits { always, other } = context.recipe.edits;
            let skips = context.recipe.edits.skips();
            match context.recipe.target {
                Target::Fused | Target::FusedWithInput => {
                    let skips = context.recipe.edits.dense_skips();
                    redirect::run(always.changes.iter(), &skips, editor)
                }
                Target::Pruned | Target::Amplified | Target::Dense => {
                    redirect::run(always.changes.iter().chain(&other.changes), &skips, editor)
                }
            }
        },
    },
    // Before thresholds are found: masks are taken on what is merged. In a fused graph what the other network alone has is
    // merged in copies.
    Pass {
        name: "merge",
        run: |context, editor| {
            let Recipe { edits, target, .. } = context.recipe;
            let both = edits.always.merges();
            context.merged = match target.is_fused() {
                true => merge::run(both, editor)?,
                false => merge::run(both.chain(edits.other.merges()), editor)?,
            };
            Ok(())
        },
    },
    // Pools hold the weights of bypassed modules too, so they must still be there. Only descriptions of new elements
    // are made here: what `dce` removes is never computed.
    Pass {
        name: "prune",
        run: |context, editor| {
            let Recipe { edits, target, .. } = context.recipe;
            let both = edits.always.weights();
            context.outcomes = match target {
                Target::Fused | Target::FusedWithInput => {
                    prune::run(both, &context.merged, editor, context.observer)?
                }
                Target::Pruned | Target::Amplified | Target::Dense => {
                    prune::run(both.chain(edits.other.weights()), &context.merged, editor, context.observer)?
                }
            };
            Ok(())
        },
    },
    // Before copies are made of the nodes: they have what both networks have.
    Pass {
        name: "attributes",
        run: |context, editor| {
            let Recipe { edits, target, .. } = context.recipe;
            let other = if target.is_fused() { &[] } else { edits.other.changes.as_slice() };
            attributes::run(edits.always.changes.iter().chain(other), editor)
        },
    },
    // In place of them all for the other network: the dense branch must stay as it is, so the edits are made in copies.
    Pass {
        name: "fuse",
        run: |context, editor| {
            let Recipe { edits, target, w, .. } = context.recipe;
            if target.is_fused() {
                context.merged_other = merge::copies(edits.always.merges(), edits.other.merges(), editor)?;
                let found = (&context.spliced, &context.merged, &context.merged_other);
                let (outcomes, sharing) = fuse::run(edits, *w, found, editor, context.observer)?;
                context.outcomes.extend(outcomes);
                context.sharing = sharing;
            }
            Ok(())
        },
    },
    // Before `dce`: the original of a masked copy may have no reader until it gets one here.
    Pass {
        name: "computed_masks",
        run: |context, editor| match context.recipe.masks {
            MaskForm::Computed => {
                let edits: Vec<_> = prune::current(context.recipe, &context.merged, &context.merged_other);
                computed_masks::run(edits.iter().map(AsRef::as_ref), &mut context.outcomes, editor)
            }
            MaskForm::Stored | MaskForm::Fed => Ok(()),
        },
    },
    // Before `dce`, for the opposite reason: the masked initializers have no reader afterwards.
    Pass {
        name: "mask_inputs",
        run: |context, editor| {
            if context.recipe.masks == MaskForm::Fed {
                context.fed = mask_inputs::run(context.recipe.edits.weights(), &context.outcomes, editor)?;
            }
            Ok(())
        },
    },
    // Before dead code goes: what spread an input over the batch has no reader afterwards.
    Pass {
        name: "per_row_inputs",
        run: |context, editor| match context.recipe.per_row {
            Some(rows) => per_row_inputs::run(rows, editor),
            None => Ok(()),
        },
    },
];

/// The passes that run for each of the two graphs of a cache. What both have was made before, once.
const LAST: [Pass; 3] = [
    // On what the networks read in the end, in a fused graph the copies too; before dead code goes, which in a shallow
    // graph is the deep part.
    Pass {
        name: "cut",
        run: |context, editor| match context.cut {
            Some((cut, depth)) => cut::run(cut, depth, &context.sharing, editor),
            None => Ok(()),
        },
    },
    // After everything that takes readers away.
    Pass { name: "dce", run: |context, editor| dce::run(&context.unread, editor) },
    // Last: it looks whether anything changed at all.
    Pass {
        name: "stamp",
        run: |context, editor| stamp::run(context.recipe, context.cut.map(|(_, depth)| depth), editor),
    },
];

struct Context<'a> {
    recipe: &'a Recipe<'a>,
    /// Where a cache cuts the network, and which graph of the pair it is.
    cut: Option<(&'a Cut, Depth)>,
    observer: &'a dyn Observer,
    unread: dce::Unread,
    outcomes: Vec<WeightOutcome>,
    /// The operands that the other network of a fused graph is to have.
    spliced: splice::Spliced,
    /// The initializers of merged weights; those of the other network of a fused graph beside them.
    merged: merge::Merged,
    merged_other: merge::Merged,
    sharing: Sharing,
    fed: Vec<FedWeight>,
}

/// The graph to make of an original.
#[derive(Clone, Copy, Debug)]
pub struct Recipe<'a> {
    /// The edits. For [`Target::Amplified`] the scale of masked weights is `1 - w` already, for [`Target::Dense`]
    /// there is nothing but what both networks have.
    pub edits: &'a Edits,
    /// Which graph.
    pub target: Target,
    /// The amplification weight that is a constant of a fused graph; without one it is a graph input.
    pub w: Option<f64>,
    /// How masked weights are in the graph.
    pub masks: MaskForm,
    /// The origin that the graph's name and metadata state; they stay as they are without.
    pub stamp: Option<Stamp<'a>>,
    /// The inputs that get a value for each row of the batch. They were found in the graph as it came: nothing else is
    /// edited then.
    pub per_row: Option<&'a PerRowInputs>,
}

/// Plan and model that a graph was made from.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// SHA-256 of the plan's meaning.
    pub plan: &'a str,
    /// SHA-256 of the source's structure ([`Graph::structure_digest`]).
    pub source: &'a str,
}

impl<'a> Recipe<'a> {
    /// Returns the recipe of a graph with inputs that have a value for each row, made of one that may have been
    /// compiled before.
    pub fn per_row(rows: &'a PerRowInputs) -> Self {
        static NONE: Edits =
            Edits { always: EditSet { changes: Vec::new() }, other: EditSet { changes: Vec::new() } };
        Self {
            edits: &NONE,
            target: Target::default(),
            w: None,
            masks: MaskForm::default(),
            stamp: None,
            per_row: Some(rows),
        }
    }
}

/// The findings of the passes.
#[derive(Debug)]
pub struct Outcome {
    /// The result of each edit of weights, in the order of [`Edits::weights`].
    pub weights: Vec<WeightOutcome>,
    /// The nodes that a fused graph computes once.
    pub sharing: Sharing,
    /// The inputs that [`MaskForm::Fed`] has added.
    pub fed: Vec<FedWeight>,
}

/// Makes of `graph` what `recipe` says. The graph is checked after every pass that edited it.
///
/// # Errors
/// [`PassError`]; the graph is then of no use.
pub fn run(graph: &mut Graph, recipe: &Recipe<'_>, observer: &dyn Observer) -> Result<Outcome, PassError> {
    let mut context = Context::new(graph, recipe, observer);
    context.run(&ORDERED, graph)?;
    context.run(&LAST, graph)?;
    Ok(context.outcome())
}

/// Makes of `graph` the full and the shallow graph of what `recipe` says, cut at `cut`. The new elements of weights that
/// both have are the same ([`NewData::is_same`](crate::ir::NewData::is_same)).
///
/// # Errors
/// As [`run`].
pub fn run_pair(
    mut graph: Graph,
    recipe: &Recipe<'_>,
    cut: &Cut,
    observer: &dyn Observer,
) -> Result<([Graph; 2], Outcome), PassError> {
    let mut context = Context::new(&graph, recipe, observer);
    context.run(&ORDERED, &mut graph)?;
    let mut graphs = [graph.clone(), graph];
    for (graph, depth) in graphs.iter_mut().zip(Depth::ALL) {
        context.cut = Some((cut, depth));
        context.run(&LAST, graph)?;
    }
    Ok((graphs, context.outcome()))
}

impl<'a> Context<'a> {
    fn new(graph: &Graph, recipe: &'a Recipe<'a>, observer: &'a dyn Observer) -> Self {
        Self {
            recipe,
            cut: None,
            observer,
            unread: dce::Unread::of(graph),
            outcomes: Vec::new(),
            spliced: splice::Spliced::default(),
            merged: merge::Merged::default(),
            merged_other: merge::Merged::default(),
            sharing: Sharing::default(),
            fed: Vec::new(),
        }
    }

    fn run(&mut self, passes: &[Pass], graph: &mut Graph) -> Result<(), PassError> {
        for pass in passes {
            let before = graph.edits();
            (pass.run)(self, &mut graph.edit())?;
            if graph.edits() != before {
                graph.check().map_err(|error| PassError::Broken { pass: pass.name, error })?;
            }
        }
        Ok(())
    }

    fn outcome(self) -> Outcome {
        Outcome { weights: self.outcomes, sharing: self.sharing, fed: self.fed }
    }
}
