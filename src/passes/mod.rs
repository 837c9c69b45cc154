//! The passes, in order.

pub mod mask;
