//! Compiling a model as the command line does when it is told nothing but the plan.

use std::path::{Path, PathBuf};

use crdiff::{
    compile::{Job, compile_file},
    plan,
};

/// Compiles `model` to a pruned graph in `folder`.
pub fn compiled(model: &Path, plan: &str, folder: &Path) -> PathBuf {
    let plan = plan::parse("plan.yaml", plan).unwrap();
    let output = folder.join("compiled.onnx");
    let job = Job::new(model, &plan).output(&output);
    compile_file(&job, &()).unwrap();
    output
}
