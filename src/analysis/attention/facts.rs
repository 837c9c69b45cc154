//! Heads, scale and tokens of an attention.

use super::{Attention, AttentionFacts, einsum::Equation};
use crate::{
    analysis::shapes::{Dim, Shapes},
    ir::{Graph, Node, NodeId, ValueId},
};

/// Most operators that stand between the product of queries and keys and what scales it.
const DEPTH: u32 = 16;

/// Operators that move elements and change none.
const MOVES: [&str; 10] = [
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Cast",
    "Dropout",
    "Expand",
    "Tile",
];

impl Attention {
    /// Returns the numbers of the attention that follow from `shapes`.
    pub fn facts(&self, graph: &Graph, shapes: &Shapes) -> AttentionFacts {
        let node = graph.node(self.node);
        if node.is("Softmax") { self.of_softmax(graph, shapes, node) } else { self.of_whole(shapes, node) }
    }

    fn of_softmax(&self, graph: &Graph, shapes: &Shapes, softmax: &Node) -> AttentionFacts {
        let dims = softmax.input(0).and_then(|v| shapes.of(v)).map_or(&[][..], |shape| &shape.dims);
        let rank = dims.len() as i64;
        let axis = softmax.int("axis").unwrap_or(-1);
        let last = axis == -1 || axis == rank - 1;
        let (queries, keys) = match dims {
            [.., queries, keys] if last => (known(queries), known(keys)),
            _ => (None, None),
        };
        let heads = match dims {
            [_, heads, _, _] => heads.constant().and_then(|n| u64::try_from(n).ok()),
            [_, _, _] => self.width(graph, shapes).zip(self.head_width(graph, shapes)).and_then(divide),
            _ => None,
        };
        AttentionFacts { heads, scale: self.scale(graph, shapes), queries, keys }
    }

    fn of_whole(&self, shapes: &Shapes, node: &Node) -> AttentionFacts {
        let dims = |value: ValueId| shapes.of(value).map_or(&[][..], |shape| &shape.dims);
        let tokens = |value| match dims(value) {
            [_, _, tokens, _] if node.is("Attention") => known(tokens),
            [_, tokens, _] => known(tokens),
            _ => None,
        };
        let stated = node.int("q_num_heads").or(node.int("num_heads")).and_then(|n| u64::try_from(n).ok());
        let (heads, width) = match dims(self.query.value) {
            [_, heads, _, width] if node.is("Attention") => (whole(heads), whole(width)),
            [_, _, all] => (stated, whole(all).zip(stated).and_then(divide)),
            _ => (stated, None),
        };
        let own = node.float("scale").filter(|s| *s != 0.0).map(f64::from);
        AttentionFacts {
            heads,
            scale: own.or_else(|| Some(1.0 / (width? as f64).sqrt())),
            queries: tokens(self.query.value),
            keys: tokens(self.key.value),
        }
    }

    /// Channels of all heads together: those that the output projection reads.
    fn width(&self, graph: &Graph, shapes: &Shapes) -> Option<u64> {
        let out = self.out.first()?;
        let dims = &shapes.of(out.input)?.dims;
        let is_conv = graph.node(out.node).op_type.contains("Conv");
        whole(if is_conv { dims.get(1)? } else { dims.last()? })
    }

    /// Channels of one head.
    fn head_width(&self, graph: &Graph, shapes: &Shapes) -> Option<u64> {
        let dims = &shapes.of(self.attended)?.dims;
        let product = graph.node(self.product);
        let slot = product.inputs.iter().position(|v| *v == Some(self.value.value))?;
        let axis = match Equation::of(product) {
            Some(equation) => equation.axis_of(slot)?,
            None if slot == 1 => dims.len().checked_sub(1)?,
            None => dims.len().checked_sub(2)?,
        };
        whole(dims.get(axis)?)
    }

    fn scale(&self, graph: &Graph, shapes: &Shapes) -> Option<f64> {
        let scores = graph.node(self.scores);
        let alpha = f64::from(scores.float("alpha").unwrap_or(1.0));
        let chain = Chain { graph, shapes };
        let after = chain.factor(graph.node(self.node).input(0)?, Some(self.scores), DEPTH)?;
        let queries = chain.factor(self.query.value, None, DEPTH)?;
        let keys = chain.factor(self.key.value, None, DEPTH)?;
        Some(alpha * after * queries * keys)
    }
}

struct Chain<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
}

impl Chain<'_> {
    /// Returns the factor by which `value` was multiplied since `from` made it, masks added on the way or not. Without
    /// a `from`, since the nearest operator that does more than to move or scale.
    fn factor(&self, value: ValueId, from: Option<NodeId>, depth: u32) -> Option<f64> {
        let id = self.graph.producer(value).filter(|_| depth > 0);
        if id.is_some() && id == from {
            return Some(1.0);
        }
        let otherwise = from.is_none().then_some(1.0);
        let Some(node) = id.map(|id| self.graph.node(id)) else { return otherwise };
        let next = |slot: usize| self.factor(node.input(slot)?, from, depth - 1);
        let scalar = |slot: usize| node.input(slot).and_then(|v| self.shapes.scalar(v));
        match node.op_type.as_str() {
            op if MOVES.contains(&op) => next(0),
            "Mul" if scalar(1).is_some() => Some(next(0)? * scalar(1)?),
            "Mul" if scalar(0).is_some() => Some(next(1)? * scalar(0)?),
            "Div" if scalar(1).is_some() => Some(next(0)? / scalar(1)?),
            "Add" if from.is_some() => next(0).or_else(|| next(1)),
            "Where" if from.is_some() => next(1).or_else(|| next(2)),
            _ => otherwise,
        }
    }
}

fn known(dim: &Dim) -> Option<Dim> {
    dim.is_known().then(|| dim.clone())
}

fn whole(dim: &Dim) -> Option<u64> {
    dim.constant().and_then(|n| u64::try_from(n).ok())
}

/// Returns all channels by those of a head.
fn divide((all, one): (u64, u64)) -> Option<u64> {
    (one > 0 && all % one == 0).then(|| all / one)
}
