//! Graphs and settings in vendors' own software, without the devices that it is for. It fetches 410 MB, so `.ci/run` runs
//! it as a stage of its own and `cargo test` doesn't: `cargo test --test vendors`.
#![allow(clippy::unwrap_used, reason = "a test may end there")]

#[path = "../it/common/node.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod node;
#[path = "../it/common/ort.rs"]
mod ort;
#[path = "../it/common/outputs.rs"]
mod outputs;
#[path = "../it/common/watched.rs"]
mod watched;
/// The parts of the other tests that these need, by the names that they have there.
mod common {
    pub(crate) use crate::{node, ort, outputs, watched};
}

mod browser;
mod fusions;
mod openvino;
mod plugins;
mod tensorrt;
mod triton;
mod webgpu;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crdiff::{
    compile::{Job, Target, cached_outputs, compile_file},
    onnx::WeightPolicy,
    plan,
};

/// None of these is in `cargo quick`.
fn not_quick() {}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compiles a fixture, with its weights, to a file in `folder` named after `name`.
fn compiled(model: &str, plan: &str, target: Target, folder: &Path, name: &str) -> PathBuf {
    let plan = plan::parse("plan.yaml", plan).unwrap();
    let (model, output) = (root().join("fixtures").join(model), folder.join(format!("{name}.onnx")));
    let job = Job::new(&model, &plan).target(target).output(&output).weights(WeightPolicy::Copy);
    compile_file(&job, &()).unwrap();
    output
}

/// Does the same for the full and the shallow graph of a plan with a cache.
fn compiled_pair(model: &str, plan: &str, target: Target, folder: &Path, name: &str) -> [PathBuf; 2] {
    let plan = plan::parse("plan.yaml", plan).unwrap();
    let (model, output) = (root().join("fixtures").join(model), folder.join(format!("{name}.onnx")));
    let job = Job::new(&model, &plan).target(target).cached().output(&output).weights(WeightPolicy::Copy);
    compile_file(&job, &()).unwrap();
    cached_outputs(&output)
}

/// Returns what a command prints, which must succeed.
fn printed(command: &mut Command) -> String {
    String::from_utf8(outputs::printed(command)).unwrap()
}

/// The folder with what `tests/vendors/NAME.txt` requires.
fn packages(name: &str) -> PathBuf {
    let requirements = root().join("tests/vendors").join(format!("{name}.txt"));
    node::pip_packages(&format!("vendors-{name}"), &requirements)
}

/// The ONNX Runtime in a folder of packages.
fn onnxruntime(packages: &Path) -> PathBuf {
    let entries = fs::read_dir(packages.join("onnxruntime/capi")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    paths.find(|path| path.to_string_lossy().contains("libonnxruntime.so.")).unwrap()
}

/// This program, about to run one ignored test with another ONNX Runtime: a process can have one.
fn alone(test: &str, library: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("ORT_DYLIB_PATH", library);
    command
}

/// Runs it.
fn passes(command: &mut Command) {
    let said = printed(command);
    assert!(said.contains("1 passed"), "{said}");
}
