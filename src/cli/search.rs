//! `crdiff search`: plans that score best.

use std::{
    fs,
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
};

use super::{
    DONE, Failure,
    models::EngineArgs,
    picture::replace,
    progress::interruptible,
};
use crate::{
    diffusion::pipeline::Folder,
    engine::{Chosen, SessionOptions},
    plan::Runtime,
    search::{
        SearchError, Space,
        compile::Compiler,
        kept::Memory,
        outcome::plan_file,
        run::{Event, Search},
        space::{self, Bound, OnnxSpec},
        trial::{Worker, shots},
    },
};

const EXAMPLES: &str = "\
Examples:
  crdiff search sd15-onnx space.yaml -o plan.yaml          until the space's budget is used up
  crdiff search sd15-onnx space.yaml -o plan.yaml          the same again: goes on where it was killed
  crdiff search sd15-onnx space.yaml --dry-run             what may vary, how many pictures
  crdiff search sd15-onnx space.yaml --prompt \"a castle\"   for one prompt";

/// Bytes of dense outputs that are kept.
const MEMORY: usize = 1 << 30;

/// Search for the plan whose pictures score best.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The pipeline's folder.
    pipeline: PathBuf,
    /// The space (YAML): variables, the plan they go into, prompts, objective.
    space: PathBuf,
    /// The plan to write [default: plan.yaml]
    #[arg(short, long, value_name = "FILE", default_value = "plan.yaml")]
    output: PathBuf,
    /// Draw this instead of the space's prompts; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// So many trials, instead of the space's budget.
    #[arg(long, value_name = "N")]
    trials: Option<u64>,
    /// Where trials are kept as they end [default: beside the plan, with .journal.jsonl at its end]
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Forget the journal and begin again.
    #[arg(long)]
    restart: bool,
    /// Show what would be searched, and how many pictures that takes.
    #[arg(long)]
    dry_run: bool,
    /// Pictures drawn at once.
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: NonZeroUsize,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print nothing but errors and warnings.
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let stop = interruptible();
    let mut space = space::load(&args.space)?;
    if !args.prompt.is_empty() {
        space.prompts.clone_from(&args.prompt);
    }
    if args.trials.is_some() {
        space.budget.trials = args.trials;
    }
    let folder = Folder::open(&args.pipeline)?;
    let mut compiler = Compiler::open(&folder.unet())?;
    let bound = Bound::new(&space, compiler.modules())?;
    for probe in bound.probes() {
        let plan = bound.plan(&bound.settings(&probe)).map_err(space::SpaceError::from)?;
        compiler.resolve(&plan).map_err(space::SpaceError::from)?;
    }
    let shots = shots(&space, &folder);
    let journal = args.journal.clone().unwrap_or_else(|| args.output.with_extension("journal.jsonl"));
    if args.restart && journal.exists() {
        fs::remove_file(&journal)
            .map_err(|e| Failure::Message(format!("{}: cannot remove: {e}", journal.display())))?;
    }
    let memory = Arc::new(Memory::new(MEMORY));
    let runtime = Runtime::default();
    let worker = |number: usize| worker(args, number, &space, &folder, &runtime, &memory);
    let model = compiler.digest();
    let mut search = Search {
        bound: &bound,
        shots: &shots,
        compiler: &mut compiler,
        worker: &worker,
        jobs: args.jobs.get(),
        stop,
    };
    let found = search.run(&journal, |event| {
        if !args.quiet {
            tell(&event);
        }
    });
    let found = found?;
    let plan = plan_file(&bound, &found, &model)?;
    replace(&args.output, |file| std::io::Write::write_all(file, plan.as_bytes()))
        .map_err(|e| Failure::Message(format!("{}: cannot write the plan: {e}", args.output.display())))?;
    if !args.quiet {
        anstream::println!("{:?}", found.times);
        anstream::println!("{}", args.output.display());
    }
    Ok(DONE)
}

fn worker(
    args: &Args,
    _number: usize,
    space: &Space,
    folder: &Folder,
    runtime: &Runtime,
    memory: &Arc<Memory>,
) -> Result<Worker, SearchError> {
    let opened: Result<(Chosen, SessionOptions), Failure> = args.engine.open(runtime);
    let (chosen, options) = opened.map_err(|failure| SearchError::Values(said(failure)))?;
    let graph = |spec: &OnnxSpec| {
        let what = format!("{}: graphs as objectives are not built yet", spec.model.display());
        Err(SearchError::Values(what))
    };
    Worker::open(space, folder, chosen.engine, options, Arc::clone(memory), &graph)
}

fn said(failure: Failure) -> String {
    match failure {
        Failure::Message(message) => message,
        Failure::Plan(error) => error.to_string(),
        _ => "interrupted".to_string(),
    }
}

fn tell(event: &Event<'_>) {
    match event {
        Event::Resumed(0) => {}
        Event::Resumed(trials) => anstream::eprintln!("{trials} trials are in the journal"),
        Event::Dense(scores) => anstream::eprintln!("dense: {:.4}", scores.score),
        Event::Trial(record) => {
            anstream::eprintln!("trial {}: {:.4} {}", record.trial, record.scores.score, record.values);
            if let Some(why) = &record.scores.failed {
                anstream::eprintln!("warning: trial {} failed: {why}", record.trial);
            }
        }
    }
}
