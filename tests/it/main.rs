//! The integration tests, one program: every suite is a module, and `cargo test --test it golden::` runs one of them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may end there; its tables are for people"
)]

/// The programs' allocator: a compilation is mostly small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod common;

mod attention;
#[cfg(feature = "runner")]
mod cached;
mod cli;
#[cfg(feature = "runner")]
mod clients;
#[cfg(feature = "runner")]
mod compare;
mod dependencies;
#[cfg(feature = "runner")]
mod deploy;
mod diff;
#[cfg(feature = "runner")]
mod documents;
#[cfg(feature = "runner")]
mod engine;
#[cfg(feature = "runner")]
mod engines_agree;
mod filetests;
#[cfg(feature = "runner")]
mod functions;
mod fuzzed;
#[cfg(feature = "runner")]
mod golden;
mod hostile;
mod interrupt;
mod layers;
#[cfg(feature = "runner")]
mod lora;
mod mistakes;
mod observers;
mod onnx_write;
#[cfg(feature = "runner")]
mod packages;
#[cfg(feature = "runner")]
mod pipelines;
mod plan;
mod plan_schema;
mod prune_goldens;
#[cfg(feature = "runner")]
mod random;
mod report;
#[cfg(feature = "runner")]
mod samplers;
#[cfg(feature = "runner")]
mod search;
mod shapes;
mod text;
mod verify;
#[cfg(feature = "runner")]
mod weight_policies;
