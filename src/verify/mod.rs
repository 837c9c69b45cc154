//! Proof that a compiled graph is the original plus its plan.

pub mod structure;
