//! `verify`: every legal compilation is proven, every harmful change to one is found, every harmless one accepted.

mod by_hand;
mod command;
mod functions;
mod goldens;
#[cfg(feature = "runner")]
mod mutants;
mod mutations;
mod properties;
mod refused;
mod support;
mod whole_attentions;
#[cfg(feature = "runner")]
mod windows;
