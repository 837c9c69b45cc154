//! `crdiff compile`, which is `crdiff-compile`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Parser, ValueEnum};

use super::{
    DONE, Failure, Size,
    progress::{Bars, Visibility, interruptible},
};
use crate::{
    compile::{Hooks, Job, compile_file, default_output},
    onnx::WeightPolicy,
    plan,
    report::{self, CompileReport},
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

impl From<Weights> for WeightPolicy {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Share => Self::Share,
            Weights::Copy => Self::Copy,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let stop = interruptible();
    let plan = plan::load(&args.plan)?;
    let output = args.output.clone().unwrap_or_else(|| default_output(&args.model, "pruned"));
    let job = Job {
        model: &args.model,
        plan: &plan,
        output: (!args.dry_run).then_some(&output),
        weights: args.weights.map(Into::into),
        at: args.at.map(|size| (size.height, size.width)),
        protected: vec![args.plan.clone()],
    };
    let bars = Bars::new(if args.quiet { Visibility::Hidden } else { Visibility::Shown });
    let report = compile_file(&job, Hooks { progress: &|stage, bytes| bars.advance(stage, bytes), stop })?;
    drop(bars);
    if let Some(path) = &args.report {
        write_json(path, &report)?;
    }
    if !args.quiet {
        anstream::print!("{}", report::text::compile(&report));
    }
    Ok(DONE)
}

fn write_json(path: &Path, report: &CompileReport) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(report).map_err(|e| Failure::Message(e.to_string()))?;
    fs::write(path, json + "\n")
        .map_err(|e| Failure::Message(format!("{}: cannot write the report: {e}", path.display())))
}
