//! What the plan says is read in place of what.

use rustc_hash::FxHashMap;

use super::value;
use crate::{
    ir::{Graph, ValueId},
    rules::{Edit, Edits},
};

/// Values of the original and what stands in for them, each with the change of the plan that says so. The default
/// substitutes nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Substitution {
    skips: FxHashMap<ValueId, (ValueId, usize)>,
}

impl Substitution {
    /// That of the dense network, which has only what the plan changes in both.
    pub fn of_dense(edits: &Edits) -> Self {
        Self::of(edits, edits.always.changes.len())
    }

    /// That of the other network.
    pub fn of_other(edits: &Edits) -> Self {
        Self::of(edits, usize::MAX)
    }

    fn of(edits: &Edits, changes: usize) -> Self {
        let mut skips = FxHashMap::default();
        for (index, change) in edits.changes().enumerate().take(changes) {
            for edit in &change.edits {
                match edit {
                    // A module and the last one in it have one output. Changes are in the order of the modules, those
                    // around before those inside: the whole module is taken out.
                    Edit::Redirect(redirect) => {
                        skips.entry(redirect.from).or_insert((redirect.to, index));
                    }
                    Edit::Transform(_) => {}
                }
            }
        }
        Self { skips }
    }

    /// What stands in for `value`, and the index of the change that says so.
    pub fn skip(&self, value: ValueId) -> Option<(ValueId, usize)> {
        self.skips.get(&value).copied()
    }

    /// What is read by whoever reads `value`: followed from skip to skip until one stays.
    pub fn read(&self, mut value: ValueId) -> ValueId {
        // No more steps than skips: one that leads back to itself ends somewhere on its way.
        for _ in 0..self.skips.len() {
            match self.skips.get(&value) {
                Some((next, _)) => value = *next,
                None => break,
            }
        }
        value
    }

    /// What is read by whoever reads `value`, looked at through Identity nodes.
    pub fn source(&self, graph: &Graph, value: ValueId) -> ValueId {
        let mut value = self.read(value);
        // A skip that leads back through an Identity would go round forever.
        for _ in 0..graph.node_capacity() {
            match value::behind_identity(graph, value) {
                Some(operand) => value = self.read(operand),
                None => break,
            }
        }
        value
    }
}
