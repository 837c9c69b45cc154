//! Searching: the strategies against an independent transcription, spaces and their errors, journals that survive
//! kill -9, objectives against Pillow and ONNX Runtime, and other optimisers.

mod command;
mod confirm;
mod fed;
mod noises;
mod objectives;
mod optuna;
pub mod python;
mod refinement;
mod shapes;
mod spaces;
mod strategies;
