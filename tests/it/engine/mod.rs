//! Engines against torch's outputs, and what they say when something is wrong.

mod errors;
mod goldens;
mod support;
#[cfg(feature = "tract")]
mod tract;
mod types;
