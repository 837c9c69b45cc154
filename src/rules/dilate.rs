//! `dilate`: puts gaps between the elements of kernels, so that convolutions reach further with the same weights.

use miette::SourceSpan;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{Attributes, Change, Edit, Fate, Model, RuleKind, Syntax, modules, ratio::Ratio};
use crate::{
    analysis::{
        Analysis,
        modules::ModuleId,
        resize::{Filter, Resize},
        skip::Illegal,
    },
    ir::{Node as Operator, NodeId, ints_attribute, string_attribute},
    plan::{
        Glob, Located, PlanError, Problem, Selector,
        read::{fields, number},
        yaml::Node,
    },
};

/// Let convolutions reach further with the same weights: their kernels get gaps, and their inputs as much more padding,
/// so that every size stays.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DilateRule {
    /// The word that starts the rule.
    #[serde(skip)]
    pub span: SourceSpan,
    /// The convolutions. Those of 1x1 among the matches of a glob are passed over.
    pub modules: Selector,
    /// The factor on dilations, above 1. With a fraction, the input is resized (linear) by the next whole number over the
    /// factor, that number is the factor on dilations, and the output is resized back (ScaleCrafter).
    #[schemars(extend("exclusiveMinimum" = 1))]
    #[serde(serialize_with = "shortest")]
    pub by: Located<f64>,
}

/// Writes whole numbers as integers.
fn shortest<S: Serializer>(by: &Located<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match by.value.fract() == 0.0 {
        true => serializer.serialize_u64(by.value as u64),
        false => serializer.serialize_f64(by.value),
    }
}

impl Syntax for DilateRule {
    const NAME: &'static str = "dilate";
    const KEYS: &'static [&'static str] = &["modules", "by"];
    const EXAMPLE: &'static str = "dilate: { modules: ..., by: 2 }";
    const ALWAYS: bool = true;

    /// Convolutions, but for those of 1x1.
    fn is_choice(analysis: &Analysis<'_>, module: ModuleId) -> bool {
        let nodes = analysis.modules.get(module).own_nodes.iter().map(|id| analysis.graph.node(*id));
        let mut convolutions = nodes.filter(|node| CONVOLUTIONS.contains(&&*node.op_type));
        convolutions.any(|node| kernel(analysis, node).is_none_or(|sizes| sizes.iter().any(|size| *size > 1)))
    }

    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self> {
        let rule = fields(node, "`dilate`", Self::KEYS, problems)?;
        let modules = modules(&rule, problems);
        let help = Some("`by: 2` doubles the reach of a convolution");
        let by = rule.require("by", help, problems).and_then(|node| {
            let is_factor = |by: f64| by <= f64::from(u32::MAX) && Ratio::of(by).is_above_one();
            number(node, "`by`", "a number above 1 (which changes nothing)", is_factor, problems)
        });
        Some(Self { span, modules: modules?, by: by? })
    }
}

impl RuleKind for DilateRule {
    fn span(&self) -> SourceSpan {
        self.span
    }

    fn noun(&self) -> &'static str {
        "a dilation"
    }

    fn canonical(&self) -> Value {
        let by = match self.by.value.fract() == 0.0 {
            true => json!(self.by.value as u64),
            false => json!(self.by.value),
        };
        json!([Self::NAME, self.modules.canonical(), by])
    }

    fn resolve(&self, model: &Model<'_>, errors: &mut Vec<PlanError>) -> Vec<Change> {
        let analysis = model.analysis;
        let convolutions = |module: ModuleId| -> Vec<NodeId> {
            let nodes = &analysis.modules.get(module).own_nodes;
            nodes
                .iter()
                .copied()
                .filter(|id| CONVOLUTIONS.contains(&&*analysis.graph.node(*id).op_type))
                .collect()
        };
        let selected = model.modules(&self.modules, |id, _| !convolutions(id).is_empty(), errors);
        let (mut changes, mut points) = (Vec::new(), Vec::new());
        for (at, module) in selected.iter().copied() {
            let path = &analysis.modules.get(module).path;
            let nodes = convolutions(module);
            let mut note = None;
            let edits: Result<Vec<_>, _> =
                nodes.iter().map(|id| self.edits(analysis, *id, &mut note)).collect();
            match edits {
                _ if nodes.is_empty() => {
                    let around = analysis.modules.iter().any(|(id, _)| {
                        analysis.modules.is_within(id, module) && !convolutions(id).is_empty()
                    });
                    let reason = match around {
                        true => format!("it is no convolution; `{path}.**` selects those in it"),
                        false => "it is no convolution".into(),
                    };
                    errors.push(PlanError::not_editable(model.source, at, path, reason));
                }
                Ok(edits) => changes.push(Change {
                    rule: Self::NAME,
                    span: self.span,
                    subject: path.clone(),
                    module: Some(module),
                    how: ("by", self.by.value.to_string().into()),
                    done: "dilated",
                    undone: "is not dilated",
                    fate: Fate::Changed,
                    note,
                    edits: edits.concat(),
                }),
                Err(Refusal::Point) => points.push((at, module)),
                Err(Refusal::Because(reason)) => {
                    errors.push(PlanError::not_editable(model.source, at, path, reason));
                }
            }
        }
        changes.extend(self.passed_over(model, &points, &selected, errors));
        changes
    }
}

/// Operators that convolve; only the first is understood.
const CONVOLUTIONS: [&str; 5] = ["Conv", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv"];

/// Why a convolution cannot be dilated.
enum Refusal {
    /// Its kernel has one element: there is nothing between which a gap could be.
    Point,
    Because(String),
}

impl From<Illegal> for Refusal {
    fn from(illegal: Illegal) -> Self {
        Self::Because(illegal.reason)
    }
}

impl DilateRule {
    /// Returns what dilates the convolution `id`: attributes, and for a fraction what resizes its input and output.
    fn edits(
        &self,
        analysis: &Analysis<'_>,
        id: NodeId,
        note: &mut Option<String>,
    ) -> Result<Vec<Edit>, Refusal> {
        let whole = self.by.value.ceil() as i64;
        let attributes = self.dilated(analysis, id, whole)?;
        let mut edits = Vec::new();
        if whole as f64 != self.by.value {
            let size = Ratio::of(self.by.value).divided_after(whole);
            let resize = Resize { size, filter: Filter::Linear, back: Filter::Linear };
            let resized = analysis.resized_node(id, &attributes.set, &resize)?;
            *note = resized.note.or(note.take());
            edits.extend(resized.splices.into_iter().map(Edit::Splice));
        }
        edits.push(Edit::Attributes(attributes));
        Ok(edits)
    }

    /// Returns the attributes of the convolution `id` with its dilations multiplied. Its kernel then spans
    /// `(by - 1) * dilation * (kernel - 1)` more elements on each axis. The padding grows by exactly as much, half of it
    /// on each side: what is left of the input to slide over is the same at every size, and so is the output's shape,
    /// whatever the stride; and each kernel stays about the middle that it had.
    fn dilated(&self, analysis: &Analysis<'_>, id: NodeId, by: i64) -> Result<Attributes, Refusal> {
        let node = analysis.graph.node(id);
        let because = |reason: String| Refusal::Because(format!("{}: {reason}", node.describe()));
        if !node.is("Conv") {
            return Err(because(format!("{} is no operator that can be dilated", node.op_type)));
        }
        let Some(kernel) = kernel(analysis, node) else {
            return Err(because("the size of its kernel is not known".into()));
        };
        if kernel.iter().all(|size| *size == 1) {
            return Err(Refusal::Point);
        }
        let auto_pad = node.string("auto_pad").unwrap_or("NOTSET");
        if !["NOTSET", "VALID"].contains(&auto_pad) {
            return Err(because(format!(
                "the engine pads it (auto_pad = {auto_pad}), by how much is not said"
            )));
        }
        let axes = kernel.len();
        let listed = |name: &str, count: usize, default: i64| match node.ints(name) {
            Some(stated) if stated.len() != count => {
                Err(because(format!("{name} = {stated:?} does not fit")))
            }
            Some(stated) => Ok(stated.to_vec()),
            None => Ok(vec![default; count]),
        };
        let mut dilations = listed("dilations", axes, 1)?;
        let mut pads = if auto_pad == "VALID" { vec![0; 2 * axes] } else { listed("pads", 2 * axes, 0)? };
        for axis in 0..axes {
            let (size, dilation) = (kernel[axis], dilations[axis]);
            let grown = |factor: i64| dilation.checked_mul(factor)?.checked_mul(size - 1);
            let too_large = || because(format!("{} is too large", self.by.value));
            let more = grown(by - 1).ok_or_else(too_large)?;
            if more % 2 != 0 {
                return Err(because(format!(
                    "its kernel of {size} has no middle to be dilated about: {more} more elements of padding have no half"
                )));
            }
            dilations[axis] = dilation.checked_mul(by).ok_or_else(too_large)?;
            for side in [axis, axis + axes] {
                pads[side] = pads[side].checked_add(more / 2).ok_or_else(too_large)?;
            }
        }
        let mut set = vec![ints_attribute("dilations", dilations), ints_attribute("pads", pads)];
        if auto_pad == "VALID" {
            set.push(string_attribute("auto_pad", "NOTSET"));
        }
        Ok(Attributes { node: id, set })
    }

    /// Returns a note of the 1x1 convolutions `points` among `selected`. A selector that catches nothing else, or names
    /// one, is an error.
    fn passed_over(
        &self,
        model: &Model<'_>,
        points: &[(SourceSpan, ModuleId)],
        selected: &[(SourceSpan, ModuleId)],
        errors: &mut Vec<PlanError>,
    ) -> Option<Change> {
        let mut paths: Vec<&str> = Vec::new();
        for (at, module) in points {
            let path = model.analysis.modules.get(*module).path.as_str();
            let others = selected.iter().any(|other| other.0 == *at && !points.contains(other));
            if !others {
                let reason = "its kernel is 1x1, so a dilation changes nothing";
                errors.push(PlanError::not_editable(model.source, *at, path, reason));
            } else if !paths.contains(&path) {
                paths.push(path);
            }
        }
        let Selector::Globs(globs) = &self.modules else { return None };
        (!paths.is_empty()).then(|| Change {
            rule: Self::NAME,
            span: self.span,
            subject: globs.iter().map(Glob::text).collect::<Vec<_>>().join(", "),
            module: None,
            how: ("by", self.by.value.to_string().into()),
            done: "dilated",
            undone: "is not dilated",
            fate: Fate::Changed,
            note: Some(format!("passed over, because their kernels are 1x1: {}", some(&paths))),
            edits: Vec::new(),
        })
    }
}

/// Returns the size of a convolution's kernel on each axis.
fn kernel(analysis: &Analysis<'_>, node: &Operator) -> Option<Vec<i64>> {
    let sizes = match node.ints("kernel_shape") {
        Some(stated) => stated.to_vec(),
        None => {
            let shape = analysis.shapes.of(node.input(1)?)?;
            shape.dims.iter().skip(2).map(|dim| dim.constant()).collect::<Option<_>>()?
        }
    };
    (!sizes.is_empty() && sizes.iter().all(|size| *size >= 1)).then_some(sizes)
}

/// Returns the first few paths, and how many more there are.
fn some(paths: &[&str]) -> String {
    const SHOWN: usize = 4;
    let (shown, more) = paths.split_at(paths.len().min(SHOWN));
    let shown: Vec<String> = shown.iter().map(|path| format!("`{path}`")).collect();
    match more.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
