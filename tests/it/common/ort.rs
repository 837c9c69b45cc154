//! The ONNX Runtime that tests run: the release that `crdiff doctor --fetch` pins.

use std::{
    env,
    path::{Path, PathBuf},
};

use crdiff::engine::fetch::{ONNXRUNTIME_VERSION, fetch};

/// The library that ORT_DYLIB_PATH names, else the pinned one, fetched once into `target/tmp`. Safe to call from many
/// tests and test processes at once.
///
/// # Panics
/// If it can be had in neither way.
pub fn ort_library() -> PathBuf {
    super::not_quick();
    if let Some(path) = env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        return path.into();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("onnxruntime-{ONNXRUNTIME_VERSION}"));
    match fetch(&folder) {
        Ok(library) => library,
        Err(error) => panic!("these tests need ONNX Runtime; fetch it, or set ORT_DYLIB_PATH: {error}"),
    }
}
