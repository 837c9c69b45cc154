//! The whole compiler: [`compile`] turns a graph in memory into the emitted one, [`compile_file`] does it for files.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    analysis::{
        flow::Flow,
        macs,
        magnitude::{MagnitudeError, Progress},
        modules::{self, Modules},
        shapes::{self, Shapes},
        skip::Facts,
        weights,
    },
    ir::Graph,
    onnx::{self, OnnxError, WeightPolicy, WriteOptions},
    passes::{self, PassError, Provenance, PruneOutcome},
    plan::{self, Plan, PlanError, ResolvedPlan},
    report::{
        CompileReport, OutputReport, PlanSummary,
        compile::{Census, files, report, zeros},
    },
};

/// What a compilation found and did, beside the graph itself.
#[derive(Debug)]
pub struct Compilation {
    /// The plan, resolved against the model.
    pub resolved: ResolvedPlan,
    /// What each prune rule came to, in the order of `resolved.prunes`.
    pub outcomes: Vec<PruneOutcome>,
    /// The modules of the model as it came.
    pub modules: Modules,
    /// The shapes of the model as it came.
    pub shapes: Shapes,
}

/// Why a model could not be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The plan does not fit the model.
    #[error(transparent)]
    Plan(#[from] Box<PlanError>),
    /// The model could not be read, or the output not be written.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// A pass failed.
    #[error(transparent)]
    Pass(PassError),
    /// The caller said stop; nothing was written.
    #[error("stopped; nothing was written")]
    Stopped,
}

impl From<PassError> for CompileError {
    fn from(error: PassError) -> Self {
        match error {
            PassError::Magnitude(MagnitudeError::Stopped) => Self::Stopped,
            other => Self::Pass(other),
        }
    }
}

/// Makes `graph` the pruned graph of `plan`: modules bypassed, weights masked. Weights are read only for thresholds;
/// masked elements are made when the graph is written ([`crate::onnx::write`]). A plan that changes nothing leaves
/// the graph unedited, and it will be written byte for byte as it came.
///
/// # Errors
/// [`CompileError`]; the graph is then of no use.
pub fn compile(graph: &mut Graph, plan: &Plan, progress: &Progress<'_>) -> Result<Compilation, CompileError> {
    let shapes = shapes::shapes(graph);
    let modules = modules::modules(graph);
    let flow = Flow::of(graph);
    let weights = weights::weights(graph, &modules);
    let facts = Facts { graph, modules: &modules, shapes: &shapes, flow: &flow };
    let resolved = plan::resolve(plan, &facts, &weights).map_err(Box::new)?;
    let provenance =
        Provenance { emit: "pruned", plan: plan.digest.clone(), source: graph.structure_digest() };
    let outcomes = passes::run(graph, &resolved, &provenance, progress)?;
    Ok(Compilation { resolved, outcomes, modules, shapes })
}

/// A model to compile from and to files.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The exported model. It is never changed.
    pub model: &'a Path,
    /// The plan.
    pub plan: &'a Plan,
    /// The file to write; `None` writes nothing and reports what would be done.
    pub output: Option<&'a Path>,
    /// Where the output's weights are; `None` shares them if the output goes to the model's folder, and copies them
    /// else.
    pub weights: Option<WeightPolicy>,
    /// Latent height and width at which multiply-accumulates are counted (batch 1).
    pub at: Option<(i64, i64)>,
    /// Files that must not be written over, beside the model and its data.
    pub protected: Vec<PathBuf>,
}

/// How a long job tells what it does and is stopped.
#[derive(Clone, Copy)]
pub struct Hooks<'a> {
    /// Called with the number of bytes of weights read or written since the last call.
    pub progress: &'a (dyn Fn(Stage, u64) + Sync),
    /// Set it to stop.
    pub stop: &'a AtomicBool,
}

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading weights to find thresholds.
    Ranking,
    /// Writing the output.
    Writing,
}

/// Text tokens that multiply-accumulates are counted with: what CLIP's tokenizer pads to.
const TOKENS: i64 = 77;

/// Compiles a model file. Nothing is written on failure.
///
/// # Errors
/// [`CompileError`].
pub fn compile_file(job: &Job<'_>, hooks: Hooks<'_>) -> Result<CompileReport, CompileError> {
    let mut graph = Graph::load(onnx::open(job.model)?)?;
    let census = Census::of(&graph, job.at.map(|size| node_macs(&graph, size)));
    let compilation = compile(&mut graph, job.plan, &|bytes| {
        (hooks.progress)(Stage::Ranking, bytes);
        if hooks.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let mut report = report(&graph, &compilation, &census);
    report.model = job.model.display().to_string();
    report.plan = PlanSummary { path: job.plan.source.name().to_string(), digest: job.plan.digest.clone() };
    let Some(output) = job.output else {
        zeros(&mut report, &compilation, &[])?;
        return Ok(report);
    };
    let policy = job.weights.unwrap_or_else(|| default_weights(job.model, output));
    let options = WriteOptions {
        output,
        policy,
        progress: Some(&|bytes| (hooks.progress)(Stage::Writing, bytes)),
        cancelled: Some(hooks.stop),
        protected: &job.protected,
    };
    let written = match onnx::write(&graph, &options) {
        Err(OnnxError::Cancelled) => return Err(CompileError::Stopped),
        other => other?,
    };
    zeros(&mut report, &compilation, &written.masked)?;
    files(&mut report, policy, &written);
    report.outputs.push(OutputReport {
        emit: "pruned".into(),
        path: output.display().to_string(),
        nodes: report.graph.nodes_after,
        identical: !graph.is_edited(),
    });
    Ok(report)
}

/// Where an emitted graph goes by default: `unet.onnx` -> `unet.pruned.onnx`.
pub fn default_output(model: &Path, emit: &str) -> PathBuf {
    let stem = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    model.with_file_name(format!("{stem}.{emit}.onnx"))
}

fn default_weights(model: &Path, output: &Path) -> WeightPolicy {
    let folder = |path: &Path| {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::canonicalize(folder).ok()
    };
    match (folder(model), folder(output)) {
        (Some(a), Some(b)) if a == b => WeightPolicy::Share,
        _ => WeightPolicy::Copy,
    }
}

/// Multiply-accumulates of each node at the latent size `(height, width)`, indexed by node id.
fn node_macs(graph: &Graph, (height, width): (i64, i64)) -> Vec<u64> {
    let bindings = shapes::bind_sizes(graph, 1, height, width, TOKENS);
    let bindings: Vec<(&str, i64)> = bindings.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let concrete = shapes::shapes(graph).evaluate(&bindings);
    let mut macs = vec![0; graph.node_capacity()];
    for id in graph.node_ids() {
        macs[id.index()] = macs::macs(graph, &concrete, id);
    }
    macs
}
