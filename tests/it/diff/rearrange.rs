//! Changes to a graph that only these tests make.

use std::collections::{BTreeMap, HashSet};

use crdiff::onnx::proto::{GraphProto, NodeProto};

/// The node called `name`.
pub fn node<'g>(graph: &'g mut GraphProto, name: &str) -> &'g mut NodeProto {
    graph.node.iter_mut().find(|n| n.name() == name).unwrap_or_else(|| panic!("there is no node `{name}`"))
}

/// Gives every node, initializer and inner value a new name, and lists nodes (in another topological order),
/// initializers and inputs in another order. Descriptions of inner values are dropped.
pub fn rename_and_reorder(graph: &mut GraphProto) {
    let kept: Vec<String> = graph.input.iter().chain(&graph.output).map(|io| io.name().to_string()).collect();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut renamed = |name: &mut String| {
        if !name.is_empty() && !kept.contains(name) {
            let next = format!("v{}", names.len());
            *name = names.entry(name.clone()).or_insert(next).clone();
        }
    };
    for tensor in &mut graph.initializer {
        renamed(tensor.name.get_or_insert_default());
    }
    for (index, node) in graph.node.iter_mut().enumerate() {
        assert!(node.attribute.iter().all(|a| a.g.is_none()), "names in subgraphs are not renamed here");
        node.input.iter_mut().chain(&mut node.output).for_each(&mut renamed);
        node.name = Some(format!("n{}", index * 7 % 1000));
        node.doc_string = Some("anything".into());
        node.metadata_props.clear();
        node.attribute.reverse();
    }
    graph.value_info.clear();
    graph.initializer.reverse();
    graph.input.reverse();
    // The last nodes that can go first do.
    let mut waiting = std::mem::take(&mut graph.node);
    let mut missing: HashSet<String> = waiting.iter().flat_map(|n| n.output.clone()).collect();
    while !waiting.is_empty() {
        let ready = waiting.iter().rposition(|n| n.input.iter().all(|i| !missing.contains(i))).unwrap();
        let node = waiting.remove(ready);
        node.output.iter().for_each(|name| assert!(missing.remove(name)));
        graph.node.push(node);
    }
}
