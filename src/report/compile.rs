//! Makes the [`CompileReport`] of a compilation.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    iter::successors,
};

use prost::Message;

use super::{
    ChangeReport, CompileReport, FileReport, FusedReport, GraphReport, LoraReport, MagnitudeReport,
    MergedReport, PruneReport, TensorReport,
};
use crate::{
    analysis::{
        Analysis,
        magnitude::{MagnitudeError, MagnitudeHistogram, PoolTensor},
        modules::{ModuleId, Modules},
    },
    ir::{Graph, InitializerId, NodeId, WeightReader, count_masked},
    onnx::{OnnxError, WeightPolicy, Written, model_field, proto::StringStringEntryProto},
    passes::{MaskForm, REPORTED_BINS, Sharing, WeightOutcome},
    plan::PlanSource,
    rules::{Edits, Fate, Mask},
};

/// The contents of a model before it was compiled.
#[derive(Clone, Debug)]
pub struct Census {
    nodes: usize,
    parameters: u64,
    /// Float initializers: their size and the nodes that read them.
    readers: Vec<(InitializerId, u64, Vec<NodeId>)>,
    /// Multiply-accumulates of each node, where a size was asked for.
    macs: Option<Vec<u64>>,
    /// The same of the compiled graph, where parts of it run at another size.
    resized: Option<Vec<u64>>,
}

impl Census {
    /// Counts the multiply-accumulates of the compiled graph by its own sizes, indexed by node id.
    pub fn resize(&mut self, macs: Option<Vec<u64>>) {
        self.resized = macs;
    }

    /// Counts what is in `graph`. `macs` has the multiply-accumulates of each node, indexed by node id.
    pub fn of(graph: &Graph, macs: Option<Vec<u64>>) -> Self {
        let mut readers: BTreeMap<InitializerId, Vec<NodeId>> = BTreeMap::new();
        for (id, node) in graph.nodes() {
            for value in node.operands() {
                if let Some((initializer, _)) = graph.initializer_of(value) {
                    readers.entry(initializer).or_default().push(id);
                }
            }
        }
        let readers = graph
            .initializers()
            .filter(|(_, i)| i.header.data_type.is_weight_float())
            .map(|(id, i)| (id, i.header.elements(), readers.remove(&id).unwrap_or_default()))
            .collect();
        Self { nodes: graph.nodes().count(), parameters: parameters(graph), readers, macs, resized: None }
    }
}

/// Returns whether the plan bypasses all blocks of the network.
fn is_emptied(made: &Made<'_>) -> bool {
    let modules = made.modules;
    let gone = made.edits.changes().filter(|change| change.fate == Fate::Gone);
    let bypassed: BTreeSet<ModuleId> = gone.filter_map(|change| change.module).collect();
    let around = |id: ModuleId| successors(Some(id), |id| modules.get(*id).parent);
    let blocks: Vec<ModuleId> =
        modules.iter().filter(|(_, module)| module.kind.is_block()).map(|(id, _)| id).collect();
    // Stages cannot be bypassed; what is in them can.
    let parents: BTreeSet<ModuleId> = blocks.iter().flat_map(|id| around(*id).skip(1)).collect();
    let mut innermost = blocks.iter().filter(|id| !parents.contains(id)).peekable();
    innermost.peek().is_some() && innermost.all(|id| around(*id).any(|id| bypassed.contains(&id)))
}

/// Returns the number of float elements in all initializers.
pub fn parameters(graph: &Graph) -> u64 {
    graph
        .initializers()
        .filter(|(_, i)| i.header.data_type.is_weight_float())
        .map(|(_, i)| i.header.elements())
        .sum()
}

/// A compilation, as far as reports need it.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// The changes.
    pub edits: &'a Edits,
    /// The result of each edit of weights, in the order of [`Edits::weights`].
    pub weights: &'a [WeightOutcome],
    /// The elements of merged weights as they came, in the order of [`Change::merges`](crate::rules::Change::merges).
    pub originals: &'a [WeightReader],
    /// The nodes that a fused graph computes once.
    pub sharing: &'a Sharing,
    /// The modules of the model as it came.
    pub modules: &'a Modules,
}

pub use super::norms::norms;

/// Makes the report of the compilation `made` of `graph`, by the plan `source`, without the files: those are added by
/// [`files`].
pub fn report(graph: &Graph, made: &Made<'_>, census: &Census, source: &PlanSource) -> CompileReport {
    let gone = |id: NodeId| graph.get(id).is_none();
    let originals: BTreeMap<NodeId, NodeId> = made.sharing.copies.iter().copied().collect();
    let cost =
        |macs: &[u64], id: NodeId| macs.get(originals.get(&id).unwrap_or(&id).index()).copied().unwrap_or(0);
    let macs_left = match &census.resized {
        Some(macs) => Some(macs.iter().sum()),
        None => census.macs.as_ref().map(|macs| graph.node_ids().map(|id| cost(macs, id)).sum()),
    };
    let mut report = CompileReport {
        tool: format!("crdiff {}", env!("CARGO_PKG_VERSION")),
        graph: GraphReport {
            nodes_before: census.nodes,
            nodes_after: graph.nodes().count(),
            parameters_before: census.parameters,
            parameters_after: parameters(graph),
            macs_before: census.macs.as_ref().map(|macs| macs.iter().sum()),
            macs_after: macs_left,
        },
        ..CompileReport::default()
    };
    if !made.sharing.copies.is_empty() {
        report.fused = Some(fused(graph, made, census));
    }
    let modules = made.modules;
    report.notes.extend(made.edits.notes());
    for change in made.edits.changes() {
        let Some(module) = change.module else { continue };
        let nodes: Vec<NodeId> = modules.nodes(module).into_iter().filter(|id| gone(*id)).collect();
        report.changes.push(ChangeReport {
            rule: change.rule,
            done: change.done,
            module: change.subject.clone(),
            line: source.line(change.span),
            kind: modules.get(module).kind.to_string(),
            how: change.how.clone(),
            gone: change.fate == Fate::Gone,
            nodes: nodes.len(),
            parameters: parameters_gone(graph, census, modules, module),
            macs: census.macs.as_ref().map(|macs| nodes.iter().filter_map(|id| macs.get(id.index())).sum()),
            note: change.note.clone(),
        });
    }
    for change in made.edits.changes() {
        let Some(first) = change.merges().next() else { continue };
        report.lora.push(LoraReport {
            file: change.subject.clone(),
            line: source.line(change.span),
            digest: first.file.digest().to_string(),
            scale: first.scale,
            tensors: change.merges().count(),
            weights: change.merges().map(|merge| merge.weight.elements()).sum(),
            change: None,
            per_tensor: change
                .merges()
                .map(|merge| MergedReport {
                    module: merge.weight.path.clone(),
                    weights: merge.weight.elements(),
                    change: None,
                })
                .collect(),
            note: change.note.clone(),
        });
    }
    if let Some(how) = compiled_already(graph) {
        report.notes.push(format!(
            "the model was {how}: what this plan says is done to what is left by that one; to have this plan alone, compile \
             the model that it was made of"
        ));
    }
    if is_emptied(made) {
        report.notes.push("nothing of the network is left: every block of it is bypassed".to_string());
    }
    let rules = made.edits.changes().flat_map(|change| change.weights().map(move |edit| (change, edit)));
    for ((change, edit), outcome) in rules.zip(made.weights) {
        report.prune.push(PruneReport {
            selector: change.subject.clone(),
            line: source.line(change.span),
            tensors: outcome.tensors.len(),
            weights: outcome.tensors.iter().map(|t| t.elements).sum(),
            k: match edit.mask {
                Mask::Ratio { .. } => outcome.k,
                _ => None,
            },
            threshold: outcome.threshold.map(|t| t.value().into()),
            zeros: 0,
            scale: (edit.scale != 0.0).then_some(edit.scale),
            magnitudes: outcome.magnitudes.as_ref().map(MagnitudeReport::from),
            per_tensor: outcome
                .tensors
                .iter()
                .map(|t| TensorReport {
                    module: t.path.clone(),
                    tensor: t
                        .initializer
                        .and_then(|id| graph.initializer(id))
                        .map(|i| i.header.name.clone())
                        .unwrap_or_default(),
                    weights: t.elements,
                    zeros: 0,
                    sparsity: 0.0,
                    bypassed: t.initializer.is_some_and(|id| graph.initializer(id).is_none()),
                    k: t.threshold.map(|t| t.k),
                    threshold: t.threshold.map(|t| t.t.value().into()),
                })
                .collect(),
        });
        for tensor in outcome.tensors.iter().filter(|t| t.cloned) {
            report.notes.push(format!(
                "`{}` shares its weight with other modules: they keep it, and the masked one is a copy",
                tensor.path
            ));
        }
    }
    report
}

/// Returns how a model was compiled before it was read, if its metadata say so: "compiled already, by ...".
pub fn compiled_already(graph: &Graph) -> Option<String> {
    let fields = graph.source().fields_of(model_field::METADATA_PROPS);
    let entries: Vec<_> =
        fields.filter_map(|field| StringStringEntryProto::decode(field.value()).ok()).collect();
    let value = |key: &str| entries.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
    let plan = value("crdiff.plan")?;
    let with = match value("crdiff.lora").map_or(0, |files| files.split(',').count()) {
        0 => String::new(),
        1 => " and a LoRA".to_string(),
        files => format!(" and {files} LoRAs"),
    };
    Some(format!(
        "compiled already, by crdiff {} ({}) with the plan of digest {}...{with}",
        value("crdiff.version").unwrap_or_default(),
        value("crdiff.emit").unwrap_or_default(),
        plan.get(..12).unwrap_or(plan)
    ))
}

fn fused(graph: &Graph, made: &Made<'_>, census: &Census) -> FusedReport {
    let sharing = made.sharing;
    let read = |nodes: &mut dyn Iterator<Item = NodeId>| -> BTreeMap<InitializerId, u64> {
        nodes
            .filter_map(|id| graph.get(id))
            .flat_map(|node| node.operands())
            .filter_map(|v| graph.initializer_of(v))
            .filter(|(_, i)| i.header.data_type.is_weight_float())
            .map(|(id, i)| (id, i.header.elements()))
            .collect()
    };
    let copies: BTreeSet<NodeId> = sharing.copies.iter().map(|(copy, _)| *copy).collect();
    let all = read(&mut graph.node_ids());
    let dense = read(&mut graph.node_ids().filter(|id| !copies.contains(id)));
    let pruned = read(&mut sharing.shared.iter().copied().chain(copies.iter().copied()));
    let macs = |nodes: &mut dyn Iterator<Item = NodeId>| {
        census.macs.as_ref().map(|macs| nodes.filter_map(|id| macs.get(id.index())).sum::<u64>())
    };
    let macs_shared = macs(&mut sharing.shared.iter().copied());
    let copied = match &census.resized {
        Some(macs) => Some(sharing.copies.iter().filter_map(|(copy, _)| macs.get(copy.index())).sum()),
        None => macs(&mut sharing.copies.iter().map(|(_, original)| *original)),
    };
    let whole = census.macs.as_ref().map(|macs| macs.iter().sum::<u64>());
    let macs_two_runs =
        whole.zip(macs_shared).zip(copied).map(|((dense, shared), copied)| dense + shared + copied);
    FusedReport {
        modules_shared: modules_shared(made.modules, sharing),
        nodes_dense: census.nodes,
        nodes_shared: sharing.shared.len(),
        nodes_pruned_only: sharing.copies.len(),
        parameters_shared: dense.iter().filter(|(id, _)| pruned.contains_key(id)).map(|(_, n)| n).sum(),
        parameters: all.values().sum(),
        macs_two_runs,
        macs_shared,
        expected_time: macs_shared
            .zip(macs_two_runs)
            .filter(|(_, two)| *two > 0)
            .map(|(shared, two)| 1.0 - shared as f64 / two as f64),
    }
}

/// Returns the outermost modules that the pruned branch uses and copies nothing of.
fn modules_shared(modules: &Modules, sharing: &Sharing) -> Vec<String> {
    let with_parents = |nodes: &mut dyn Iterator<Item = NodeId>| -> BTreeSet<ModuleId> {
        let mut found = BTreeSet::new();
        for node in nodes {
            let mut at = Some(modules.of_node(node));
            while let Some(module) = at.filter(|module| found.insert(*module)) {
                at = modules.get(module).parent;
            }
        }
        found
    };
    let copied = with_parents(&mut sharing.copies.iter().map(|(_, original)| *original));
    let used = with_parents(&mut sharing.shared.iter().copied());
    let whole = |module: &ModuleId| !copied.contains(module);
    let outermost = used.iter().filter(|m| whole(m) && !modules.get(**m).parent.is_some_and(|p| whole(&p)));
    outermost.map(|module| modules.get(*module).path.clone()).collect()
}

/// Enters how many weights are masked in each tensor: as `masked` says for those that were written, counted here for
/// the others (a dry run, or a tensor whose user is bypassed).
///
/// # Errors
/// [`OnnxError`] if the weights cannot be read.
pub fn zeros(
    report: &mut CompileReport,
    made: &Made<'_>,
    masked: &[(InitializerId, u64)],
) -> Result<(), OnnxError> {
    let mut masked: BTreeMap<InitializerId, u64> = masked.iter().copied().collect();
    for (rule, outcome) in report.prune.iter_mut().zip(made.weights) {
        for (entry, tensor) in rule.per_tensor.iter_mut().zip(&outcome.tensors) {
            if let (Some(id), Some(data)) = (tensor.initializer, &tensor.data) {
                entry.zeros = match masked.entry(id) {
                    Entry::Occupied(counted) => *counted.get(),
                    Entry::Vacant(unknown) => *unknown.insert(count_masked(data)?),
                };
            }
            if entry.weights > 0 {
                entry.sparsity = entry.zeros as f64 / entry.weights as f64;
            }
        }
        rule.zeros = rule.per_tensor.iter().map(|t| t.zeros).sum();
        let emptied = rule.per_tensor.iter().filter(|t| t.weights > 0 && t.zeros == t.weights);
        let emptied: Vec<&str> = emptied.map(|t| t.module.as_str()).collect();
        if let [first, rest @ ..] = emptied.as_slice() {
            let more = match rest.len() {
                0 => String::new(),
                n => format!(" and of {n} more tensors of this rule"),
            };
            report.notes.push(format!("every weight of `{first}`{more} is masked"));
        }
    }
    Ok(())
}

/// Counts the magnitudes of the weights of rules that needed no ranks. `analysis` is of the model as it came; the weights
/// of those rules are read once.
///
/// # Errors
/// [`MagnitudeError`] if they cannot be read.
pub fn magnitudes(reports: &mut [CompileReport], analysis: &Analysis<'_>) -> Result<(), MagnitudeError> {
    let unknown = |report: &CompileReport| report.prune.iter().any(|rule| rule.magnitudes.is_none());
    if !reports.iter().any(unknown) {
        return Ok(());
    }
    for index in 0..reports.first().map_or(0, |report| report.prune.len()) {
        let rules = || reports.iter().filter_map(|report| report.prune.get(index));
        let Some(rule) = rules().next().filter(|_| rules().any(|rule| rule.magnitudes.is_none())) else {
            continue;
        };
        let named: BTreeSet<&str> = rule.per_tensor.iter().map(|tensor| tensor.module.as_str()).collect();
        let mut pool = Vec::new();
        for weight in analysis.weights.editable.iter().filter(|weight| named.contains(weight.path.as_str())) {
            let Some(initializer) = analysis.graph.initializer(weight.initializer) else { continue };
            let reader = analysis.graph.weight_reader(&initializer.header)?;
            pool.push(PoolTensor { reader, data_type: weight.data_type });
        }
        let summary = MagnitudeHistogram::read(&pool, &())?.summary(REPORTED_BINS);
        for report in &mut *reports {
            if let Some(rule) = report.prune.get_mut(index) {
                rule.magnitudes = Some(MagnitudeReport::from(&summary));
            }
        }
    }
    Ok(())
}

/// Enters what was written, after what was written before.
pub fn files(report: &mut CompileReport, policy: WeightPolicy, masks: MaskForm, written: &Written) {
    let policy = match (masks, policy) {
        (MaskForm::Computed, _) => "compact",
        (_, WeightPolicy::Share) => "share",
        (_, WeightPolicy::Copy | WeightPolicy::Inline | WeightPolicy::Split(_)) => "copy",
    };
    let weights = &mut report.weights;
    weights.policy = policy.to_string();
    weights.bytes_written += written.bytes_written;
    weights.bytes_shared += written.bytes_shared;
    let files = written.files.iter();
    weights
        .files
        .extend(files.map(|(path, bytes)| FileReport { path: path.display().to_string(), bytes: *bytes }));
    for path in &written.shared_with {
        let path = path.display().to_string();
        if !weights.shared_with.contains(&path) {
            weights.shared_with.push(path);
        }
    }
}

/// Returns how many elements have the initializers that only `module` read and nothing reads now.
fn parameters_gone(graph: &Graph, census: &Census, modules: &Modules, module: ModuleId) -> u64 {
    let inside = |node: &NodeId| modules.is_within(modules.of_node(*node), module);
    census
        .readers
        .iter()
        .filter(|(id, _, readers)| {
            graph.initializer(*id).is_none() && !readers.is_empty() && readers.iter().all(inside)
        })
        .map(|(_, elements, _)| elements)
        .sum()
}
