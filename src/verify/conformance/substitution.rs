//! What the plan says is read in place of what.

use rustc_hash::FxHashMap;

use super::value;
use crate::{
    ir::{Graph, ValueId},
    plan::ResolvedPlan,
};

/// Values of the original and what stands in for them, each with the bypass of the plan that says so. The default
/// substitutes nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Substitution {
    skips: FxHashMap<ValueId, (ValueId, usize)>,
}

impl Substitution {
    /// That of all bypasses of `plan`.
    pub fn of(plan: &ResolvedPlan) -> Self {
        let mut skips = FxHashMap::default();
        for (index, bypass) in plan.bypasses.iter().enumerate() {
            for redirect in &bypass.bypass.redirects {
                // A module and the last one in it have one output. Bypasses are in the order of the modules, those
                // around before those inside: the whole module is taken out.
                skips.entry(redirect.from).or_insert((redirect.to, index));
            }
        }
        Self { skips }
    }

    /// What stands in for `value`, and the index of the bypass that says so.
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
