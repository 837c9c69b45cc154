//! What suites share: models, compilations, and what is fetched to judge them with.

pub mod backend;
pub mod compiled;
pub mod decoded;
pub mod edit;
pub mod node;
#[cfg(feature = "runner")]
pub mod ort;
