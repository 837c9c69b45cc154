//! The plan language: what plans mean, what their errors look like, what selectors match.

mod errors;
mod meaning;
mod properties;
mod selectors;
mod shipped;
