//! Compiling a model as the command line does when it is told nothing but the plan.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use crdiff::{
    compile::{Hooks, Job, Target, compile_file},
    plan,
};

/// Compiles `model` to a pruned graph in `folder`.
pub fn compiled(model: &Path, plan: &str, folder: &Path) -> PathBuf {
    let plan = plan::parse("plan.yaml", plan).unwrap();
    let output = folder.join("compiled.onnx");
    let job = Job {
        model,
        plan: &plan,
        target: Target::Pruned,
        output: Some(&output),
        weights: None,
        masks: Default::default(),
        at: None,
        protected: Vec::new(),
    };
    compile_file(&job, Hooks { progress: &|_, _| {}, stop: &AtomicBool::new(false) }).unwrap();
    output
}
