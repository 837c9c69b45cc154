//! Which operators multiply by a weight, and which only move or combine elements.

use crate::ir::Node;

/// Operators of ONNX Runtime that compute a layer from its weight as it is, with something more fused into them.
const FUSED: [&str; 3] = ["FusedMatMul", "FusedGemm", "FusedConv"];

/// Operators that hold weights in forms that cannot be masked here: of integers, packed, or in another order.
const PACKED: [&str; 12] = [
    "MatMulInteger",
    "ConvInteger",
    "QLinearMatMul",
    "QLinearConv",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "NhwcConv",
    "NhwcFusedConv",
    "QAttention",
    "PackedAttention",
    "QGemm",
];

/// Standard operators besides those of layers that multiply matrices, or run other operators.
const OPAQUE: [&str; 9] = ["Einsum", "RNN", "LSTM", "GRU", "DeformConv", "If", "Loop", "Scan", "SequenceMap"];

/// Operators of ONNX Runtime that read matrices which are no weights of layers: tables, biases, masks.
const HARMLESS: [&str; 6] = [
    "RotaryEmbedding",
    "MultiHeadAttention",
    "GroupQueryAttention",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "RelativePositionBias",
];

/// Returns whether `node` is the multiplication of a Linear or Conv layer, if its operand 1 is a weight.
pub fn is_layer(node: &Node) -> bool {
    is_plain(node) || is_fused(node) || is_packed(node)
}

/// Returns whether `node` is the standard operator of a Linear or Conv layer.
pub fn is_plain(node: &Node) -> bool {
    node.is("MatMul") || node.is("Gemm") || node.is("Conv")
}

/// Returns whether `node` is a layer's operator with a scale or an activation fused into it, its weight as it was.
pub fn is_fused(node: &Node) -> bool {
    node.domain == "com.microsoft"
        && FUSED.contains(&node.op_type.as_str())
        && ["transA", "transBatchA", "transBatchB"].iter().all(|name| node.int(name).unwrap_or(0) == 0)
}

/// Returns whether `node` holds its weight in a form that cannot be masked.
pub fn is_packed(node: &Node) -> bool {
    PACKED.contains(&node.op_type.as_str())
        || (node.domain == "com.microsoft" && node.op_type == "Attention")
        || (node.domain.starts_with("com.microsoft.") && node.op_type.contains("Conv"))
}

/// Returns whether a matrix that `node` reads may be the weight of a layer, although `node` is no layer's operator.
pub fn is_opaque(node: &Node) -> bool {
    match node.domain.as_str() {
        "" | "ai.onnx" => OPAQUE.contains(&node.op_type.as_str()),
        "com.microsoft" => !HARMLESS.contains(&node.op_type.as_str()),
        _ => true,
    }
}
