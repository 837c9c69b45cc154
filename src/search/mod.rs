//! Search for plans: what to prune or bypass, and how much of it, so that images score best.
//!
//! [`space`] reads what may vary, the plan it goes into and what is drawn and scored. [`strategy`] says which point to
//! try next. [`compile`] makes a point's graph, [`trial`] draws and scores, [`run`] does it to the end of the budget with a
//! [`journal`] from which a killed search goes on. [`confirmed`] holds the best against the dense network on images of their
//! own. [`outcome`] and [`plot`] tell what came of it.

pub mod compile;
pub mod confirmed;
mod error;
pub mod journal;
pub mod objective;
pub mod outcome;
pub mod plot;
pub mod refine;
pub mod run;
pub mod space;
pub mod strategy;
pub mod trial;
pub mod trials;

pub use error::SearchError;
pub use space::Space;
