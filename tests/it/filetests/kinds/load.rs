//! `load`: what a graph is read as, or why it is refused.

use std::fmt::Write;

use crdiff::{
    ir::{Graph, Node, Origin, ValueId},
    onnx::open_bytes,
};
use prost::Message;

use crate::{common::onnx_text::parse_model, filetests::case::Case};

pub fn run(case: &Case) -> Result<String, String> {
    let model = parse_model(case.required("input")?).map_err(|e| format!("input: {e}"))?;
    let encoded = model.encode_to_vec();
    Ok(match open_bytes(encoded.into(), ".").and_then(Graph::load) {
        Ok(graph) => describe(&graph),
        Err(error) => format!("error: {error}"),
    })
}

/// Each value, by what defines it.
fn describe(graph: &Graph) -> String {
    let mut text = String::new();
    for input in graph.inputs() {
        let overridable = matches!(graph.value(input.value).origin, Origin::Initializer(_));
        let note = if overridable { " (has a default)" } else { "" };
        let _ = writeln!(text, "input {}{note}", graph.value(input.value).name);
    }
    for (_, initializer) in graph.initializers() {
        let header = &initializer.header;
        let name = &graph.value(initializer.value).name;
        let _ = writeln!(text, "initializer {name}: {} {:?}", header.data_type.name(), header.dims);
    }
    for (_, node) in graph.nodes() {
        let captures: Vec<_> = node.captures.iter().copied().map(Some).collect();
        let results = names(graph, &node.outputs);
        let _ = write!(text, "node {results} = {}({})", operator(node), names(graph, &node.inputs));
        if !captures.is_empty() {
            let _ = write!(text, " captures {}", names(graph, &captures));
        }
        text.push('\n');
    }
    for output in graph.outputs() {
        let _ = writeln!(text, "output {}", graph.value(output.value).name);
    }
    text
}

fn operator(node: &Node) -> String {
    if node.domain.is_empty() {
        node.op_type.to_string()
    } else {
        format!("{}.{}", node.domain, node.op_type)
    }
}

fn names(graph: &Graph, values: &[Option<ValueId>]) -> String {
    let names: Vec<_> = values.iter().map(|v| v.map_or("-", |v| graph.value(v).name.as_str())).collect();
    names.join(", ")
}
