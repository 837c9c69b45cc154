//! Walks over nodes and the nodes in their bodies.

use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto};

/// Returns the bodies of a node.
pub(super) fn graphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs))
}

/// Returns the bodies in attributes, to be changed.
pub(super) fn graphs_mut(attributes: &mut [AttributeProto]) -> impl Iterator<Item = &mut GraphProto> {
    attributes.iter_mut().flat_map(|a| a.g.as_deref_mut().into_iter().chain(&mut a.graphs))
}

/// Calls `visit` with each node, those in bodies included.
pub(super) fn each_node<'a>(nodes: &'a [NodeProto], visit: &mut impl FnMut(&'a NodeProto)) {
    for node in nodes {
        visit(node);
        for graph in graphs(node) {
            each_node(&graph.node, visit);
        }
    }
}

/// Returns whether a body has quantization annotations, which name values by other ways than all else does.
pub(super) fn has_annotations(nodes: &[NodeProto]) -> bool {
    let annotated =
        |graph: &GraphProto| !graph.quantization_annotation.is_empty() || has_annotations(&graph.node);
    nodes.iter().flat_map(graphs).any(annotated)
}
