//! The plan language: what plans mean, what their errors look like, what selectors match.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod errors;
mod meaning;
mod properties;
mod selectors;
mod shipped;
