//! Checks of models against each other and against plans: a proof that a compiled graph is its original plus its plan,
//! differences up to names and order. Nothing here uses [`crate::passes`]: what the passes do is checked by code of its own.

mod canonical;
pub mod conformance;
mod constant;
mod hash;
pub mod structure;
