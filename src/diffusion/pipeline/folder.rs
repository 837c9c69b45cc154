//! A pipeline's folder: what kind it is and where its parts are.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::{
    PipelineError,
    error::{read_json, read_text},
    sampler::SavedConfig,
    unet::SAMPLE,
    vae::VaeConfig,
};
use crate::{
    analysis::shapes,
    engine::{EngineError, Signature},
    ir::Graph,
    onnx,
};

/// The kinds of pipelines that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineKind {
    /// Stable Diffusion 1 and 2, their turbo and consistency descendants: one text encoder.
    StableDiffusion,
    /// SDXL: two text encoders, pooled text, sizes.
    StableDiffusionXl,
}

/// The description of a pipeline by its folder, without its models.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The folder.
    pub path: PathBuf,
    /// Its kind.
    pub kind: PipelineKind,
    /// Without a negative prompt, zeros take the place of the empty prompt's encoding.
    pub zeros_for_empty_prompt: bool,
    /// The scheduler.
    pub scheduler: SavedConfig,
    /// The VAE.
    pub vae: VaeConfig,
    /// The factor by which the UNet divides latents on its way down.
    pub downsampling: usize,
    /// Height and width of the images that it was made for, in pixels.
    pub default_size: (usize, usize),
}

impl Folder {
    /// Reads `model_index.json` and the configs in a folder laid out as Optimum does.
    ///
    /// # Errors
    /// [`PipelineError`] if a file is missing or wrong, or the pipeline is of a kind that isn't supported.
    pub fn open(path: &Path) -> Result<Self, PipelineError> {
        let index_path = path.join("model_index.json");
        if path.exists() && !index_path.exists() {
            return Err(PipelineError::file(path, not_a_pipeline(path)));
        }
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
        let scheduler = SavedConfig::from_json(&read_text(&scheduler)?)
            .map_err(|error| PipelineError::file(&scheduler, error.to_string()))?;
        let vae = path.join("vae_decoder").join("config.json");
        let vae = match is_onnx_layout(&index) && !vae.exists() {
            true => {
                let decoder = path.join("vae_decoder").join("model.onnx");
                let factor = enlargement(&decoder).unwrap_or(VaeConfig::STABLE_DIFFUSION.factor);
                VaeConfig { factor, ..VaeConfig::STABLE_DIFFUSION }
            }
            false => VaeConfig::open(&vae)?,
        };
        let unet = path.join("unet").join("config.json");
        let unet = if unet.exists() { read_json(&unet)? } else { Value::Null };
        let stages = unet.get("down_block_types").and_then(Value::as_array).map(Vec::len);
        let stages = stages.unwrap_or(if is_onnx_layout(&index) { STABLE_DIFFUSION_STAGES } else { 1 });
        let size = unet.get("sample_size");
        let side =
            |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let latent = match size {
            Some(Value::Array(sides)) => side(sides.first()).zip(side(sides.get(1))),
            one => side(one).map(|n| (n, n)),
        };
        let latent = fixed_latents(&path.join("unet").join("model.onnx")).or(latent);
        let (height, width) =
            latent.filter(|(h, w)| (1..1 << 16).contains(h) && (1..1 << 16).contains(w)).unwrap_or((64, 64));
        Ok(Self {
            path: path.to_path_buf(),
            kind,
            zeros_for_empty_prompt: kind == PipelineKind::StableDiffusionXl
                && flag("force_zeros_for_empty_prompt", true),
            scheduler,
            default_size: (height * vae.factor, width * vae.factor),
            vae,
            downsampling: 1 << stages.clamp(1, 11).saturating_sub(1),
        })
    }

    /// Returns the UNet as it was exported.
    pub fn unet(&self) -> PathBuf {
        self.model("unet")
    }

    /// Returns the text encoders as they were exported.
    pub fn text_encoders(&self) -> Vec<PathBuf> {
        self.text().into_iter().map(|(_, encoder)| encoder.join("model.onnx")).collect()
    }

    /// Returns the folders of the text encoders and their tokenizers.
    pub(super) fn text(&self) -> Vec<(PathBuf, PathBuf)> {
        let part = |suffix: &str| {
            (self.path.join(format!("tokenizer{suffix}")), self.path.join(format!("text_encoder{suffix}")))
        };
        match self.kind {
            PipelineKind::StableDiffusion => vec![part("")],
            PipelineKind::StableDiffusionXl => vec![part(""), part("_2")],
        }
    }

    /// Returns the VAE's decoder.
    pub fn decoder(&self) -> PathBuf {
        self.model("vae_decoder")
    }

    /// Returns a second decoder in single precision, for where the first one overflows.
    pub(super) fn decoder_fp32(&self) -> Option<PathBuf> {
        Some(self.model("vae_decoder_fp32")).filter(|path| path.exists())
    }

    /// Checks a size in pixels as far as that goes without running anything.
    ///
    /// # Errors
    /// [`PipelineError::Request`] if the VAE has no latents for it.
    pub fn check_size(&self, height: usize, width: usize) -> Result<(), PipelineError> {
        let factor = self.vae.factor;
        if height == 0 || width == 0 || !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
            let nearest = |n: usize| n.div_ceil(factor).max(1) * factor;
            let what = format!(
                "the size {height}x{width} is not divisible by {factor}, the pixels of a latent; try {}x{}",
                nearest(height),
                nearest(width)
            );
            return Err(PipelineError::Request(what));
        }
        Ok(())
    }

    /// Adds what may be wrong with the size to an engine's error: shapes do not tell it of every graph.
    pub(super) fn explain_size(
        &self,
        error: PipelineError,
        [_, _, height, width]: [usize; 4],
    ) -> PipelineError {
        let factor = self.downsampling;
        match error {
            PipelineError::Engine(
                source @ (EngineError::Run { .. } | EngineError::Load { .. } | EngineError::Provider { .. }),
            ) if height % factor != 0 || width % factor != 0 => {
                let up = |n: usize| n.div_ceil(factor) * factor * self.vae.factor;
                let tried = format!("{}x{}", up(height), up(width));
                PipelineError::Size { source: Box::new(source), height, width, factor, tried }
            }
            other => other,
        }
    }

    fn model(&self, part: &str) -> PathBuf {
        self.path.join(part).join("model.onnx")
    }
}

/// Returns height and width of the latents that the UNet at `path` was exported for, if it takes only these.
fn fixed_latents(path: &Path) -> Option<(usize, usize)> {
    let signature = Signature::of(&onnx::open(path).ok()?).ok()?;
    let sample = signature.inputs.iter().find(|input| input.name == SAMPLE)?;
    Some((sample.fixed_dim(2)?, sample.fixed_dim(3)?))
}

/// Returns how many pixels the decoder at `path` makes of a latent, in each direction, if its shapes say it.
fn enlargement(path: &Path) -> Option<usize> {
    const SIDE: i64 = 8;
    let graph = Graph::load(onnx::open(path).ok()?).ok()?;
    let shapes = shapes::shapes(&graph);
    let sizes = shapes::bind_sizes(&graph, 1, SIDE, SIDE, 1);
    let sizes: Vec<(&str, i64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let concrete = shapes.evaluate(&sizes);
    let height = *concrete.of(graph.outputs().first()?.value)?.get(2)?;
    usize::try_from(height / SIDE).ok().filter(|factor| factor.is_power_of_two())
}

/// Says what `path` is instead of a pipeline's folder, and which one is probably meant.
fn not_a_pipeline(path: &Path) -> String {
    let found = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let above = found.ancestors().skip(1).take(2).find(|folder| folder.join("model_index.json").is_file());
    let meant = above.map(|folder| format!("; did you mean {}?", folder.display())).unwrap_or_default();
    match path.is_file() {
        true => format!("it is a file, and a pipeline is a folder with a model_index.json{meant}"),
        false => format!("it is no pipeline: there is no model_index.json in it{meant}"),
    }
}

/// Stages of the UNets of Stable Diffusion 1 and 2.
const STABLE_DIFFUSION_STAGES: usize = 4;

/// Returns whether the folder is as diffusers' own ONNX export wrote it: no configs beside the models, and always
/// Stable Diffusion 1 or 2.
fn is_onnx_layout(index: &Value) -> bool {
    index.get("_class_name").and_then(Value::as_str) == Some("OnnxStableDiffusionPipeline")
}

fn kind(index: &Value, path: &Path) -> Result<PipelineKind, PipelineError> {
    let class = index.get("_class_name").and_then(Value::as_str);
    let class = class.ok_or_else(|| PipelineError::file(path, "it has no `_class_name`"))?;
    let known = class.trim_start_matches("ORT").trim_start_matches("Onnx");
    match known {
        "StableDiffusionPipeline" | "LatentConsistencyModelPipeline" => Ok(PipelineKind::StableDiffusion),
        "StableDiffusionXLPipeline" => Ok(PipelineKind::StableDiffusionXl),
        _ => Err(PipelineError::file(
            path,
            format!(
                "`{class}` is not supported; supported are StableDiffusionPipeline, StableDiffusionXLPipeline and \
                 LatentConsistencyModelPipeline"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;

    #[test]
    fn an_error_at_a_size_that_may_not_fit_is_explained() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pipelines/sd15");
        let folder = Folder::open(&path).unwrap();
        let failed = || {
            let (engine, model) = (EngineKind::Ort, "unet.onnx".to_string());
            EngineError::Run { engine, model, what: "it failed".to_string() }
        };
        let explained = |sample| folder.explain_size(failed().into(), sample).to_string();
        let hint = "latents of 9x10 are not divisible by 2, which this export may need; try --size 40x40";
        assert_eq!(explained([1, 4, 9, 10]), format!("{}\n{hint}", failed()));
        assert_eq!(explained([1, 4, 8, 10]), failed().to_string());
    }
}
