//! Proves that a file is a model plus a plan: `cargo run --example verify -- unet.onnx unet.pruned.onnx plan.yaml`.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::{env, error::Error, path::Path};

use crdiff::{ir::Graph, onnx, plan, verify::conformance::verify};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [original, compiled, plan] = &args[..] else {
        return Err("three paths, please: MODEL OUTPUT PLAN".into());
    };
    let [original, compiled] = [original, compiled].map(|path| onnx::open(path).and_then(Graph::load));
    let verdict = verify(&original?, &compiled?, &plan::load(Path::new(plan))?, None, &())?;
    for difference in &verdict.differences {
        println!("{difference:?}");
    }
    println!("{}", if verdict.is_proven() { "proven" } else { "not proven" });
    Ok(())
}
