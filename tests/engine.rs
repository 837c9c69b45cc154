//! Engines against torch's outputs, and what they say when something is wrong.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be read fails the test")]

mod common;

#[path = "engine/errors.rs"]
mod errors;
#[path = "engine/goldens.rs"]
mod goldens;
#[path = "engine/support.rs"]
mod support;
#[cfg(feature = "tract")]
#[path = "engine/tract.rs"]
mod tract;
#[path = "engine/types.rs"]
mod types;
