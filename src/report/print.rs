//! A graph, or a part of it, in ONNX's textual syntax.

use prost::Message;
use rustc_hash::FxHashSet;

use super::slice::slice;
use crate::{
    analysis::{modules, shapes},
    ir::Graph,
    onnx::{
        OnnxError, Source, graph_field,
        proto::{ModelProto, NodeProto},
        text::{PrintOptions, print_model_with},
    },
    plan::{Glob, join, nearest},
};

/// Why a model could not be printed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrintError {
    /// It cannot be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// It has a field that ONNX's schema gives another type.
    #[error("{0}")]
    Decode(String),
    /// The modules to print are none of it.
    #[error("{0}")]
    Module(String),
}

/// Returns the text of the modules that the glob `module` matches, or of all, with the elements of tensors that have at most
/// `elements`.
///
/// # Errors
/// [`PrintError`].
pub fn print(source: Source, module: Option<&str>, elements: usize) -> Result<String, PrintError> {
    let decoded = ModelProto::decode(source.bytes.clone());
    let graph = Graph::load(source)?;
    let mut model = decoded.map_err(|e| PrintError::Decode(e.to_string()))?;
    if let Some(text) = module {
        let glob = Glob::module(text, (0, text.len()).into()).map_err(|e| PrintError::Module(e.reason))?;
        let modules = modules::modules(&graph);
        let matching = modules.iter().filter(|(_, module)| glob.matches(&module.path));
        let nodes: FxHashSet<_> = matching.flat_map(|(id, _)| modules.nodes(id)).collect();
        if nodes.is_empty() {
            let near = nearest(text, modules.iter().map(|(_, module)| module.path.as_str()));
            let hint = match near.as_slice() {
                [] => String::new(),
                near => format!("; did you mean {}?", join(near, "or")),
            };
            return Err(PrintError::Module(format!("no module matches{hint}")));
        }
        read_through(&mut model, &graph)?;
        model = slice(model, &graph, &shapes::shapes(&graph), &nodes);
    }
    Ok(print_model_with(&model, PrintOptions { max_elements: elements, one_a_line: true }))
}

/// Puts the nodes of `graph` into the model that it was loaded from: those of functions in the places of calls.
fn read_through(model: &mut ModelProto, graph: &Graph) -> Result<(), PrintError> {
    let source = graph.source();
    let (Some(sliced), false) = (&mut model.graph, model.functions.is_empty()) else { return Ok(()) };
    if source.calls.all {
        model.functions.clear();
    }
    let nodes = source.graph.fields_of(graph_field::NODE);
    let nodes = nodes.map(|field| NodeProto::decode(field.value()));
    sliced.node = nodes.collect::<Result<_, _>>().map_err(|e| PrintError::Decode(e.to_string()))?;
    Ok(())
}
