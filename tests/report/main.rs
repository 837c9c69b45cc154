//! Reports as pages, looked at in a real browser. What they show is compared with torch's goldens.
#![allow(clippy::unwrap_used, reason = "a test may end there")]

mod browser;
mod compile;
mod golden;
mod models;
#[path = "../common/node.rs"]
mod node;
