//! The whole compiler: [`compile`] turns a graph in memory into the emitted one, [`compile_file`] does it for files.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    analysis::{
        Analysis, Findings, macs,
        magnitude::{MagnitudeError, Progress},
        shapes::{self, ConcreteShapes, Shapes},
    },
    ir::Graph,
    onnx::{self, OnnxError, WeightPolicy, WriteOptions},
    passes::{self, Emit, MaskForm, MixWeight, PassError, Provenance, PruneOutcome, Sharing},
    plan::{self, During, On, Plan, PlanError, ResolvedPlan, Weight},
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
    /// What a fused graph computes once.
    pub sharing: Sharing,
    /// What is known about the model as it came.
    pub findings: Arc<Findings>,
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
    /// The plan asks for something that the graph to be emitted cannot do.
    #[error("{0}")]
    Emit(String),
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

/// Which graph is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The pruned network.
    #[default]
    Pruned,
    /// Dense and pruned network mixed in one graph, with w from the plan's `amplify.weight`.
    Fused,
    /// The same, with w as a graph input.
    FusedWithInput,
    /// One network whose masked weights are multiplied by `1 - w`.
    Amplified,
}

impl Target {
    /// Its name on the command line and in file names' default endings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pruned => "pruned",
            Self::Fused | Self::FusedWithInput => "fused",
            Self::Amplified => "amplified",
        }
    }
}

/// Makes `graph` the target of `plan`. Weights are read only for thresholds; masked elements are made when the graph
/// is written ([`crate::onnx::write`]). A plan that changes nothing leaves the graph unedited, and it will be written
/// byte for byte as it came.
///
/// # Errors
/// [`CompileError`]; the graph is then of no use.
pub fn compile(
    graph: &mut Graph,
    plan: &Plan,
    target: Target,
    masks: MaskForm,
    progress: &Progress<'_>,
) -> Result<Compilation, CompileError> {
    let emit = emit(plan, target)?;
    // Half of the time of a compilation that reads no weights.
    let (analysis, source) = rayon::join(|| Analysis::of(graph), || graph.structure_digest());
    let mut resolved = plan::resolve(plan, &analysis).map_err(Box::new)?;
    let findings = analysis.findings();
    if let Emit::Amplified(w) = emit {
        for prune in &mut resolved.prunes {
            prune.rule.scale.value = 1.0 - w;
        }
    }
    let provenance = Provenance { emit: emit.name(), plan: plan.digest.clone(), source };
    let outcome = passes::run(graph, &resolved, emit, masks, &provenance, progress)?;
    Ok(Compilation { resolved, outcomes: outcome.prunes, sharing: outcome.sharing, findings })
}

/// What the passes are to make, with w from the plan.
pub(crate) fn emit(plan: &Plan, target: Target) -> Result<Emit, CompileError> {
    let amplify = &plan.amplify;
    let constant = match amplify.weight.value {
        Weight::Constant(w) => Ok(w),
        Weight::Ramp { .. } | Weight::Steps(_) => Err("amplify.weight changes from step to step"),
    };
    let timed = match (&amplify.during, amplify.every.value.get(), amplify.on) {
        (During::Fraction { from, to }, 1, On::Both) if *from <= 0.0 && *to >= 1.0 => None,
        (_, 1, On::Both) => Some("amplify.during limits the steps"),
        (_, 1, On::Cond) => Some("amplify.on: cond treats the two branches of guidance differently"),
        _ => Some("amplify.every skips steps"),
    };
    let refuse = |what: &str, why: &str| {
        Err(CompileError::Emit(format!(
            "{what}: {why}, and one graph does not know which step or branch it runs in. `crdiff run` follows the whole \
             plan; or emit a fused graph with `--poa-weight input` and let the sampling loop feed w (w = 0 turns \
             amplification off, but both branches are still computed)"
        )))
    };
    match target {
        Target::Pruned => Ok(Emit::Pruned),
        Target::FusedWithInput => Ok(Emit::Fused(MixWeight::Input)),
        Target::Fused => match (constant, timed) {
            (Ok(w), None) => Ok(Emit::Fused(MixWeight::Baked(w))),
            (Err(why), _) | (_, Some(why)) => {
                refuse("a fused graph with w baked in cannot follow this plan", why)
            }
        },
        Target::Amplified => {
            let mut rules = plan.rules.iter();
            if rules.any(|rule| matches!(rule, plan::Rule::Bypass(_))) {
                return Err(CompileError::Emit(
                    "an amplified graph stands for prune rules only: for a bypassed module, multiplying by 1 - w is far \
                     from mixing the outputs (14 to 75 % off where it was measured). Emit a fused graph instead"
                        .to_string(),
                ));
            }
            let scaled = |rule: &plan::Rule| matches!(rule, plan::Rule::Prune(p) if p.scale.value != 0.0);
            if plan.rules.iter().any(scaled) {
                return Err(CompileError::Emit(
                    "an amplified graph sets the scale of masked weights itself, to 1 - w: leave `scale` out"
                        .to_string(),
                ));
            }
            match (constant, timed) {
                (Ok(w), None) => Ok(Emit::Amplified(w)),
                (Err(why), _) | (_, Some(why)) => refuse("an amplified graph cannot follow this plan", why),
            }
        }
    }
}

/// A model to compile from and to files.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The exported model. It is never changed.
    pub model: &'a Path,
    /// The plan.
    pub plan: &'a Plan,
    /// Which graph to make.
    pub target: Target,
    /// The file to write; `None` writes nothing and reports what would be done.
    pub output: Option<&'a Path>,
    /// Where the output's weights are; `None` shares them if the output goes to the model's folder, and copies them
    /// else.
    pub weights: Option<WeightPolicy>,
    /// How masked weights are in the output.
    pub masks: MaskForm,
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
    let compilation = compile(&mut graph, job.plan, job.target, job.masks, &|bytes| {
        (hooks.progress)(Stage::Ranking, bytes);
        if hooks.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let mut report = report(&graph, &compilation, &census, &job.plan.source);
    report.model = job.model.display().to_string();
    report.emit = job.target.name().to_string();
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
    files(&mut report, policy, job.masks, &written);
    if let Some(path) = &written.left_over {
        let path = path.display();
        report.notes.push(format!("{path} is from an earlier output; this one does not use it"));
    }
    report.outputs.push(OutputReport {
        emit: job.target.name().to_string(),
        path: output.display().to_string(),
        nodes: report.graph.nodes_after,
        identical: !graph.is_edited(),
    });
    Ok(report)
}

/// Where an emitted graph goes by default, beside the model: `unet.pruned.onnx`, `unet.crdiff.onnx` (fused),
/// `unet.amplified.onnx`.
pub fn default_output(model: &Path, target: Target) -> PathBuf {
    let stem = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let ending = match target {
        Target::Fused | Target::FusedWithInput => "crdiff",
        Target::Pruned | Target::Amplified => target.name(),
    };
    model.with_file_name(format!("{stem}.{ending}.onnx"))
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
fn node_macs(graph: &Graph, size: (i64, i64)) -> Vec<u64> {
    macs::each(graph, &at_size(graph, &shapes::shapes(graph), size))
}

/// The shapes at the latent size `(height, width)`, for one picture and the tokens of CLIP.
pub(crate) fn at_size(graph: &Graph, shapes: &Shapes, (height, width): (i64, i64)) -> ConcreteShapes {
    let bindings = shapes::bind_sizes(graph, 1, height, width, TOKENS);
    let bindings: Vec<(&str, i64)> = bindings.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    shapes.evaluate(&bindings)
}
