//! `crdiff compile`, which is `crdiff-compile`.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum, builder::PossibleValue};

use super::{
    DONE, Failure, Size, columns,
    files::{self, Report},
    likeness,
    progress::{Bars, Visibility},
    said_latents,
};
use crate::{
    analysis::Analysis,
    compile::{CompileError, Job, Target, cached_outputs, compile_file, default_output},
    ir::Graph,
    onnx::{self, WeightPolicy},
    passes::MaskForm,
    plan::{self, Plan},
    report::{self, CompileReport, html, text::View},
};

const EXAMPLES: &str = "\
Examples:
  crdiff-compile unet.onnx plan.yaml                      unet.pruned.onnx, beside unet.onnx, sharing its weights
  crdiff-compile unet.onnx plan.yaml -o deploy/unet.onnx  a self-contained copy in another folder
  crdiff-compile unet.onnx plan.yaml --dry-run --at 64x64 what would be done, with multiply-accumulates
  crdiff-compile unet.onnx plan.yaml --report report.html the same as a page for a browser
  crdiff inspect unet.onnx                                what a plan can name";

/// Compile a model and a plan into a second model: modules bypassed, weights masked.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The exported UNet (.onnx). It is never changed.
    model: PathBuf,
    /// The plan (YAML, or the result JSON of the authors' search).
    plan: PathBuf,
    /// The graph to write; may be given more than once [default: pruned]
    #[arg(long, value_enum, value_delimiter = ',')]
    emit: Vec<Emit>,
    /// Where a fused graph has its amplification weight w from.
    #[arg(long, value_enum, default_value_t = PoaWeight::Baked)]
    poa_weight: PoaWeight,
    /// The file to write, or the folder if --emit names several [default: MODEL.pruned.onnx, .crdiff.onnx (fused),
    /// .amplified.onnx or .dense.onnx beside the model; cached: MODEL.full.onnx and MODEL.shallow.onnx]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Where the output's weights are [default: share in the model's folder, copy elsewhere]
    #[arg(long, value_enum)]
    weights: Option<WeightsArg>,
    /// Write what was done: a page for a browser if FILE ends in .html, else JSON; - prints that instead of the summary.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Count multiply-accumulates for latents (not pixels) of this size, such as 64x64 (batch 1, 77 tokens); --latent-size is
    /// the same.
    #[arg(long, value_name = "HxW", alias = "latent-size")]
    at: Option<Size>,
    /// Do everything but write.
    #[arg(long)]
    dry_run: bool,
    /// Print a line for each tensor.
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
}

/// The command line of `crdiff-compile`.
#[derive(Debug, Parser)]
#[command(name = "crdiff-compile", version, max_term_width = 100)]
#[command(about = "Compile a model and a plan into a second model: modules bypassed, weights masked")]
pub struct Standalone {
    #[command(flatten)]
    pub(super) args: Args,
}

/// A graph, or the two of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Emit {
    /// Which network.
    pub target: Target,
    /// Whether it is the two graphs of a cache.
    pub cached: bool,
}

impl Emit {
    const ALL: [Self; 8] = {
        const fn emit(target: Target, cached: bool) -> Emit {
            Emit { target, cached }
        }
        [
            emit(Target::Pruned, false),
            emit(Target::Fused, false),
            emit(Target::Amplified, false),
            emit(Target::Dense, false),
            emit(Target::Pruned, true),
            emit(Target::Fused, true),
            emit(Target::Amplified, true),
            emit(Target::Dense, true),
        ]
    };

    /// Returns it with w where `poa_weight` says.
    pub(super) fn with(self, poa_weight: PoaWeight) -> Self {
        match (self.target, poa_weight) {
            (Target::Fused, PoaWeight::Input) => Self { target: Target::FusedWithInput, ..self },
            _ => self,
        }
    }
}

impl ValueEnum for Emit {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let Self { target, cached } = *self;
        if !cached {
            return target.to_possible_value();
        }
        Some(match target {
            Target::Pruned => PossibleValue::new("cached").help(
                "The pruned network as two graphs, of which a loop runs the shallow one in most steps (`cache:`)",
            ),
            Target::Fused | Target::FusedWithInput => {
                PossibleValue::new("cached-fused").help("The fused graph so")
            }
            Target::Amplified => PossibleValue::new("cached-amplified").help("The amplified graph so"),
            Target::Dense => PossibleValue::new("cached-dense").help("The dense network so"),
        })
    }
}

impl ValueEnum for Target {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Pruned, Self::Fused, Self::Amplified, Self::Dense]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self {
            Self::Pruned => "The pruned network",
            Self::Fused | Self::FusedWithInput => {
                "Dense and pruned network and their mix in one graph: a drop-in for the original"
            }
            Self::Amplified => {
                "One network with masked weights times 1 - w: nearly the fused graph's output at half its cost"
            }
            Self::Dense => "The network that amplification starts from: only what `always` changes",
        }))
    }
}

/// The values of `--poa-weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PoaWeight {
    /// The plan's amplify.weight, as a constant.
    Baked,
    /// A graph input called poa_weight, a float32 scalar.
    Input,
}

/// Why `--poa-weight` is refused.
pub(super) const POA_NEEDS_FUSED: &str =
    "--poa-weight says where a fused graph has w from: it needs --emit fused";

/// The values of `--weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WeightsArg {
    /// Untouched weights stay where they are; the output points at them.
    Share,
    /// The output has all its weights.
    Copy,
    /// As share (or copy, in another folder), but masked weights are not stored: nodes mask the original when the model
    /// is loaded. Smallest; slower to load.
    Compact,
}

impl WeightsArg {
    /// Returns the policy for weights that stay as they are; `None` leaves it to the folder.
    fn policy(self) -> Option<WeightPolicy> {
        match self {
            Self::Share => Some(WeightPolicy::Share),
            Self::Copy => Some(WeightPolicy::Copy),
            Self::Compact => None,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let plan = plan::load(&args.plan)?;
    let mut targets: Vec<Emit> = Vec::new();
    for emit in &args.emit {
        let emit = emit.with(args.poa_weight);
        if !targets.contains(&emit) {
            targets.push(emit);
        }
    }
    if targets.is_empty() {
        targets.push(Emit { target: Target::Pruned, cached: false });
    }
    let is_fed = |emit: &Emit| emit.target == Target::FusedWithInput;
    if args.poa_weight == PoaWeight::Input && !targets.iter().any(is_fed) {
        return Err(Failure::Message(POA_NEEDS_FUSED.into()));
    }
    let bars = Bars::new(if args.quiet { Visibility::Hidden } else { Visibility::Shown });
    said_latents(args.at);
    let at = args.at.map(|size| (size.height, size.width));
    let report_file = args.report.as_deref().map(|path| report_file(path, args, &targets)).transpose()?;
    let mut reports = Vec::new();
    for target in &targets {
        let output = output(args, *target, targets.len())?;
        let job = Job {
            model: &args.model,
            plan: &plan,
            target: target.target,
            cached: target.cached,
            output: (!args.dry_run).then_some(&output),
            weights: args.weights.and_then(WeightsArg::policy),
            masks: match args.weights {
                Some(WeightsArg::Compact) => MaskForm::Computed,
                _ => MaskForm::Stored,
            },
            at,
            protected: vec![args.plan.clone()],
        };
        reports.push(compile_file(&job, &bars).inspect_err(|error| say_likeness(args, error))?);
    }
    drop(bars);
    if let Some(file) = report_file {
        let text = match file.is_html() {
            true => page(args, &plan, at, &mut reports)?,
            false => json(&reports)?,
        };
        file.place(&text)?;
    }
    let is_printed = args.report.as_deref().is_some_and(|path| path == Path::new("-"));
    if !args.quiet && !is_printed {
        for report in &reports {
            out!("{}", report::text::compile(report, View { width: columns(), verbose: args.verbose }));
        }
    }
    Ok(DONE)
}

/// Begins the report, which must not be written over what the command reads or writes.
fn report_file(path: &Path, args: &Args, targets: &[Emit]) -> Result<Report, Failure> {
    let mut taken = files::models(&[&args.model])?;
    taken.add(&args.plan, "the plan");
    for target in targets.iter().filter(|_| !args.dry_run) {
        let output = output(args, *target, targets.len())?;
        match target.cached {
            true => cached_outputs(&output).iter().try_for_each(|output| taken.add_output(output))?,
            false => taken.add_output(&output)?,
        }
    }
    Report::create(path, &taken)
}

/// Says what the model looks like that a plan doesn't fit.
fn say_likeness(args: &Args, error: &CompileError) {
    if !matches!(error, CompileError::Plan(_)) {
        return;
    }
    if let Ok(graph) = onnx::open(&args.model).and_then(Graph::load) {
        likeness::say(&args.model, &graph);
    }
}

/// Returns where the graph for `emit` goes, if it is one of `emitted`; for two, what their names are made of.
fn output(args: &Args, emit: Emit, emitted: usize) -> Result<PathBuf, Failure> {
    let default = match emit {
        Emit { target: Target::Pruned, cached: true } => args.model.clone(),
        Emit { target, .. } => default_output(&args.model, target),
    };
    match &args.output {
        None => Ok(default),
        Some(folder) if emit.cached && folder.is_dir() => {
            Ok(folder.join(default.file_name().unwrap_or_default()))
        }
        Some(file) if emitted == 1 => Ok(file.clone()),
        Some(folder) if folder.is_dir() => Ok(folder.join(default.file_name().unwrap_or_default())),
        Some(other) => Err(Failure::Message(format!(
            "{}: with several --emit, -o must name a folder that is there",
            other.display()
        ))),
    }
}

/// Returns the reports as a page.
fn page(
    args: &Args,
    plan: &Plan,
    at: Option<(i64, i64)>,
    reports: &mut [CompileReport],
) -> Result<String, Failure> {
    let graph = Graph::load(onnx::open(&args.model)?)?;
    let analysis = Analysis::of(&graph);
    report::compile::magnitudes(reports, &analysis).map_err(|e| Failure::Message(e.to_string()))?;
    let model = html::Anatomy::of(&args.model.display().to_string(), &analysis, at);
    html::render(&html::compile(model, plan, reports)).map_err(|e| Failure::Message(e.to_string()))
}

/// Returns one report as an object, several as a list of them.
fn json(reports: &[CompileReport]) -> Result<String, Failure> {
    let json = match reports {
        [report] => serde_json::to_string_pretty(report),
        reports => serde_json::to_string_pretty(reports),
    };
    Ok(json.map_err(|e| Failure::Message(e.to_string()))? + "\n")
}
