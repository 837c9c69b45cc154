//! Samplers, random numbers and pipelines.
//!
//! [`Pipeline`] goes from a prompt to images. Its parts stand on their own: [`text`] (tokens and text encoders),
//! [`random`] (the first latents), [`sampler`] (tables and the loop that runs them), [`amplify`] and [`interleave`]
//! (the dense and the pruned network as one), [`feature_cache`] (which calls run a small part of a network),
//! [`fitting`] (at which sizes networks run), [`prediction_cache`] (what images have in common), [`device`] (the same
//! without leaving a GPU), [`guidance`], [`unet`] and [`vae`].

pub mod amplify;
mod call;
pub mod device;
mod error;
pub mod feature_cache;
pub mod fitting;
pub mod guidance;
pub mod interleave;
pub mod pipeline;
pub mod prediction_cache;
pub mod random;
pub mod sampler;
pub mod text;
pub mod unet;
pub mod vae;

pub use error::PipelineError;
pub use pipeline::Pipeline;
