//! A pipeline's folder: what kind it is and where its parts are.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::{PipelineError, error::read_json, error::read_text, sampler::Config, vae::VaeConfig};

/// The kinds of pipelines that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stable Diffusion 1 and 2, their turbo and consistency descendants: one text encoder.
    StableDiffusion,
    /// SDXL: two text encoders, pooled text, sizes.
    StableDiffusionXl,
}

/// What the folder of a pipeline says without its models.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The folder.
    pub path: PathBuf,
    /// Its kind.
    pub kind: Kind,
    /// Without a negative prompt, zeros take the place of the empty prompt's encoding.
    pub zeros_for_empty_prompt: bool,
    /// The scheduler.
    pub scheduler: Config,
    /// The VAE.
    pub vae: VaeConfig,
    /// What the UNet divides latents by on its way down.
    pub downsampling: usize,
    /// Height and width of the pictures that it was made for, in pixels.
    pub default_size: (usize, usize),
}

impl Folder {
    /// Reads `model_index.json` and the configs in a folder laid out as Optimum does.
    ///
    /// # Errors
    /// [`PipelineError`] if a file is missing or wrong, or the pipeline is of a kind that isn't supported.
    pub fn open(path: &Path) -> Result<Self, PipelineError> {
        let index_path = path.join("model_index.json");
        let index = read_json(&index_path)?;
        let kind = kind(&index, &index_path)?;
        let flag = |key: &str, default: bool| index.get(key).and_then(Value::as_bool).unwrap_or(default);
        if flag("requires_aesthetics_score", false) {
            return Err(PipelineError::file(
                &index_path,
                "refiners (`requires_aesthetics_score`) are not supported",
            ));
        }
        let scheduler = path.join("scheduler").join("scheduler_config.json");
        let scheduler = Config::from_json(&read_text(&scheduler)?)?;
        let vae = VaeConfig::open(&path.join("vae_decoder").join("config.json"))?;
        let unet = path.join("unet").join("config.json");
        let unet = if unet.exists() { read_json(&unet)? } else { Value::Null };
        let stages = unet.get("down_block_types").and_then(Value::as_array).map_or(1, Vec::len);
        let size = unet.get("sample_size");
        let side =
            |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let latent = match size {
            Some(Value::Array(sides)) => side(sides.first()).zip(side(sides.get(1))),
            one => side(one).map(|n| (n, n)),
        };
        let (height, width) =
            latent.filter(|(h, w)| (1..1 << 16).contains(h) && (1..1 << 16).contains(w)).unwrap_or((64, 64));
        Ok(Self {
            path: path.to_path_buf(),
            kind,
            zeros_for_empty_prompt: kind == Kind::StableDiffusionXl
                && flag("force_zeros_for_empty_prompt", true),
            scheduler,
            default_size: (height * vae.factor, width * vae.factor),
            vae,
            downsampling: 1 << stages.clamp(1, 11).saturating_sub(1),
        })
    }

    /// The UNet as it was exported.
    pub fn unet(&self) -> PathBuf {
        self.model("unet")
    }

    /// The folders of the text encoders and their tokenizers.
    pub(super) fn text(&self) -> Vec<(PathBuf, PathBuf)> {
        let part = |suffix: &str| {
            (self.path.join(format!("tokenizer{suffix}")), self.path.join(format!("text_encoder{suffix}")))
        };
        match self.kind {
            Kind::StableDiffusion => vec![part("")],
            Kind::StableDiffusionXl => vec![part(""), part("_2")],
        }
    }

    pub(super) fn decoder(&self) -> PathBuf {
        self.model("vae_decoder")
    }

    /// A second decoder in single precision, for where the first one overflows.
    pub(super) fn decoder_fp32(&self) -> Option<PathBuf> {
        Some(self.model("vae_decoder_fp32")).filter(|path| path.exists())
    }

    fn model(&self, part: &str) -> PathBuf {
        self.path.join(part).join("model.onnx")
    }
}

fn kind(index: &Value, path: &Path) -> Result<Kind, PipelineError> {
    let class = index.get("_class_name").and_then(Value::as_str);
    let class = class.ok_or_else(|| PipelineError::file(path, "it has no `_class_name`"))?;
    let known = class.trim_start_matches("ORT").trim_start_matches("Onnx");
    match known {
        "StableDiffusionPipeline" | "LatentConsistencyModelPipeline" => Ok(Kind::StableDiffusion),
        "StableDiffusionXLPipeline" => Ok(Kind::StableDiffusionXl),
        _ => Err(PipelineError::file(
            path,
            format!(
                "`{class}` is not supported; supported are StableDiffusionPipeline, StableDiffusionXLPipeline and \
                 LatentConsistencyModelPipeline"
            ),
        )),
    }
}
