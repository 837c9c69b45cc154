//! Reports as pages, looked at in a real browser. What they show is compared with torch's goldens.

mod browser;
mod compile;
mod golden;
mod models;
