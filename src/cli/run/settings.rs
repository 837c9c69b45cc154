//! Everything that decides what a run makes, as the command line says it and as an image carries it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use clap::{
    Arg, Command, ValueEnum,
    builder::{PossibleValue, TypedValueParser},
    error::ErrorKind,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Args, Failure};
use crate::{
    cli::{compiled::digest, image_file, progress::Visibility},
    diffusion::{
        pipeline::{self, Folder, Request},
        sampler::Preset,
        vae::Tiling,
    },
    engine::io::read_npy,
    plan::{self, AmplifyWeight, Mode, Plan, PlanSource},
};

/// The settings of a run. Whatever is added gets a default, so that older images can be repeated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub(super) pipeline: PathBuf,
    pub(super) prompt: String,
    pub(super) negative_prompt: Option<String>,
    /// The plan's name and text.
    pub(super) plan: Option<(String, String)>,
    pub(super) pruned: Option<PathBuf>,
    pub(super) fused: Option<PathBuf>,
    pub(super) compare: bool,
    pub(super) weight: Option<f64>,
    pub(super) size: Option<(usize, usize)>,
    pub(super) steps: usize,
    pub(super) guidance: f64,
    pub(super) guidance_rescale: f64,
    pub(super) seeds: Vec<u64>,
    pub(super) random: Random,
    pub(super) batch: usize,
    pub(super) scheduler: Option<String>,
    pub(super) scheduler_options: Map<String, Value>,
    pub(super) eta: f64,
    pub(super) clip_skip: Option<usize>,
    pub(super) latents: Option<PathBuf>,
    pub(super) noise: Option<PathBuf>,
    pub(super) tile: bool,
    /// Which image of the batch it is, in the settings of one image.
    #[serde(default)]
    pub(super) index: Option<usize>,
    /// Digests of the models that drew it, by part.
    #[serde(default)]
    pub(super) models: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pipeline: PathBuf::new(),
            prompt: String::new(),
            negative_prompt: None,
            plan: None,
            pruned: None,
            fused: None,
            compare: false,
            weight: None,
            size: None,
            steps: 30,
            guidance: 7.5,
            guidance_rescale: 0.0,
            seeds: vec![0],
            random: Random::Torch,
            batch: 1,
            scheduler: None,
            scheduler_options: Map::new(),
            eta: 0.0,
            clip_skip: None,
            latents: None,
            noise: None,
            tile: false,
            index: None,
            models: BTreeMap::new(),
        }
    }
}

/// The names of schedulers; clap wants them to live as long as the program.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(Preset::names);

/// The parser of `--scheduler`; shells complete its names.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerName;

impl TypedValueParser for SchedulerName {
    type Value = String;

    fn parse_ref(&self, _: &Command, _: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        let name = value.to_string_lossy().into_owned();
        match name.parse::<Preset>() {
            Ok(_) => Ok(name),
            Err(error) => Err(clap::Error::raw(ErrorKind::ValueValidation, format!("{error}\n"))),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(NAMES.iter().map(|name| PossibleValue::new(name.as_str()))))
    }
}

/// The library whose random numbers a seed stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Random {
    /// diffusers' latents.
    Torch,
    /// The latents of older Optimum releases.
    Numpy,
}

impl From<Random> for pipeline::Random {
    fn from(random: Random) -> Self {
        match random {
            Random::Torch => Self::Torch,
            Random::Numpy => Self::Numpy,
        }
    }
}

impl Settings {
    /// Reads the command line. The plan is read here, so that it is the same one all along.
    pub(super) fn from_args(args: &Args) -> Result<Self, Failure> {
        let networks = &args.networks;
        let given = networks.plan.is_some() || networks.pruned.is_some() || networks.fused.is_some();
        if !given && !networks.dense {
            let what = "nothing says what to run: give --plan, --pruned or --fused, or --dense for the pipeline as it is";
            return Err(Failure::Message(what.to_string()));
        }
        let mut settings = Self::default();
        settings.change(args)?;
        Ok(settings)
    }

    /// Reads the settings in the image at `path`, for everything that the command line doesn't set.
    pub(super) fn of_replay(args: &Args, path: &Path) -> Result<Self, Failure> {
        let failed = |e: serde_json::Error| {
            Failure::Message(format!("{}: its text `crdiff` cannot be read: {e}", path.display()))
        };
        let mut value: Value = serde_json::from_str(&image_file::read_settings(path)?).map_err(failed)?;
        let mut settings: Self = serde_json::from_value(value["settings"].take()).map_err(failed)?;
        settings.change(args)?;
        if !settings.pipeline.exists() {
            return Err(Failure::Message(format!(
                "{}: the pipeline that drew it, {}, isn't there; name its folder: crdiff run PIPELINE --replay {0}",
                path.display(),
                settings.pipeline.display()
            )));
        }
        // With a seed for each image, one of them can be drawn alone.
        if let Some(index) = settings.index
            && let (None, None, true) =
                (&settings.latents, &settings.noise, settings.seeds.len() == settings.batch)
            && let Some(seed) = settings.seeds.get(index).copied()
        {
            (settings.seeds, settings.batch, settings.index) = (vec![seed], 1, Some(0));
        }
        Ok(settings)
    }

    /// Takes over what the command line says.
    fn change(&mut self, args: &Args) -> Result<(), Failure> {
        let (networks, sampling) = (&args.networks, &args.sampling);
        if networks.weight.is_some() && (networks.fused.is_some() || networks.dense) {
            let what =
                "--weight is for a dense and a pruned network; --fused has its own weight, --dense has none";
            return Err(Failure::Message(what.to_string()));
        }
        let absolute = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        if let Some(pipeline) = &args.pipeline {
            self.pipeline = absolute(pipeline);
        }
        if networks.plan.is_some() || networks.pruned.is_some() || networks.fused.is_some() || networks.dense
        {
            let plan = networks.plan.as_deref().map(plan::load).transpose()?;
            self.plan = plan.map(|plan| (plan.source.name().to_string(), plan.source.text().to_string()));
            self.pruned = networks.pruned.as_ref().map(absolute);
            self.fused = networks.fused.as_ref().map(absolute);
            (self.weight, self.compare) = (None, false);
        }
        let pixels = |n: i64| usize::try_from(n).unwrap_or_default();
        set(&mut self.prompt, &args.prompt);
        set_some(&mut self.negative_prompt, &sampling.negative_prompt);
        self.compare |= networks.compare;
        set_some(&mut self.weight, &networks.weight);
        set_some(&mut self.size, &sampling.size.map(|size| (pixels(size.height), pixels(size.width))));
        set(&mut self.steps, &sampling.steps);
        set(&mut self.guidance, &sampling.guidance);
        set(&mut self.guidance_rescale, &sampling.guidance_rescale);
        set(&mut self.random, &sampling.random);
        set(&mut self.eta, &sampling.eta);
        set_some(&mut self.clip_skip, &sampling.clip_skip);
        set_some(&mut self.latents, &sampling.latents.as_ref().map(absolute));
        set_some(&mut self.noise, &sampling.noise.as_ref().map(absolute));
        self.tile |= sampling.tile;
        if !sampling.seed.is_empty() {
            self.seeds.clone_from(&sampling.seed);
        }
        if !sampling.seed.is_empty() || sampling.batch.is_some() {
            self.batch = sampling.batch.unwrap_or(self.seeds.len());
            self.index = None;
        }
        if sampling.scheduler.is_some() {
            // Settings that were for another scheduler may mean nothing to this one.
            self.scheduler_options.clear();
            self.scheduler.clone_from(&sampling.scheduler);
        }
        for option in &sampling.scheduler_option {
            let (key, value) = option.split_once('=').ok_or_else(|| {
                Failure::Message(format!("`{option}` is no setting of a scheduler: write KEY=VALUE"))
            })?;
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_string()));
            self.scheduler_options.insert(key.to_string(), value);
        }
        Ok(())
    }

    /// Returns how many images are written.
    pub(super) fn count(&self) -> usize {
        self.drawn().count()
    }

    /// Returns the images of the batch that are written.
    pub(super) fn drawn(&self) -> std::ops::Range<usize> {
        match self.index {
            Some(index) => index..index + 1,
            None => 0..self.batch,
        }
    }

    /// Returns the seed of an image of the batch.
    pub(super) fn seed(&self, index: usize) -> u64 {
        self.seeds.get(if self.seeds.len() == 1 { 0 } else { index }).copied().unwrap_or_default()
    }

    /// Takes another plan than the command line's from now on.
    pub(super) fn set_plan(&mut self, plan: &Plan) {
        self.plan = Some((plan.source.name().to_string(), plan.source.text().to_string()));
    }

    /// Returns the plan, with `--weight` in it where that decides what is compiled.
    pub(super) fn plan(&self) -> Result<Option<Plan>, Failure> {
        let Some((name, text)) = &self.plan else { return Ok(None) };
        // A plan that names files does so from where it lies.
        let plan = plan::of_source(PlanSource::new(name, text).in_folder_of(Path::new(name)))?;
        if self.weight.is_some() && plan.amplify.mode == Mode::Weights {
            let what = "--weight is for `mode: outputs`; with `mode: weights` the weight is compiled: change the plan";
            return Err(Failure::Message(what.to_string()));
        }
        Ok(Some(plan))
    }

    /// Digests of the models that draw, by part.
    pub(super) fn models(
        &self,
        folder: &Folder,
        visibility: Visibility,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let mut parts = vec![("unet", folder.unet()), ("vae", folder.decoder())];
        parts.extend(self.pruned.clone().map(|path| ("pruned", path)));
        parts.extend(self.fused.clone().map(|path| ("fused", path)));
        parts.into_iter().map(|(part, path)| Ok((part.to_string(), digest(&path, visibility)?))).collect()
    }

    /// Refuses models that are not those that drew an image.
    pub(super) fn check_models(&self, models: &BTreeMap<String, String>) -> Result<(), Failure> {
        let other =
            models.iter().find(|(part, digest)| self.models.get(*part).is_some_and(|known| known != *digest));
        let Some((part, digest)) = other else { return Ok(()) };
        let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_string();
        let known = self.models.get(part).map(|known| short(known)).unwrap_or_default();
        Err(Failure::Message(format!(
            "{}: its {part} is not the one that drew the image (digest {}, then it was {known}); --other-model draws with \
             it all the same",
            self.pipeline.display(),
            short(digest)
        )))
    }

    /// Returns the settings as a request to a pipeline.
    pub(super) fn request(&self, folder: &Folder, plan: Option<&Plan>) -> Result<Request, Failure> {
        let (height, width) = self.size.unwrap_or(folder.default_size);
        let mut request = Request::new(self.prompt.clone(), height, width);
        request.negative_prompts = self.negative_prompt.iter().cloned().collect();
        request.steps = self.steps;
        request.guidance = self.guidance;
        request.guidance_rescale = self.guidance_rescale;
        request.seeds = self.seeds.clone();
        request.random = self.random.into();
        request.batch = self.batch;
        request.scheduler_config = self.scheduler_options.clone().into_iter().collect();
        if let Some(name) = &self.scheduler {
            let preset = name.parse::<Preset>().map_err(|e| Failure::Message(e.to_string()))?;
            request.set_scheduler(preset);
        }
        request.eta = self.eta;
        request.clip_skip = self.clip_skip;
        request.latents = self.latents.as_deref().map(read_npy).transpose()?;
        request.noise = self.noise.as_deref().map(read_npy).transpose()?;
        request.amplify = plan.map(|plan| plan.amplify.clone()).unwrap_or_default();
        if let Some(weight) = self.weight {
            request.amplify.weight.value = AmplifyWeight::Constant(weight);
        }
        if self.tile {
            request.tiling = Tiling::Tiles;
        }
        Ok(request)
    }
}

fn set<T: Clone>(value: &mut T, given: &Option<T>) {
    if let Some(given) = given {
        value.clone_from(given);
    }
}

fn set_some<T: Clone>(value: &mut Option<T>, given: &Option<T>) {
    if given.is_some() {
        value.clone_from(given);
    }
}
