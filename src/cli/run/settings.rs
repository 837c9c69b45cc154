//! Everything that decides what a run makes, as the command line says it and as a picture carries it.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Args, Failure};
use crate::{
    diffusion::pipeline,
    plan::{self, Mode, Plan},
};

/// The settings of a run. Whatever is added gets a default, so that older pictures can be repeated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub(super) pipeline: PathBuf,
    pub(super) prompt: String,
    pub(super) negative_prompt: Option<String>,
    /// The plan's name and text.
    plan: Option<(String, String)>,
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
}

/// Whose random numbers a seed stands for.
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
    /// What the command line says. The plan is read here, so that it is the same one all along.
    pub(super) fn from_args(args: &Args) -> Result<Self, Failure> {
        let (networks, sampling) = (&args.networks, &args.sampling);
        let given = networks.plan.is_some() || networks.pruned.is_some() || networks.fused.is_some();
        if !given && !networks.dense {
            let what = "nothing says what to run: give --plan, --pruned or --fused, or --dense for the pipeline as it is";
            return Err(Failure::Message(what.to_string()));
        }
        if networks.weight.is_some_and(|weight| !weight.is_finite()) {
            return Err(Failure::Message("--weight must be a finite number".to_string()));
        }
        if networks.weight.is_some() && (networks.fused.is_some() || networks.dense) {
            let what =
                "--weight is for a dense and a pruned network; --fused has its own weight, --dense has none";
            return Err(Failure::Message(what.to_string()));
        }
        let plan = networks.plan.as_deref().map(plan::load).transpose()?;
        let plan = plan.map(|plan| (plan.source.name().to_string(), plan.source.text().to_string()));
        let seeds = if sampling.seed.is_empty() { vec![0] } else { sampling.seed.clone() };
        let options = sampling.scheduler_option.iter().map(|option| {
            let (key, value) = option.split_once('=').ok_or_else(|| {
                Failure::Message(format!("`{option}` is no setting of a scheduler: write KEY=VALUE"))
            })?;
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_string()));
            Ok((key.to_string(), value))
        });
        let pixels = |n: i64| usize::try_from(n).unwrap_or_default();
        Ok(Self {
            pipeline: args.pipeline.clone().unwrap_or_default(),
            prompt: args.prompt.clone().unwrap_or_default(),
            negative_prompt: sampling.negative_prompt.clone(),
            plan,
            pruned: networks.pruned.clone(),
            fused: networks.fused.clone(),
            compare: networks.compare,
            weight: networks.weight,
            size: sampling.size.map(|size| (pixels(size.height), pixels(size.width))),
            steps: sampling.steps,
            guidance: sampling.guidance,
            guidance_rescale: sampling.guidance_rescale,
            batch: sampling.batch.unwrap_or(seeds.len()),
            seeds,
            random: sampling.random,
            scheduler: sampling.scheduler.clone(),
            scheduler_options: options.collect::<Result<_, Failure>>()?,
            eta: sampling.eta,
            clip_skip: sampling.clip_skip,
            latents: sampling.latents.clone(),
            noise: sampling.noise.clone(),
            tile: sampling.tile,
        })
    }

    /// Reads what [`Settings::to_json`] wrote into the picture at `path`.
    pub(super) fn from_json(text: &str, path: &Path) -> Result<Self, Failure> {
        let failed = |e: serde_json::Error| {
            Failure::Message(format!("{}: its text `crdiff` cannot be read: {e}", path.display()))
        };
        let mut value: Value = serde_json::from_str(text).map_err(failed)?;
        serde_json::from_value(value["settings"].take()).map_err(failed)
    }

    /// The settings and the versions that made a picture.
    pub(super) fn to_json(&self, versions: &Value) -> Result<String, Failure> {
        serde_json::to_string(&serde_json::json!({ "settings": self, "versions": versions }))
            .map_err(|e| Failure::Message(e.to_string()))
    }

    /// Another plan than the command line's from now on.
    pub(super) fn set_plan(&mut self, plan: &Plan) {
        self.plan = Some((plan.source.name().to_string(), plan.source.text().to_string()));
    }

    /// The plan, with `--weight` in it where that decides what is compiled.
    pub(super) fn plan(&self) -> Result<Option<Plan>, Failure> {
        let Some((name, text)) = &self.plan else { return Ok(None) };
        let plan = plan::parse(name, text)?;
        if self.weight.is_some() && plan.amplify.mode == Mode::Weights {
            let what = "--weight is for `mode: outputs`; with `mode: weights` the weight is compiled: change the plan";
            return Err(Failure::Message(what.to_string()));
        }
        Ok(Some(plan))
    }
}
