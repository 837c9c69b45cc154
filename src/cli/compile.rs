//! `crdiff compile`, which is `crdiff-compile`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Parser, ValueEnum};

use super::{
    DONE, Failure, Size,
    progress::{Bar, Visibility, interrupted, interruptible},
};
use crate::{
    analysis::{macs, shapes},
    compile::{CompileError, compile},
    ir::Graph,
    onnx::{self, WeightPolicy, WriteOptions},
    passes::PassError,
    plan,
    report::{
        self, CompileReport, OutputReport, PlanSummary,
        compile::{Census, files, zeros},
    },
};

const EXAMPLES: &str = "\
Examples:
  crdiff-compile unet.onnx plan.yaml                      unet.pruned.onnx, beside unet.onnx, sharing its weights
  crdiff-compile unet.onnx plan.yaml -o deploy/unet.onnx  a self-contained copy in another folder
  crdiff-compile unet.onnx plan.yaml --dry-run --at 64x64 what would be done, with multiply-accumulates
  crdiff inspect unet.onnx                                what a plan can name";

/// Compile a model and a plan into a second model: modules bypassed, weights masked.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The exported UNet (.onnx). It is never changed.
    model: PathBuf,
    /// The plan (YAML, or the result JSON of the authors' search).
    plan: PathBuf,
    /// The file to write [default: <model>.pruned.onnx beside the model]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Where the output's weights are [default: share in the model's folder, copy elsewhere]
    #[arg(long, value_enum)]
    weights: Option<Weights>,
    /// Write what was done as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Count multiply-accumulates for latents of this size, such as 64x64 (batch 1, 77 tokens).
    #[arg(long, value_name = "HxW")]
    at: Option<Size>,
    /// Do everything but write.
    #[arg(long)]
    dry_run: bool,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
}

/// The command line of `crdiff-compile`.
#[derive(Debug, Parser)]
#[command(name = "crdiff-compile", version, max_term_width = 100)]
pub struct Standalone {
    #[command(flatten)]
    pub(super) args: Args,
}

/// `--weights`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Weights {
    /// Untouched weights stay where they are; the output points at them.
    Share,
    /// The output has all its weights.
    Copy,
}

/// Text tokens that `--at` counts with: what CLIP's tokenizer pads to.
const TOKENS: i64 = 77;

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let interrupt = interruptible();
    let visibility = if args.quiet { Visibility::Hidden } else { Visibility::Shown };
    let plan = plan::load(&args.plan)?;
    let mut graph = Graph::load(onnx::open(&args.model)?)?;
    let census = census(&graph, args.at);
    let compilation = {
        let bar = Bar::bytes("ranking weights", visibility);
        compile(&mut graph, &plan, &|bytes| bar.advance(bytes)).map_err(stopped)?
    };
    let mut report = report::compile::report(&graph, &compilation, &census);
    report.model = args.model.display().to_string();
    report.plan = PlanSummary { path: args.plan.display().to_string(), digest: plan.digest.clone() };
    if args.dry_run {
        zeros(&mut report, &compilation, &[])?;
    } else {
        let output = args.output.clone().unwrap_or_else(|| beside(&args.model, "pruned"));
        let policy = args.weights.unwrap_or_else(|| default_weights(&args.model, &output));
        let bar = Bar::bytes("writing", visibility);
        let written = onnx::write(
            &graph,
            &WriteOptions {
                output: &output,
                policy: match policy {
                    Weights::Share => WeightPolicy::Share,
                    Weights::Copy => WeightPolicy::Copy,
                },
                progress: Some(&|bytes| {
                    let _ = bar.advance(bytes);
                }),
                cancelled: Some(interrupt),
                protected: &[args.plan.clone()],
            },
        );
        let written = match written {
            Err(_) if interrupted() => return Err(Failure::Interrupted),
            other => other?,
        };
        drop(bar);
        zeros(&mut report, &compilation, &written.masked)?;
        files(&mut report, policy.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default().as_str(), &written);
        report.outputs.push(OutputReport {
            emit: "pruned".into(),
            path: output.display().to_string(),
            nodes: report.graph.nodes_after,
            identical: !graph.is_edited(),
        });
    }
    if let Some(path) = &args.report {
        write_json(path, &report)?;
    }
    if !args.quiet {
        anstream::print!("{}", report::text::compile(&report));
    }
    Ok(DONE)
}

fn census(graph: &Graph, at: Option<Size>) -> Census {
    let macs = at.map(|size| {
        let bindings = shapes::bind_sizes(graph, 1, size.height, size.width, TOKENS);
        let bindings: Vec<(&str, i64)> = bindings.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        let concrete = shapes::shapes(graph).evaluate(&bindings);
        let mut macs = vec![0; graph.node_capacity()];
        for id in graph.node_ids() {
            macs[id.index()] = macs::macs(graph, &concrete, id);
        }
        macs
    });
    Census::of(graph, macs)
}

fn stopped(error: CompileError) -> Failure {
    use crate::analysis::magnitude::MagnitudeError;
    match error {
        CompileError::Pass(PassError::Magnitude(MagnitudeError::Stopped)) => Failure::Interrupted,
        other => other.into(),
    }
}

/// `unet.onnx` -> `unet.pruned.onnx`
fn beside(model: &Path, emit: &str) -> PathBuf {
    let stem = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    model.with_file_name(format!("{stem}.{emit}.onnx"))
}

fn default_weights(model: &Path, output: &Path) -> Weights {
    let folder = |path: &Path| {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::canonicalize(folder).ok()
    };
    match (folder(model), folder(output)) {
        (Some(a), Some(b)) if a == b => Weights::Share,
        _ => Weights::Copy,
    }
}

fn write_json(path: &Path, report: &CompileReport) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(report).map_err(|e| Failure::Message(e.to_string()))?;
    fs::write(path, json + "\n").map_err(|e| Failure::Message(format!("{}: cannot write the report: {e}", path.display())))
}
