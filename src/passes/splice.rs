//! Splice: templates of nodes are put into the graph, in front of the operands that are to read their results.

use rustc_hash::FxHashMap;

use super::PassError;
use crate::{
    analysis::splice::Splice,
    ir::{Editor, NewData, NodeId, NodeSpec, Place, TemplateOperand, TemplateTensor, ValueId},
    rules::Change,
};

/// Operands, each a node and one of its operands, and the results of templates that they are to be.
pub(super) type Spliced = FxHashMap<(NodeId, usize), ValueId>;

/// Adds the templates of `changes`. Nothing reads their results yet.
pub(super) fn add<'a>(
    changes: impl Iterator<Item = &'a Change>,
    editor: &mut Editor<'_>,
) -> Result<Spliced, PassError> {
    let mut spliced = Spliced::default();
    for change in changes {
        let scope = format!("{}/{}", change.subject, change.rule);
        for splice in change.splices() {
            if let Some(result) = add_template(&scope, splice, editor)? {
                spliced.extend(splice.at.iter().map(|operand| (*operand, result)));
            }
        }
    }
    Ok(spliced)
}

/// Takes away what the model states of values that `changes` give other shapes: engines that believe it fail.
pub(super) fn forget_types<'a>(changes: impl Iterator<Item = &'a Change>, editor: &mut Editor<'_>) {
    for splice in changes.flat_map(Change::splices) {
        editor.forget_types(&splice.resized);
    }
}

/// Makes the operands read the results.
pub(super) fn connect(spliced: &Spliced, editor: &mut Editor<'_>) -> Result<(), PassError> {
    let mut operands: Vec<_> = spliced.iter().collect();
    operands.sort_unstable();
    for ((node, slot), result) in operands {
        editor.set_input(*node, *slot, *result)?;
    }
    Ok(())
}

/// Adds one template and returns its result.
fn add_template(scope: &str, splice: &Splice, editor: &mut Editor<'_>) -> Result<Option<ValueId>, PassError> {
    let Some(reader) = splice.first_reader() else { return Ok(None) };
    let mut tensors: Vec<(&TemplateTensor, ValueId)> = Vec::new();
    let mut results: Vec<ValueId> = Vec::new();
    for node in &splice.template.nodes {
        let name = format!("{scope}/{}", node.op_type);
        let mut inputs = Vec::with_capacity(node.operands.len());
        for operand in &node.operands {
            inputs.push(match operand {
                TemplateOperand::Value(value) => Some(*value),
                TemplateOperand::Node(index) => results.get(*index).copied(),
                TemplateOperand::Absent => None,
                TemplateOperand::Tensor(tensor) => {
                    let known = tensors.iter().find(|(known, _)| *known == tensor);
                    Some(match known {
                        Some((_, value)) => *value,
                        None => {
                            let data = NewData::Bytes(tensor.bytes.clone());
                            let hint = format!("{scope}/constant");
                            let (_, value) =
                                editor.add_initializer(&hint, tensor.data_type, &tensor.dims, data);
                            tensors.push((tensor, value));
                            value
                        }
                    })
                }
            });
        }
        let spec = NodeSpec {
            name: &name,
            op_type: &node.op_type,
            inputs: &inputs,
            output: &format!("{name}_output_0"),
            attributes: node.attributes.clone(),
        };
        results.push(editor.add_node(spec, Place::Before(reader))?);
    }
    Ok(results.pop())
}
