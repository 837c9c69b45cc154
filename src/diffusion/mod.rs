//! Samplers, random numbers and pipelines.

pub mod guidance;
pub mod random;
pub mod sampler;
