//! The shapes of nodes that are in no graph yet.

use super::{
    Agreement, Shape, Shapes, compare,
    infer::{self, Call},
    tensor::{Tensor, Unknowns},
    types,
};
use crate::{
    ir::{Graph, Node, Template, TemplateNode, TemplateOperand, ValueId},
    onnx::DataType,
};

impl Shapes {
    /// Returns how the shape of the result of `template`, put into `graph`, relates to that of `value`.
    pub fn compare_result(&self, graph: &Graph, template: &Template, value: ValueId) -> Agreement {
        match (self.result(graph, template), self.of(value)) {
            (Some(result), Some(shape)) => compare(&result, shape),
            _ => Agreement::Unknown,
        }
    }

    /// Returns the shape of the result of `template`; `None` if not even its number of dimensions is known.
    pub fn result(&self, graph: &Graph, template: &Template) -> Option<Shape> {
        // Not those of the graph: an unknown size is equal to itself alone.
        let mut unknowns = Unknowns::apart();
        let mut results: Vec<Tensor> = Vec::with_capacity(template.nodes.len());
        for node in &template.nodes {
            let operands = operands(node, &results, |value| self.tensor(value));
            results.push(result(graph, node, &operands, &mut unknowns)?);
        }
        let Tensor { data_type, dims, .. } = results.pop()?;
        Some(Shape { dims: dims?, data_type })
    }

    pub(super) fn tensor(&self, value: ValueId) -> Tensor {
        Tensor {
            data_type: self.data_type(value),
            dims: self.of(value).map(|shape| shape.dims.clone()),
            elements: self.elements.get(&value).cloned(),
        }
    }
}

/// Returns the operands of `node`, with the results of the template's nodes before it, and `known` for the graph's values.
pub(super) fn operands(
    node: &TemplateNode,
    results: &[Tensor],
    known: impl Fn(ValueId) -> Tensor,
) -> Vec<Option<Tensor>> {
    let read = |operand: &TemplateOperand| match operand {
        TemplateOperand::Value(value) => Some(known(*value)),
        TemplateOperand::Node(index) => results.get(*index).cloned(),
        TemplateOperand::Tensor(tensor) => Some(Tensor::from_template(tensor)),
        TemplateOperand::Absent => None,
    };
    node.operands.iter().map(read).collect()
}

/// Returns what is known of the result of `node`; `None` if it cannot run.
fn result(
    graph: &Graph,
    node: &TemplateNode,
    operands: &[Option<Tensor>],
    unknowns: &mut Unknowns,
) -> Option<Tensor> {
    let node = placed(node);
    let mut call = Call {
        node: &node,
        operands: operands.iter().map(Option::as_ref).collect(),
        opset: graph.opset("").unwrap_or(infer::DEFAULT_OPSET),
        unknowns,
        problems: Vec::new(),
        required: Vec::new(),
    };
    let data_type: Option<DataType> = types::results(&call).first().copied().flatten();
    let result = infer::infer(&mut call).ok()?.into_iter().next()?;
    (call.problems.is_empty() && call.required.is_empty()).then(|| result.typed(data_type))
}

/// Returns the node as one of a graph. Rules look at attributes and operator; which values it reads makes no difference.
pub(super) fn placed(node: &TemplateNode) -> Node {
    let some = |count: usize| (0..count).map(|index| Some(ValueId::new(index))).collect();
    Node {
        name: Box::default(),
        op_type: (&*node.op_type).into(),
        domain: "".into(),
        inputs: some(node.operands.len()),
        outputs: some(1),
        attributes: node.attributes.as_slice().into(),
        captures: Box::default(),
        raw: bytes::Bytes::new(),
    }
}
