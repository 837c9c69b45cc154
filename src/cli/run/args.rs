//! Options of networks and sampling.

use std::path::PathBuf;

use super::settings::{Random, SchedulerName};
use crate::{
    cli::{Size, number},
    plan_cache::Place,
};

/// Which networks run.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Networks")]
pub(super) struct NetworkArgs {
    /// The plan (YAML, or the result JSON of the authors' search).
    #[arg(long, value_name = "PLAN")]
    pub(super) plan: Option<PathBuf>,
    /// A pruned graph, instead of compiling the plan; how it is mixed is still the plan's.
    #[arg(long, value_name = "FILE", conflicts_with = "fused")]
    pub(super) pruned: Option<PathBuf>,
    /// A fused graph instead of the pipeline's UNet.
    #[arg(long, value_name = "FILE", conflicts_with = "plan")]
    pub(super) fused: Option<PathBuf>,
    /// The pipeline as it is.
    #[arg(long, conflicts_with_all = ["plan", "pruned", "fused", "compare"])]
    pub(super) dense: bool,
    /// Dense, pruned and amplified side by side, each below its name.
    #[arg(long, conflicts_with = "fused")]
    pub(super) compare: bool,
    /// The amplification w, instead of the plan's.
    #[arg(long, value_name = "W", allow_negative_numbers = true, value_parser = number)]
    pub(super) weight: Option<f64>,
    /// Where the compiled plan is kept.
    #[arg(long, value_enum, default_value_t)]
    pub(super) compiled: Place,
}

/// How to sample.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingArgs {
    /// The negative prompt.
    #[arg(long, value_name = "TEXT")]
    pub(super) negative_prompt: Option<String>,
    /// Height x width in pixels, such as 384x576 [default: what the pipeline was made for]
    #[arg(long, value_name = "HxW")]
    pub(super) size: Option<Size>,
    /// Steps of the sampler [default: 30]
    #[arg(long, value_name = "N")]
    pub(super) steps: Option<usize>,
    /// Classifier-free guidance; 1 for none [default: 7.5]
    #[arg(long, value_name = "SCALE", value_parser = number)]
    pub(super) guidance: Option<f64>,
    /// Pull the guided output's deviation back by this share [default: 0]
    #[arg(long, value_name = "SHARE", value_parser = number)]
    pub(super) guidance_rescale: Option<f64>,
    /// The seed: one for the batch, or one for each image, such as 1,2,3 [default: 0]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub(super) seed: Vec<u64>,
    /// The library whose random numbers the seed stands for [default: torch]
    #[arg(long, value_enum)]
    pub(super) random: Option<Random>,
    /// Images at once [default: the number of seeds]
    #[arg(long, value_name = "N")]
    pub(super) batch: Option<usize>,
    /// The scheduler: euler_a, dpm++_2m_karras, ..., or a class of diffusers [default: the pipeline's]
    #[arg(long, value_name = "NAME", hide_possible_values = true, value_parser = SchedulerName)]
    pub(super) scheduler: Option<String>,
    /// A setting of the scheduler to change: use_karras_sigmas=true.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) scheduler_option: Vec<String>,
    /// The share of fresh noise in DDIM [default: 0]
    #[arg(long, value_parser = number)]
    pub(super) eta: Option<f64>,
    /// Layers to leave out at the end of SDXL's text encoders.
    #[arg(long, value_name = "N")]
    pub(super) clip_skip: Option<usize>,
    /// First latents: .npy, [batch, channels, height, width], standard normal.
    #[arg(long, value_name = "NPY")]
    pub(super) latents: Option<PathBuf>,
    /// The sampler's noise: .npy, [draws, batch, channels, height, width].
    #[arg(long, value_name = "NPY")]
    pub(super) noise: Option<PathBuf>,
    /// Decode large images in tiles: less memory.
    #[arg(long)]
    pub(super) tile: bool,
}
