//! Element types of a node's results.

use super::infer::Call;
use crate::{
    ir::Attribute,
    onnx::{DataType, proto::tensor_proto},
};

const UINT8: DataType = DataType(tensor_proto::DataType::Uint8 as i32);

/// Returns the element type of each result, from the first on; `None` where it is not known. Results past the end of
/// the list are unknown too.
pub(super) fn results(call: &Call<'_>) -> Vec<Option<DataType>> {
    let node = call.node;
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return Vec::new();
    }
    let operand = |index: usize| call.get(index).and_then(|t| t.data_type);
    let stated =
        |name: &str| node.int(name).and_then(|t| i32::try_from(t).ok()).filter(|t| *t != 0).map(DataType);
    let first = operand(0);
    match node.op_type.as_str() {
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "And" | "Or" | "Xor" | "Not"
        | "IsNaN" | "IsInf" => vec![Some(DataType::BOOL)],
        "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" => vec![Some(DataType::INT64)],
        "Cast" => vec![stated("to")],
        "CastLike" | "Where" => vec![operand(1)],
        "Constant" => vec![constant(call)],
        "ConstantOfShape" => {
            let value = node.attribute("value").and_then(Attribute::tensor);
            vec![Some(value.map_or(DataType::FLOAT, |t| DataType(t.data_type())))]
        }
        "RandomNormal" | "RandomUniform" => vec![Some(stated("dtype").unwrap_or(DataType::FLOAT))],
        "RandomNormalLike" | "RandomUniformLike" | "EyeLike" | "Bernoulli" => vec![stated("dtype").or(first)],
        "OneHot" => vec![operand(2)],
        "TopK" | "MaxPool" => vec![first, Some(DataType::INT64)],
        "Dropout" => vec![first, Some(DataType::BOOL)],
        "LayerNormalization" => {
            let stash = Some(stated("stash_type").unwrap_or(DataType::FLOAT));
            vec![first, stash, stash]
        }
        "BatchNormalization" => vec![first, operand(3), operand(4)],
        "QuantizeLinear" => vec![operand(2).or(stated("output_dtype")).or(Some(UINT8))],
        "DequantizeLinear" => vec![stated("output_dtype").or(operand(1))],
        "DynamicQuantizeLinear" => vec![Some(UINT8), Some(DataType::FLOAT), Some(UINT8)],
        "MatMulInteger" | "ConvInteger" => vec![Some(DataType::INT32)],
        "QLinearConv" | "QLinearMatMul" => vec![operand(7)],
        "Attention" => vec![first, operand(1), operand(2), first],
        // Results of subgraphs and sequences are not followed.
        "If" | "Loop" | "Scan" | "SequenceMap" | "SequenceAt" | "Optional" | "OptionalGetElement" => {
            Vec::new()
        }
        "Unique" => vec![first, Some(DataType::INT64), Some(DataType::INT64), Some(DataType::INT64)],
        "Split" => vec![first; node.outputs.len()],
        op if SAME_AS_FIRST.contains(&op) => vec![first],
        _ => Vec::new(),
    }
}

/// Operators whose only (or first) result has the element type of the first operand.
const SAME_AS_FIRST: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Ceil",
    "Celu",
    "CenterCropPad",
    "Clip",
    "Col2Im",
    "Compress",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "CumSum",
    "DepthToSpace",
    "Det",
    "Div",
    "Einsum",
    "Elu",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GridSample",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Identity",
    "InstanceNormalization",
    "LRN",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "Max",
    "Mean",
    "MeanVarianceNormalization",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "RMSNormalization",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "ReverseSequence",
    "RotaryEmbedding",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "TensorScatter",
    "ThresholdedRelu",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Upsample",
];

fn constant(call: &Call<'_>) -> Option<DataType> {
    let has = |name: &str| call.node.attribute(name).is_some();
    match call.node.attribute("value").and_then(Attribute::tensor) {
        Some(tensor) => Some(DataType(tensor.data_type())).filter(|t| t.0 != 0),
        None if has("value_int") || has("value_ints") => Some(DataType::INT64),
        None if has("value_float") || has("value_floats") => Some(DataType::FLOAT),
        None => None,
    }
}
