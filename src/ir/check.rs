//! Invariants of a graph, checked after every pass.
//!
//! 1. Single assignment: each value has one origin, and that origin names the value back.
//! 2. Topological order: a node comes after the nodes whose results it reads or captures.
//! 3. No dangling use: nothing reads a removed value.
//! 4. The use lists and the operands say the same.
//! 5. The graph's inputs and outputs have the names and types that they had.
//! 6. Names are unique among values that are there.

use rustc_hash::{FxBuildHasher, FxHashSet};

use super::{Graph, Origin, Use, ValueId};

/// A broken invariant: a defect of a pass, never of the user's model.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{place}: {what}")]
pub struct CheckError {
    /// The node or value.
    pub place: String,
    /// Which invariant it breaks.
    pub what: String,
}

impl Graph {
    /// Checks every invariant of this module.
    ///
    /// # Errors
    /// The first one that does not hold.
    pub fn check(&self) -> Result<(), CheckError> {
        self.check_origins()?;
        self.check_order()?;
        self.check_uses()?;
        self.check_interface()
    }

    fn check_origins(&self) -> Result<(), CheckError> {
        let mut names = FxHashSet::with_capacity_and_hasher(self.value_capacity(), FxBuildHasher);
        for id in self.value_ids() {
            let value = self.value(id);
            let named_back = match value.origin {
                Origin::Removed => continue,
                Origin::Input(index) => self.inputs().nth(index).is_some_and(|io| io.value == id),
                Origin::SparseInitializer => true,
                Origin::Initializer(i) => self.initializer(i).is_some_and(|x| x.value == id),
                Origin::Node { node, slot } => self.get(node).and_then(|n| n.output(slot)) == Some(id),
            };
            if !named_back {
                return Err(self.broken(id, "its origin does not define it"));
            }
            if !names.insert(value.name.as_str()) {
                return Err(self.broken(id, "another value has the same name"));
            }
        }
        Ok(())
    }

    fn check_order(&self) -> Result<(), CheckError> {
        let mut ready = vec![false; self.value_capacity()];
        for id in self.value_ids() {
            ready[id.index()] = !matches!(self.value(id).origin, Origin::Node { .. } | Origin::Removed);
        }
        for (_, node) in self.nodes() {
            for value in node.operands().chain(node.captures.iter().copied()) {
                if !ready[value.index()] {
                    return Err(CheckError {
                        place: node.describe(),
                        what: format!("it reads `{}` before that is produced", self.value(value).name),
                    });
                }
            }
            for value in node.results() {
                ready[value.index()] = true;
            }
        }
        match self.outputs.iter().find(|io| !ready[io.value.index()]) {
            Some(io) => Err(self.broken(io.value, "a graph output that nothing produces")),
            None => Ok(()),
        }
    }

    fn check_uses(&self) -> Result<(), CheckError> {
        let mut stated = 0;
        for id in self.value_ids() {
            for used in self.uses(id) {
                let holds = match *used {
                    Use::Operand { node, slot } => self.get(node).and_then(|n| n.input(slot)) == Some(id),
                    Use::Capture(node) => self.get(node).is_some_and(|n| n.captures.contains(&id)),
                    Use::Output(index) => self.outputs.get(index).is_some_and(|io| io.value == id),
                };
                if !holds {
                    return Err(self.broken(id, format!("it lists a use that is not there: {used:?}")));
                }
                stated += 1;
            }
        }
        let actual: usize = self.nodes().map(|(_, n)| n.operands().count() + n.captures.len()).sum::<usize>()
            + self.outputs.len();
        if stated == actual {
            return Ok(());
        }
        Err(CheckError {
            place: "the graph".into(),
            what: format!("{actual} uses, but the use lists hold {stated}"),
        })
    }

    fn check_interface(&self) -> Result<(), CheckError> {
        for io in self.inputs().chain(&self.outputs) {
            if self.value(io.value).name != io.info.name() {
                return Err(self.broken(io.value, format!("it was the input or output `{}`", io.info.name())));
            }
        }
        Ok(())
    }

    fn broken(&self, value: ValueId, what: impl Into<String>) -> CheckError {
        CheckError { place: format!("value `{}`", self.value(value).name), what: what.into() }
    }
}
