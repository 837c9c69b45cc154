//! `crdiff search`: plans whose images score best.

mod events;
mod trial;

use std::{
    fs,
    io::Write,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use serde_json::{Value, json};

use self::events::Reporter;
use super::{
    DONE, Failure, Json,
    engine_args::EngineArgs,
    files::{can_replace, replace},
    progress::{Visibility, interruptible},
};
use crate::{
    diffusion::{pipeline::Folder, prediction_cache::PredictionCache},
    engine::{ProviderKind, SessionOptions},
    passes::MaskForm,
    plan::Runtime,
    search::{
        SearchError,
        compile::Compiler,
        confirmed::Confirmed,
        objective::{Objective, check, open_graph},
        outcome::{plan_file, summary},
        plot::svg,
        run::Search,
        space::{self, Bound, Noises, OnnxSpec, StrategySpec},
        strategy::Grid,
        trial::{Shot, Worker, fresh_shots, shots},
        trials::bound,
    },
};

const EXAMPLES: &str = "\
Examples:
  crdiff search sd15-onnx space.yaml -o plan.yaml          until the space's budget is used up
  crdiff search sd15-onnx space.yaml -o plan.yaml          the same again: goes on where it was stopped
  crdiff search sd15-onnx space.yaml --dry-run             what may vary, and how many images that takes
  crdiff search sd15-onnx space.yaml --prompt \"a castle\"   for one prompt
  echo '{\"down\": 0.3}' | crdiff search trial sd15-onnx space.yaml     one trial, for other optimisers";

/// Bytes of dense outputs that are kept.
const CACHED: usize = 1 << 30;

/// Search for the plan whose images score best.
///
/// SPACE says what may vary, the plan it goes into, what is drawn and how that is scored (docs/search.md). Each trial goes
/// to a journal as it ends; a search that was stopped or killed goes on from there.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The pipeline's folder.
    #[arg(required = true)]
    pipeline: Option<PathBuf>,
    /// The space (YAML): variables, the plan they go into, prompts, objective.
    #[arg(required = true)]
    space: Option<PathBuf>,
    /// The plan to write.
    #[arg(short, long, value_name = "FILE", default_value = "plan.yaml")]
    output: PathBuf,
    /// Draw this instead of the space's prompts; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// The number of trials, instead of the space's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    trials: Option<u64>,
    /// Where trials are kept as they end [default: beside the plan, with .journal.jsonl at its end]
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Forget the journal and begin again.
    #[arg(long)]
    restart: bool,
    /// Where the scores are drawn [default: beside the plan, with .svg at its end]
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,
    /// Show what would be searched, and how many images that takes.
    #[arg(long)]
    dry_run: bool,
    /// Images drawn at once, each by a worker with networks of its own.
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: NonZeroUsize,
    /// The accelerators that workers run on, in turn: 0,1.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    devices: Vec<u32>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    json: Json,
    /// Print nothing but errors and warnings.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Trial(trial::Args),
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    match (&args.command, &args.pipeline, &args.space) {
        (Some(Command::Trial(args)), ..) => trial::run(args),
        (None, Some(pipeline), Some(space)) => search(args, pipeline, space),
        _ => Err(Failure::Message("a pipeline and a space are needed".to_string())),
    }
}

fn search(args: &Args, pipeline: &Path, space: &Path) -> Result<u8, Failure> {
    let mut space = space::load(space)?;
    if !args.prompt.is_empty() {
        space.prompts.clone_from(&args.prompt);
    }
    if args.trials.is_some() {
        space.budget.trials = args.trials;
    }
    let folder = Folder::open(pipeline)?;
    let mut compiler = Compiler::open(&folder.unet())?;
    let bound = bound(&space, &compiler)?;
    if !args.quiet {
        say_notes(&bound);
    }
    let (shots, fresh) = (shots(&space, &folder), fresh_shots(&space, &folder));
    let engines = Engines { engine: &args.engine, devices: &args.devices, jobs: args.jobs };
    if args.dry_run {
        shots.iter().try_for_each(|shot| folder.check_size(shot.height, shot.width))?;
        let scorers = std::iter::once(&space.objective).chain(space.metrics.iter().map(|(_, metric)| metric));
        for scorer in scorers {
            check(scorer, &space.folder, &|spec| {
                engines.scorer(spec, &space.folder, &SessionOptions::default())
            })?;
        }
        out!("{}", described(&bound, &shots, &fresh));
        return Ok(DONE);
    }
    let beside = |ending: &str| args.output.with_extension(ending);
    let journal = args.journal.clone().unwrap_or_else(|| beside("journal.jsonl"));
    let plot = args.plot.clone().unwrap_or_else(|| beside("svg"));
    for path in [&args.output, &plot] {
        can_replace(path).map_err(|what| unwritten(path, &what))?;
    }
    if args.restart && journal.exists() {
        fs::remove_file(&journal)
            .map_err(|e| Failure::Message(format!("{}: cannot remove: {e}", journal.display())))?;
    }
    compiler.masks = engines.masks(&bound)?;
    let cache = Arc::new(PredictionCache::new(CACHED));
    let worker = |number: usize| engines.worker(number, &bound, &folder, &cache);
    let visibility = if args.quiet || args.json.is_asked() { Visibility::Hidden } else { Visibility::Shown };
    let mut search = Search {
        bound: &bound,
        shots: &shots,
        fresh: &fresh,
        compiler: &mut compiler,
        worker: &worker,
        jobs: args.jobs.get(),
        observer: interruptible(),
    };
    let reporter = Reporter::new(args.json.is_asked(), visibility, &search);
    let found = search.run(&journal, |event| reporter.tell(&event));
    reporter.finish();
    let found = found.map_err(|error| match error {
        SearchError::Stopped => Failure::Paused(format!(
            "interrupted; what was tried is in {}, and the same command goes on from there",
            journal.display()
        )),
        other => other.into(),
    })?;
    write(&args.output, &plan_file(&bound, &found)?)?;
    write(&plot, &svg(&found))?;
    let dense = found.dense.failed.is_none().then_some(found.dense.score);
    reporter.print(&json!({
        "event": "done", "score": found.best().map(|best| best.scores.score), "dense": dense,
        "confirmed": found.confirmed.as_ref().and_then(confirmed), "plan": args.output, "plot": plot, "journal": journal,
    }));
    if visibility == Visibility::Shown {
        out!("{}", summary(&found));
        out!("{}\n{}\n{}\n", args.output.display(), plot.display(), journal.display());
    }
    Ok(DONE)
}

/// Says what is worth knowing of the space's plan.
fn say_notes(bound: &Bound<'_>) {
    for note in &bound.notes {
        anstream::eprintln!("note: {note}");
    }
}

/// Returns how the plan's trial was confirmed, as JSON.
fn confirmed(confirmed: &Confirmed) -> Option<Value> {
    let best = confirmed.best()?;
    let error = best.difference.and_then(|difference| difference.error);
    Some(json!({
        "trial": best.trial, "score": best.scores.score, "difference": best.difference.map(|difference| difference.mean),
        "standard_error": error.map(|error| error.value), "is_clear": best.difference.map(|found| found.is_clear()),
    }))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    replace(path, |file| file.write_all(text.as_bytes())).map_err(|what| unwritten(path, &what))
}

fn unwritten(path: &Path, what: &str) -> Failure {
    Failure::Message(format!("{}: cannot write: {what}", path.display()))
}

/// The engine and the devices of workers.
struct Engines<'a> {
    engine: &'a EngineArgs,
    devices: &'a [u32],
    jobs: NonZeroUsize,
}

impl Engines<'_> {
    /// Returns a worker with an engine of its own.
    fn worker(
        &self,
        number: usize,
        bound: &Bound<'_>,
        folder: &Folder,
        cache: &Arc<PredictionCache>,
    ) -> Result<Worker, SearchError> {
        let values = |failure: Failure| SearchError::Values(failure.to_string());
        let (chosen, mut options) = self.engine.open(&runtime(bound)).map_err(values)?;
        self.place(number, &mut options)?;
        let scorers = SessionOptions { intra_threads: options.intra_threads, ..SessionOptions::default() };
        let graph = |spec: &OnnxSpec| self.scorer(spec, &bound.space.folder, &scorers);
        Worker::open(bound.space, folder, chosen.engine, options, Arc::clone(cache), &graph)
    }

    /// Opens a graph that scores. It runs on the CPU: scorers are small beside the networks, and never in their way there.
    fn scorer(
        &self,
        spec: &OnnxSpec,
        folder: &Path,
        options: &SessionOptions,
    ) -> Result<Box<dyn Objective>, SearchError> {
        let opened = self.engine.open(&Runtime::default());
        let (chosen, _) = opened.map_err(|failure| SearchError::Values(failure.to_string()))?;
        open_graph(spec, folder, &*chosen.engine, options)
    }

    /// Returns how trials' graphs have their masks: as inputs, so that one graph is loaded for all trials that differ
    /// in masks alone. A device would be sent them in each run.
    fn masks(&self, bound: &Bound<'_>) -> Result<MaskForm, Failure> {
        let (_, options) = self.engine.open(&runtime(bound))?;
        Ok(match self.engine.masks() {
            MaskForm::Stored if !options.has_accelerator() => MaskForm::Fed,
            masks => masks,
        })
    }

    /// Gives a worker its device, and its share of the cores.
    fn place(&self, number: usize, options: &mut SessionOptions) -> Result<(), SearchError> {
        if options.intra_threads.is_none() && self.jobs.get() > 1 {
            let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
            options.intra_threads = NonZeroUsize::new((cores / self.jobs.get()).max(1));
        }
        let Some(device) = self.devices.get(number % self.devices.len().max(1)) else { return Ok(()) };
        let mut accelerators =
            options.providers.iter_mut().filter(|p| p.kind != ProviderKind::Cpu).peekable();
        if accelerators.peek().is_none() {
            let what = "--devices is for accelerators: name one with --provider, or in the plan's `runtime`";
            return Err(SearchError::Values(what.to_string()));
        }
        for provider in accelerators {
            let option = provider.kind.device_option().ok_or_else(|| {
                SearchError::Values(format!("--devices: {} has no devices by number", provider.kind))
            })?;
            provider.options.insert(option.to_string(), device.to_string());
        }
        Ok(())
    }
}

/// Returns the `runtime` of the space's plan.
fn runtime(bound: &Bound<'_>) -> Runtime {
    bound.plan(&bound.settings(&bound.start())).map(|plan| plan.runtime).unwrap_or_default()
}

/// Returns the text of `--dry-run`.
fn described(bound: &Bound<'_>, shots: &[Shot], fresh: &[Shot]) -> String {
    let space = bound.space;
    let mut lines: Vec<String> =
        bound.describe().into_iter().map(|(name, what)| format!("{name}: {what}")).collect();
    let sizes: Vec<String> = {
        let mut sizes: Vec<_> = shots.iter().map(|shot| format!("{}x{}", shot.height, shot.width)).collect();
        sizes.dedup();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    };
    let noises = match &space.sampling.noises {
        Noises::Shared(seeds) => format!("{} seeds", seeds.len()),
        Noises::Own(count) => format!("{count} noises each"),
    };
    lines.push(format!(
        "a trial: {} images ({} prompts, sizes {}, {noises}), {} steps",
        shots.len(),
        space.prompts.len(),
        sizes.join(", "),
        space.sampling.steps
    ));
    let points = match space.strategy {
        StrategySpec::Grid => Grid::count(&bound.axes),
        _ => None,
    };
    let trials = match (space.budget.trials, points) {
        (Some(trials), Some(points)) => Some(trials.min(points)),
        (trials, points) => trials.or(points),
    };
    let (name, seed) = (space.strategy.name(), space.seed);
    lines.push(match (trials, space.budget.time) {
        (Some(trials), None) => {
            let images = trials.saturating_add(1).saturating_mul(shots.len() as u64);
            format!("{name}, seed {seed}: {trials} trials, with the dense pipeline {images} images")
        }
        (Some(trials), Some(time)) => format!("{name}, seed {seed}: {trials} trials or {time:?}"),
        (None, Some(time)) => format!("{name}, seed {seed}: {time:?}"),
        (None, None) => format!("{name}, seed {seed}: more points than can be counted"),
    });
    if let Some(confirm) = space.confirm {
        let best = trials.map_or(confirm.best as u64, |trials| trials.min(confirm.best as u64));
        let (noises, images) = (confirm.noises, best.saturating_add(1).saturating_mul(fresh.len() as u64));
        lines.push(format!(
            "then the best {best} and the dense pipeline, from {noises} fresh noises each: {images} images"
        ));
    }
    lines.push(format!("the plan it begins with: {}", bound.plan_json(&bound.settings(&bound.start()))));
    lines.join("\n") + "\n"
}
