//! `compare` against torch's own outputs and changes, in ONNX Runtime and in rten.

mod cli;
mod inputs;

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use assert_cmd::Command;

use crate::common::{edit, ort};

fn crdiff(args: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::cargo_bin("crdiff").unwrap().current_dir(root).arg("compare").args(args).output().unwrap()
}

/// The arguments that choose each engine.
fn engines() -> [Vec<String>; 2] {
    let library = ort::ort_library().display().to_string();
    let args = |args: &[&str]| args.iter().map(|a| a.to_string()).collect();
    [args(&["--engine", "ort", "--ort-lib", &library]), args(&["--engine", "rten"])]
}

fn golden(name: &str) -> PathBuf {
    edit::fixture("sd15-mini/golden").with_file_name(name)
}
