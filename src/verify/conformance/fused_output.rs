//! The end of a fused graph: each output that the plan reaches is `dense + w * (pruned - dense)`, from
//! `Sub(pruned, dense)`, `Mul` with w and `Add` in float32, between Casts where the output is of another type. w is the
//! plan's constant or the graph input `poa_weight`, a float32 scalar either way; or a column of that input, where it has
//! an element for each row.

use super::{interface::WEIGHT_INPUT, per_row::PerRow, signature::is_plain, value};
use crate::{
    ir::{Graph, Node, ValueId},
    onnx::{DataType, proto::type_proto},
};

/// The two networks' values that an output is mixed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mix {
    pub dense: ValueId,
    pub pruned: ValueId,
    /// The factor on the difference.
    pub w: ValueId,
}

/// Finds the mix that makes output `index` of `graph`.
///
/// # Errors
/// The violation, as a sentence.
pub(super) fn mix(graph: &Graph, index: usize) -> Result<Mix, String> {
    let io = graph.outputs().get(index).ok_or("there is no such output")?;
    // An output that states no type is float32: others are cast to it.
    let own_type = match io.info.0.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => DataType(tensor.elem_type()),
        Some(_) => return Err("the output is no tensor".into()),
        None => DataType::FLOAT,
    };
    let uncast = |value, to: DataType, role| match own_type {
        DataType::FLOAT => Ok(value),
        _ => operand_of_cast(graph, value, to, role),
    };
    let sum = uncast(io.value, own_type, "makes the output")?;
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
            let dense = uncast(dense, DataType::FLOAT, "is added to");
            let others = uncast(subtracted, DataType::FLOAT, "is subtracted").and_then(|subtracted| {
                Ok((subtracted, uncast(pruned, DataType::FLOAT, "is subtracted from")?))
            });
            match (dense, others) {
                (Ok(dense), Ok((subtracted, pruned))) => {
                    let behind = |value| value::through_identities(graph, value);
                    if behind(subtracted) == behind(dense) {
                        return Ok(Mix { dense: behind(dense), pruned: behind(pruned), w });
                    }
                    reason = "the Sub subtracts something else than the Mul's result is added to".into();
                }
                (Err(why), _) | (_, Err(why)) => reason = why,
            }
        }
    }
    Err(reason)
}

/// Checks that `w` is the plan's weight: this constant, or the input `poa_weight`, as a column of `rank` dimensions where
/// it has an element for each row.
///
/// # Errors
/// Returns its description, as a sentence.
pub(super) fn check_weight(
    graph: &Graph,
    w: ValueId,
    constant: Option<f64>,
    rows: &PerRow,
    rank: Option<usize>,
) -> Result<(), String> {
    let mut w = value::through_identities(graph, w);
    if constant.is_none() && rows.has(WEIGHT_INPUT) {
        let of = rows.columns.get(&w).filter(|(_, found)| Some(*found) == rank);
        let (of, _) =
            of.ok_or_else(|| format!("w is `{}`, expected that of each row", graph.value(w).name))?;
        w = value::through_identities(graph, *of);
    }
    let name = &graph.value(w).name;
    let Some(constant) = constant else {
        let is_input = value::kind(graph, w) == value::ValueKind::Input && name == WEIGHT_INPUT;
        return if is_input {
            Ok(())
        } else {
            Err(format!("w is `{name}`, expected the input `{WEIGHT_INPUT}`"))
        };
    };
    let expected = constant as f32;
    match value::tensor_type(graph, w) {
        Some((DataType::FLOAT, dims)) if dims.is_empty() => {}
        Some((other, dims)) => {
            return Err(format!("w is {}{dims:?}, expected a float32 scalar", other.name()));
        }
        None => return Err(format!("w is `{name}`, expected the constant {expected:?}")),
    }
    match value::scalar(graph, w) {
        Some(found) if found.to_bits() == expected.to_bits() => Ok(()),
        Some(found) => Err(format!("w is {found:?}, expected {expected:?}")),
        None => Err(format!("w can be overridden by the input `{name}`")),
    }
}

fn operand_of_cast(graph: &Graph, value: ValueId, to: DataType, role: &str) -> Result<ValueId, String> {
    let value = value::through_identities(graph, value);
    let cast = graph.producer(value).map(|id| graph.node(id));
    let is_cast = |node: &&Node| {
        node.is("Cast")
            && node.int("to") == Some(to.0.into())
            && node.attributes.len() == 1
            && node.inputs.len() == 1
            && is_plain(node)
    };
    let operand = cast.filter(is_cast).and_then(|node| node.input(0));
    operand.ok_or_else(|| format!("what {role} is not cast to {}", to.name()))
}

fn operands(graph: &Graph, value: ValueId, op: &str, role: &str) -> Result<(ValueId, ValueId), String> {
    let value = value::through_identities(graph, value);
    let node = graph.producer(value).map(|id| graph.node(id));
    match node {
        Some(node) if node.is(op) && node.attributes.is_empty() && is_plain(node) => match node.inputs[..] {
            [Some(a), Some(b)] => Ok((a, b)),
            _ => Err(format!("{} lacks an operand", node.describe())),
        },
        Some(node) => Err(format!("{} {role}, expected {op}", node.describe())),
        None => Err(format!("`{}` {role}, expected {op}", graph.value(value).name)),
    }
}
