//! Searching: the strategies against an independent transcription, spaces and their errors, journals that survive
//! kill -9, objectives against Pillow and ONNX Runtime, and other optimisers.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "../common/ort.rs"]
mod ort;

mod command;
mod fed;
mod objectives;
mod optuna;
mod python;
mod shapes;
mod spaces;
mod strategies;
