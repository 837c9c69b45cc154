//! Compiles `proto/onnx.proto` with protox (no `protoc` needed) and prost.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let descriptors = protox::compile(["proto/onnx.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    // `Bytes` fields are slices of the buffer they are decoded from: tensors stay where they are.
    config.bytes(["."]);
    // Few attributes have these. Inline they would make every attribute four times as large, and a UNet has thousands.
    for field in ["t", "g", "sparse_tensor", "tp"] {
        config.boxed(format!(".onnx.AttributeProto.{field}"));
    }
    // The spec's comments are Markdown of their own and would be run as doc tests.
    config.disable_comments(["."]);
    config.compile_fds(descriptors)?;
    let generated = PathBuf::from(env::var("OUT_DIR")?).join("onnx.rs");
    fs::metadata(generated)?;
    Ok(())
}
