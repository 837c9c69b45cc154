//! Attentions at which the branches part: each branch gets the whole of its own, from the residual root to the output
//! projection.
//!
//! Tools that fuse attentions know them by their shape. ONNX Runtime's transformer fusions start at the value that the
//! norm reads, take the first Add that reads it too for the residual, and replace everything between by one operator. Where
//! two branches read one such value they find one attention for two norms, and the other one keeps its Softmax; where one
//! branch reads a projection of an attention that the other one has whole, the graph that they make is none.

use rustc_hash::{FxHashMap, FxHashSet};

use super::Branch;
use crate::{
    analysis::attention::{Attention, structure},
    ir::{Graph, NodeId, Use, ValueId},
};

/// Most nodes of an attention that are looked at.
const BUDGET: usize = 512;

impl Branch<'_> {
    /// Adds to the nodes that are copied because they compute something else: of each attention that has one of them
    /// the others, and, where both branches read the residual root of an attention, the node that gives it and the
    /// norm.
    pub(super) fn copy_whole_attentions(
        &self,
        graph: &Graph,
        needed: &FxHashSet<NodeId>,
        copied: &mut FxHashSet<NodeId>,
    ) {
        let read = |id: NodeId| -> Vec<ValueId> {
            self.reads(graph, id).into_iter().flatten().map(|value| self.skips.follow(value)).collect()
        };
        for attention in structure(graph).all {
            for nodes in self.projected(graph, &attention, read) {
                if nodes.iter().any(|id| copied.contains(id) && needed.contains(id)) {
                    copied.extend(nodes);
                }
            }
        }
        let differing = copied.clone();
        let both = graph.node_ids().filter(|id| differing.contains(id) && needed.contains(id));
        for add in both.filter(|id| graph.node(*id).is("Add")) {
            for (root, other) in sides(&read(add)) {
                let producer = graph.producer(root).filter(|id| !differing.contains(id));
                // These cost nothing to have twice, and are the ones that an attention's norm is found behind.
                let cheap = |id: &NodeId| graph.node(*id).is("Add") || graph.node(*id).is("Reshape");
                let Some(producer) = producer.filter(cheap) else { continue };
                let attention = residual_attention(graph, root, other, read);
                if attention.is_some() || is_root_of_another(graph, root) {
                    copied.insert(producer);
                    copied.extend(attention.into_iter().flatten());
                }
            }
        }
    }

    /// Returns the nodes of an attention from its projections of queries, keys and values to each of its output
    /// projections, as the pruned branch reads them.
    fn projected(
        &self,
        graph: &Graph,
        attention: &Attention,
        read: impl Fn(NodeId) -> Vec<ValueId> + Copy,
    ) -> Vec<Vec<NodeId>> {
        let operands = [&attention.query, &attention.key, &attention.value];
        let inputs = operands.into_iter().flat_map(|operand| &operand.projections);
        let roots: Vec<ValueId> = inputs.map(|projection| self.skips.follow(projection.input)).collect();
        let outputs = attention.out.iter().filter_map(|out| graph.node(out.node).output(0));
        outputs.filter_map(|output| between(graph, &roots, output, read)).map(|found| found.nodes).collect()
    }
}

/// Returns whether a node of the dense branch adds an attention to `root`.
fn is_root_of_another(graph: &Graph, root: ValueId) -> bool {
    let read = |id: NodeId| -> Vec<ValueId> { graph.node(id).operands().collect() };
    graph.uses(root).iter().any(|user| match user {
        Use::Operand { node, .. } if graph.node(*node).is("Add") => sides(&read(*node))
            .any(|(at, other)| at == root && residual_attention(graph, root, other, read).is_some()),
        _ => false,
    })
}

/// Returns each of two operands with the other one.
fn sides(operands: &[ValueId]) -> impl Iterator<Item = (ValueId, ValueId)> + use<> {
    let pair = <[ValueId; 2]>::try_from(operands).ok();
    pair.into_iter().flat_map(|[a, b]| [(a, b), (b, a)])
}

/// Returns the nodes that `value` is computed with from `root`, if they are an attention and no residual is within.
fn residual_attention(
    graph: &Graph,
    root: ValueId,
    value: ValueId,
    read: impl Fn(NodeId) -> Vec<ValueId>,
) -> Option<Vec<NodeId>> {
    let Between { nodes, joins } = between(graph, &[root], value, read)?;
    let is_attention = |id: &NodeId| ["Softmax", "Attention"].iter().any(|op| graph.node(*id).is(op));
    (nodes.iter().any(is_attention) && !joins.iter().any(|id| graph.node(*id).is("Add"))).then_some(nodes)
}

/// The nodes between some values and one that is computed from them.
#[derive(Default)]
struct Between {
    nodes: Vec<NodeId>,
    /// Those of them that compute with several operands that come from there.
    joins: Vec<NodeId>,
}

/// Returns the nodes that `value` is computed with from `roots`; `None` if they are too many, or cannot be had twice.
fn between(
    graph: &Graph,
    roots: &[ValueId],
    value: ValueId,
    read: impl Fn(NodeId) -> Vec<ValueId>,
) -> Option<Between> {
    let mut found = Between::default();
    let mut depends: FxHashMap<NodeId, bool> = FxHashMap::default();
    let mut open = vec![graph.producer(value)?];
    while let Some(id) = open.last().copied() {
        let operands = read(id);
        let producers =
            operands.iter().filter(|value| !roots.contains(value)).filter_map(|value| graph.producer(*value));
        let missing: Vec<NodeId> = producers.filter(|id| !depends.contains_key(id)).collect();
        if !missing.is_empty() {
            if open.len() + depends.len() > BUDGET {
                return None;
            }
            open.extend(missing);
            continue;
        }
        open.pop();
        let of_roots = |value: &&ValueId| {
            roots.contains(value) || graph.producer(**value).is_some_and(|id| depends.get(&id) == Some(&true))
        };
        let count = operands.iter().filter(of_roots).count();
        if depends.insert(id, count > 0).is_some() || count == 0 {
            continue;
        }
        let node = graph.node(id);
        // Where two draw numbers, or do something unknown, they are not one.
        if !node.domain.is_empty() || !node.captures.is_empty() || DRAWS.iter().any(|op| node.is(op)) {
            return None;
        }
        found.nodes.push(id);
        found.joins.extend((count > 1).then_some(id));
    }
    Some(found)
}

const DRAWS: [&str; 5] = ["Dropout", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"];
