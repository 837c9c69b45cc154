//! The end of a fused graph: each output is `dense + w * (pruned - dense)`, from `Sub(pruned, dense)`, `Mul` with w and
//! `Add`, in the output's type or in float32 between Casts. w is the plan's constant or the graph input `poa_weight`.

use super::{interface::WEIGHT_INPUT, value};
use crate::{
    ir::{Graph, Node, ValueId},
    onnx::{DataType, proto::type_proto},
};

/// The two networks' values that an output is mixed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mix {
    pub dense: ValueId,
    pub pruned: ValueId,
}

/// Finds the mix that makes output `index` of `graph`. `weight` is the plan's w, if that is one number.
///
/// # Errors
/// What is not as it must be, as a sentence.
pub(super) fn mix(graph: &Graph, index: usize, weight: Option<f64>) -> Result<Mix, String> {
    let io = graph.outputs().get(index).ok_or("there is no such output")?;
    let own_type = match io.info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => DataType(tensor.elem_type()),
        _ => return Err("the output is no tensor".into()),
    };
    // A Cast back to the output's type, and Casts to float32 of what is mixed.
    let sum = through_cast(graph, io.value, own_type);
    let (a, b) = operands(graph, sum, "Add", "makes the output")?;
    let product = |value: ValueId| operands(graph, value, "Mul", "is added").ok();
    let candidates = [(a, product(b)), (b, product(a))];
    let mut reason = String::from("no Mul of a Sub by w is added to the dense output");
    for (dense, factors) in candidates {
        let Some((x, y)) = factors else { continue };
        for (difference, w) in [(x, y), (y, x)] {
            let Ok((pruned, subtracted)) = operands(graph, difference, "Sub", "is multiplied") else {
                continue;
            };
            let widened = |value| through_cast(graph, value, DataType::FLOAT);
            if widened(subtracted) != widened(dense) {
                reason = "the Sub subtracts something else than the Mul's result is added to".into();
                continue;
            }
            match is_weight(graph, w, weight) {
                Ok(()) => return Ok(Mix { dense: widened(dense), pruned: widened(pruned) }),
                Err(why) => reason = why,
            }
        }
    }
    Err(reason)
}

fn is_weight(graph: &Graph, value: ValueId, weight: Option<f64>) -> Result<(), String> {
    let mut value = value::through_identities(graph, value);
    for float in [DataType::FLOAT, DataType::FLOAT16, DataType::BFLOAT16] {
        value = through_cast(graph, value, float);
    }
    let is_scalar = |io: &crate::ir::GraphIo| match io.info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => {
            tensor.shape.as_ref().is_some_and(|s| s.dim.is_empty())
        }
        _ => false,
    };
    let mut inputs = graph.inputs();
    let is_input = inputs.any(|io| io.value == value && io.info.name() == WEIGHT_INPUT && is_scalar(io));
    let stated = value::scalar(graph, value);
    match (stated, weight) {
        (None, _) if is_input => Ok(()),
        (Some(found), Some(expected)) => {
            let tensor = value::tensor_type(graph, value).map(|(data_type, _)| data_type);
            let expected = expected as f32;
            let rounded = match tensor {
                Some(DataType::FLOAT16) => half::f16::from_f32(expected).to_f32(),
                Some(DataType::BFLOAT16) => half::bf16::from_f32(expected).to_f32(),
                _ => expected,
            };
            if found == rounded { Ok(()) } else { Err(format!("w is {found}, expected {rounded}")) }
        }
        (Some(_), None) if is_input => Ok(()),
        (Some(found), None) => Err(format!("w is {found} always, but the plan changes it from step to step")),
        (None, _) => Err(format!("w is neither a constant nor the input `{WEIGHT_INPUT}`")),
    }
}

/// `value`, looked at through Identity and a Cast to `to`.
fn through_cast(graph: &Graph, value: ValueId, to: DataType) -> ValueId {
    let value = value::through_identities(graph, value);
    let cast = graph.producer(value).map(|id| graph.node(id));
    let is_cast = |node: &&Node| node.is("Cast") && node.int("to") == Some(to.0.into());
    match cast.filter(is_cast).and_then(|node| node.input(0)) {
        Some(operand) => value::through_identities(graph, operand),
        None => value,
    }
}

fn operands(graph: &Graph, value: ValueId, op: &str, role: &str) -> Result<(ValueId, ValueId), String> {
    let value = value::through_identities(graph, value);
    let node = graph.producer(value).map(|id| graph.node(id));
    match node {
        Some(node) if node.is(op) => match (node.input(0), node.input(1)) {
            (Some(a), Some(b)) => Ok((a, b)),
            _ => Err(format!("{} lacks an operand", node.describe())),
        },
        Some(node) => Err(format!("{} {role}, expected {op}", node.describe())),
        None => Err(format!("`{}` {role}, expected {op}", graph.value(value).name)),
    }
}
