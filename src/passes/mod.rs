//! The passes, in order.
