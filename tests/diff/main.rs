//! `diff` and `digest`: against exporters' own copies of one network, copies changed by hand, and torch's counts of what
//! a plan masks.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "../common/edit.rs"]
mod edit;

mod changes;
mod cli;
mod rearrange;
mod same;

use std::path::{Path, PathBuf};

use crdiff::{
    compile::{Hooks, Job, Target, compile_file},
    ir::Graph,
    onnx, plan,
    verify::structure::{Diff, Digests, Weights, diff, digests},
};

fn load(path: &Path) -> Graph {
    Graph::load(onnx::open(path).unwrap()).unwrap()
}

fn compared(a: &Path, b: &Path, weights: Weights) -> Diff {
    diff(&load(a), &load(b), weights).unwrap()
}

fn digest(path: &Path) -> Digests {
    digests(&load(path)).unwrap()
}

/// Compiles `model` into `folder`.
fn compiled(model: &Path, plan: &str, folder: &Path) -> PathBuf {
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
    let stop = std::sync::atomic::AtomicBool::new(false);
    compile_file(&job, Hooks { progress: &|_, _| {}, stop: &stop }).unwrap();
    output
}
