//! The whole compiler: [`compile`] turns a graph in memory into the emitted one, [`compile_file`] does it for files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    analysis::{Analysis, Findings, cut::Cut, macs, magnitude::MagnitudeError, shapes, splice::Splice},
    ir::{Graph, WeightReader},
    observer::Observer,
    onnx::{self, OnnxError, WeightPolicy, WriteOptions},
    passes::{self, MaskForm, Outcome, PassError, Recipe, Sharing, Stamp, WeightOutcome},
    plan::{self, Plan, PlanError},
    report::{
        CacheReport, CompileReport, OutputReport, PlanSummary,
        compile::{Census, Made, files, norms, report, zeros},
    },
    rules::{Change, EditSet, Edits},
};

pub use crate::plan::{Depth, Target};

/// The findings and results of a compilation, beside the graph itself.
#[derive(Debug)]
#[non_exhaustive]
pub struct Compilation {
    /// The edits that the plan means for the model.
    pub edits: Edits,
    /// The result of each edit of weights, in the order of [`Edits::weights`].
    pub weights: Vec<WeightOutcome>,
    /// The elements of merged weights as they came, in the order of the merges.
    pub originals: Vec<WeightReader>,
    /// The nodes that a fused graph computes once.
    pub sharing: Sharing,
    /// The analysis of the model as it came.
    pub findings: Arc<Findings>,
}

impl Compilation {
    /// Returns what a report tells of it.
    pub fn made(&self) -> Made<'_> {
        let Self { edits, weights, originals, sharing, findings } = self;
        Made { edits, weights, originals, sharing, modules: &findings.modules }
    }
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
    Onnx(OnnxError),
    /// A pass failed.
    #[error(transparent)]
    Pass(PassError),
    /// The plan asks for something that the graph to be emitted cannot do.
    #[error("{0}")]
    Target(String),
    /// The observer said stop; nothing was written.
    #[error("stopped; nothing was written")]
    Stopped,
}

impl From<OnnxError> for CompileError {
    fn from(error: OnnxError) -> Self {
        match error {
            OnnxError::Stopped => Self::Stopped,
            other => Self::Onnx(other),
        }
    }
}

impl From<PassError> for CompileError {
    fn from(error: PassError) -> Self {
        match error {
            PassError::Magnitude(MagnitudeError::Stopped) => Self::Stopped,
            other => Self::Pass(other),
        }
    }
}

/// Why there are no two graphs.
const NO_CACHE: &str = "two graphs for a cache need a plan that says where it is: add `cache: { at: MODULE }` (`crdiff \
                        inspect --cache` lists the modules)";

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
    observer: &dyn Observer,
) -> Result<Compilation, CompileError> {
    let resolved = Resolved::of(graph, plan, target)?;
    let outcome = passes::run(graph, &resolved.recipe(plan, target, masks), observer)?;
    Ok(resolved.compilation(outcome))
}

/// Makes of `graph` the full and the shallow graph that the plan's `cache` takes, each as [`compile`] makes one.
///
/// # Errors
/// [`CompileError`].
pub fn compile_pair(
    graph: Graph,
    plan: &Plan,
    target: Target,
    masks: MaskForm,
    observer: &dyn Observer,
) -> Result<([Graph; 2], Compilation), CompileError> {
    let resolved = Resolved::of(&graph, plan, target)?;
    let cut = resolved.cut.as_ref().ok_or_else(|| CompileError::Target(NO_CACHE.to_string()))?;
    let recipe = resolved.recipe(plan, target, masks);
    let (graphs, outcome) = passes::run_pair(graph, &recipe, cut, observer)?;
    Ok((graphs, resolved.compilation(outcome)))
}

/// The meaning of a plan for a model.
struct Resolved {
    edits: Edits,
    w: Option<f64>,
    cut: Option<Cut>,
    originals: Vec<WeightReader>,
    findings: Arc<Findings>,
    /// SHA-256 of the model's structure.
    source: String,
}

impl Resolved {
    fn of(graph: &Graph, plan: &Plan, target: Target) -> Result<Self, CompileError> {
        // Half of the time of a compilation that reads no weights.
        let (analysis, source) = rayon::join(|| Analysis::of(graph), || graph.structure_digest());
        let mut edits = plan::resolve(plan, &analysis).map_err(Box::new)?;
        let cut = plan::cut(plan, &analysis, &edits).map_err(Box::new)?;
        let findings = analysis.findings();
        let w = target.weight(plan, &edits).map_err(CompileError::Target)?;
        match (target, w) {
            (Target::Amplified, Some(w)) => edits.amplify(w),
            (Target::Dense, _) => edits.other = EditSet::default(),
            _ => {}
        }
        let originals = edits.changes().flat_map(Change::merges).filter_map(|merge| {
            let initializer = graph.initializer(merge.weight.initializer)?;
            Some(graph.weight_reader(&initializer.header))
        });
        let originals = originals.collect::<Result<_, _>>()?;
        Ok(Self { edits, w, cut, originals, findings, source })
    }

    fn recipe<'a>(&'a self, plan: &'a Plan, target: Target, masks: MaskForm) -> Recipe<'a> {
        let stamp = Some(Stamp { plan: &plan.digest, source: &self.source });
        Recipe { edits: &self.edits, target, w: self.w, masks, stamp, per_row: None }
    }

    fn compilation(self, outcome: Outcome) -> Compilation {
        let Outcome { weights, sharing, .. } = outcome;
        let Self { edits, originals, findings, .. } = self;
        Compilation { edits, weights, originals, sharing, findings }
    }
}

/// A model to compile from and to files. [`Job::new`] makes one, and its methods change it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Job<'a> {
    /// The exported model. It is never changed.
    pub model: &'a Path,
    /// The plan.
    pub plan: &'a Plan,
    /// Which graph to make.
    pub target: Target,
    /// Whether to make the two graphs that the plan's `cache` takes, in two files: see [`cached_outputs`].
    pub cached: bool,
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

impl<'a> Job<'a> {
    /// Makes a job that reports what `plan` would do to `model`, as a pruned graph, and writes nothing.
    pub fn new(model: &'a Path, plan: &'a Plan) -> Self {
        Self {
            model,
            plan,
            target: Target::default(),
            cached: false,
            output: None,
            weights: None,
            masks: MaskForm::default(),
            at: None,
            protected: Vec::new(),
        }
    }

    /// Sets which graph to make.
    #[must_use]
    pub fn target(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// Makes the two graphs that the plan's `cache` takes.
    #[must_use]
    pub fn cached(self) -> Self {
        Self { cached: true, ..self }
    }

    /// Sets the file to write.
    #[must_use]
    pub fn output(self, output: &'a Path) -> Self {
        Self { output: Some(output), ..self }
    }

    /// Sets where the output's weights are.
    #[must_use]
    pub fn weights(self, weights: WeightPolicy) -> Self {
        Self { weights: Some(weights), ..self }
    }

    /// Sets how masked weights are in the output.
    #[must_use]
    pub fn masks(self, masks: MaskForm) -> Self {
        Self { masks, ..self }
    }

    /// Sets the latent height and width at which multiply-accumulates are counted.
    #[must_use]
    pub fn at(self, height: i64, width: i64) -> Self {
        Self { at: Some((height, width)), ..self }
    }

    /// Adds a file that must not be written over.
    #[must_use]
    pub fn protect(mut self, file: impl Into<PathBuf>) -> Self {
        self.protected.push(file.into());
        self
    }
}

/// Compiles a model file. Nothing is written on failure.
///
/// # Errors
/// [`CompileError`].
pub fn compile_file(job: &Job<'_>, observer: &dyn Observer) -> Result<CompileReport, CompileError> {
    let mut source = Graph::load(onnx::open_with_weights(job.model)?)?;
    let macs = |graph: &Graph| {
        job.at.map(|size| macs::each(graph, &macs::at_size(graph, &shapes::shapes(graph), size)))
    };
    let mut census = Census::of(&source, macs(&source));
    let (graphs, compilation) = if job.cached {
        let (graphs, made) = compile_pair(source, job.plan, job.target, job.masks, observer)?;
        (Vec::from(graphs), made)
    } else {
        let made = compile(&mut source, job.plan, job.target, job.masks, observer)?;
        (vec![source], made)
    };
    let made = compilation.made();
    let resizes = made.edits.changes().flat_map(Change::splices).any(Splice::resizes);
    let mut report_of = |graph: &Graph| {
        if resizes {
            census.resize(macs(graph));
        }
        report(graph, &made, &census, &job.plan.source)
    };
    let mut report = graphs.first().map(&mut report_of).unwrap_or_default();
    report.model = job.model.display().to_string();
    report.emit = job.target;
    report.plan = PlanSummary { path: job.plan.source.name().to_string(), digest: job.plan.digest.clone() };
    if let (Some(cache), [_, shallow]) = (&job.plan.cache, graphs.as_slice()) {
        report.cache = Some(CacheReport { at: cache.at.value.clone(), shallow: report_of(shallow).graph });
    }
    norms(&mut report, &made)?;
    let Some(output) = job.output else {
        zeros(&mut report, &made, &[])?;
        return Ok(report);
    };
    let outputs = if job.cached { cached_outputs(output).to_vec() } else { vec![output.to_path_buf()] };
    let policy = job.weights.unwrap_or_else(|| default_weights(job.model, output));
    let options = |output| WriteOptions::new(output, policy).observer(observer).protected(&job.protected);
    let writes: Vec<_> =
        graphs.iter().zip(&outputs).map(|(graph, output)| (graph, options(output))).collect();
    let written = onnx::write_all(&writes)?;
    zeros(&mut report, &made, written.first().map_or(&[], |written| &written.masked))?;
    let depths = if job.cached { Depth::ALL.map(Some).to_vec() } else { vec![None] };
    for (((written, graph), output), depth) in written.iter().zip(&graphs).zip(&outputs).zip(depths) {
        files(&mut report, policy, job.masks, written);
        if let Some(path) = &written.left_over {
            let path = path.display();
            report.notes.push(format!("{path} is from an earlier output; this one does not use it"));
        }
        report.outputs.push(OutputReport {
            emit: job.target,
            depth,
            path: output.display().to_string(),
            nodes: graph.nodes().count(),
            identical: !graph.is_edited(),
            reads: written.reads.iter().map(|path| path.display().to_string()).collect(),
        });
    }
    Ok(report)
}

/// Returns where the two graphs of a cache go if `output` was asked for: `unet.full.onnx` and `unet.shallow.onnx` for
/// `unet.onnx`.
pub fn cached_outputs(output: &Path) -> [PathBuf; 2] {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Depth::ALL.map(|depth| output.with_file_name(format!("{stem}.{}.onnx", depth.name())))
}

/// Returns where an emitted graph goes by default, beside the model: `unet.pruned.onnx`, `unet.crdiff.onnx` (fused),
/// `unet.amplified.onnx`.
pub fn default_output(model: &Path, target: Target) -> PathBuf {
    let stem = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let ending = match target {
        Target::Fused | Target::FusedWithInput => "crdiff",
        Target::Pruned | Target::Amplified | Target::Dense => target.name(),
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
