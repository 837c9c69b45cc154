//! `crdiff run`: a pipeline, a plan and a prompt to images.

mod args;
mod events;
mod output;
mod refine;
mod settings;
mod texts;

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use serde_json::json;

use self::{
    args::{NetworkArgs, SamplingArgs},
    events::{Reporter, done},
    output::Files,
    settings::Settings,
    texts::Made,
};
use super::{
    DONE, Failure, Json,
    compiled::{compiled, say_text_encoders_alone, text_encoders},
    engine_args::{EngineArgs, Memory},
    image_file::{self, Tile, sheet},
    progress::Visibility,
};
use crate::{
    diffusion::{
        Pipeline,
        interleave::Batching,
        pipeline::{Folder, Unets},
        vae::Image,
    },
    engine::Chosen,
    observer::{Event, Observer},
    plan::{Amplify, AmplifyWeight, Plan, Runtime},
    plan_cache::Compiled,
};

/// Why compiled graphs are refused beside a plan with a cache.
pub(super) const CACHE_IS_COMPILED: &str = "this plan has a `cache`, whose pairs of graphs are compiled from it: \
    leave --pruned and --fused out, or take `cache` out of the plan";

const EXAMPLES: &str = "\
Examples:
  crdiff run sd15-onnx --plan plan.yaml --prompt \"a lighthouse in a storm\" --size 384x576 --steps 30 --seed 1
  crdiff run sd15-onnx --plan plan.yaml --prompt \"...\" --compare -o compare.png     dense, pruned, amplified
  crdiff run sd15-onnx --dense --prompt \"...\" --scheduler dpm++_2m_karras            without a plan
  crdiff run --replay out.png -o again.png                                           the same again
  crdiff run --replay out.png --steps 50 --seed 1,2,3 -o more.webp                   the same with other settings";

/// Make images: dense and pruned networks interleaved as a plan says.
///
/// PIPELINE is a folder as Optimum exports it. A plan is compiled on first use and kept for the next (see --compiled and
/// `crdiff cache`). --format json prints events, one a line.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The pipeline's folder.
    #[arg(required_unless_present = "replay")]
    pipeline: Option<PathBuf>,
    /// The prompt.
    #[arg(long, required_unless_present = "replay")]
    prompt: Option<String>,
    /// The image to write, as .png, .jpg or .webp; several get numbers [default: out.png]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write over files that are there.
    #[arg(long)]
    force: bool,
    /// Draw this image again, with what the command line says otherwise (--steps, --seed, --size, ...). PIPELINE is needed
    /// only where the pipeline lies elsewhere now.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// With --replay, run the pipeline that is there although its UNet or VAE is not the one that drew the image.
    #[arg(long, requires = "replay")]
    other_model: bool,
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
    refine: Option<NonZeroUsize>,
    /// Then move each ratio of the plan by STEP, up and down, and keep what scores better.
    #[arg(help_heading = "Refinement")]
    #[arg(long, value_name = "STEP", requires = "refine", conflicts_with = "pruned", value_parser = refine::step)]
    refine_ratios: Option<f64>,
    /// How --refine scores: a file with `objective:` as in a search space (docs/search.md), or a space; or clip:FOLDER, which
    /// measures how well the image matches its prompt, and nothing else, with a CLIP exported to ONNX.
    #[arg(help_heading = "Refinement")]
    #[arg(long, value_name = "YAML", requires = "refine")]
    objective: Option<PathBuf>,
    /// While sampling, write what the image will be, as far as the network knows, beside it (.preview.png), after every N
    /// steps. Colours of Stable Diffusion's latents are approximations; others are decoded by the VAE.
    #[arg(long, value_name = "N")]
    preview: Option<NonZeroUsize>,
    /// Write the final latents, before the VAE, as .npy.
    #[arg(long, value_name = "NPY")]
    save_latents: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
    /// Print nothing but errors and warnings.
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let settings = match &args.replay {
        Some(image) => Settings::of_replay(args, image)?,
        None => Settings::from_args(args)?,
    };
    let plan = settings.plan()?;
    let folder = Folder::open(&settings.pipeline)?;
    let mut request = settings.request(&folder, plan.as_ref())?;
    folder.check_size(request.height, request.width)?;
    let files = Files::of(args, settings.count())?;
    let visibility = if args.quiet || args.json.is_asked() { Visibility::Hidden } else { Visibility::Shown };
    let models = settings.models(&folder, visibility)?;
    if !args.other_model {
        settings.check_models(&models)?;
    }
    if plan.as_ref().is_some_and(|plan| plan.cache.is_some()) {
        if settings.pruned.is_some() || settings.fused.is_some() {
            return Err(Failure::Message(CACHE_IS_COMPILED.into()));
        }
        if args.refine.is_some() {
            return Err(Failure::Message(
                "--refine scores whole networks: leave `cache` out of the plan, and add it to what is found"
                    .into(),
            ));
        }
    }
    let Compiled { unets, dense, shallow } = match (&settings.pruned, &settings.fused, &plan) {
        (Some(pruned), ..) => Compiled::of(Unets::WithPruned(pruned.clone())),
        (None, Some(fused), _) => Compiled::of(Unets::Instead(fused.clone())),
        (None, None, Some(plan)) => {
            compiled(&folder.unet(), plan, args.engine.masks(), args.networks.compiled, visibility)?
        }
        (None, None, None) => Compiled::of(Unets::Dense),
    };
    let mut texts = Vec::new();
    if let (None, None, Some(plan)) = (&settings.pruned, &settings.fused, &plan) {
        texts = text_encoders(&folder.text_encoders(), plan, args.networks.compiled, visibility)?;
        let [_, left_out] = plan.text_layers();
        if left_out > 0 && visibility == Visibility::Shown {
            anstream::eprintln!(
                "note: {left_out} layers of text encoders are left out: both networks have the same, so a LoRA for them \
                 belongs under `always`"
            );
        }
        if visibility == Visibility::Shown {
            say_text_encoders_alone(plan);
        }
    }
    if (settings.compare || args.refine.is_some()) && !unets.are_mixed() {
        let what = "--compare and --refine need a dense and a pruned network; this plan makes one (`mode: weights`, or `always` alone)";
        return Err(Failure::Message(what.to_string()));
    }
    let (Chosen { engine, why }, options) =
        args.engine.open(plan.as_ref().map_or(&Runtime::default(), |plan| &plan.runtime))?;
    let made = Made {
        versions: json!({
            "crdiff": env!("CARGO_PKG_VERSION"), "engine": engine.kind(), "engine_version": engine.version(),
        }),
        models,
    };
    if visibility == Visibility::Shown {
        anstream::eprintln!("{why}");
    }
    let mut pipeline = Pipeline::open(&settings.pipeline, engine, options, unets)?;
    dense.into_iter().for_each(|path| pipeline.set_dense(path));
    texts.into_iter().for_each(|(index, path)| pipeline.set_text_encoder(index, path));
    pipeline.set_shallow(shallow);
    request.cache = plan.as_ref().and_then(|plan| plan.cache.clone());
    if args.engine.memory() == Memory::Low {
        request.batching = Batching::InTurn;
    }
    request.preview = args.preview;

    let reporter = Reporter::new(args.json.is_asked(), visibility);
    let run = Run {
        args,
        settings: &settings,
        plan: plan.as_ref(),
        files: &files,
        made: &made,
        reporter: &reporter,
    };
    if let (Some(count), Some(objective)) = (args.refine, &args.objective) {
        return refine::run(&run, (count.get(), objective), &mut pipeline, &request);
    }
    let variants = variants(&settings, &request.amplify);
    let mut outputs = Vec::with_capacity(variants.len());
    let mut names = Vec::with_capacity(variants.len());
    for (name, amplify) in variants {
        reporter.drawing(&name);
        names.push(name);
        request.amplify = amplify;
        outputs.push(run.drawn(pipeline.run(&request, &run))?);
    }
    reporter.finish();

    if let Some(output) = outputs.last() {
        files.save_latents(output)?;
    }
    for (path, i) in files.images.iter().zip(settings.drawn()) {
        let tiles = names.iter().zip(&outputs);
        let tiles: Vec<Tile<'_>> =
            tiles.filter_map(|(name, output)| Some(Tile::new(name, output.images.get(i)?))).collect();
        let joined;
        let image = match tiles.as_slice() {
            [one] => one.image,
            several => {
                joined = sheet(several, several.len());
                &joined
            }
        };
        let texts = settings.texts(i, &made, plan.as_ref(), outputs.last())?;
        image_file::write(path, image, &texts)?;
        reporter.tell(&json!({ "event": "image", "path": path, "seed": settings.seed(i), "index": i }));
        run.say_written(path)?;
    }
    for output in &outputs {
        reporter.tell(&done(output));
    }
    Ok(DONE)
}

/// The things that the parts of a run have in common.
struct Run<'a> {
    args: &'a Args,
    settings: &'a Settings,
    plan: Option<&'a Plan>,
    files: &'a Files,
    made: &'a Made,
    reporter: &'a Reporter,
}

impl Run<'_> {
    /// Takes previews away where nothing was drawn.
    fn drawn<T, E>(&self, drawn: Result<T, E>) -> Result<T, E> {
        if drawn.is_err() && self.args.preview.is_some() {
            let previews = self.files.images.iter().map(|image| output::preview(image));
            previews.for_each(|preview| drop(fs::remove_file(preview)));
        }
        drawn
    }

    /// Writes a preview, as an image that can be replayed.
    fn preview(&self, (step, index): (usize, usize), image: &Image) -> Result<(), Failure> {
        let files = self.files.images.iter().zip(self.settings.drawn());
        for (path, _) in files.filter(|(_, known)| *known == index) {
            let path = output::preview(path);
            image_file::write(&path, image, &self.settings.texts(index, self.made, self.plan, None)?)?;
            self.reporter.tell(&json!({ "event": "preview", "path": path, "step": step }));
        }
        Ok(())
    }

    /// Reports a file that was written.
    fn say_written(&self, path: &Path) -> Result<(), Failure> {
        if self.args.quiet || self.args.json.is_asked() {
            return Ok(());
        }
        let replaced = self.files.replaced.iter().any(|there| there == path);
        let note = if replaced { " (in place of the one that was there)" } else { "" };
        out!("{}{note}\n", path.display());
        Ok(())
    }
}

impl Observer for Run<'_> {
    fn hear(&self, event: Event<'_>) {
        let Event::Preview { step, index, height, width, pixels } = event else {
            return self.reporter.hear(event);
        };
        let image = Image { height, width, pixels: pixels.to_vec() };
        if let Err(failure) = self.preview((step, index), &image) {
            self.reporter.hear(Event::Warning(&failure.to_string()));
        }
    }

    fn is_stopped(&self) -> bool {
        self.reporter.is_stopped()
    }
}

/// Returns the variants to run: one amplification, or three to compare, each with its label.
fn variants(settings: &Settings, amplify: &Amplify) -> Vec<(String, Amplify)> {
    let constant = |weight: f64| {
        let mut constant = Amplify::default();
        constant.weight.value = AmplifyWeight::Constant(weight);
        constant
    };
    let amplified = match amplify.weight.value {
        AmplifyWeight::Constant(weight) => format!("amplified, w {}", (weight * 1e3).round() / 1e3),
        AmplifyWeight::Ramp { .. } | AmplifyWeight::Steps(_) => "amplified".to_string(),
    };
    match settings.compare {
        true => vec![
            ("dense".to_string(), constant(0.0)),
            ("pruned".to_string(), constant(1.0)),
            (amplified, amplify.clone()),
        ],
        false => vec![("sampling".to_string(), amplify.clone())],
    }
}
