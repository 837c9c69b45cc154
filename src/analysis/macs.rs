//! Multiply-accumulate operations of a node at concrete sizes.
//!
//! Counted as in the literature on diffusion UNets (and as torch's and fvcore's counters do): the multiplications of
//! convolutions, matrix products and attention. Biases, norms and activations are not counted.

use rten_shape_inference::einsum_parser::{EinsumExpr, expand_ellipsis};
use rustc_hash::FxHashMap;

use super::shapes::{ConcreteShapes, Shapes, bind_sizes};
use crate::ir::{Graph, Node, NodeId};

/// Multiply-accumulates of `node` (Conv, ConvTranspose, Gemm, MatMul, Attention, Einsum); 0 for any other operator,
/// and where a shape that it takes is not known.
pub fn macs(graph: &Graph, shapes: &ConcreteShapes, node: NodeId) -> u64 {
    let Some(node) = graph.get(node).filter(|n| matches!(n.domain.as_str(), "" | "ai.onnx")) else {
        return 0;
    };
    let count = match node.op_type.as_str() {
        "Conv" => conv(shapes, node),
        "ConvTranspose" => conv_transpose(shapes, node),
        "Gemm" => gemm(shapes, node),
        "MatMul" => matmul(shapes, node),
        "Attention" => attention(shapes, node),
        "Einsum" => einsum(shapes, node),
        _ => Some(0),
    };
    count.unwrap_or(0)
}

/// Text tokens that multiply-accumulates are counted with: what CLIP's tokenizer pads to.
const TOKENS: i64 = 77;

/// Returns the shapes at the latent size `(height, width)`, for one image and the tokens of CLIP.
pub fn at_size(graph: &Graph, shapes: &Shapes, (height, width): (i64, i64)) -> ConcreteShapes {
    let bindings = bind_sizes(graph, 1, height, width, TOKENS);
    let bindings: Vec<(&str, i64)> = bindings.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    shapes.evaluate(&bindings)
}

/// Multiply-accumulates of each node, indexed by node id.
pub fn each(graph: &Graph, shapes: &ConcreteShapes) -> Vec<u64> {
    let mut all = vec![0; graph.node_capacity()];
    for id in graph.node_ids() {
        if let Some(place) = all.get_mut(id.index()) {
            *place = macs(graph, shapes, id);
        }
    }
    all
}

fn operand<'s>(shapes: &'s ConcreteShapes, node: &Node, index: usize) -> Option<&'s [i64]> {
    shapes.of(node.input(index)?)
}

fn result<'s>(shapes: &'s ConcreteShapes, node: &Node) -> Option<&'s [i64]> {
    shapes.of(node.output(0)?)
}

fn product(dims: &[i64]) -> Option<u64> {
    dims.iter().try_fold(1u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?))
}

/// Counts a convolution: each element of the result takes one kernel over the channels of its group; weights are
/// `[out, in / groups, ...kernel]`.
fn conv(shapes: &ConcreteShapes, node: &Node) -> Option<u64> {
    product(result(shapes, node)?)?.checked_mul(product(operand(shapes, node, 1)?.get(1..)?)?)
}

/// Counts a transposed convolution: each element of the operand is multiplied by one kernel; weights are `[in, out /
/// groups, ...kernel]`.
fn conv_transpose(shapes: &ConcreteShapes, node: &Node) -> Option<u64> {
    product(operand(shapes, node, 0)?)?.checked_mul(product(operand(shapes, node, 1)?.get(1..)?)?)
}

fn gemm(shapes: &ConcreteShapes, node: &Node) -> Option<u64> {
    let transposed = node.int("transA").unwrap_or(0) != 0;
    let inner = *operand(shapes, node, 0)?.get(usize::from(!transposed))?;
    product(result(shapes, node)?)?.checked_mul(u64::try_from(inner).ok()?)
}

fn matmul(shapes: &ConcreteShapes, node: &Node) -> Option<u64> {
    let inner = *operand(shapes, node, 0)?.last()?;
    product(result(shapes, node)?)?.checked_mul(u64::try_from(inner).ok()?)
}

/// Returns the products of queries with keys and of weights with values. Cached keys and values are not counted.
fn attention(shapes: &ConcreteShapes, node: &Node) -> Option<u64> {
    let (q, k, v) = (operand(shapes, node, 0)?, operand(shapes, node, 1)?, result(shapes, node)?);
    // Keys are [batch, heads, length, size] or [batch, length, heads * size].
    let length = *k.get(k.len().checked_sub(2)?)?;
    let length = u64::try_from(length).ok()?;
    product(q)?.checked_add(product(v)?)?.checked_mul(length)
}

/// Counts one multiplication for each combination of all labels: exact for two operands, an upper bound for more.
fn einsum(shapes: &ConcreteShapes, node: &Node) -> Option<u64> {
    let equation = EinsumExpr::parse(node.string("equation")?).ok()?;
    let operands: Vec<&[i64]> =
        (0..node.inputs.len()).map(|i| operand(shapes, node, i)).collect::<Option<_>>()?;
    let broadcast = equation.validate_inputs(operands.iter().map(|dims| Some(dims.len()))).ok()?;
    let mut sizes: FxHashMap<char, i64> = FxHashMap::default();
    for (term, dims) in equation.inputs.iter().zip(&operands) {
        for (label, size) in expand_ellipsis(term, broadcast).chars().zip(*dims) {
            let known = sizes.entry(label).or_insert(1);
            *known = (*known).max(*size);
        }
    }
    product(&sizes.into_values().collect::<Vec<_>>())
}
