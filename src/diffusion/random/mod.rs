//! The random numbers of torch and numpy, from the same seeds.
//!
//! A pipeline of diffusers takes its first latents from [`TorchGenerator::randn`], and whatever its
//! sampler draws comes from later calls on the same generator.

mod box_muller;
mod mt19937;
mod numpy;
mod torch;

pub use numpy::NumpyRandomState;
pub use torch::TorchGenerator;
