//! What `crdiff export` writes, judged from outside: config.pbtxt by Triton's own schema and by what ONNX Runtime says
//! of the models, batched graphs by running the originals row by row, the denoising loop by diffusers' pictures,
//! trtexec's shapes by running at them, web bundles by onnxruntime-web and onnxruntime-node.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its fixtures fails")]

mod command;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/node.rs"]
mod node;
mod pipeline;
mod rows;
mod support;
mod triton;
mod trtexec;
mod web;
