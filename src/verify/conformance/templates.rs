//! The original with the templates of the plan beside it. Nothing reads their results: a
//! [`Substitution`](super::substitution::Substitution) says which operands are to be those.

use std::borrow::Cow;

use rustc_hash::FxHashMap;

use crate::{
    ir::{Attribute, EditError, Graph, NodeId, NodeSpec, Place, TemplateOperand, TemplateTensor, ValueId},
    onnx::{
        OnnxError,
        proto::{AttributeProto, TensorProto, attribute_proto::AttributeType},
    },
    rules::{Edit, Edits},
};

/// The operands that a plan makes results of templates.
#[derive(Debug, Default)]
pub(super) struct Templates {
    /// For each operand (a node and its slot) the result and the change of the plan.
    pub operands: Vec<((NodeId, usize), ValueId, usize)>,
    /// The change that each node of a template is of, and the node of the original that it stands before.
    pub nodes: FxHashMap<NodeId, (usize, NodeId)>,
}

impl Templates {
    /// Returns the change that `node` is of, if it is one of a template.
    pub fn change_of(&self, node: NodeId) -> Option<usize> {
        self.nodes.get(&node).map(|(change, _)| *change)
    }
}

/// Puts the templates of `edits` beside `original`.
///
/// # Errors
/// [`OnnxError`] if the nodes cannot be encoded.
pub(super) fn beside<'g>(
    original: &'g Graph,
    edits: &Edits,
) -> Result<(Cow<'g, Graph>, Templates), OnnxError> {
    let mut graph = Cow::Borrowed(original);
    let mut templates = Templates::default();
    for (index, change) in edits.changes().enumerate() {
        for edit in &change.edits {
            let splice = match edit {
                Edit::Splice(splice) => splice,
                Edit::Redirect(_) | Edit::Transform(_) | Edit::Attributes(_) | Edit::Merge(_) => continue,
            };
            let Some(before) = splice.at.iter().map(|(node, _)| *node).min() else { continue };
            let mut results: Vec<ValueId> = Vec::new();
            for node in &splice.template.nodes {
                let mut operands = Vec::new();
                for operand in &node.operands {
                    operands.push(match operand {
                        TemplateOperand::Value(value) => Some(*value),
                        TemplateOperand::Node(index) => results.get(*index).copied(),
                        TemplateOperand::Absent => None,
                        TemplateOperand::Tensor(tensor) => {
                            Some(add(graph.to_mut(), "Constant", &[], vec![constant(tensor)])?)
                        }
                    });
                }
                let result = add(graph.to_mut(), &node.op_type, &operands, node.attributes.clone())?;
                templates.nodes.extend(graph.producer(result).map(|node| (node, (index, before))));
                results.push(result);
            }
            let Some(result) = results.pop() else { continue };
            templates.operands.extend(splice.at.iter().map(|operand| (*operand, result, index)));
        }
    }
    Ok((graph, templates))
}

fn add(
    graph: &mut Graph,
    op_type: &str,
    inputs: &[Option<ValueId>],
    attributes: Vec<Attribute>,
) -> Result<ValueId, OnnxError> {
    let spec = NodeSpec { name: op_type, op_type, inputs, output: op_type, attributes };
    graph.edit().add_node(spec, Place::Last).map_err(|error| match error {
        EditError::Onnx(error) => error,
        other => OnnxError::invalid("a template of the plan", other.to_string()),
    })
}

fn constant(tensor: &TemplateTensor) -> Attribute {
    let elements = TensorProto {
        data_type: Some(tensor.data_type.0),
        dims: tensor.dims.clone(),
        raw_data: Some(tensor.bytes.clone()),
        ..TensorProto::default()
    };
    Attribute(AttributeProto {
        name: Some("value".into()),
        r#type: Some(AttributeType::Tensor as i32),
        t: Some(Box::new(elements)),
        ..AttributeProto::default()
    })
}
