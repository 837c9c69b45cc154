//! `crdiff verify`: the proof that a graph is the original plus a plan.

use std::path::PathBuf;

use super::{
    DOES_NOT_HOLD, DONE, Failure, Formats,
    compile::{Emit, POA_NEEDS_FUSED, PoaWeight},
    progress::{Bars, Visibility},
};
use crate::{
    ir::Graph,
    onnx,
    plan::{self, Target},
    report::{self, outcome},
    verify::conformance::{self, Required, VerifyError},
};

/// Prove that a compiled model is exactly the original plus the plan, without running either.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: 0 proven, 1 not proven, 2 the command line or a file is wrong.

Examples:
  crdiff verify unet.onnx unet.pruned.onnx --plan plan.yaml
  crdiff verify unet.onnx unet.pruned.onnx --plan plan.yaml --quiet && deploy unet.pruned.onnx
  crdiff verify unet.onnx unet.crdiff.onnx --plan plan.yaml --emit fused
  crdiff verify unet.onnx unet.shallow.onnx --plan plan.yaml --emit cached
  crdiff verify unet.onnx models/unet/1/model.onnx --plan plan.yaml --emit pruned --per-row
  crdiff verify unet.onnx unet.pruned.onnx --plan plan.yaml --format sarif > crdiff.sarif")]
pub struct Args {
    /// The model that was compiled (.onnx).
    original: PathBuf,
    /// The compiled graph (.onnx).
    compiled: PathBuf,
    /// The plan (YAML, or the result JSON of the authors' search).
    #[arg(long, value_name = "PLAN")]
    plan: PathBuf,
    /// Which graph it must be [default: any that the plan can be compiled to; the result says which].
    #[arg(long, value_enum)]
    emit: Option<Emit>,
    /// Where a fused graph must have its amplification weight w from [default: baked].
    #[arg(long, value_enum, requires = "emit")]
    poa_weight: Option<PoaWeight>,
    /// Inputs that were scalars must have a value for each row of the batch, as `export triton` gives them.
    #[arg(long, requires = "emit")]
    per_row: bool,
    #[command(flatten)]
    format: Formats,
    /// Print nothing but errors; the exit code tells.
    #[arg(short, long)]
    quiet: bool,
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Plan(error) => Self::Plan(error),
            VerifyError::Stopped => Self::Interrupted,
            other => Self::Message(other.to_string()),
        }
    }
}

impl Args {
    fn form(&self) -> Result<Option<Required>, Failure> {
        let emit = match (self.emit, self.poa_weight) {
            (Some(emit), Some(poa_weight)) if emit.target == Target::Fused => Some(emit.with(poa_weight)),
            (_, Some(_)) => return Err(Failure::Message(POA_NEEDS_FUSED.into())),
            (emit, None) => emit,
        };
        Ok(emit.map(|Emit { target, cached }| Required { target, cached, per_row: self.per_row }))
    }
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let form = args.form()?;
    let plan = plan::load(&args.plan)?;
    let original = Graph::load(onnx::open(&args.original)?)?;
    let compiled = Graph::load(onnx::open(&args.compiled)?)?;
    let is_untouched = original.source().bytes == compiled.source().bytes;
    let bars = Bars::new(if args.quiet { Visibility::Hidden } else { Visibility::Shown });
    let verdict = conformance::verify(&original, &compiled, &plan, form, &bars)?;
    drop(bars);
    if !args.quiet {
        let (original, compiled) = (args.original.display().to_string(), args.compiled.display().to_string());
        let mut outcome = report::verify::outcome(&original, &compiled, &plan.source, &verdict);
        if is_untouched {
            report::verify::say_untouched(&mut outcome);
        }
        out!("{}", outcome::render(&outcome, args.format.into()));
    }
    Ok(if verdict.is_proven() { DONE } else { DOES_NOT_HOLD })
}
