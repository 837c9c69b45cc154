//! Reachability: the values of a changed network that differ from the dense one.

use rustc_hash::FxHashSet;

use super::{classes::Side, walk::Cone};
use crate::ir::{Graph, NodeId, ValueId};

/// The nodes of the original that compute something else in the one network than in the other: they read a weight that
/// is masked or merged otherwise, another value, or the result of such a node, or have other attributes.
#[derive(Debug, Default)]
pub(super) struct Reach(FxHashSet<NodeId>);

impl Reach {
    /// Returns the reach of the network of `cone` against that of `dense`.
    pub fn of(side: &Side<'_>, cone: &Cone, dense: &Cone) -> Self {
        let mut reach = Self::default();
        let mut done = vec![false; side.graph.node_capacity()];
        let mut open = vec![false; side.graph.node_capacity()];
        let mut stack: Vec<NodeId> = Vec::new();
        // A replacement can come after the readers of its value in the file: depth first, without recursion.
        for root in side.graph.node_ids() {
            stack.push(root);
            while let Some(node) = stack.pop() {
                if done[node.index()] {
                    continue;
                }
                let operands = |cone: &Cone| -> Vec<ValueId> {
                    let read = |(slot, value): (usize, &Option<ValueId>)| {
                        value.map(|value| cone.substitution.operand(node, slot, value))
                    };
                    side.reads(node).iter().enumerate().filter_map(read).collect()
                };
                let reads = operands(cone);
                let producers =
                    reads.iter().filter_map(|value| side.graph.producer(cone.substitution.read(*value)));
                let missing: Vec<NodeId> = producers.filter(|producer| !done[producer.index()]).collect();
                if !missing.is_empty() && !std::mem::replace(&mut open[node.index()], true) {
                    stack.push(node);
                    stack.extend(missing);
                    continue;
                }
                done[node.index()] = true;
                let masked = (0..side.graph.node(node).inputs.len()).map(|slot| (node, slot)).any(|read| {
                    cone.masks.get(&read) != dense.masks.get(&read)
                        || cone.merges.get(&read) != dense.merges.get(&read)
                });
                let signatures = [cone, dense].map(|cone| cone.substitution.signature(node));
                if masked
                    || signatures[0] != signatures[1]
                    || reads != operands(dense)
                    || reads.iter().any(|value| reach.has(side.graph, [cone, dense], *value))
                {
                    reach.0.insert(node);
                }
            }
        }
        reach
    }

    /// Returns whether a reader of `value` reads something else in the one network than in the dense one.
    pub fn has(&self, graph: &Graph, [cone, dense]: [&Cone; 2], value: ValueId) -> bool {
        let source = cone.substitution.read(value);
        source != dense.substitution.read(value)
            || graph.producer(source).is_some_and(|node| self.0.contains(&node))
    }

    /// Returns whether the results of `node` differ.
    pub fn has_node(&self, node: NodeId) -> bool {
        self.0.contains(&node)
    }
}
