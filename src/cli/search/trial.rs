//! `crdiff search trial`: trials for other optimisers, values in and scores out.

use std::{
    io::{BufRead, Write},
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{CACHED, DONE, Engines, Failure, say_notes};
use crate::{
    cli::{engine_args::EngineArgs, progress::interruptible},
    diffusion::{pipeline::Folder, prediction_cache::PredictionCache},
    observer::Observer,
    search::{
        compile::Compiler,
        space,
        trial::shots,
        trials::{Trials, bound},
    },
};

/// How long Ctrl-C may wait.
const PATIENCE: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "\
Examples:
  echo '{\"down\": 0.3, \"up\": 0.2}' | crdiff search trial sd15-onnx space.yaml
  examples/optuna/worker.py does the same in Python, for a study that several machines share";

/// Run trials for another optimiser.
///
/// Reads a JSON object with a value for each variable from each line of stdin, draws and scores the space's images with
/// the plan they make, and answers with a JSON object a line: score (-2 for a trial that failed), scores, metrics,
/// failed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The pipeline's folder.
    pipeline: PathBuf,
    /// The space (YAML); its strategy, budget and confirmation don't matter here.
    space: PathBuf,
    /// Draw this instead of the space's prompts; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// The accelerator to run on.
    #[arg(long, value_name = "ID")]
    device_id: Option<u32>,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let stop = interruptible();
    let mut space = space::load(&args.space)?;
    if !args.prompt.is_empty() {
        space.prompts.clone_from(&args.prompt);
    }
    let folder = Folder::open(&args.pipeline)?;
    let mut compiler = Compiler::open(&folder.unet())?;
    let bound = bound(&space, &compiler)?;
    say_notes(&bound);
    let shots = shots(&space, &folder);
    let devices: Vec<u32> = args.device_id.into_iter().collect();
    let engines = Engines { engine: &args.engine, devices: &devices, jobs: NonZeroUsize::MIN };
    compiler.masks = engines.masks(&bound)?;
    let worker = engines.worker(0, &bound, &folder, &Arc::new(PredictionCache::new(CACHED)))?;
    let mut trials = Trials::new(bound, compiler, worker, shots);
    // Reading blocks, whatever Ctrl-C says.
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || std::io::stdin().lock().lines().all(|line| sender.send(line).is_ok()));
    loop {
        let line = match lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if stop.is_stopped() => return Err(Failure::Interrupted),
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(DONE),
        };
        let line = line.map_err(|e| Failure::Message(format!("stdin: cannot read: {e}")))?;
        if line.trim().is_empty() {
            continue;
        }
        let values: Value = serde_json::from_str(&line)
            .map_err(|e| Failure::Message(format!("stdin: {line:?} is no JSON object: {e}")))?;
        let answer = trials.run(values, stop)?;
        let text = serde_json::to_string(&answer).map_err(|e| Failure::Message(e.to_string()))?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|e| Failure::unwritten(&e))?;
    }
}
