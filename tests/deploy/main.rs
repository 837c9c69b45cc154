//! What `crdiff export` writes, judged from outside: config.pbtxt by Triton's own schema and by what ONNX Runtime says
//! of the models, batched graphs by running the originals row by row, the denoising loop by diffusers' pictures,
//! trtexec's shapes by running at them, web bundles by onnxruntime-web and onnxruntime-node.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its fixtures fails")]

mod command;
#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "the clients of other tests are in it too")]
#[path = "../clients/install.rs"]
mod install;
mod pipeline;
mod rows;
mod support;
mod triton;
mod trtexec;
mod web;
