//! Values behind Identity nodes and masks made by operators.

use prost::Message;

use super::{select::Float, signature::is_plain};
use crate::{
    ir::{Graph, Node, Origin, ValueId, WeightReader},
    onnx::{DataType, OnnxError, TensorHeader},
    verify::constant::{of_node, written},
};

/// The kind of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueKind {
    /// A graph input that has no default.
    Input,
    /// A tensor: an initializer, a Constant, or either behind a mask made by operators.
    Tensor,
    /// A sparse initializer.
    Sparse,
    /// A result of any other node.
    Result,
    /// The value was removed.
    Nothing,
}

/// Returns the kind of `value`.
pub(super) fn kind(graph: &Graph, value: ValueId) -> ValueKind {
    match graph.value(value).origin {
        Origin::Input(_) => ValueKind::Input,
        Origin::Initializer(_) => ValueKind::Tensor,
        Origin::SparseInitializer => ValueKind::Sparse,
        Origin::Removed => ValueKind::Nothing,
        Origin::Node { node, .. } => {
            let node = graph.node(node);
            let is_tensor =
                node.is("Constant") && constant(node).is_some() || mask_by_operators(graph, node).is_some();
            if is_tensor { ValueKind::Tensor } else { ValueKind::Result }
        }
    }
}

/// Returns the operand that `value` is, if an Identity makes it.
pub(super) fn behind_identity(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let node = graph.node(graph.producer(value)?);
    let is_whole = node.attributes.is_empty() && node.inputs.iter().skip(1).all(Option::is_none);
    if node.is("Identity") && is_whole && is_plain(node) { node.input(0) } else { None }
}

/// Returns the value behind `value`, through Identity nodes.
pub(super) fn through_identities(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Some(operand) = behind_identity(graph, value) {
        value = operand;
    }
    value
}

/// A tensor.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub name: String,
    pub data_type: DataType,
    /// Its elements; for a type that has no fixed size, such as string, how they are written.
    pub elements: WeightReader,
    /// The mask that operators put on the elements before anything else sees them.
    pub mask: Option<OperatorMask>,
    /// The name of the graph input that can override it.
    pub input: Option<String>,
}

/// Returns type and dimensions of the tensor `value`, of [`ValueKind::Tensor`].
pub(super) fn tensor_type(graph: &Graph, value: ValueId) -> Option<(DataType, Vec<i64>)> {
    match graph.value(value).origin {
        Origin::Initializer(id) => {
            let header = &graph.initializer(id)?.header;
            Some((header.data_type, header.dims.clone()))
        }
        Origin::Node { node, .. } => {
            let node = graph.node(node);
            if let Some((base, _)) = mask_by_operators(graph, node) {
                return tensor_type(graph, base);
            }
            constant(node).map(|header| (header.data_type, header.dims))
        }
        _ => None,
    }
}

/// Returns the tensor `value`, of [`ValueKind::Tensor`].
///
/// # Errors
/// [`OnnxError`] if its elements cannot be read.
pub(super) fn tensor(graph: &Graph, value: ValueId) -> Result<Tensor, OnnxError> {
    let name = graph.value(value).name.clone();
    let not_one = || OnnxError::invalid(format!("value `{name}`"), "it is no tensor");
    let of = |header: &TensorHeader, input| -> Result<Tensor, OnnxError> {
        Ok(Tensor {
            name: name.clone(),
            data_type: header.data_type,
            elements: match header.data_type.bits() {
                Some(_) => graph.weight_reader(header)?,
                None => WeightReader::Memory(written(header)?.encode_to_vec().into()),
            },
            mask: None,
            input,
        })
    };
    match graph.value(value).origin {
        Origin::Initializer(id) => {
            let header = &graph.initializer(id).ok_or_else(not_one)?.header;
            of(header, graph.is_overridable(value).then(|| name.clone()))
        }
        Origin::Node { node, .. } => {
            let node = graph.node(node);
            if let Some((base, mask)) = mask_by_operators(graph, node) {
                return Ok(Tensor { mask: Some(mask), ..tensor(graph, base)? });
            }
            of(&constant(node).ok_or_else(not_one)?, None)
        }
        _ => Err(not_one()),
    }
}

/// Returns the tensor in a Constant node that has nothing else, if its elements have a size.
fn constant(node: &Node) -> Option<TensorHeader> {
    let is_one = node.inputs.is_empty() && node.outputs.len() == 1 && node.attributes.len() == 1;
    let header = if is_one && is_plain(node) { of_node(node, &node.name).ok()?? } else { return None };
    header.data_type.bits().map(|_| header)
}

/// A magnitude mask made by operators: elements with `|w| <= t` become 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct OperatorMask {
    /// The threshold.
    pub t: f32,
    /// Whether NaN stays; else it becomes 0 too.
    pub keeps_nan: bool,
    /// How the elements lie.
    pub float: Float,
}

/// Returns the tensor and the mask, if `node` is the last of a few that mask a tensor. Known forms are
/// `Shrink(w, lambd = t, bias = 0)`, `Where(Greater(Abs(w), t), w, 0)` and `Where(LessOrEqual(Abs(w), t), 0, w)`, on
/// float tensors, with a threshold and a zero of the tensor's type that don't widen its shape and that no caller can
/// override.
fn mask_by_operators(graph: &Graph, node: &Node) -> Option<(ValueId, OperatorMask)> {
    let base = |value: ValueId| {
        let value = through_identities(graph, value);
        let plain = match graph.producer(value) {
            None => true,
            Some(producer) => graph.node(producer).is("Constant"),
        };
        (plain && kind(graph, value) == ValueKind::Tensor).then_some(value)
    };
    if !(node.is("Shrink") || node.is("Where")) || node.outputs.len() != 1 || !is_plain(node) {
        return None;
    }
    let has_only = |names: &[&str]| node.attributes.iter().all(|a| names.contains(&a.name()));
    if node.is("Shrink") && node.inputs.len() == 1 && has_only(&["lambd", "bias"]) {
        let t = node.float("lambd").unwrap_or(0.5);
        // Shrink subtracts the bias from what stays.
        let keeps = node.float("bias").unwrap_or(0.0) == 0.0 && t >= 0.0;
        let weight = base(node.input(0)?)?;
        let float = Float::of(tensor_type(graph, weight)?.0)?;
        return keeps.then_some((weight, OperatorMask { t, keeps_nan: false, float }));
    }
    if node.is("Shrink") || !has_only(&[]) {
        return None;
    }
    let made_by = |value: ValueId| {
        let node = graph.node(graph.producer(through_identities(graph, value))?);
        (node.attributes.is_empty() && is_plain(node)).then_some(node)
    };
    let condition = made_by(node.input(0)?)?;
    let (kept, zero, keeps_nan) = match () {
        () if condition.is("Greater") => (node.input(1)?, node.input(2)?, false),
        () if condition.is("LessOrEqual") => (node.input(2)?, node.input(1)?, true),
        () => return None,
    };
    let magnitude = made_by(condition.input(0)?).filter(|abs| abs.is("Abs"))?;
    let weight = base(kept)?;
    let (data_type, dims) = tensor_type(graph, weight)?;
    let float = Float::of(data_type)?;
    let like_weight = |value: ValueId| {
        let (other, rank) = tensor_type(graph, through_identities(graph, value))?;
        (other == data_type && rank.len() <= dims.len()).then(|| scalar(graph, value))?
    };
    let t = like_weight(condition.input(1)?).filter(|t| *t >= 0.0)?;
    let masks = base(magnitude.input(0)?)? == weight && like_weight(zero)?.to_bits() == 0;
    masks.then_some((weight, OperatorMask { t, keeps_nan, float }))
}

/// Returns the one element of a float tensor that no caller can override, as float32 (a float64 is none).
pub(super) fn scalar(graph: &Graph, value: ValueId) -> Option<f32> {
    let value = through_identities(graph, value);
    if graph.producer(value).is_some_and(|node| !graph.node(node).is("Constant")) {
        return None;
    }
    let tensor = tensor(graph, value).ok().filter(|tensor| tensor.input.is_none())?;
    let mut bytes = [0; 4];
    let bytes = bytes.get_mut(..usize::try_from(tensor.elements.len()).ok()?)?;
    tensor.elements.read_at(0, bytes).ok()?;
    match (tensor.data_type, &*bytes) {
        (DataType::FLOAT, [a, b, c, d]) => Some(f32::from_le_bytes([*a, *b, *c, *d])),
        (DataType::FLOAT16, [a, b]) => Some(half::f16::from_le_bytes([*a, *b]).to_f32()),
        (DataType::BFLOAT16, [a, b]) => Some(half::bf16::from_le_bytes([*a, *b]).to_f32()),
        _ => None,
    }
}
