//! Whole pipelines against diffusers, from the prompt on, and the interleaving of networks.

mod cached;
mod command;
mod device;
mod folders;
mod goldens;
mod interleave;
mod lora;
mod requests;
mod support;
mod tokens;
