//! Requests to a pipeline, and the output.

use std::{iter, num::NonZeroUsize, time::Duration};

use super::super::{
    interleave::{Batching, NetworkTime},
    prediction_cache::Lookups,
    sampler::{Class, Preset},
    vae::{Image, Tiling},
};
use crate::{
    engine::HostTensor,
    plan::{Amplify, Cache},
};

/// One run of a pipeline.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// The prompts: all images are one batch.
    pub prompts: Vec<String>,
    /// The negative prompts: one for each prompt, or one for all. Without any it is the empty prompt, or zeros where the
    /// pipeline says so (`force_zeros_for_empty_prompt`).
    pub negative_prompts: Vec<String>,
    /// Height of the images in pixels.
    pub height: usize,
    /// Width of the images in pixels.
    pub width: usize,
    /// Steps of the sampler.
    pub steps: usize,
    /// Classifier-free guidance; none up to 1. Distilled networks take it as an input instead.
    pub guidance: f64,
    /// `guidance_rescale` of diffusers, 0 for none.
    pub guidance_rescale: f64,
    /// How many images of each prompt.
    pub batch: usize,
    /// One seed for the whole batch, or one for each image.
    pub seeds: Vec<u64>,
    /// The library whose random numbers are drawn.
    pub random: Random,
    /// First latents, `[batch, channels, height, width]` or one image's, standard normal, instead of random ones.
    pub latents: Option<HostTensor>,
    /// The sampler's noise, `[draws, batch, channels, height, width]`, instead of random numbers.
    pub noise: Option<HostTensor>,
    /// A scheduler other than the pipeline's, with the pipeline's settings.
    pub scheduler: Option<Class>,
    /// Settings of the scheduler to change, as `from_config(config, key=value)` in diffusers.
    pub scheduler_config: Vec<(String, serde_json::Value)>,
    /// The share of fresh noise in DDIM.
    pub eta: f64,
    /// Layers of the text encoders to leave out at their end, as diffusers' `clip_skip`.
    pub clip_skip: Option<usize>,
    /// How a dense and a pruned network are mixed; without two of them nobody looks at it.
    pub amplify: Amplify,
    /// In which calls networks run their shallow graphs ([`Pipeline::set_shallow`](super::Pipeline::set_shallow)); without
    /// this in none.
    pub cache: Option<Cache>,
    /// How the branches of guidance are batched.
    pub batching: Batching,
    /// Where latents are between two runs of the networks.
    pub place: Place,
    /// How the VAE decodes large images.
    pub tiling: Tiling,
    /// The number of steps after each of which each image is shown ([`Event::Preview`](crate::observer::Event::Preview)), if any.
    pub preview: Option<NonZeroUsize>,
    /// Whether the VAE decodes the latents; if not, the output has no images.
    pub decode: bool,
}

impl Request {
    /// Returns a request with the defaults of diffusers' Stable Diffusion pipelines: 50 steps, guidance 7.5, one image,
    /// seed 0, torch's random numbers.
    pub fn new(prompt: impl Into<String>, height: usize, width: usize) -> Self {
        Self {
            prompts: vec![prompt.into()],
            negative_prompts: Vec::new(),
            height,
            width,
            steps: 50,
            guidance: 7.5,
            guidance_rescale: 0.0,
            batch: 1,
            seeds: vec![0],
            random: Random::default(),
            latents: None,
            noise: None,
            scheduler: None,
            scheduler_config: Vec::new(),
            eta: 0.0,
            clip_skip: None,
            amplify: Amplify::default(),
            cache: None,
            batching: Batching::default(),
            place: Place::default(),
            tiling: Tiling::default(),
            preview: None,
            decode: true,
        }
    }

    /// Returns the prompt of each image.
    pub fn prompt_of_each(&self) -> impl Iterator<Item = &str> {
        self.prompts.iter().flat_map(|prompt| iter::repeat_n(prompt.as_str(), self.batch))
    }

    /// Returns how many images are made of all prompts together.
    pub fn images(&self) -> usize {
        self.prompts.len().saturating_mul(self.batch)
    }

    /// Samples with `preset`; settings that the request changes already have the last word.
    pub fn set_scheduler(&mut self, preset: Preset) {
        self.scheduler = Some(preset.class);
        self.scheduler_config.splice(..0, preset.settings);
    }
}

/// Where latents are between two runs of the networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// On the device of the first execution provider, if that is not the CPU; else in host memory.
    #[default]
    Automatic,
    /// In host memory, whatever runs the networks.
    Host,
    /// In the engine's memory, by [`super::super::device`], on the CPU too. ONNX Runtime only.
    Device,
}

/// The library whose random numbers a seed stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Random {
    /// torch's CPU generator: diffusers' latents.
    #[default]
    Torch,
    /// NumPy's `RandomState`: the latents of older Optimum releases.
    Numpy,
}

/// The output of a run.
#[derive(Clone, Debug)]
pub struct Output {
    /// The final latents, `[batch, channels, height, width]`, before the VAE.
    pub latents: HostTensor,
    /// An image for each, if they were decoded.
    pub images: Vec<Image>,
    /// Where the time went.
    pub timings: Timings,
    /// The scheduler that was run.
    pub scheduler: Class,
}

/// Where the time of a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Loading models.
    pub loading: Duration,
    /// Of that, loading networks that are not the pipeline's own.
    pub loading_given: Duration,
    /// Encoding the prompts.
    pub text: Duration,
    /// Sampling, networks included.
    pub sampling: Duration,
    /// The networks.
    pub networks: NetworkTime,
    /// Decoding.
    pub decoding: Duration,
    /// The questions that the pipeline's cache was asked, if it has one.
    pub lookups: Lookups,
}
