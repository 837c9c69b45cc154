//! Checks of models against each other and against plans.

pub mod structure;

#[cfg(feature = "runner")]
pub mod numeric;
