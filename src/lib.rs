//! CR-Diff for exported ONNX diffusion UNets: a compiler, a verifier and a runner.

pub mod analysis;
pub mod cli;
pub mod compile;
mod hex;
pub mod ir;
pub mod onnx;
pub mod passes;
pub mod plan;
pub mod report;
pub mod rules;
pub mod verify;

#[cfg(feature = "runner")]
pub mod deploy;
#[cfg(feature = "runner")]
pub mod diffusion;
#[cfg(feature = "runner")]
pub mod engine;
#[cfg(feature = "runner")]
pub mod search;
