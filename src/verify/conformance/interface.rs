//! What a model says about itself: inputs and outputs, versions, functions, metadata.

use std::collections::BTreeMap;

use prost::Message;

use super::Difference;
use crate::{
    ir::{Graph, GraphIo},
    onnx::{
        DataType, Source, graph_field, model_field,
        proto::{StringStringEntryProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto},
        wire::Field,
    },
    plan::Plan,
};

/// A graph input of fused graphs: the amplification weight.
pub(super) const WEIGHT_INPUT: &str = "poa_weight";

/// What the compiled graph says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Emit {
    /// The plan applied; also what a graph that says nothing is taken for.
    Pruned,
    /// Both networks and the mix of their outputs.
    Fused,
    /// The plan applied, masked weights scaled by the amplification.
    Amplified,
}

/// What was found about metadata and versions.
#[derive(Debug)]
pub(super) struct Claims {
    pub emit: Emit,
    pub differences: Vec<Difference>,
    pub notes: Vec<String>,
}

/// Compares everything of the two models that is not a node, a tensor, an input or an output.
pub(super) fn compare_models(original: &Graph, compiled: &Graph, plan: &Plan) -> Claims {
    let mut claims = Claims { emit: Emit::Pruned, differences: Vec::new(), notes: Vec::new() };
    versions(original, compiled, &mut claims.differences);
    let kept = metadata(&original.source().fields, model_field::METADATA_PROPS);
    let found = metadata(&compiled.source().fields, model_field::METADATA_PROPS);
    lost(&kept, &found, "model", &mut claims.differences);
    lost(
        &metadata(&original.source().graph.fields, graph_field::METADATA_PROPS),
        &metadata(&compiled.source().graph.fields, graph_field::METADATA_PROPS),
        "graph",
        &mut claims.differences,
    );
    provenance(original, compiled, plan, &found, &mut claims);
    claims
}

fn provenance(
    original: &Graph,
    compiled: &Graph,
    plan: &Plan,
    found: &BTreeMap<String, String>,
    claims: &mut Claims,
) {
    let claimed = found.keys().any(|key| key.starts_with("crdiff."))
        || compiled.name() != original.name() && compiled.name().contains("_crdiff_");
    if !claimed {
        if !plan.rules.is_empty() {
            claims.notes.push("the compiled graph does not say which plan and model it was made from".into());
        }
        return;
    }
    let emit = found.get("crdiff.emit").map(String::as_str);
    claims.emit = match emit {
        Some("fused") => Emit::Fused,
        Some("amplified") => Emit::Amplified,
        _ => Emit::Pruned,
    };
    let mut report = |message: String| claims.differences.push(Difference::last(message));
    let digest = plan.digest.as_str();
    let source = original.structure_digest();
    let stated = [("crdiff.plan", digest, "plan"), ("crdiff.source", source.as_str(), "model")];
    for (key, right, what) in stated {
        match found.get(key) {
            None => report(format!("the metadata key `{key}` is lost")),
            Some(other) if other != right => {
                report(format!(
                    "it was made from another {what}: `{key}` is {other}, the {what}'s digest is {right}"
                ));
            }
            Some(_) => {}
        }
    }
    match emit {
        None => report("the metadata key `crdiff.emit` is lost".into()),
        Some("pruned" | "fused" | "amplified") => {}
        Some(other) => report(format!("`crdiff.emit` is {other:?}, which no compiler here writes")),
    }
    let right_name = format!(
        "{}_crdiff_{}_{}",
        original.name(),
        emit.unwrap_or("pruned"),
        digest.get(..12).unwrap_or(digest)
    );
    if compiled.name() != right_name {
        report(format!(
            "the graph's name is `{}`, expected `{right_name}`: engines cache by name, and would take it for another",
            compiled.name()
        ));
    }
    match found.get("crdiff.version").map(String::as_str) {
        None => report("the metadata key `crdiff.version` is lost".into()),
        Some(env!("CARGO_PKG_VERSION")) => {}
        Some(other) => claims.notes.push(format!("it was compiled by crdiff {other}")),
    }
}

/// Reports keys of the original that are gone or changed. What exporters say about themselves (`pkg.`) may go, and so
/// may a digest of the model, which is no longer right.
fn lost(
    original: &BTreeMap<String, String>,
    compiled: &BTreeMap<String, String>,
    place: &str,
    differences: &mut Vec<Difference>,
) {
    let harmless = |key: &str| key.starts_with("pkg.") || key == "model_hash" || key.starts_with("crdiff.");
    for (key, value) in original.iter().filter(|(key, _)| !harmless(key)) {
        match compiled.get(key) {
            None => differences.push(Difference::last(format!("the {place}'s metadata key `{key}` is lost"))),
            Some(other) if other != value => {
                let message = format!("the {place}'s metadata key `{key}` is {other:?}, expected {value:?}");
                differences.push(Difference::last(message));
            }
            Some(_) => {}
        }
    }
}

fn metadata(fields: &[Field], number: u32) -> BTreeMap<String, String> {
    let entries = fields.iter().filter(|f| f.number == number);
    let entries = entries.filter_map(|f| StringStringEntryProto::decode(f.value()).ok());
    entries.map(|e| (e.key().to_string(), e.value().to_string())).collect()
}

fn versions(original: &Graph, compiled: &Graph, differences: &mut Vec<Difference>) {
    let ir = |graph: &Graph| {
        let mut fields = graph.source().fields.iter().filter(|f| f.number == model_field::IR_VERSION);
        fields.next_back().and_then(Field::as_varint)
    };
    let text = |version: Option<u64>| version.map_or_else(|| "missing".into(), |v| v.to_string());
    if ir(original) != ir(compiled) {
        let (found, expected) = (text(ir(compiled)), text(ir(original)));
        differences.push(Difference::first(format!("the IR version is {found}, expected {expected}")));
    }
    let domains: std::collections::BTreeSet<&str> =
        original.opsets.keys().chain(compiled.opsets.keys()).map(String::as_str).collect();
    for domain in domains {
        let name = if domain.is_empty() { "ai.onnx" } else { domain };
        match (original.opset(domain), compiled.opset(domain)) {
            (Some(expected), Some(found)) if expected != found => differences.push(Difference::first(
                format!("operator set `{name}` has version {found}, expected {expected}"),
            )),
            (Some(expected), None) if uses(original, domain) => differences.push(Difference::first(format!(
                "operator set `{name}`, version {expected}, is not imported"
            ))),
            _ => {}
        }
    }
    let functions = |source: &Source| {
        let fields = source.fields.iter().filter(|f| f.number == model_field::FUNCTIONS);
        let mut functions: Vec<_> = fields.map(Field::value).collect();
        functions.sort_unstable();
        functions
    };
    if functions(original.source()) != functions(compiled.source()) {
        differences.push(Difference::first("the model's functions differ".into()));
    }
}

/// Whether nodes of `domain` are or may be in the model: bodies and functions are not searched.
fn uses(graph: &Graph, domain: &str) -> bool {
    let has_functions = graph.source().fields.iter().any(|f| f.number == model_field::FUNCTIONS);
    let mut nodes = graph.nodes().map(|(_, node)| node);
    has_functions
        || nodes.any(|node| {
            super::signature::domain(node) == domain
                || node.attributes.iter().any(|a| a.g.is_some() || !a.graphs.is_empty())
        })
}

/// Compares graph inputs. Returns which of the compiled graph's values stand for other-named inputs of the original.
pub(super) fn compare_inputs(
    original: &Graph,
    compiled: &Graph,
    emit: Emit,
    differences: &mut Vec<Difference>,
) -> Vec<(crate::ir::ValueId, crate::ir::ValueId)> {
    let extra = |io: &&GraphIo| !(emit == Emit::Fused && io.info.name() == WEIGHT_INPUT);
    let expected: Vec<&GraphIo> = original.inputs().collect();
    let found: Vec<&GraphIo> = compiled.inputs().filter(extra).collect();
    let mut renamed = Vec::new();
    for (index, wanted) in expected.iter().enumerate() {
        let name = wanted.info.name();
        match found.iter().position(|io| io.info.name() == name) {
            Some(at) => {
                if at != index && expected.len() == found.len() {
                    differences.push(Difference::first(format!(
                        "input `{name}` is number {}, expected {}",
                        at + 1,
                        index + 1
                    )));
                }
                types("input", &wanted.info, &found[at].info, differences);
            }
            None if expected.len() == found.len() => {
                let other = found[index];
                differences.push(Difference::first(format!(
                    "an input is called `{}`, expected `{name}`",
                    other.info.name()
                )));
                renamed.push((other.value, wanted.value));
            }
            None => differences.push(Difference::first(format!("the input `{name}` is missing"))),
        }
    }
    if found.len() != expected.len() {
        for io in found.iter().filter(|io| !expected.iter().any(|x| x.info.name() == io.info.name())) {
            differences.push(Difference::first(format!(
                "there is an input `{}` that the original doesn't have",
                io.info.name()
            )));
        }
    }
    renamed
}

/// Compares graph outputs. Returns pairs of indexes that stand for each other, the compiled graph's first.
pub(super) fn compare_outputs(
    original: &Graph,
    compiled: &Graph,
    differences: &mut Vec<Difference>,
) -> Vec<(usize, usize)> {
    let (expected, found) = (original.outputs(), compiled.outputs());
    let mut pairs = Vec::new();
    for (index, wanted) in expected.iter().enumerate() {
        let name = wanted.info.name();
        match found.iter().position(|io| io.info.name() == name) {
            Some(at) => {
                if at != index && expected.len() == found.len() {
                    let message = format!("output `{name}` is number {}, expected {}", at + 1, index + 1);
                    differences.push(Difference::first(message));
                }
                types("output", &wanted.info, &found[at].info, differences);
                pairs.push((at, index));
            }
            None if expected.len() == found.len() => {
                let other = found[index].info.name();
                differences
                    .push(Difference::first(format!("an output is called `{other}`, expected `{name}`")));
                pairs.push((index, index));
            }
            None => differences.push(Difference::first(format!("the output `{name}` is missing"))),
        }
    }
    if found.len() != expected.len() {
        for io in found.iter().filter(|io| !expected.iter().any(|x| x.info.name() == io.info.name())) {
            let message = format!("there is an output `{}` that the original doesn't have", io.info.name());
            differences.push(Difference::first(message));
        }
    }
    pairs
}

fn types(what: &str, expected: &ValueInfoProto, found: &ValueInfoProto, differences: &mut Vec<Difference>) {
    if expected.r#type != found.r#type {
        differences.push(Difference::first(format!(
            "{what} `{}` is {}, expected {}",
            expected.name(),
            type_text(found.r#type.as_ref()),
            type_text(expected.r#type.as_ref())
        )));
    }
}

/// A type as the ONNX text syntax has it: `float[batch, 4, 64, 64]`.
fn type_text(r#type: Option<&TypeProto>) -> String {
    let Some(type_proto::Value::TensorType(tensor)) = r#type.and_then(|t| t.value.as_ref()) else {
        return "no tensor".into();
    };
    let name = DataType(tensor.elem_type()).name();
    let Some(shape) = &tensor.shape else { return format!("{name} of any shape") };
    let dims: Vec<String> = shape
        .dim
        .iter()
        .map(|dim| match &dim.value {
            Some(tensor_shape_proto::dimension::Value::DimValue(n)) => n.to_string(),
            Some(tensor_shape_proto::dimension::Value::DimParam(name)) => name.clone(),
            None => "?".into(),
        })
        .collect();
    format!("{name}[{}]", dims.join(", "))
}
