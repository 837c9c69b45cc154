//! Engines against torch's outputs, and what they say when something is wrong.

mod errors;
mod goldens;
mod shared;
mod support;
#[cfg(feature = "tract")]
mod tract;
mod types;
