//! Per-row inputs: an input of one element, spread over the batch by the graph, becomes one element for each row.

use super::PassError;
use crate::{
    analysis::per_row_inputs::{PerRowInputs, Reading},
    ir::{EditError, Editor, NewData, NodeSpec, Place, Use, ValueId},
    onnx::DataType,
};

/// Suffix of the names of graphs with such inputs, and of nodes that compute for each row what others computed for all.
pub(super) const SUFFIX: &str = "_rows";

pub(super) fn run(rows: &PerRowInputs, editor: &mut Editor<'_>) -> Result<(), PassError> {
    for value in &rows.inputs {
        widen(rows, *value, *value, editor)?;
        editor.set_input_shape(*value, vec![rows.stated.clone()])?;
    }
    Ok(())
}

/// Makes everything that reads `value` read `wide`, which has its elements for each row, `[batch]`.
fn widen(
    rows: &PerRowInputs,
    value: ValueId,
    wide: ValueId,
    editor: &mut Editor<'_>,
) -> Result<(), PassError> {
    for used in editor.graph().uses(value).to_vec() {
        let Use::Operand { node, slot } = used else { continue };
        match rows.reading(node, slot) {
            Some(Reading::Recomputed(output)) => {
                let copy = editor.copy_node(node, &[Some(wide)], SUFFIX, Place::First)?;
                let copy = editor.graph().node(copy);
                let copied = copy.output(0).ok_or_else(|| EditError::Gone(copy.describe()))?;
                widen(rows, output, copied, editor)?;
            }
            Some(Reading::Reshaped(output)) => widen(rows, output, wide, editor)?,
            Some(Reading::Spread(output)) => editor.redirect(output, wide)?,
            Some(Reading::Elementwise(rank)) => {
                let column = column(wide, rank, editor)?;
                editor.set_input(node, slot, column)?;
            }
            None => {}
        }
    }
    Ok(())
}

/// Adds `wide` as `[batch, 1, 1, ...]` of `rank` dimensions.
fn column(wide: ValueId, rank: usize, editor: &mut Editor<'_>) -> Result<ValueId, EditError> {
    let name = format!("{}{SUFFIX}", editor.graph().value(wide).name);
    let dims: Vec<i64> = (0..rank).map(|axis| if axis == 0 { -1 } else { 1 }).collect();
    let bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    let length = dims.len() as i64;
    let data = NewData::Bytes(bytes.into());
    let (_, shape) = editor.add_initializer(&format!("{name}/shape"), DataType::INT64, &[length], data);
    let spec = NodeSpec {
        name: &format!("{name}/Reshape{SUFFIX}"),
        op_type: "Reshape",
        inputs: &[Some(wide), Some(shape)],
        output: &name,
        attributes: Vec::new(),
    };
    editor.add_node(spec, Place::First)
}
