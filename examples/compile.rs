//! Compiles a model by a plan: `cargo run --example compile -- unet.onnx plan.yaml unet.pruned.onnx`.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::{env, error::Error, path::Path};

use crdiff::{
    compile::{Job, compile_file},
    plan,
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [model, plan, output] = &args[..] else {
        return Err("three paths, please: MODEL PLAN OUTPUT".into());
    };
    let plan = plan::load(Path::new(plan))?;
    let job = Job::new(Path::new(model), &plan).output(Path::new(output));
    let report = compile_file(&job, &())?;
    println!("{} -> {} nodes", report.graph.nodes_before, report.graph.nodes_after);
    for change in &report.changes {
        println!(
            "{} {}: {} nodes, {} parameters",
            change.module, change.done, change.nodes, change.parameters
        );
    }
    for prune in &report.prune {
        println!("{} of {} weights are masked in {} tensors", prune.zeros, prune.weights, prune.tensors);
    }
    Ok(())
}
