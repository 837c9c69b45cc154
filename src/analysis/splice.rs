//! Splices: nodes put between a value and some of those that read it, and whether that is legal.

use std::sync::Arc;

use super::{Analysis, shapes::Agreement, skip::Illegal};
use crate::ir::{NodeId, Template, Use, ValueId};

/// Nodes between a value and some of those that read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Splice {
    /// The operands that are the template's result, each a node and one of its operands; all are the same value otherwise.
    pub at: Vec<(NodeId, usize)>,
    /// The nodes.
    pub template: Template,
    /// Nodes that the template stands for as a whole: with another edit of one of these, neither would be what it says.
    pub replaces: Vec<NodeId>,
    /// The values that have other shapes with it and those that belong to it, in a part of the network that runs at
    /// another size; without any its result has the shape of what is read otherwise.
    pub resized: Arc<[ValueId]>,
}

impl Splice {
    /// Returns whether it belongs to a part of the network that runs at another size.
    pub fn resizes(&self) -> bool {
        !self.resized.is_empty()
    }

    /// Returns the node that the template stands before: the first that reads its result.
    pub fn first_reader(&self) -> Option<NodeId> {
        self.at.iter().map(|(node, _)| *node).min()
    }
}

impl Analysis<'_> {
    /// Returns the operands that are `value`.
    ///
    /// # Errors
    /// [`Illegal`] if nothing reads it, or a body or the graph's caller does.
    pub fn readers(&self, value: ValueId) -> Result<Vec<(NodeId, usize)>, Illegal> {
        let name = &self.graph.value(value).name;
        let mut readers = Vec::new();
        for used in self.graph.uses(value) {
            match *used {
                Use::Operand { node, slot } => readers.push((node, slot)),
                Use::Capture(node) => {
                    return Err(Illegal::at(
                        self.graph,
                        node,
                        &format!("reads `{name}` from inside of its body"),
                    ));
                }
                Use::Output(_) => return Err(Illegal::new(format!("`{name}` is an output of the graph"))),
            }
        }
        match readers.is_empty() {
            true => Err(Illegal::new(format!("nothing reads `{name}`"))),
            false => Ok(readers),
        }
    }

    /// Puts `template` in front of the operands `at`.
    ///
    /// # Errors
    /// [`Illegal`] if the operands are not one value, if the template's result is not proven to have that value's shape
    /// and type, or if the template reads what is computed after one of the operands is read.
    pub fn splice(&self, at: Vec<(NodeId, usize)>, template: Template) -> Result<Splice, Illegal> {
        let splice = Splice { at, template, replaces: Vec::new(), resized: Arc::default() };
        let read = |(node, slot): &(NodeId, usize)| self.graph.node(*node).input(*slot);
        let (Some(first), Some(value)) = (splice.first_reader(), splice.at.first().and_then(read)) else {
            return Err(Illegal::new("nothing reads the result"));
        };
        if splice.at.iter().any(|operand| read(operand) != Some(value)) {
            return Err(Illegal::at(self.graph, first, "and others do not read the same value"));
        }
        let late = |value: ValueId| self.graph.producer(value).is_some_and(|node| node >= first);
        if splice.template.values().any(late) {
            return Err(Illegal::at(self.graph, first, "comes before what would have to be computed for it"));
        }
        match self.shapes.compare_result(self.graph, &splice.template, value) {
            Agreement::Equal => Ok(splice),
            agreement => Err(Illegal::at(
                self.graph,
                first,
                &format!("would read something of another shape or type: the two are {agreement}"),
            )),
        }
    }
}
