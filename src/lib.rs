//! Compiles, verifies and runs plans for diffusion networks exported to ONNX: CR-Diff (arXiv 2604.05524) and other changes
//! that need no training.
//!
//! | module | what it is for |
//! |---|---|
//! | [`plan`], [`rules`] | parses a plan, and resolves its rules against a model |
//! | [`compile`] | compiles a model by a plan, in files or in memory |
//! | [`verify`] | proves that a file is a model plus a plan; compares models by structure and by numbers |
//! | [`observer`] | hears of the progress of long work, and stops it |
//! | [`analysis`] | modules, symbolic shapes, weights and skip paths of a model |
//! | [`onnx`], [`ir`] | reads models without copying weights, edits and writes them without touching the rest |
//! | `engine`, `diffusion` | runs networks and whole pipelines: ONNX Runtime, rten; samplers, amplification (feature `runner`) |
//! | `search`, `deploy` | searches plans; exports for Triton, TensorRT and browsers (feature `runner`) |
//!
//! Compiling a model:
//!
//! ```
//! use std::path::Path;
//!
//! use crdiff::{
//!     compile::{Job, compile_file},
//!     plan,
//! };
//!
//! let plan = plan::parse("plan.yaml", "version: 1\nrules: [{ bypass: mid_block.attentions.0 }]")?;
//! let model = Path::new("fixtures/sd15-mini/torchscript/unet.onnx");
//! // Without an output nothing is written; the report says what would be.
//! let report = compile_file(&Job::new(model, &plan), &())?;
//! assert_eq!(report.changes[0].module, "mid_block.attentions.0");
//! assert!(report.graph.nodes_after < report.graph.nodes_before);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Proving that what somebody else compiled is the original plus the plan, and nothing else:
//!
//! ```
//! use crdiff::{ir::Graph, onnx, plan, verify::conformance::verify};
//!
//! let graph = |path| onnx::open(path).and_then(Graph::load);
//! let original = graph("fixtures/sd15-mini/torchscript/unet.onnx")?;
//! let plan = plan::parse("plan.yaml", "version: 1\nrules: [{ bypass: mid_block.attentions.0 }]")?;
//! // This one was edited with onnx-graphsurgeon.
//! let edited = graph("tests/data/verify/bypassed.onnx")?;
//! let verdict = verify(&original, &edited, &plan, None, &())?;
//! assert!(verdict.is_proven(), "{:?}", verdict.differences);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/compile.rs`, `verify.rs` and `run.rs` are small programs of the same kind.

pub mod analysis;
#[doc(hidden)]
pub mod cli;
pub mod compile;
mod hex;
pub mod ir;
mod lock;
pub mod observer;
pub mod onnx;
pub mod passes;
pub mod plan;
#[cfg(feature = "runner")]
pub mod plan_cache;
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
pub mod numeric;
#[cfg(feature = "runner")]
pub mod search;
