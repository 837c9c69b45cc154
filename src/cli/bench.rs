//! `crdiff bench`: how long a pipeline takes, dense, pruned, amplified and fused, on the same seeds and prompts.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    DONE, Failure, Json, Size, columns,
    compiled::{compiled, say_text_encoders_alone},
    engine_args::{EngineArgs, Memory},
    progress::{Visibility, interruptible},
    run::CACHE_IS_COMPILED,
};
use crate::{
    diffusion::{
        Pipeline,
        interleave::{Batching, NetworkTime},
        pipeline::{Folder, Request, Timings, Unets},
    },
    observer::{Event, Observer},
    plan::{self, Amplify, AmplifyWeight, Mode, Runtime},
    plan_cache::{Compiled, Place},
    report::table::Cells,
};

const EXAMPLES: &str = "\
Examples:
  crdiff bench sd15-onnx --plan plan.yaml                     dense, pruned, amplified; 512x512, 10 steps
  crdiff bench sd15-onnx --plan plan.yaml --fused unet.crdiff.onnx --size 384x576 --json
  crdiff bench sd15-onnx --memory low                         the pipeline as it is";

/// Time a pipeline: each stage, each kind of network, steps a second, peak memory.
///
/// Each kind runs in the same process with the same seed, prompt and size: one run to warm up, then the timed ones, of
/// which the median counts. A pair's networks are loaded together, as they are when they are mixed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The pipeline's folder.
    pipeline: PathBuf,
    /// The plan; without one, only the pipeline as it is.
    #[arg(long, value_name = "PLAN")]
    plan: Option<PathBuf>,
    /// A pruned graph, instead of compiling the plan.
    #[arg(long, value_name = "FILE")]
    pruned: Option<PathBuf>,
    /// Where the compiled plan is kept.
    #[arg(long, value_enum, default_value_t)]
    compiled: Place,
    /// A fused graph to time too.
    #[arg(long, value_name = "FILE")]
    fused: Option<PathBuf>,
    /// Height x width in pixels [default: what the pipeline was made for]
    #[arg(long, value_name = "HxW")]
    size: Option<Size>,
    /// Steps of the sampler.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Classifier-free guidance; 1 for none.
    #[arg(long, default_value_t = 7.5, value_parser = super::number)]
    guidance: f64,
    /// Images at once.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Timed runs of each kind.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    json: Json,
}

/// The measurements.
#[derive(Debug, Serialize)]
struct Report {
    engine: String,
    engine_version: String,
    height: usize,
    width: usize,
    steps: usize,
    batch: usize,
    guidance: f64,
    runs: u32,
    kinds: Vec<NetworkTimes>,
}

/// The median run of one kind; times in milliseconds.
#[derive(Debug, Serialize)]
struct NetworkTimes {
    name: &'static str,
    loading_ms: f64,
    text_ms: f64,
    sampling_ms: f64,
    dense_ms: f64,
    dense_runs: usize,
    pruned_ms: f64,
    pruned_runs: usize,
    /// Of a kind with a cache, apart for the runs of the whole network and those of its shallow graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<CacheTimes>,
    /// Sampling outside the networks.
    overhead_ms: f64,
    decoding_ms: f64,
    total_ms: f64,
    steps_per_second: f64,
    /// The most memory of the process after a call of the warm-up run, in bytes, each page once (Pss): two sessions
    /// that map one file share its pages. Unknown where the system doesn't say.
    peak_bytes: Option<u64>,
}

/// Runs with a cache; times in milliseconds.
#[derive(Debug, Serialize)]
struct CacheTimes {
    /// The mean of the runs of whole networks.
    full_ms: f64,
    full_runs: usize,
    /// The mean of the runs of shallow graphs.
    shallow_ms: f64,
    shallow_runs: usize,
    /// The mean of all steps, in networks.
    step_ms: f64,
}

impl CacheTimes {
    fn of(networks: &NetworkTime, steps: usize) -> Option<Self> {
        let shallow = networks.dense_shallow + networks.pruned_shallow;
        let shallow_runs = networks.dense_shallow_runs + networks.pruned_shallow_runs;
        let full_runs = (networks.dense_runs + networks.pruned_runs).saturating_sub(shallow_runs);
        let all = networks.dense + networks.pruned;
        let mean = |time: Duration, count: usize| time.as_secs_f64() * 1e3 / count.max(1) as f64;
        (shallow_runs > 0).then(|| Self {
            full_ms: mean(all.saturating_sub(shallow), full_runs),
            full_runs,
            shallow_ms: mean(shallow, shallow_runs),
            shallow_runs,
            step_ms: mean(all, steps),
        })
    }
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let plan = args.plan.as_deref().map(plan::load).transpose()?;
    let cache = plan.as_ref().and_then(|plan| plan.cache.clone());
    if cache.is_some() && (args.pruned.is_some() || args.fused.is_some()) {
        return Err(Failure::Message(CACHE_IS_COMPILED.into()));
    }
    let folder = Folder::open(&args.pipeline)?;
    let compiled = match (&args.pruned, &plan) {
        (Some(pruned), _) => Some(Compiled::of(Unets::WithPruned(pruned.clone()))),
        (None, Some(plan)) => {
            let masks = args.engine.masks();
            let left_out: usize = plan.text_layers().iter().sum();
            if left_out > 0 {
                anstream::eprintln!(
                    "note: {left_out} layers of text encoders are left out: the networks are timed, and a LoRA does not change \
                     what a text encoder takes"
                );
            }
            say_text_encoders_alone(plan);
            Some(compiled(&folder.unet(), plan, masks, args.compiled, Visibility::Shown)?)
        }
        (None, None) => None,
    };
    let runtime = plan.as_ref().map_or_else(Runtime::default, |plan| plan.runtime.clone());
    let (chosen, options) = args.engine.open(&runtime)?;
    anstream::eprintln!("{}", chosen.why);
    let (engine, version) = (chosen.engine.kind().to_string(), chosen.engine.version().to_string());
    let mut pipeline = Pipeline::open(&args.pipeline, chosen.engine, options, Unets::Dense)?;
    if let Some(compiled) = &compiled {
        compiled.dense.iter().for_each(|dense| pipeline.set_dense(dense.clone()));
        pipeline.set_shallow(compiled.shallow.clone());
    }

    let pixels = |n: i64| usize::try_from(n).unwrap_or_default();
    let (height, width) =
        args.size.map_or(folder.default_size, |size| (pixels(size.height), pixels(size.width)));
    let mut request = Request::new("a lighthouse in a storm", height, width);
    (request.steps, request.guidance, request.batch) = (args.steps, args.guidance, args.batch);
    if args.engine.memory() == Memory::Low {
        request.batching = Batching::InTurn;
    }
    let amplify = plan.map(|plan| plan.amplify).unwrap_or_default();
    let constant = |weight: f64| {
        let mut constant = Amplify::default();
        constant.weight.value = AmplifyWeight::Constant(weight);
        constant
    };
    let mut jobs = vec![("dense", Unets::Dense, amplify.clone())];
    match compiled.map(|compiled| compiled.unets) {
        Some(both) if both.are_mixed() => {
            // Both networks are loaded from here on, so that the peak of what comes before is the dense one's alone.
            jobs.push(("pruned", both.clone(), constant(1.0)));
            jobs.push(("amplified", both.clone(), amplify.clone()));
            if cache.is_some() {
                jobs.push(("dense, cached", both.clone(), constant(0.0)));
                jobs.push(("amplified, cached", both, amplify.clone()));
            }
        }
        Some(one) if cache.is_some() => {
            let name = if amplify.mode == Mode::Weights { "amplified in the weights" } else { "changed" };
            jobs.push((name, one.clone(), amplify.clone()));
            jobs.push((
                if amplify.mode == Mode::Weights { "the same, cached" } else { "cached" },
                one,
                amplify.clone(),
            ));
        }
        Some(one) if amplify.mode == Mode::Weights => {
            jobs.push(("amplified in the weights", one, amplify.clone()))
        }
        Some(Unets::Dense) | None => {}
        Some(one) => jobs.push(("changed", one, amplify.clone())),
    }
    jobs.extend(args.fused.clone().map(|fused| ("fused", Unets::Instead(fused), amplify)));

    let mut kinds = Vec::with_capacity(jobs.len());
    for (name, unets, amplify) in jobs {
        pipeline.set_unets(unets);
        request.amplify = amplify;
        request.cache = cache.clone().filter(|_| name.ends_with("cached"));
        kinds.push(measure(name, &mut pipeline, &request, args.runs)?);
    }
    let measured = Report {
        engine,
        engine_version: version,
        height,
        width,
        steps: args.steps,
        batch: args.batch,
        guidance: args.guidance,
        runs: args.runs,
        kinds,
    };
    if args.json.is_asked() {
        // A report is plain data: it always serialises.
        out!("{}\n", serde_json::to_string_pretty(&measured).unwrap_or_default());
    } else {
        out!("{}\n", table(&measured));
    }
    Ok(DONE)
}

fn measure(
    name: &'static str,
    pipeline: &mut Pipeline,
    request: &Request,
    runs: u32,
) -> Result<NetworkTimes, Failure> {
    let mut once = |observer: &dyn Observer| -> Result<(Duration, Timings), Failure> {
        let started = Instant::now();
        let output = pipeline.run(request, observer)?;
        Ok((started.elapsed(), output.timings))
    };
    // Asking takes a while: not in the runs that are timed.
    let peak = Peak::default();
    let (_, warm) = once(&peak)?;
    let mut timed = (0..runs).map(|_| once(interruptible())).collect::<Result<Vec<_>, _>>()?;
    timed.sort_by_key(|(total, _)| *total);
    let (total, timings) = timed.get(timed.len() / 2).copied().unwrap_or_default();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let networks = timings.networks;
    Ok(NetworkTimes {
        name,
        loading_ms: ms(warm.loading),
        text_ms: ms(timings.text),
        sampling_ms: ms(timings.sampling),
        dense_ms: ms(networks.dense),
        dense_runs: networks.dense_runs,
        pruned_ms: ms(networks.pruned),
        pruned_runs: networks.pruned_runs,
        cache: CacheTimes::of(&networks, request.steps),
        overhead_ms: ms(timings.sampling.saturating_sub(networks.dense + networks.pruned)),
        decoding_ms: ms(timings.decoding),
        total_ms: ms(total),
        steps_per_second: request.steps as f64 / timings.sampling.as_secs_f64().max(f64::MIN_POSITIVE),
        peak_bytes: Some(peak.0.into_inner()).filter(|bytes| *bytes > 0),
    })
}

/// An observer that asks for the resident memory at each event.
#[derive(Default)]
struct Peak(AtomicU64);

impl Observer for Peak {
    fn hear(&self, _: Event<'_>) {
        self.0.fetch_max(resident().unwrap_or_default(), Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        interruptible().is_stopped()
    }
}

/// Returns the resident memory with each page counted once, where the system reports it as Linux does.
fn resident() -> Option<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn table(report: &Report) -> String {
    let Report { engine, engine_version, height, width, steps, batch, guidance, runs, kinds } = report;
    let mut heads = vec!["ms"];
    heads.extend(kinds.iter().map(|kind| kind.name));
    let mut rows = Vec::new();
    let mut row = |what: &str, value: &dyn Fn(&NetworkTimes) -> String| {
        rows.push(std::iter::once(what.to_string()).chain(kinds.iter().map(value)).collect());
    };
    type Time = fn(&NetworkTimes) -> f64;
    let times: [(&str, Time); 8] = [
        ("load", |kind| kind.loading_ms),
        ("text", |kind| kind.text_ms),
        ("sampling", |kind| kind.sampling_ms),
        ("  dense network", |kind| kind.dense_ms),
        ("  pruned network", |kind| kind.pruned_ms),
        ("  outside of them", |kind| kind.overhead_ms),
        ("decode", |kind| kind.decoding_ms),
        ("total", |kind| kind.total_ms),
    ];
    for (what, time) in times {
        row(what, &|kind| format!("{:.1}", time(kind)));
    }
    row("steps a second", &|kind| format!("{:.2}", kind.steps_per_second));
    row("peak MB", &|kind| kind.peak_bytes.map_or("-".to_string(), |bytes| (bytes / 1_000_000).to_string()));
    let table = Cells { header: &heads, rows, spare: &[] }.table(1, columns());
    let mut cached = String::new();
    for (kind, times) in kinds.iter().filter_map(|kind| Some((kind, kind.cache.as_ref()?))) {
        let CacheTimes { full_ms, full_runs, shallow_ms, shallow_runs, step_ms } = times;
        cached += &format!(
            "\n{}: {full_runs} full runs of {full_ms:.1}, {shallow_runs} shallow of {shallow_ms:.1}, {step_ms:.1} a step",
            kind.name
        );
    }
    format!(
        "{engine} {engine_version}, {height}x{width}, {steps} steps, batch {batch}, guidance {guidance}; \
         milliseconds, median of {runs}\n{table}{cached}"
    )
}
