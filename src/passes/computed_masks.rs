//! Masks computed by operators: `Where(Abs(w) <= t, 0, w)` masks a weight when the model is loaded, so that nothing
//! masked is stored (`--weights compact`). Smallest on disk; slower to load, and what an engine makes cannot be mapped. ONNX has `Shrink` for this, but
//! not every engine does, and it makes 0 of NaN, which stored masks keep.

use rustc_hash::FxHashSet;

use super::{PassError, WeightOutcome};
use crate::{
    ir::{EditError, Editor, InitializerId, NewData, NodeId, NodeSpec, Place, Use, ValueId},
    onnx::DataType,
    rules::WeightEdit,
};

/// The first version of ONNX's operators with LessOrEqual.
const OPSET: i64 = 12;

/// Replaces stored masks by computed ones wherever a mask is nothing but a threshold. Others (patterns, scales, exact
/// ties) stay stored, and so do all in a graph of an operator set before LessOrEqual.
pub(super) fn run<'a>(
    edits: impl Iterator<Item = &'a WeightEdit>,
    outcomes: &mut [WeightOutcome],
    editor: &mut Editor<'_>,
) -> Result<(), PassError> {
    if editor.graph().opset("").is_none_or(|version| version < OPSET) {
        return Ok(());
    }
    let mut done: Vec<InitializerId> = Vec::new();
    let mut masks: FxHashSet<NodeId> = FxHashSet::default();
    for (prune, outcome) in edits.zip(outcomes) {
        for (weight, tensor) in prune.weights.iter().zip(&mut outcome.tensors) {
            let (Some(masked), Some(data)) = (tensor.initializer, &tensor.data) else { continue };
            let Some(t) = data.transform.threshold() else { continue };
            if !done.contains(&masked) {
                done.push(masked);
                compute(editor, weight.initializer, masked, weight.data_type, t, &mut masks)?;
            }
            tensor.initializer = Some(weight.initializer);
        }
    }
    Ok(())
}

/// Makes everything that reads the initializer `masked` read `original` through a mask; the nodes that mask other copies
/// of the same original (`masks`) go on reading it as it is.
fn compute(
    editor: &mut Editor<'_>,
    original: InitializerId,
    masked: InitializerId,
    data_type: DataType,
    t: f32,
    masks: &mut FxHashSet<NodeId>,
) -> Result<(), PassError> {
    let gone = || EditError::Gone("a masked weight".into());
    let from = editor.graph().initializer(masked).ok_or_else(gone)?.value;
    let users: Vec<Use> = editor.graph().uses(from).to_vec();
    let weight = if original == masked {
        editor.unmask(masked)?;
        from
    } else {
        editor.graph().initializer(original).ok_or_else(gone)?.value
    };
    let name = editor.graph().value(from).name.clone();
    let scalar = |editor: &mut Editor<'_>, what: &str, value: f32| {
        let bytes = match data_type {
            DataType::FLOAT16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
            DataType::BFLOAT16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        editor.add_initializer(&format!("{name}/{what}"), data_type, &[], NewData::Bytes(bytes.into())).1
    };
    let limit = scalar(editor, "threshold", t);
    let zero = scalar(editor, "zero", 0.0);
    let mut made = Vec::new();
    let mut node = |op_type: &str, inputs: &[ValueId]| -> Result<ValueId, PassError> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        let name = format!("{name}/{op_type}");
        let spec = NodeSpec { name: &name, op_type, inputs: &inputs, output: &name, attributes: Vec::new() };
        let result = editor.add_node(spec, Place::Front)?;
        made.extend(editor.graph().producer(result));
        Ok(result)
    };
    let magnitude = node("Abs", &[weight])?;
    let is_masked = node("LessOrEqual", &[magnitude, limit])?;
    let masked = node("Where", &[is_masked, zero, weight])?;
    for used in users {
        if let Use::Operand { node, slot } = used
            && !masks.contains(&node)
        {
            editor.set_input(node, slot, masked)?;
        }
    }
    masks.extend(made);
    Ok(())
}
