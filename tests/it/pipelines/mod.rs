//! Whole pipelines against diffusers, from the prompt on, and the interleaving of networks.

mod cached;
mod command;
mod device;
mod folders;
mod goldens;
mod interleave;
mod lora;
mod requests;
mod sizes;
mod support;
mod tokens;
