//! `crdiff compare`: the numeric differences between two models.

use std::path::{Path, PathBuf};

use super::{DOES_NOT_HOLD, DONE, Failure, Formats, Size, progress::interruptible, said_latents};
use crate::{
    engine::{Chosen, Engine, EngineKind, EngineRequest, SessionOptions, Signature, choose},
    ir::Graph,
    numeric::{
        self, Case, NumericError, OutputComparison, Sizes, Tolerances,
        bisect::{Divergence, Model, bisect},
        inputs,
    },
    onnx,
    report::{
        compare::{self as report, CompareReport},
        outcome::{self, Format},
    },
    verify::structure::{self, WeightComparison},
};

/// Run two models on the same inputs, or one on stored ones, and compare the outputs.
///
/// Without --data and --inputs, inputs are made to fit what the first model declares: standard normal numbers from a
/// seed, timesteps between 1 and 999. An output is close enough if its largest absolute difference is at most
/// atol + rtol * the largest absolute value expected. By default atol is 1e-8 and rtol follows the coarsest float type
/// among weights and output: 1e-5 for float32, 2e-3 for float16, 2e-2 for bfloat16; whole numbers must be equal. The
/// exit code is 0 if all outputs are close enough, 1 if not, 2 if something cannot be read or run.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crdiff compare unet.onnx unet.pruned.onnx --size 64x64 --size 48x80 --batch 2
  crdiff compare unet.onnx optimized.onnx --bisect       the first tensor that diverges, and its module
  crdiff compare a.onnx b.onnx --inputs latents.npz      arrays called like the inputs, or CASE/INPUT
  crdiff compare unet.onnx --data unet/                  against the outputs in unet/test_data_set_*")]
pub struct Args {
    /// The model whose outputs are expected; with --data and no second model, the one that is judged.
    a: PathBuf,
    /// The model that is judged.
    #[arg(required_unless_present = "data")]
    b: Option<PathBuf>,
    /// A folder with test_data_set_* folders (input_0.pb, output_0.pb, ...), or one of these.
    #[arg(long, value_name = "DIR", conflicts_with = "inputs")]
    data: Option<PathBuf>,
    /// Inputs as NumPy arrays.
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    /// Latent height and width of made inputs; again for more; --size is the same [default: the model's, or
    /// 32x32]
    #[arg(long = "latent-size", alias = "size", value_name = "HxW", conflicts_with_all = ["data", "inputs"])]
    size: Vec<Size>,
    /// Batch of made inputs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=1024))]
    batch: i64,
    /// Text tokens of made inputs.
    #[arg(long, value_name = "N", default_value_t = 77, value_parser = clap::value_parser!(i64).range(1..=65536))]
    sequence: i64,
    /// Seed of made inputs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Absolute tolerance.
    #[arg(long, value_name = "X", value_parser = tolerance)]
    atol: Option<f64>,
    /// Tolerance as a fraction of the largest absolute value expected.
    #[arg(long, value_name = "X", value_parser = tolerance)]
    rtol: Option<f64>,
    /// Find the first tensor that diverges, on the first case that fails. Copies both models to the folder for
    /// temporary files.
    #[arg(long, requires = "b")]
    bisect: bool,
    /// ort, rten or tract [default: ort if a library is found, else rten]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineKind>,
    /// The ONNX Runtime library, or the folder that it is in.
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,
    #[command(flatten)]
    format: Formats,
}

fn tolerance(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| *x >= 0.0 && x.is_finite());
    number.ok_or_else(|| format!("`{text}` is not a tolerance: write a number such as 1e-4"))
}

impl From<NumericError> for Failure {
    fn from(error: NumericError) -> Self {
        match error {
            NumericError::Stopped => Self::Interrupted,
            other => Self::Message(other.to_string()),
        }
    }
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    args.size.iter().for_each(|size| said_latents(Some(*size)));
    let first = open(&args.a)?;
    let second = args.b.as_deref().map(open).transpose()?;
    let cases = cases(args, &first)?;
    let Chosen { engine, why } = choose(&EngineRequest {
        kind: args.engine,
        library: args.ort_lib.clone(),
        ..EngineRequest::default()
    })?;
    let precision = numeric::precision(&first);
    let tolerances = Tolerances {
        absolute: args.atol,
        relative: args.rtol,
        precision: second.as_ref().map_or(precision, |b| numeric::coarser(precision, numeric::precision(b))),
    };
    let run = |path: &Path| numeric::run(&*engine, path, &cases, &SessionOptions::default(), interruptible());
    let (expected, actual) = match &args.b {
        Some(b) => (run(&args.a)?, run(b)?),
        None => {
            let stored = cases.iter().map(|case| case.expected.clone()).collect();
            (stored, run(&args.a)?)
        }
    };
    let outputs = numeric::compare(&cases, &expected, &actual, &tolerances);
    drop((expected, actual));
    let failed = outputs.iter().find(|o| !o.within).filter(|_| args.bisect);
    let bisected = match (failed, &second, &args.b) {
        (Some(failed), Some(second), Some(path)) => {
            let models = [Model { graph: &first, path: &args.a }, Model { graph: second, path }];
            let found = locate(&*engine, models, &cases, failed, &tolerances)?;
            Some((failed.case.clone(), failed.output.clone(), found))
        }
        _ => None,
    };
    let (expected, actual) = match (&args.b, &args.data) {
        (Some(b), _) => (&args.a, b),
        (None, Some(data)) => (data, &args.a),
        (None, None) => (&args.a, &args.a),
    };
    let report = CompareReport {
        expected: expected.display().to_string(),
        actual: actual.display().to_string(),
        engine: why,
        outputs,
        bisected,
    };
    match Format::from(args.format) {
        Format::Text => out!("{}", report::text(&report, super::columns())),
        other => out!("{}", outcome::render(&report::outcome(&report), other)),
    }
    Ok(if report.holds() { DONE } else { DOES_NOT_HOLD })
}

fn open(path: &Path) -> Result<Graph, Failure> {
    let graph = onnx::open(path).and_then(Graph::load);
    graph.map_err(|e| Failure::Message(super::about(path, &e)))
}

fn cases(args: &Args, model: &Graph) -> Result<Vec<Case>, Failure> {
    let signature = Signature::of(model.source())?;
    if let Some(folder) = &args.data {
        let cases = inputs::from_data_sets(folder, &signature)?;
        if let (None, Some(case)) = (&args.b, cases.iter().find(|case| case.expected.is_empty())) {
            return Err(Failure::Message(format!(
                "{}, {}: there is no `output_0.pb` to compare with; name a second model to compare two",
                folder.display(),
                case.name
            )));
        }
        return Ok(cases);
    }
    if let Some(path) = &args.inputs {
        return Ok(inputs::from_npz(path, &signature)?);
    }
    let sizes: Vec<Option<(i64, i64)>> = match args.size.as_slice() {
        [] => vec![None],
        sizes => sizes.iter().map(|size| Some((size.height, size.width))).collect(),
    };
    let one = |latents: Option<(i64, i64)>| {
        let sizes = Sizes { latents, batch: args.batch, sequence: args.sequence };
        inputs::seeded(model, &signature, &sizes, args.seed)
    };
    Ok(sizes.into_iter().map(one).collect::<Result<_, _>>()?)
}

fn locate(
    engine: &dyn Engine,
    models: [Model<'_>; 2],
    cases: &[Case],
    failed: &OutputComparison,
    tolerances: &Tolerances,
) -> Result<Option<Divergence>, Failure> {
    let Some(case) = cases.iter().find(|case| case.name == failed.case) else { return Ok(None) };
    // Weights play no part in which node is which, and need not be read.
    let diff = structure::diff(models[0].graph, models[1].graph, WeightComparison::Ignored, interruptible())?;
    Ok(bisect(engine, models, &diff, case, &failed.output, tolerances, interruptible())?)
}
