use std::{path::Path, sync::Arc};

use super::*;
use crate::onnx::{self, GraphSource};

/// The number of fixtures' nodes, and a kind of fault: what it makes of a node, and whether it makes anything.
type Fault = fn(&mut Vec<NodeProto>, usize) -> bool;

const FAULTS: [(&str, Fault); 10] = [
    ("another operator", |nodes, at| {
        nodes[at].op_type = Some("Floor".into());
        true
    }),
    ("another domain", |nodes, at| {
        nodes[at].domain = Some("elsewhere".into());
        true
    }),
    ("operands exchanged", |nodes, at| {
        let before = nodes[at].input.clone();
        nodes[at].input.reverse();
        before != nodes[at].input
    }),
    ("an operand of another node", |nodes, at| {
        let (Some(theirs), Some(first)) = (nodes[0].input.first().cloned(), nodes[at].input.first_mut())
        else {
            return false;
        };
        std::mem::replace(first, theirs.clone()) != theirs
    }),
    ("an operand more", |nodes, at| {
        nodes[at].input.push(String::new());
        true
    }),
    ("the name of another result", |nodes, at| {
        let (Some(theirs), Some(first)) = (nodes[0].output.first().cloned(), nodes[at].output.first_mut())
        else {
            return false;
        };
        std::mem::replace(first, theirs.clone()) != theirs
    }),
    ("another attribute", |nodes, at| match nodes[at].attribute.first_mut() {
        Some(attribute) => {
            attribute.name = Some("other".into());
            true
        }
        None => false,
    }),
    ("no attribute", |nodes, at| nodes[at].attribute.pop().is_some()),
    ("a node less", |nodes, at| {
        nodes.remove(at);
        true
    }),
    ("a node twice", |nodes, at| {
        let node = nodes[at].clone();
        nodes.insert(at, node);
        true
    }),
];

fn graph(name: &str) -> Graph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/functions").join(name);
    onnx::open(path).and_then(Graph::load).unwrap()
}

/// Returns `graph` with `nodes` in the places of its calls.
fn with(mut graph: Graph, nodes: &[NodeProto]) -> Graph {
    let source = Arc::get_mut(&mut graph.source).unwrap();
    let others =
        source.graph.fields().filter(|field| field.number != graph_field::NODE).map(|field| field.raw);
    let nodes = nodes.iter().map(|node| Field::message(graph_field::NODE, &node.encode_to_vec()).raw);
    source.graph = GraphSource::new(nodes.chain(others).collect());
    graph
}

#[test]
fn what_is_not_the_body_of_the_function_is_found() {
    for name in
        ["attributes.onnx", "defaults.onnx", "operands.onnx", "keys.onnx", "names.onnx", "bodies.onnx"]
    {
        assert_eq!(Check::of(&graph(name)), Ok(false), "{name}");
        let unchanged = graph(name);
        let nodes = unchanged.source().graph.fields_of(graph_field::NODE);
        let nodes: Vec<NodeProto> = nodes.map(|field| decode(&field).unwrap()).collect();
        assert_eq!(Check::of(&with(graph(name), &nodes)), Ok(false), "{name}");
        // The nodes of the graph, and those in the first body.
        let inner = nodes.iter().position(|node| !node.attribute.is_empty() && node.attribute[0].g.is_some());
        for (what, fault) in FAULTS {
            for at in 0..nodes.len() {
                let mut faulty = nodes.clone();
                if fault(&mut faulty, at) {
                    assert!(Check::of(&with(graph(name), &faulty)).is_err(), "{name}: {what}, node {at}");
                }
            }
            let Some(outer) = inner else { continue };
            for at in 0..nodes[outer].attribute[0].g.as_ref().unwrap().node.len() {
                let mut faulty = nodes.clone();
                if fault(&mut faulty[outer].attribute[0].g.as_mut().unwrap().node, at) {
                    assert!(
                        Check::of(&with(graph(name), &faulty)).is_err(),
                        "{name}: {what}, node {at} of a body"
                    );
                }
            }
        }
    }
}
