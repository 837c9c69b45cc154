//! Proof that a compiled graph is the original plus its plan. Nothing here uses [`crate::passes`]: what the passes do
//! is checked by code of its own.

pub mod conformance;
