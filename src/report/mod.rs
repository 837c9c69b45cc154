//! Reports: what was done, for people ([`text`]) and for machines (the types themselves, as JSON).

#[cfg(feature = "runner")]
pub mod compare;
pub mod compile;
pub mod cuts;
pub mod diff;
pub mod html;
pub mod inspect;
mod norms;
pub mod outcome;
pub mod print;
mod slice;
pub(crate) mod table;
pub mod text;
pub mod verify;

use std::borrow::Cow;

use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    analysis::magnitude::Summary,
    plan::{Depth, Target},
    rules,
};

/// The report of a compilation. `--report FILE.json` writes exactly this, `--report FILE.html` a page about it
/// ([`html`]).
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CompileReport {
    /// Name and version of the compiler.
    pub tool: String,
    /// The model that was read.
    pub model: String,
    /// The graph that was asked for: `pruned`, `fused`, `amplified` or `dense`.
    pub emit: Target,
    /// The plan that was followed, and its digest.
    pub plan: PlanSummary,
    /// The outputs, one entry an emitted graph; empty for a dry run.
    pub outputs: Vec<OutputReport>,
    /// Modules that rules change. In JSON each kind of rule has a list of its own: `bypass`.
    #[serde(flatten, serialize_with = "by_rule")]
    pub changes: Vec<ChangeReport>,
    /// LoRAs.
    pub lora: Vec<LoraReport>,
    /// Prune rules.
    pub prune: Vec<PruneReport>,
    /// Where the weights of the (first) output are.
    pub weights: WeightsReport,
    /// The graph before and after.
    pub graph: GraphReport,
    /// The cut of a pair of graphs, of which `graph` is the full one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheReport>,
    /// The nodes that a fused graph computes once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fused: Option<FusedReport>,
    /// Things that the user should know: clones of shared weights, sizes at which a bypass is legal.
    pub notes: Vec<String>,
}

/// The plan of a report.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct PlanSummary {
    /// Where it was read from.
    pub path: String,
    /// SHA-256 of its meaning.
    pub digest: String,
}

/// An emitted graph.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct OutputReport {
    /// `pruned`, `fused` or `amplified`.
    pub emit: Target,
    /// `full` or `shallow`, if it is one of a pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<Depth>,
    /// The model file.
    pub path: String,
    /// Nodes in the emitted graph.
    pub nodes: usize,
    /// Whether it is byte for byte the input.
    pub identical: bool,
    /// The data files of other outputs that it reads weights from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<String>,
}

/// A module that a rule changes.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct ChangeReport {
    /// The word of the rule in plans: `bypass`.
    pub rule: &'static str,
    /// The participle for the head of a table: `bypassed`.
    pub done: &'static str,
    /// The module's path.
    pub module: String,
    /// The line of the plan that asks for it, counted from 1.
    pub line: usize,
    /// The kind of the module: `resnet`, `attention`.
    pub kind: String,
    /// The key and the value of the plan that say how: `via` and `shortcut`.
    pub how: (&'static str, Cow<'static, str>),
    /// Whether nothing reads the module's results any more.
    pub gone: bool,
    /// Nodes of the module that are gone.
    pub nodes: usize,
    /// Parameters of the module that nothing reads any more.
    pub parameters: u64,
    /// Multiply-accumulates gone at the size asked for with `--at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macs: Option<u64>,
    /// Sizes at which the change is legal, if not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Writes a list of rows for each kind of rule that changes modules, under the kind's word.
fn by_rule<S: Serializer>(changes: &[ChangeReport], serializer: S) -> Result<S::Ok, S::Error> {
    struct Row<'a>(&'a ChangeReport);
    impl Serialize for Row<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let change = self.0;
            let mut row = serializer.serialize_map(None)?;
            row.serialize_entry("module", &change.module)?;
            row.serialize_entry("line", &change.line)?;
            row.serialize_entry("kind", &change.kind)?;
            row.serialize_entry(change.how.0, &change.how.1)?;
            row.serialize_entry("nodes", &change.nodes)?;
            row.serialize_entry("parameters", &change.parameters)?;
            if let Some(macs) = &change.macs {
                row.serialize_entry("macs", macs)?;
            }
            if let Some(note) = &change.note {
                row.serialize_entry("note", note)?;
            }
            row.end()
        }
    }
    let mut kinds = serializer.serialize_map(None)?;
    for kind in rules::module_kinds() {
        let rows: Vec<Row<'_>> = changes.iter().filter(|change| change.rule == kind).map(Row).collect();
        kinds.serialize_entry(kind, &rows)?;
    }
    kinds.end()
}

/// A LoRA that is merged into weights.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct LoraReport {
    /// The file, as the plan has it.
    pub file: String,
    /// The line of the plan that the rule starts in, counted from 1.
    pub line: usize,
    /// SHA-256 of the file.
    pub digest: String,
    /// The factor on all of it.
    pub scale: f64,
    /// Number of weight tensors that it changes.
    pub tensors: usize,
    /// Number of weights in them.
    pub weights: u64,
    /// How large the change of all of them is: the Frobenius norm of what is added over that of the weights as they came;
    /// none where those are all 0.
    pub change: Option<f64>,
    /// Each tensor.
    pub per_tensor: Vec<MergedReport>,
    /// Layers that are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A weight tensor that a LoRA is merged into.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct MergedReport {
    /// Path of the module whose weight it is.
    pub module: String,
    /// Number of weights.
    pub weights: u64,
    /// The Frobenius norm of what is added over that of the weight as it came; none if that is 0.
    pub change: Option<f64>,
}

/// A prune rule.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct PruneReport {
    /// The rule's selector, as the plan has it.
    pub selector: String,
    /// The line of the plan that it starts in, counted from 1.
    pub line: usize,
    /// Number of weight tensors.
    pub tensors: usize,
    /// Number of weights in them.
    pub weights: u64,
    /// How many of them the ratio asks for; none for a threshold or a pattern.
    pub k: Option<u64>,
    /// Magnitude at and below which weights are masked; none for a pattern or where each tensor has its own.
    pub threshold: Option<f64>,
    /// How many weights are masked. Ties at the threshold can make it more than `k`.
    pub zeros: u64,
    /// The factor on masked weights, if it is not 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// The magnitudes of the weights as they came. A rule that needs no ranks (a threshold, a pattern) has it only in a
    /// report as HTML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub magnitudes: Option<MagnitudeReport>,
    /// Each tensor.
    pub per_tensor: Vec<TensorReport>,
}

/// How many weights there are of which magnitude.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MagnitudeReport {
    /// Weights that are 0, or float32 below 2^-133.
    pub zeros: u64,
    /// Weights that are infinite or NaN.
    pub not_finite: u64,
    /// Edges of the bins, one more than there are bins: a bin has the weights with `edge <= |w| < next edge`.
    pub edges: Vec<f32>,
    /// The number of weights in each bin.
    pub counts: Vec<u64>,
}

impl From<&Summary> for MagnitudeReport {
    fn from(summary: &Summary) -> Self {
        let last = summary.bins.last().map(|bin| bin.to);
        Self {
            zeros: summary.zeros,
            not_finite: summary.not_finite,
            edges: summary.bins.iter().map(|bin| bin.from).chain(last).collect(),
            counts: summary.bins.iter().map(|bin| bin.count).collect(),
        }
    }
}

/// A weight tensor of a prune rule.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct TensorReport {
    /// Path of the module whose weight it is.
    pub module: String,
    /// Name of the initializer in the emitted graph.
    pub tensor: String,
    /// Number of weights.
    pub weights: u64,
    /// How many of them are masked.
    pub zeros: u64,
    /// `zeros / weights`.
    pub sparsity: f64,
    /// Whether the tensor is not in the output, because what used it is bypassed. It counts in its pool all the same.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bypassed: bool,
    /// How many its own ratio asks for (`pool: tensor` only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<u64>,
    /// Its own threshold (`pool: tensor` only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
}

/// Where the weights are.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct WeightsReport {
    /// `share`, `copy` or `compact`.
    pub policy: String,
    /// Bytes written, in all files together.
    pub bytes_written: u64,
    /// Bytes that the output reads from files that were there before.
    pub bytes_shared: u64,
    /// The files written, with their sizes.
    pub files: Vec<FileReport>,
    /// The files that must stay beside the output.
    pub shared_with: Vec<String>,
}

/// A file that was written.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct FileReport {
    /// Where.
    pub path: String,
    /// How long.
    pub bytes: u64,
}

/// A graph before and after.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct GraphReport {
    /// Nodes before.
    pub nodes_before: usize,
    /// Nodes after.
    pub nodes_after: usize,
    /// Elements of all initializers before.
    pub parameters_before: u64,
    /// Elements of all initializers after.
    pub parameters_after: u64,
    /// Multiply-accumulates before, at the size asked for with `--at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macs_before: Option<u64>,
    /// Multiply-accumulates after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macs_after: Option<u64>,
}

/// A cut through a network.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CacheReport {
    /// The module that it is at.
    pub at: String,
    /// The shallow graph, beside the model as it came.
    pub shallow: GraphReport,
}

/// How much dense and pruned branch of a fused graph have in common.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct FusedReport {
    /// Modules that are computed once for both branches; of modules within each other the outermost.
    pub modules_shared: Vec<String>,
    /// Nodes of the dense branch: all of the original.
    pub nodes_dense: usize,
    /// How many of them the pruned branch uses as well.
    pub nodes_shared: usize,
    /// Nodes that only the pruned branch has.
    pub nodes_pruned_only: usize,
    /// Float parameters that both branches use, of those that either does.
    pub parameters_shared: u64,
    /// Float parameters that either branch uses.
    pub parameters: u64,
    /// Multiply-accumulates of dense and pruned network in two runs, at the size asked for with `--at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macs_two_runs: Option<u64>,
    /// How many of them are computed once instead of twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macs_shared: Option<u64>,
    /// Expected time against two runs, from the multiply-accumulates: `1 - macs_shared / macs_two_runs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_time: Option<f64>,
}
