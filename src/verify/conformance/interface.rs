//! The interface of a model: inputs and outputs, versions, functions, metadata, and what else is beside its nodes
//! and tensors.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use rayon::slice::ParallelSliceMut;

use super::{Violation, calls, explain::Names, kept::Kept, per_row::PerRow};
use crate::{
    ir::{Graph, GraphIo},
    onnx::{
        DataType, Unknown, ValueInfo, graph_field, model_field,
        proto::{StringStringEntryProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto},
        wire::Field,
    },
    plan::{Depth, Plan, Target},
    rules::EditSet,
    verify::canonical,
};

/// A graph input of fused graphs: the amplification weight.
pub(super) const WEIGHT_INPUT: &str = "poa_weight";

/// Compares everything of the two models that is not a node, a tensor, an input or an output.
pub(super) fn compare_models(original: &Graph, compiled: &Graph, differences: &mut Vec<Violation>) {
    versions(original, compiled, differences);
    calls::compare(original, compiled, differences);
    // `ModelProto` domain, model_version, training_info and configuration.
    for (number, what) in [(4, "domain"), (5, "version"), (20, "training info"), (26, "device configuration")]
    {
        let of = |graph: &Graph| graph.source().fields_of(number).map(Field::value).collect::<Vec<_>>();
        if of(original) != of(compiled) {
            differences.push(Violation::first(format!("the model's {what} differs")));
        }
    }
    let of_graph = |graph: &Graph, number| -> Vec<_> {
        graph.source().graph.fields_of(number).map(|field| field.value()).collect()
    };
    let annotations = |graph: &Graph| of_graph(graph, graph_field::QUANTIZATION_ANNOTATION);
    let known = annotations(original);
    if annotations(compiled).iter().any(|annotation| !known.contains(annotation)) {
        differences
            .push(Violation::first("there is a quantization annotation that is not the original's".into()));
    }
    let known: BTreeSet<&Unknown> = original.source().unknown.iter().collect();
    for unknown in compiled.source().unknown.iter().filter(|unknown| !known.contains(unknown)) {
        differences.push(Violation::first(format!(
            "there is a field {} in a {} that this version does not know, and that the original does not have",
            unknown.number, unknown.message
        )));
    }
    compare_metadata(&model_metadata(original), &model_metadata(compiled), "model", differences);
    let graph = |graph: &Graph| metadata(of_graph(graph, graph_field::METADATA_PROPS));
    compare_metadata(&graph(original), &graph(compiled), "graph", differences);
}

/// Returns the name that two nodes of `graph` have.
pub(super) fn repeated_name(graph: &Graph) -> Option<&str> {
    let mut names: Vec<&str> = graph.nodes().map(|(_, node)| &*node.name).collect();
    names.par_sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1] && !pair[0].is_empty()).map(|pair| pair[0])
}

/// The stamp of a compilation in a model's metadata.
#[derive(Debug)]
pub(super) struct Stamp(BTreeMap<String, String>);

impl Stamp {
    /// Returns the stamp of `compiled`; `None` if it has none.
    pub fn of(original: &Graph, compiled: &Graph) -> Option<Self> {
        let found = model_metadata(compiled);
        let claimed = found.keys().any(|key| key.starts_with("crdiff."))
            || compiled.name() != original.name() && compiled.name().contains("_crdiff_");
        claimed.then_some(Self(found))
    }

    /// Returns the form that it names, as [`Target::name`] writes it.
    pub fn emit(&self) -> Option<&str> {
        self.0.get("crdiff.emit").map(String::as_str)
    }

    /// Compares it with what a compiler writes into a graph of this form.
    pub fn compare(
        &self,
        names: &Names<'_, '_>,
        plan: &Plan,
        form: Target,
        (rows, depth): (&PerRow, Option<Depth>),
        differences: &mut Vec<Violation>,
        notes: &mut Vec<String>,
    ) {
        let (original, compiled) = (names.source, names.compiled.graph);
        let mut report = |message: String| differences.push(Violation::last(message));
        let (key, inputs) = ("crdiff.per_row_inputs", rows.inputs.join(","));
        let stated = self.0.get(key).map_or("", String::as_str);
        if stated != inputs {
            report(format!("the metadata key `{key}` is {stated:?}, expected {inputs:?}"));
        }
        let (key, right) = ("crdiff.cache", depth.map_or("", Depth::name));
        let stated = self.0.get(key).map_or("", String::as_str);
        if stated != right {
            report(format!("the metadata key `{key}` is {stated:?}, expected {right:?}"));
        }
        let depth = depth.map_or_else(String::new, |depth| format!("_{}", depth.name()));
        let suffix = format!("{depth}{}", if inputs.is_empty() { "" } else { "_rows" });
        let mut right_name = format!("{}{suffix}", original.name());
        // A graph that no plan changed says nothing of one.
        if inputs.is_empty() || !names.edits.is_empty() || self.0.contains_key("crdiff.plan") {
            let short = plan.digest.get(..12).unwrap_or(&plan.digest);
            right_name = format!("{}_crdiff_{}_{short}{suffix}", original.name(), form.name());
            self.compare_origin(names, plan, form, &mut report);
        }
        if compiled.name() != right_name {
            report(format!(
                "the graph's name is `{}`, expected `{right_name}`: engines cache by name, and would take it for \
                 another",
                compiled.name()
            ));
        }
        match self.0.get("crdiff.version").map(String::as_str) {
            None => report("the metadata key `crdiff.version` is lost".into()),
            Some(env!("CARGO_PKG_VERSION")) => {}
            Some(other) => notes.push(format!("it was compiled by crdiff {other}")),
        }
    }

    /// Compares what it says of plan, model and form.
    fn compare_origin(
        &self,
        names: &Names<'_, '_>,
        plan: &Plan,
        form: Target,
        report: &mut impl FnMut(String),
    ) {
        let edits = names.edits;
        let digest = plan.digest.as_str();
        let source = names.source.structure_digest();
        for (key, right, what) in [("crdiff.plan", digest, "plan"), ("crdiff.source", &source, "model")] {
            match self.0.get(key) {
                None => report(format!("the metadata key `{key}` is lost")),
                Some(other) if other != right => report(format!(
                    "it was made from another {what}: `{key}` is {other}, the {what}'s digest is {right}"
                )),
                Some(_) => {}
            }
        }
        let merges =
            |set: &EditSet| set.merges().map(|merge| merge.file.digest().to_string()).collect::<Vec<_>>();
        let mut files: BTreeSet<String> = merges(&edits.always).into_iter().collect();
        if form != Target::Dense {
            files.extend(merges(&edits.other));
        }
        let (key, files) = ("crdiff.lora", files.into_iter().collect::<Vec<_>>().join(","));
        let stated = self.0.get(key).map_or("", String::as_str);
        if stated != files {
            report(format!(
                "the metadata key `{key}` is {stated:?}, expected {files:?}: the SHA-256 of each LoRA"
            ));
        }
        match self.emit() {
            None => report("the metadata key `crdiff.emit` is lost".into()),
            Some(emit) if emit == form.name() => {}
            Some(other) => report(format!("`crdiff.emit` is {other:?}, expected {:?}", form.name())),
        }
    }
}

/// Compares metadata. What exporters say about themselves (`pkg.`) may go, and so may a digest of the model, which is
/// no longer right; what the compiler adds (`crdiff.`) is compared as a [`Stamp`].
fn compare_metadata(
    original: &BTreeMap<String, String>,
    compiled: &BTreeMap<String, String>,
    place: &str,
    differences: &mut Vec<Violation>,
) {
    let may_go = |key: &str| key.starts_with("pkg.") || key == "model_hash" || key.starts_with("crdiff.");
    let keys: BTreeSet<&String> = original.keys().chain(compiled.keys()).collect();
    for key in keys {
        let what = match (original.get(key), compiled.get(key)) {
            (Some(_), None) if may_go(key) => continue,
            (_, Some(_)) if place == "model" && key.starts_with("crdiff.") => continue,
            (Some(_), None) => "is lost".into(),
            (Some(expected), Some(found)) if expected != found => {
                format!("is {found:?}, expected {expected:?}")
            }
            (None, Some(_)) => "is not in the original".into(),
            _ => continue,
        };
        differences.push(Violation::last(format!("the {place}'s metadata key `{key}` {what}")));
    }
}

fn model_metadata(graph: &Graph) -> BTreeMap<String, String> {
    metadata(graph.source().fields_of(model_field::METADATA_PROPS).map(Field::value))
}

fn metadata(entries: impl IntoIterator<Item = Bytes>) -> BTreeMap<String, String> {
    let entries = entries.into_iter().filter_map(|entry| StringStringEntryProto::decode(entry).ok());
    entries.map(|e| (e.key().to_string(), e.value().to_string())).collect()
}

fn versions(original: &Graph, compiled: &Graph, differences: &mut Vec<Violation>) {
    let text =
        |graph: &Graph| graph.source().ir_version().map_or_else(|| "missing".into(), |v| v.to_string());
    if original.source().ir_version() != compiled.source().ir_version() {
        let (found, expected) = (text(compiled), text(original));
        differences.push(Violation::first(format!("the IR version is {found}, expected {expected}")));
    }
    let domains: BTreeSet<&String> = original.opsets.keys().chain(compiled.opsets.keys()).collect();
    for domain in domains {
        let name = if domain.is_empty() { "ai.onnx" } else { domain };
        match (original.opset(domain), compiled.opset(domain)) {
            (Some(expected), Some(found)) if expected != found => differences.push(Violation::first(
                format!("operator set `{name}` has version {found}, expected {expected}"),
            )),
            (Some(expected), None) if uses(original, domain) => differences.push(Violation::first(format!(
                "operator set `{name}`, version {expected}, is not imported"
            ))),
            (None, Some(found)) => differences.push(Violation::first(format!(
                "operator set `{name}`, version {found}, is imported, but not by the original"
            ))),
            _ => {}
        }
    }
}

/// Returns whether nodes of `domain` are or may be in the model: bodies and functions are not searched.
fn uses(graph: &Graph, domain: &str) -> bool {
    let has_functions = graph.source().fields_of(model_field::FUNCTIONS).next().is_some();
    let mut nodes = graph.nodes().map(|(_, node)| node);
    has_functions
        || nodes.any(|node| {
            canonical::domain(&node.domain) == domain
                || node.attributes.iter().any(|a| a.0.g.is_some() || !a.0.graphs.is_empty())
        })
}

/// The inputs and outputs that a form has beside the original's.
#[derive(Clone, Copy)]
pub(super) struct Extra<'a> {
    /// Whether w is an input.
    pub weight: bool,
    /// The values that a cache takes, if it does, and whether the graph is fused.
    pub kept: Option<(&'a Kept, bool)>,
}

/// Compares graph inputs, those of `rows` as an element for each row. Returns which of the compiled graph's values stand
/// for other-named inputs of the original.
pub(super) fn compare_inputs(
    original: &Graph,
    compiled: &Graph,
    rows: &PerRow,
    form: Extra<'_>,
    differences: &mut Vec<Violation>,
) -> Vec<(crate::ir::ValueId, crate::ir::ValueId)> {
    let widened = |info: &ValueInfo| match rows.has(info.name()) {
        true => ValueInfo(ValueInfoProto { r#type: rows.widened(info.0.r#type.as_ref()), ..info.0.clone() }),
        false => info.clone(),
    };
    let expected: Vec<GraphIo> =
        original.inputs().map(|io| GraphIo { info: widened(&io.info), ..io.clone() }).collect();
    let expected: Vec<&GraphIo> = expected.iter().collect();
    let mut found: Vec<&GraphIo> = compiled.inputs().collect();
    if let Some((kept, fused)) = form.kept.filter(|(kept, _)| kept.depth == Depth::Shallow) {
        kept.take("input", &mut found, fused, differences);
    }
    if form.weight {
        match found.pop_if(|io| io.info.name() == WEIGHT_INPUT) {
            Some(io) => {
                let scalar = ValueInfo::tensor(WEIGHT_INPUT, DataType::FLOAT, Some(Vec::new()));
                types("input", &widened(&scalar), &io.info, differences);
            }
            None => differences.push(Violation::first(format!(
                "the last input is not `{WEIGHT_INPUT}`, which w is to be read from"
            ))),
        }
    }
    let pairs = pairs("input", &expected, &found, differences);
    let renamed =
        pairs.into_iter().filter(|(at, index)| found[*at].info.name() != expected[*index].info.name());
    renamed.map(|(at, index)| (found[at].value, expected[index].value)).collect()
}

/// Compares graph outputs. Returns pairs of indexes that stand for each other, the compiled graph's first, and the places
/// of those that a cache keeps.
pub(super) fn compare_outputs(
    original: &Graph,
    compiled: &Graph,
    form: Extra<'_>,
    differences: &mut Vec<Violation>,
) -> (Vec<(usize, usize)>, Vec<usize>) {
    let expected: Vec<&GraphIo> = original.outputs().iter().collect();
    let mut found: Vec<&GraphIo> = compiled.outputs().iter().collect();
    let kept = form.kept.filter(|(kept, _)| kept.depth == Depth::Full);
    let kept = kept.map(|(kept, fused)| kept.take("output", &mut found, fused, differences));
    (pairs("output", &expected, &found, differences), kept.unwrap_or_default())
}

/// Compares inputs or outputs, which must be the same in number, order, name and type. Returns pairs of indexes that
/// stand for each other, the second list's first.
fn pairs(
    what: &str,
    expected: &[&GraphIo],
    found: &[&GraphIo],
    differences: &mut Vec<Violation>,
) -> Vec<(usize, usize)> {
    let same_number = expected.len() == found.len();
    let before = differences.len();
    let mut pairs = Vec::new();
    for (index, wanted) in expected.iter().enumerate() {
        let name = wanted.info.name();
        let here = found.get(index).filter(|io| io.info.name() == name).map(|_| index);
        match here.or_else(|| found.iter().position(|io| io.info.name() == name)) {
            Some(at) => {
                if at != index && same_number {
                    let message = format!("{what} `{name}` is number {}, expected {}", at + 1, index + 1);
                    differences.push(Violation::first(message));
                }
                types(what, &wanted.info, &found[at].info, differences);
                pairs.push((at, index));
            }
            None if same_number => {
                let other = found[index].info.name();
                let message = format!("an {what} is called `{other}`, expected `{name}`");
                differences.push(Violation::first(message));
                pairs.push((index, index));
            }
            None => differences.push(Violation::first(format!("the {what} `{name}` is missing"))),
        }
    }
    if !same_number {
        for io in found.iter().filter(|io| !expected.iter().any(|x| x.info.name() == io.info.name())) {
            let message = format!("there is an {what} `{}` that the original doesn't have", io.info.name());
            differences.push(Violation::first(message));
        }
        if differences.len() == before {
            let message = format!("there are {} {what}s, expected {}", found.len(), expected.len());
            differences.push(Violation::first(message));
        }
    }
    pairs
}

fn types(what: &str, expected: &ValueInfo, found: &ValueInfo, differences: &mut Vec<Violation>) {
    if expected.0.r#type != found.0.r#type {
        differences.push(Violation::first(format!(
            "{what} `{}` is {}, expected {}",
            expected.name(),
            type_text(found.0.r#type.as_ref()),
            type_text(expected.0.r#type.as_ref())
        )));
    }
}

/// Returns a type as the ONNX text syntax has it: `float[batch, 4, 64, 64]`.
pub(super) fn type_text(r#type: Option<&TypeProto>) -> String {
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
