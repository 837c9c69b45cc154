//! Parts of a network at another size: what makes them so, and the proof that everything after them is as before.
//!
//! Activations that enter such a part are resized, those that leave it are resized back, and in it each Reshape to
//! sizes that come from elsewhere gets those of the part. All of it is decided node by node, on symbolic shapes of the
//! edited graph ([`super::shapes::Edited`]).

mod network;
mod template;
mod walk;

use rustc_hash::FxHashSet;
use schemars::JsonSchema;
use serde::Serialize;

pub use self::template::NewSize;
use self::walk::Walk;
use super::{
    Analysis,
    modules::{Evidence, ModuleId},
    skip::Illegal,
    splice::Splice,
};
use crate::ir::{Attribute, NodeId, ValueId};

/// How an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// The element at or above and left of each new one's place.
    Nearest,
    /// Bilinear, without smoothing.
    Linear,
    /// Bicubic (a = -0.75), without smoothing.
    Cubic,
    /// The mean of squares of elements: only to a whole part of the size.
    Average,
}

impl Filter {
    /// All of them, by their names in plans.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("cubic", Self::Cubic),
        ("linear", Self::Linear),
        ("average", Self::Average),
        ("nearest", Self::Nearest),
    ];

    /// Returns its name in plans.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, filter)| *filter == self).map_or("", |(name, _)| name)
    }
}

/// The size of a part of a network, and how it gets there and back.
#[derive(Clone, Copy, Debug)]
pub struct Resize {
    /// The size.
    pub size: NewSize,
    /// The filter of what enters.
    pub filter: Filter,
    /// The filter of what leaves.
    pub back: Filter,
}

/// The changes that run a part of a network at another size.
#[derive(Clone, Debug)]
pub struct Resized {
    /// The nodes that are put into the graph.
    pub splices: Vec<Splice>,
    /// The sizes at which it is legal, if not at all.
    pub note: Option<String>,
}

impl Analysis<'_> {
    /// Returns what resizes the output of `module`, for all that reads it but the skip connection that begins at it. At
    /// a Concat of two sizes the one that changed is resized to the other.
    ///
    /// # Errors
    /// [`Illegal`] if it is not proven that the network then runs, with outputs as before.
    pub fn resized_after(&self, module: ModuleId, resize: &Resize) -> Result<Resized, Illegal> {
        let output = self.only_output(&self.outputs(module))?;
        let is_skip = |(node, slot): &(NodeId, usize)| {
            self.skip_concat(*node).is_some_and(|concat| concat.skip == (*slot, output))
        };
        let mut at = self.readers(output)?;
        at.retain(|operand| !is_skip(operand));
        let mut walk = Walk::new(self, *resize);
        walk.enter(output, at)?;
        walk.run(&|_| true, None)
    }

    /// Returns what resizes the output of `module`, skip connections included, until after `last`.
    ///
    /// # Errors
    /// [`Illegal`] if it is not proven that the network then runs, with all that is read after `last` as before.
    pub fn resized_until(
        &self,
        module: ModuleId,
        last: ModuleId,
        resize: &Resize,
    ) -> Result<Resized, Illegal> {
        let output = self.only_output(&self.outputs(module))?;
        let end = self.only_output(&self.outputs(last))?;
        if !self.flow.depends(self.graph, end, output) {
            let paths = [module, last].map(|module| self.modules.get(module).path.clone());
            return Err(Illegal::new(format!("`{}` does not depend on `{}`", paths[1], paths[0])));
        }
        let before = self.ancestors(end);
        let mut at = self.readers(output)?;
        at.retain(|(node, _)| before.contains(node));
        let mut walk = Walk::new(self, *resize);
        walk.enter(output, at)?;
        walk.run(&|node| before.contains(&node), None)
    }

    /// Returns what runs `module` at another size: everything of height and width that enters it is resized, and
    /// everything that leaves it is resized back.
    ///
    /// # Errors
    /// [`Illegal`] if it is not proven that the module then runs, with all that leaves it as before.
    pub fn resized_within(&self, module: ModuleId, resize: &Resize) -> Result<Resized, Illegal> {
        let inputs: Vec<ValueId> =
            self.inputs(module).into_iter().filter(|input| self.is_image(*input)).collect();
        if inputs.is_empty() {
            return Err(Illegal::new("it reads nothing that has height and width"));
        }
        let mut unplaced = FxHashSet::default();
        for value in &inputs {
            unplaced.extend(inputs.iter().filter_map(|from| self.unplaced_between(*from, *value)).flatten());
        }
        let inside = |node: NodeId| {
            unplaced.contains(&node) || self.modules.is_within(self.modules.of_node(node), module)
        };
        let mut walk = Walk::new(self, *resize);
        for input in inputs {
            if self.graph.producer(input).is_none_or(|producer| !unplaced.contains(&producer)) {
                let mut at = self.readers(input)?;
                at.retain(|(node, _)| inside(*node));
                walk.enter(input, at)?;
            }
        }
        walk.run(&inside, None)
    }

    /// Returns the nodes by which `value` is computed from `from`, if none of them says where it belongs: without the
    /// exporter's scopes, the norm at the beginning of a module may not be known to lie in it.
    fn unplaced_between(&self, from: ValueId, value: ValueId) -> Option<Vec<NodeId>> {
        let is_unplaced =
            |node: NodeId| matches!(self.modules.evidence(node), Evidence::Neighbours | Evidence::None);
        let mut found: Vec<NodeId> = Vec::new();
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            if value != from
                && let Some(producer) = self.graph.producer(value)
                && !found.contains(&producer)
                && self.flow.depends(self.graph, value, from)
            {
                if !is_unplaced(producer) {
                    return None;
                }
                found.push(producer);
                open.extend(self.graph.node(producer).operands());
            }
        }
        Some(found)
    }

    /// Returns what runs the one node `id`, with other attributes, at another size.
    ///
    /// # Errors
    /// [`Illegal`] if it is not proven that it then runs, and gives what has the shape of its result.
    pub fn resized_node(
        &self,
        id: NodeId,
        attributes: &[Attribute],
        resize: &Resize,
    ) -> Result<Resized, Illegal> {
        let input =
            self.graph.node(id).input(0).ok_or_else(|| Illegal::at(self.graph, id, "reads nothing"))?;
        let mut walk = Walk::new(self, *resize);
        walk.enter(input, vec![(id, 0)])?;
        walk.run(&|node| node == id, Some((id, attributes)))
    }

    /// Returns whether `module` has one output, which has height and width.
    pub fn gives_an_image(&self, module: ModuleId) -> bool {
        matches!(self.outputs(module)[..], [output] if self.is_image(output))
    }

    /// Returns whether `value` has height and width: four dimensions, the last two not both 1.
    fn is_image(&self, value: ValueId) -> bool {
        let Some(shape) = self.shapes.of(value) else { return false };
        let [_, _, height, width] = &*shape.dims else { return false };
        [height, width].iter().any(|size| size.constant() != Some(1))
    }

    /// Returns the nodes that `value` is computed by.
    fn ancestors(&self, value: ValueId) -> FxHashSet<NodeId> {
        let mut found = FxHashSet::default();
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            if let Some(producer) = self.graph.producer(value)
                && found.insert(producer)
            {
                let node = self.graph.node(producer);
                open.extend(node.operands().chain(node.captures.iter().copied()));
            }
        }
        found
    }
}
