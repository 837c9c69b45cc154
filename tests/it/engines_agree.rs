//! The same emitted graphs in every engine: ONNX Runtime, rten and, with the feature, tract.

use std::{collections::BTreeMap, path::Path};

use crdiff::{
    compile::{Job, Target, compile_file},
    engine::{Engine, HostTensor, OrtEngine, RtenEngine, SessionOptions, io},
    onnx::WeightPolicy,
    plan,
};

/// Bypass, prune, both, dilated convolutions, and kinds that put nodes into the graph.
const PLANS: [(&str, &str); 6] = [
    ("bypass", "version: 1\nrules: [{bypass: [mid_block.attentions.0, mid_block.resnets.1]}]\n"),
    ("prune", "version: 1\ncrdiff: {down: 0.3, mid: 0.5, up: 0.1}\n"),
    ("both", "version: 1\ncrdiff: {down: 0.2, up: 0.2}\nrules: [{bypass: mid_block}]\n"),
    (
        "dilate",
        "version: 1\nrules: [{dilate: {modules: [\"**.conv{1,2}\", \"down_blocks.**.conv\"], by: 2}}]\n",
    ),
    (
        "templates",
        "version: 1\nrules:\n  - temperature: {modules: \"**.attn1\", trained: 16x16, output_factor: 0.5}\n  - freeu: {backbone: \
         [1.5, 1.6], skip: [0.9, 0.2]}\n",
    ),
    (
        "sizes",
        "version: 1\nrules:\n  - shrink: {after: down_blocks.0.downsamplers.0, by: 2, filter: linear}\n  - shrink: {within: \
         mid_block, by: 2, filter: average, back: nearest}\n  - dilate: {modules: \"up_blocks.0.resnets.*.conv1\", by: 1.5}\n",
    ),
];

/// Model, size of the goldens' inputs.
const MODELS: [(&str, &str, &str); 5] = [
    ("sd15-mini", "torchscript", "8x8"),
    ("sd15-mini", "dynamo", "8x8"),
    ("sd15-mini", "simplified", "8x8"),
    ("sd21", "torchscript", "8x8"),
    ("sdxl", "torchscript", "8x8"),
];

fn engines() -> Vec<Box<dyn Engine>> {
    let ort = OrtEngine::open(&crate::common::ort::ort_library()).unwrap();
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(ort), Box::new(RtenEngine)];
    add_tract(&mut engines);
    engines
}

#[cfg(feature = "tract")]
fn add_tract(engines: &mut Vec<Box<dyn Engine>>) {
    engines.push(Box::new(crdiff::engine::TractEngine));
}

#[cfg(not(feature = "tract"))]
fn add_tract(_: &mut Vec<Box<dyn Engine>>) {}

fn run(engine: &dyn Engine, model: &Path, inputs: &BTreeMap<String, HostTensor>) -> Vec<f32> {
    let fixed_dims = inputs.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
    let options = SessionOptions::default().fixed_dims(fixed_dims);
    let mut session = engine.load(model, &options).unwrap();
    let types: Vec<_> = session.inputs().to_vec();
    let cast: Vec<(String, HostTensor)> = types
        .iter()
        .map(|info| (info.name.clone(), inputs[&info.name].cast(info.data_type).unwrap()))
        .collect();
    let cast: Vec<(&str, &HostTensor)> = cast.iter().map(|(n, t)| (n.as_str(), t)).collect();
    session.run(&cast, None).unwrap().remove(0).1.to_f32()
}

#[test]
fn emitted_graphs_give_the_same_numbers_in_every_engine() {
    let engines = engines();
    let names: Vec<String> = engines.iter().map(|e| e.kind().to_string()).collect();
    println!("{:<34} {}", "largest difference to", names.join("      "));
    for (m, (family, export, size)) in MODELS.into_iter().enumerate() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(family);
        let prefix = format!("{size}/");
        let inputs: BTreeMap<String, HostTensor> = io::read_npz(&fixtures.join("golden/inputs.npz"))
            .unwrap()
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_string(), tensor)))
            .collect();
        assert!(!inputs.is_empty());
        for (p, (plan_name, text)) in PLANS.into_iter().enumerate() {
            // Each plan and each model in both forms, by turns: a fused graph has the pruned network in it.
            let target = [Target::Pruned, Target::Fused][(m + p) % 2];
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("unet.onnx");
            let (model, plan) =
                (fixtures.join(export).join("unet.onnx"), plan::parse(plan_name, text).unwrap());
            let job = Job::new(&model, &plan).target(target).output(&output).weights(WeightPolicy::Copy);
            compile_file(&job, &()).unwrap();
            let outputs: Vec<Vec<f32>> = engines.iter().map(|e| run(e.as_ref(), &output, &inputs)).collect();
            let label = format!("{family}/{export} {plan_name} {}", target.name());
            let off =
                |other: &Vec<f32>| other.iter().zip(&outputs[0]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            let row: Vec<String> = outputs.iter().map(|o| format!("{:.1e}", off(o))).collect();
            println!("{label:<34} {}", row.join("  "));
            for (engine, output) in names.iter().zip(&outputs) {
                assert_eq!(output.len(), outputs[0].len(), "{label}: {engine}");
                // A mix makes the rounding of both branches larger, by up to 2 w - 1.
                assert!(off(output) <= 5e-5, "{label}: {engine} is off by {:e}", off(output));
            }
        }
    }
}
