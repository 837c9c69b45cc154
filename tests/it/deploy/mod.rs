//! The files of `crdiff export`, judged from outside: config.pbtxt by Triton's own schema and by what ONNX Runtime says
//! of the models, batched graphs by running the originals row by row, the denoising loop by diffusers' images,
//! trtexec's shapes by running at them, web bundles by onnxruntime-web and onnxruntime-node.

mod command;
mod drawn;
mod pipeline;
mod rows;
mod support;
mod triton;
mod trtexec;
mod web;
