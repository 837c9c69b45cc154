//! Finding attentions from data flow.

use super::{Attends, Attention, Operand, Projection, walk::Walk};
use crate::ir::{Graph, Node, NodeId, ValueId};

/// The attentions of a graph as data flow shows them.
#[derive(Clone, Debug, Default)]
pub struct Attentions {
    /// Those that are found, in the order of the graph.
    pub all: Vec<Attention>,
    /// Softmax and Attention operators around which no attention is found.
    pub strays: Vec<NodeId>,
}

/// Finds the attentions of `graph`.
pub fn structure(graph: &Graph) -> Attentions {
    let mut found = Attentions::default();
    let mut walk = None;
    for (id, node) in graph.nodes() {
        if !node.is("Softmax") && !is_whole(node) {
            continue;
        }
        let walk = walk.get_or_insert_with(|| Walk::new(graph));
        match attention(walk, id, node) {
            Some(attention) => found.all.push(attention),
            None => found.strays.push(id),
        }
    }
    found
}

/// Returns whether `node` is an operator that has a whole attention inside.
fn is_whole(node: &Node) -> bool {
    node.is("Attention") || (node.domain == "com.microsoft" && node.op_type.ends_with("Attention"))
}

fn attention(walk: &Walk<'_>, id: NodeId, node: &Node) -> Option<Attention> {
    if !is_whole(node) {
        return around_softmax(walk, id, node);
    }
    let attended = node.output(0)?;
    if node.domain == "com.microsoft" && node.op_type != "MultiHeadAttention" {
        // The projections are packed into an operand of the operator.
        let input = node.input(0)?;
        let operand = || Operand { value: input, projections: vec![Projection { node: id, slot: 1, input }] };
        return Some(build(walk, [id; 3], [operand(), operand(), operand()], attended));
    }
    let query = node.input(0)?;
    // MultiHeadAttention may have keys and values packed into one operand.
    let key = node.input(1).unwrap_or(query);
    let value = node.input(2).unwrap_or(key);
    let operand = |value| Operand { value, projections: walk.before(value) };
    Some(build(walk, [id; 3], [operand(query), operand(key), operand(value)], attended))
}

fn around_softmax(walk: &Walk<'_>, id: NodeId, node: &Node) -> Option<Attention> {
    let computed = |n: &Node| is_product(n) && n.input(1).is_some_and(|v| !walk.is_fixed(v));
    let scores = walk.nearest_before(node.input(0)?, computed)?;
    let (product, slot) = walk.nearest_after(node.output(0)?, computed)?;
    let (read, multiplied) = (walk.graph.node(scores), walk.graph.node(product));
    let operand = |value| Operand { value, projections: walk.before(value) };
    let values = multiplied.input(1 - slot)?;
    let operands = [operand(read.input(0)?), operand(read.input(1)?), operand(values)];
    Some(build(walk, [id, scores, product], operands, multiplied.output(0)?))
}

fn is_product(node: &Node) -> bool {
    node.is("MatMul")
        || node.is("Einsum")
        || (node.domain == "com.microsoft" && node.op_type == "FusedMatMul")
}

fn build(
    walk: &Walk<'_>,
    [node, scores, product]: [NodeId; 3],
    [query, key, value]: [Operand; 3],
    attended: ValueId,
) -> Attention {
    let out = walk.after(attended);
    let attends = attends(walk, &query, &key);
    Attention { node, scores, product, query, key, value, attended, out, attends }
}

fn attends(walk: &Walk<'_>, query: &Operand, key: &Operand) -> Attends {
    let sources = |operand: &Operand| -> Vec<ValueId> {
        let inputs = operand.projections.iter().map(|p| unmoved(walk.graph, p.input));
        let mut inputs: Vec<_> = inputs.collect();
        if inputs.is_empty() {
            inputs.push(unmoved(walk.graph, operand.value));
        }
        inputs
    };
    let (mine, theirs) = (sources(query), sources(key));
    match (theirs.iter().all(|v| mine.contains(v)), theirs.iter().any(|v| mine.contains(v))) {
        (true, _) => Attends::Itself,
        (false, true) => Attends::Both,
        (false, false) => Attends::Other,
    }
}

/// Returns the value that `value` is before operators that only move elements.
fn unmoved(graph: &Graph, mut value: ValueId) -> ValueId {
    const MOVES: [&str; 9] = [
        "Identity",
        "Cast",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "QuantizeLinear",
        "DynamicQuantizeLinear",
    ];
    while let Some(node) = graph.producer(value).map(|p| graph.node(p))
        && MOVES.iter().any(|op| node.is(op))
        && let Some(operand) = node.input(0)
    {
        value = operand;
    }
    value
}
