//! `crdiff run`: a pipeline, a plan and a prompt to pictures.

mod refine;
mod settings;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use self::settings::Settings;
use super::{
    DONE, Failure, Size,
    models::{EngineArgs, Memory, unets},
    number, picture,
    progress::{Visibility, interruptible},
};
use crate::{
    diffusion::{
        Pipeline,
        interleave::Batching,
        pipeline::{Event, Folder, Output, Request, Unets},
        vae::{Image, Tiling},
    },
    engine::{Chosen, io::write_npy},
    plan::{Amplify, Plan, Runtime, Weight},
};

const EXAMPLES: &str = "\
Examples:
  crdiff run sd15-onnx --plan plan.yaml --prompt \"a lighthouse in a storm\" --size 384x576 --steps 30 --seed 1
  crdiff run sd15-onnx --plan plan.yaml --prompt \"...\" --compare -o compare.png     dense, pruned, amplified
  crdiff run sd15-onnx --dense --prompt \"...\" --scheduler EulerDiscreteScheduler     without a plan
  crdiff run --replay out.png -o again.png                                           the same again";

/// Make pictures: dense and pruned networks interleaved as a plan says.
///
/// PIPELINE is a folder as Optimum exports it. A plan is compiled on first use; the pruned graph stays beside the
/// pipeline's UNet (model.crdiff-*.onnx), or in the cache folder where that cannot be written.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The pipeline's folder.
    #[arg(required_unless_present = "replay")]
    pipeline: Option<PathBuf>,
    /// What to draw.
    #[arg(long, required_unless_present = "replay")]
    prompt: Option<String>,
    /// The picture to write; several get numbers [default: out.png]
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    output: PathBuf,
    /// Repeat the run that made this picture. Only the output and the engine can be others.
    #[arg(long, value_name = "PNG", conflicts_with_all = ["pipeline", "prompt", "NetworkArgs", "SamplingArgs"])]
    replay: Option<PathBuf>,
    #[command(flatten)]
    networks: NetworkArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Draw this prompt dense and at N weights w around the plan's, and keep what the objective scores best, with a contact
    /// sheet of all beside it (.sheet.png).
    #[arg(help_heading = "Refinement")]
    #[arg(long, value_name = "N", requires = "objective", conflicts_with_all = ["compare", "dense", "fused", "replay"])]
    refine: Option<std::num::NonZeroUsize>,
    /// Then move each ratio of the plan by STEP, up and down, and keep what scores better.
    #[arg(help_heading = "Refinement")]
    #[arg(long, value_name = "STEP", requires = "refine", conflicts_with = "pruned", value_parser = refine::step)]
    refine_ratios: Option<f64>,
    /// How --refine scores: a file with `objective:` as in a search space (docs/search.md), or a space.
    #[arg(help_heading = "Refinement")]
    #[arg(long, value_name = "YAML", requires = "refine")]
    objective: Option<PathBuf>,
    /// Write the final latents, before the VAE, as .npy.
    #[arg(long, value_name = "NPY")]
    save_latents: Option<PathBuf>,
    /// Print events as JSON, one a line.
    #[arg(long)]
    json: bool,
    /// Print nothing but errors and warnings.
    #[arg(short, long)]
    quiet: bool,
}

/// Which networks run.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Networks")]
struct NetworkArgs {
    /// The plan (YAML, or the result JSON of the authors' search).
    #[arg(long, value_name = "PLAN")]
    plan: Option<PathBuf>,
    /// A pruned graph, instead of compiling the plan; how it is mixed is still the plan's.
    #[arg(long, value_name = "FILE", conflicts_with = "fused")]
    pruned: Option<PathBuf>,
    /// A fused graph instead of the pipeline's UNet.
    #[arg(long, value_name = "FILE", conflicts_with = "plan")]
    fused: Option<PathBuf>,
    /// The pipeline as it is.
    #[arg(long, conflicts_with_all = ["plan", "pruned", "fused", "compare"])]
    dense: bool,
    /// Dense, pruned and amplified side by side, each below its name.
    #[arg(long, conflicts_with = "fused")]
    compare: bool,
    /// The amplification w, instead of the plan's.
    #[arg(long, value_name = "W", allow_negative_numbers = true, value_parser = number)]
    weight: Option<f64>,
}

/// How to sample.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// What to stay away from.
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Height x width in pixels, such as 384x576 [default: what the pipeline was made for]
    #[arg(long, value_name = "HxW")]
    size: Option<Size>,
    /// Steps of the sampler.
    #[arg(long, default_value_t = 30)]
    steps: usize,
    /// Classifier-free guidance; 1 for none.
    #[arg(long, default_value_t = 7.5, value_parser = number)]
    guidance: f64,
    /// Pull the guided output's deviation back by this share.
    #[arg(long, default_value_t = 0.0, value_parser = number)]
    guidance_rescale: f64,
    /// The seed. One for the batch, or one for each picture.
    #[arg(long)]
    seed: Vec<u64>,
    /// Whose random numbers the seed stands for.
    #[arg(long, value_enum, default_value = "torch")]
    random: settings::Random,
    /// Pictures at once [default: the number of seeds]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// A scheduler of diffusers, such as EulerDiscreteScheduler [default: the pipeline's]
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
    /// A setting of the scheduler to change: use_karras_sigmas=true.
    #[arg(long, value_name = "KEY=VALUE")]
    scheduler_option: Vec<String>,
    /// The share of fresh noise in DDIM.
    #[arg(long, default_value_t = 0.0, value_parser = number)]
    eta: f64,
    /// Layers to leave out at the end of SDXL's text encoders.
    #[arg(long, value_name = "N")]
    clip_skip: Option<usize>,
    /// First latents: .npy, [batch, channels, height, width], standard normal.
    #[arg(long, value_name = "NPY")]
    latents: Option<PathBuf>,
    /// What the sampler draws: .npy, [draws, batch, channels, height, width].
    #[arg(long, value_name = "NPY")]
    noise: Option<PathBuf>,
    /// Decode large pictures in tiles: less memory.
    #[arg(long)]
    tile: bool,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let settings = match &args.replay {
        Some(picture) => Settings::from_json(&picture::read_settings(picture)?, picture)?,
        None => Settings::from_args(args)?,
    };
    let plan = settings.plan()?;
    let folder = Folder::open(&settings.pipeline)?;
    let visibility = if args.quiet || args.json { Visibility::Hidden } else { Visibility::Shown };
    let unets = match (&settings.pruned, &settings.fused, &plan) {
        (Some(pruned), ..) => Unets::WithPruned(pruned.clone()),
        (None, Some(fused), _) => Unets::Instead(fused.clone()),
        (None, None, Some(plan)) => unets(&folder.unet(), plan, args.engine.memory(), visibility)?,
        (None, None, None) => Unets::Dense,
    };
    if (settings.compare || args.refine.is_some()) && !matches!(unets, Unets::WithPruned(_)) {
        let what = "--compare and --refine need a dense and a pruned network; this plan amplifies within one (`mode: weights`)";
        return Err(Failure::Message(what.to_string()));
    }
    let (Chosen { engine, why }, options) =
        args.engine.open(plan.as_ref().map_or(&Runtime::default(), |plan| &plan.runtime))?;
    let versions = json!({ "crdiff": env!("CARGO_PKG_VERSION"), "engine": engine.kind(), "engine_version": engine.version() });
    if !args.quiet && !args.json {
        anstream::eprintln!("{why}");
    }
    let mut pipeline = Pipeline::open(&settings.pipeline, engine, options, unets)?;
    let mut request = settings.request(&folder, plan.as_ref())?;
    if args.engine.memory() == Memory::Low {
        request.batching = Batching::InTurn;
    }

    let reporter = Reporter { json: args.json, bar: bar(visibility) };
    if let (Some(count), Some(objective)) = (args.refine, &args.objective) {
        let (drawn, told) = ((count.get(), objective.as_path()), (&request, &reporter));
        return refine::run(args, drawn, &settings, plan.as_ref(), &mut pipeline, told, &versions);
    }
    let variants = variants(&settings, &request.amplify);
    let mut outputs = Vec::with_capacity(variants.len());
    let mut names = Vec::with_capacity(variants.len());
    for (name, amplify) in variants {
        names.push(name);
        request.amplify = amplify;
        reporter.bar.set_message(name);
        outputs.push(pipeline.run(&request, &mut |event| reporter.event(&event))?);
    }
    reporter.bar.finish_and_clear();

    if let (Some(path), Some(output)) = (&args.save_latents, outputs.last()) {
        save_latents(path, output)?;
    }
    let paths = paths(&args.output, request.batch);
    for (i, path) in paths.iter().enumerate() {
        let images =
            names.iter().zip(&outputs).filter_map(|(name, output)| Some((*name, output.images.get(i)?)));
        let images: Vec<(&str, &Image)> = images.collect();
        let joined;
        let image = match images.as_slice() {
            [(_, one)] => *one,
            several => {
                joined = picture::side_by_side(several);
                &joined
            }
        };
        let seed =
            request.seeds.get(if request.seeds.len() == 1 { 0 } else { i }).copied().unwrap_or_default();
        let texts = texts(&settings, plan.as_ref(), &outputs, seed);
        picture::write(path, image, &settings.to_json(&versions)?, &texts)?;
        reporter.tell(&json!({ "event": "picture", "path": path, "seed": seed, "index": i }));
        if !args.quiet && !args.json {
            out!("{}\n", path.display());
        }
    }
    for output in &outputs {
        reporter.tell(&done(output));
    }
    Ok(DONE)
}

/// What is run: one amplification, or three to compare.
fn variants(settings: &Settings, amplify: &Amplify) -> Vec<(&'static str, Amplify)> {
    let constant = |weight: f64| {
        let mut constant = Amplify::default();
        constant.weight.value = Weight::Constant(weight);
        constant
    };
    match settings.compare {
        true => vec![("dense", constant(0.0)), ("pruned", constant(1.0)), ("amplified", amplify.clone())],
        false => vec![("sampling", amplify.clone())],
    }
}

/// Where the pictures go: `out.png`, or `out-1.png`, `out-2.png`.
fn paths(output: &Path, batch: usize) -> Vec<PathBuf> {
    if batch == 1 {
        return vec![output.to_path_buf()];
    }
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    let extension = output.extension().unwrap_or_default().to_string_lossy();
    let dot = if extension.is_empty() { "" } else { "." };
    (1..=batch).map(|i| output.with_file_name(format!("{stem}-{i}{dot}{extension}"))).collect()
}

fn save_latents(path: &Path, output: &Output) -> Result<(), Failure> {
    let failed =
        |what: String| Failure::Message(format!("{}: cannot write the latents: {what}", path.display()));
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let partial =
        tempfile::Builder::new().prefix(".crdiff-").tempdir_in(folder).map_err(|e| failed(e.to_string()))?;
    let file = partial.path().join("latents.npy");
    write_npy(&file, &output.latents)?;
    std::fs::rename(&file, path).map_err(|e| failed(e.to_string()))
}

/// What a picture says of itself in words.
fn texts(
    settings: &Settings,
    plan: Option<&Plan>,
    outputs: &[Output],
    seed: u64,
) -> Vec<(&'static str, String)> {
    let mut texts = vec![
        ("Software", format!("crdiff {}", env!("CARGO_PKG_VERSION"))),
        ("prompt", settings.prompt.clone()),
        ("seed", seed.to_string()),
        ("steps", settings.steps.to_string()),
        ("guidance", settings.guidance.to_string()),
    ];
    texts.extend(settings.negative_prompt.clone().map(|text| ("negative_prompt", text)));
    texts.extend(outputs.last().map(|output| ("sampler", output.scheduler.to_string())));
    texts.extend(plan.map(|plan| ("plan_digest", plan.digest.clone())));
    if settings.compare {
        texts.push(("pictures", "dense, pruned, amplified".to_string()));
    }
    texts
}

fn done(output: &Output) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let timings = &output.timings;
    json!({
        "event": "done", "sampler": output.scheduler.name(),
        "ms": {
            "loading": ms(timings.loading), "text": ms(timings.text), "sampling": ms(timings.sampling),
            "dense": ms(timings.networks.dense), "pruned": ms(timings.networks.pruned),
            "decoding": ms(timings.decoding),
        },
        "runs": { "dense": timings.networks.dense_runs, "pruned": timings.networks.pruned_runs },
    })
}

/// Tells what happens: a bar on stderr, or JSON on stdout.
struct Reporter {
    json: bool,
    bar: ProgressBar,
}

fn bar(visibility: Visibility) -> ProgressBar {
    let target = match visibility {
        Visibility::Shown => ProgressDrawTarget::stderr_with_hz(5),
        Visibility::Hidden => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(None, target);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} steps, {eta} left") {
        bar.set_style(style);
    }
    bar
}

impl Reporter {
    fn tell(&self, event: &Value) {
        if self.json {
            // Whoever reads no events wants the picture all the same.
            super::print(format_args!("{event}\n")).ok();
        }
    }

    fn event(&self, event: &Event) -> ControlFlow<()> {
        match event {
            Event::Stage(stage) => self.tell(&json!({ "event": "stage", "stage": stage })),
            Event::Call { call, calls, step, steps, timestep } => {
                if *call == 0 {
                    self.bar.set_length(*steps as u64);
                    self.bar.reset_eta();
                }
                self.bar.set_position(*step as u64 + 1);
                self.tell(&json!({
                    "event": "call", "call": call, "calls": calls, "step": step, "steps": steps, "timestep": timestep,
                }));
            }
            Event::Warning(text) => {
                self.bar.suspend(|| anstream::eprintln!("warning: {text}"));
                self.tell(&json!({ "event": "warning", "text": text }));
            }
        }
        match interruptible().load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

impl Settings {
    /// The settings as a request to a pipeline.
    fn request(&self, folder: &Folder, plan: Option<&Plan>) -> Result<Request, Failure> {
        let (height, width) = self.size.unwrap_or(folder.default_size);
        let mut request = Request::new(self.prompt.clone(), height, width);
        request.negative_prompt = self.negative_prompt.clone();
        request.steps = self.steps;
        request.guidance = self.guidance;
        request.guidance_rescale = self.guidance_rescale;
        request.seeds = self.seeds.clone();
        request.random = self.random.into();
        request.batch = self.batch;
        request.scheduler = self
            .scheduler
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|e: crate::diffusion::sampler::SamplerError| Failure::Message(e.to_string()))?;
        request.scheduler_config = self.scheduler_options.clone().into_iter().collect();
        request.eta = self.eta;
        request.clip_skip = self.clip_skip;
        request.latents = self.latents.as_deref().map(crate::engine::io::read_npy).transpose()?;
        request.noise = self.noise.as_deref().map(crate::engine::io::read_npy).transpose()?;
        request.amplify = plan.map(|plan| plan.amplify.clone()).unwrap_or_default();
        if let Some(weight) = self.weight {
            request.amplify.weight.value = Weight::Constant(weight);
        }
        if self.tile {
            request.tiling = Tiling::Tiles;
        }
        Ok(request)
    }
}
