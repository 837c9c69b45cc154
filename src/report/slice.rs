//! A slice of a graph: the nodes of some modules as a model of their own, to be read in ONNX's textual syntax.

use rustc_hash::FxHashSet;

use crate::{
    analysis::shapes::{Shape, Shapes},
    ir::{Graph, NodeId, Origin, Use, ValueId},
    onnx::proto::{
        ModelProto, TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
};

/// Cuts `model`, whose graph is `graph`, down to `nodes` and the initializers that they read. The slice's inputs are the
/// values that come from outside of it, its outputs those that are read outside of it, both with their shapes where these
/// are known.
pub fn slice(mut model: ModelProto, graph: &Graph, shapes: &Shapes, nodes: &FxHashSet<NodeId>) -> ModelProto {
    let Some(sliced) = &mut model.graph else { return model };
    let mut seen = FxHashSet::default();
    let mut weights: FxHashSet<&str> = FxHashSet::default();
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for (_, node) in graph.nodes().filter(|(id, _)| nodes.contains(id)) {
        for value in node.operands().chain(node.captures.iter().copied()) {
            let known = graph.value(value);
            match known.origin {
                Origin::Node { node, .. } if nodes.contains(&node) => {}
                Origin::Initializer(_) | Origin::SparseInitializer => {
                    weights.insert(&known.name);
                }
                _ if seen.insert(value) => inputs.push(typed(graph, shapes, value)),
                _ => {}
            }
        }
        let leaves = |value: &ValueId| {
            graph.uses(*value).iter().any(|reader| match reader {
                Use::Operand { node, .. } | Use::Capture(node) => !nodes.contains(node),
                Use::Output(_) => true,
            })
        };
        outputs.extend(node.results().filter(leaves).map(|value| typed(graph, shapes, value)));
    }
    let mut ids = graph.node_ids();
    sliced.node.retain(|_| ids.next().is_some_and(|id| nodes.contains(&id)));
    sliced.initializer.retain(|tensor| weights.contains(tensor.name()));
    sliced.sparse_initializer.retain(|s| s.values.as_ref().is_some_and(|v| weights.contains(v.name())));
    sliced.value_info.clear();
    (sliced.input, sliced.output) = (inputs, outputs);
    model.metadata_props.clear();
    model
}

/// Returns a value with its type: the one that the model states, else the inferred one.
fn typed(graph: &Graph, shapes: &Shapes, value: ValueId) -> ValueInfoProto {
    let io = graph.inputs().chain(graph.outputs()).find(|io| io.value == value);
    let stated = io.and_then(|io| io.info.0.r#type.as_ref()).or_else(|| graph.stated_type(value));
    ValueInfoProto {
        name: Some(graph.value(value).name.clone()),
        r#type: stated.cloned().or_else(|| tensor(shapes.of(value)?)),
        ..ValueInfoProto::default()
    }
}

fn tensor(shape: &Shape) -> Option<TypeProto> {
    let dims = shape.dims.iter().map(|dim| {
        let value = match dim.constant() {
            Some(size) => dimension::Value::DimValue(size),
            None => dimension::Value::DimParam(dim.to_string()),
        };
        Dimension { value: Some(value), ..Dimension::default() }
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(shape.data_type?.0),
        shape: Some(TensorShapeProto { dim: dims.collect() }),
    };
    Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() })
}
