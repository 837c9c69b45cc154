//! Fuzz targets, for the fuzzer and for the test that runs the committed corpus. Each function ends quietly for bytes
//! that are refused, and panics for a defect.
#![allow(dead_code, reason = "a program of the fuzzer runs one of them")]

use std::fs;

use crdiff::{
    analysis::Analysis,
    compile::{self, Target},
    ir::Graph,
    onnx::{self, OnnxError, WeightPolicy, WriteOptions},
    passes::MaskForm,
    plan::{self, Plan},
    verify::{conformance::verify, structure::digests},
};

fn load(data: &[u8]) -> Result<Graph, OnnxError> {
    Graph::load(onnx::open_bytes(data.to_vec().into(), "/nonexistent")?)
}

/// The bytes of a model: what is loaded is analysed, digested, and proven to be itself.
pub fn model(data: &[u8]) {
    let Ok(graph) = load(data) else { return };
    Analysis::of(&graph);
    digests(&graph, &()).ok();
    let nothing = plan::parse("plan.yaml", "version: 1\n").expect("an empty plan");
    if let Ok(verdict) = verify(&graph, &graph, &nothing, None, &()) {
        assert!(verdict.is_proven(), "a model is not itself: {:#?}", verdict.differences);
    }
}

/// The text of a plan, or the result of the authors' search.
pub fn plan(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        for name in ["plan.yaml", "result.json"] {
            // An error is shown with the lines that it is about.
            if let Err(error) = plan::parse(name, text) {
                let _ = format!("{:?}", miette::Report::new(error));
            }
        }
    }
}

/// Plans that fit the seeds.
fn plans() -> Vec<Plan> {
    let texts = [
        "version: 1\nrules: [{ bypass: mid_block.resnets.0 }, { prune: { weights: \"**.attn1.**\", ratio: 0.4 } }]\n",
        "version: 1\nrules: [{ prune: { weights: \"**\", ratio: 0.5, pool: tensor, ties: exact } }]\n",
        "version: 1\nrules: [{ prune: { weights: \"**\", threshold: 0.5 } }]\n",
        "version: 1\ncrdiff: { mid: 0.5 }\n",
    ];
    texts.iter().map(|text| plan::parse("plan.yaml", text).expect("a plan")).collect()
}

/// The bytes of a model behind one that says what to make of it: what is compiled is proven.
pub fn compile(data: &[u8]) {
    let Some((how, data)) = data.split_first() else { return };
    let Ok(original) = load(data) else { return };
    let plans = plans();
    let plan = &plans[usize::from(*how) % plans.len()];
    let target = match how >> 2 & 3 {
        0 => Target::Pruned,
        1 => Target::Fused,
        2 => Target::FusedWithInput,
        _ => Target::Amplified,
    };
    let masks = if how & 16 == 0 { MaskForm::Stored } else { MaskForm::Computed };
    let Ok(mut graph) = load(data) else { return };
    if compile::compile(&mut graph, plan, target, masks, &()).is_err() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("compiled.onnx");
    let policy = WeightPolicy::Inline;
    let options = WriteOptions::new(&output, policy);
    if onnx::write(&graph, &options).is_err() {
        return;
    }
    let written = fs::read(&output).expect("what was written");
    let compiled = load(&written).expect("what was written is a model");
    match verify(&original, &compiled, plan, None, &()) {
        Ok(verdict) => assert!(verdict.is_proven(), "{target:?}: {:#?}", verdict.differences),
        // Weights that are in another file are not there.
        Err(error) => assert!(error.to_string().contains("/nonexistent"), "{error}"),
    }
}
