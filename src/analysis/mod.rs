//! Read-only facts about a graph: shapes, modules, skip paths, weights.

pub mod constants;
pub mod flow;
pub mod macs;
pub mod magnitude;
pub mod modules;
pub mod shapes;
pub mod skip;
pub mod weights;
