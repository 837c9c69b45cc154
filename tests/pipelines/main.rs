//! Whole pipelines against diffusers, from the prompt on, and the interleaving of networks.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its fixtures fails")]

mod command;
#[path = "../common/mod.rs"]
mod common;
mod device;
mod goldens;
mod interleave;
mod requests;
mod support;
mod tokens;
