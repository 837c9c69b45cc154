//! Inlining: calls of model-local functions are read through, the bodies of the functions standing in their places, with
//! values renamed and references to attributes replaced.
//!
//! A call stays where reading it through might change what an engine computes, with a reason ([`Calls::left`]).

mod bodies;
mod expand;
mod functions;

use std::collections::BTreeMap;

use prost::Message;

use self::{expand::Expansion, functions::Functions};
use super::{
    GraphSource, OnnxError, Source, TensorHeader, graph_field, model_field,
    proto::{NodeProto, OperatorSetIdProto, SparseTensorProto, ValueInfoProto},
    wire::Field,
};

/// What became of the calls of model-local functions.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// Whether there were any, and bodies stand in the places of all, so that nothing needs the functions any more.
    pub all: bool,
    /// Versions of operator sets that these bodies use and the model does not import.
    pub opsets: Vec<(String, i64)>,
    /// The functions whose calls stay, by domain and name, with the reason.
    pub left: BTreeMap<(String, String), String>,
}

/// Puts bodies in the places of calls, in the nodes of `source.graph`. The model's own fields stay as they are.
///
/// # Errors
/// [`OnnxError`] if a call or a function is none by ONNX's rules.
pub(crate) fn read_through(source: &mut Source) -> Result<(), OnnxError> {
    let functions = source.fields_of(model_field::FUNCTIONS);
    let functions: Vec<_> =
        functions.map(|field| decode(field, "a function")).collect::<Result<_, OnnxError>>()?;
    if functions.is_empty() {
        return Ok(());
    }
    let nodes = source.graph.fields_of(graph_field::NODE).map(|field| decode(&field, "a node"));
    let nodes: Vec<NodeProto> = nodes.collect::<Result<_, OnnxError>>()?;
    let imports = opsets(source)?;
    let functions = Functions::of(&functions, &nodes, &imports)?;
    let mut expansion = Expansion::new(&functions);
    for field in source.graph.fields() {
        match field.number {
            graph_field::INPUT | graph_field::OUTPUT => {
                expansion.take(decode::<ValueInfoProto>(&field, "a graph input or output")?.name());
            }
            graph_field::INITIALIZER => expansion.take(&TensorHeader::parse(field.value())?.name),
            graph_field::SPARSE_INITIALIZER => {
                let tensor: SparseTensorProto = decode(&field, "a sparse initializer")?;
                expansion.take(tensor.values.as_ref().map_or("", |values| values.name()));
            }
            _ => {}
        }
    }
    nodes.iter().for_each(|node| expansion.take_node(node));
    let mut nodes = nodes.into_iter();
    // Bodies stand between stretches of the graph as it came.
    let whole = source.fields_of(model_field::GRAPH).next().map(Field::value).unwrap_or_default();
    let (mut parts, mut begin, mut at) = (Vec::new(), 0, 0);
    for field in source.graph.fields() {
        let end = at + field.raw.len();
        if field.number == graph_field::NODE
            && let Some(node) = nodes.next().filter(|node| expansion.concerns(node))
        {
            let mut body = Vec::new();
            for node in expansion.nodes(vec![node])? {
                body.extend_from_slice(&Field::message(graph_field::NODE, &node.encode_to_vec()).raw);
            }
            parts.extend([whole.slice(begin..at), body.into()]);
            begin = end;
        }
        at = end;
    }
    parts.push(whole.slice(begin..));
    let all = expansion.all
        && expansion.instances > 0
        && source.fields_of(model_field::TRAINING_INFO).next().is_none();
    let opsets = expansion.opsets().into_iter().filter(|(domain, _)| !imports.contains_key(domain));
    source.calls = Calls { all, opsets: opsets.collect(), left: functions.left() };
    source.graph = GraphSource::new(parts);
    Ok(())
}

/// Returns the versions of operator sets that the model imports.
fn opsets(source: &Source) -> Result<BTreeMap<String, i64>, OnnxError> {
    let opsets = source.fields_of(model_field::OPSET_IMPORT);
    let opsets = opsets.map(|field| decode::<OperatorSetIdProto>(field, "an opset_import"));
    opsets.map(|set| set.map(|set| (domain(set.domain()).to_string(), set.version()))).collect()
}

fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

fn decode<M: Message + Default>(field: &Field, what: &str) -> Result<M, OnnxError> {
    M::decode(field.value()).map_err(|e| OnnxError::invalid(what, format!("broken message: {e}")))
}
