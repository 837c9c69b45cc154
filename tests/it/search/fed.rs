//! Trials whose graphs are fed their masked weights, against torch's outputs of the same plans.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crdiff::{
    compile::Target,
    diffusion::pipeline::Unets,
    engine::{Engine, HostTensor, OrtEngine, RtenEngine, SessionOptions, io::read_npz},
    ir::Graph,
    onnx,
    passes::MaskForm,
    plan,
    search::compile::{Compiler, TrialGraph},
    verify::conformance::{Required, verify},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{common::ort::ort_library, search::command::repository};

/// torch's outputs have values of about 1.
const TOLERANCE: f32 = 1e-4;

/// A compiler for a copy of the fixture, which takes its trials.
fn compiler() -> (TempDir, Compiler) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("unet.onnx");
    fs::copy(family().join("torchscript/unet.onnx"), &model).unwrap();
    let mut compiler = Compiler::open(&model).unwrap();
    compiler.masks = MaskForm::Fed;
    (folder, compiler)
}

fn family() -> PathBuf {
    repository().join("fixtures/sd15-mini")
}

fn compiled(compiler: &mut Compiler, plan: &str) -> TrialGraph {
    let plan = plan::parse("plan.yaml", plan).unwrap();
    compiler.compile(&plan, &()).unwrap()
}

fn path(graph: &TrialGraph) -> &Path {
    match &graph.unets {
        Unets::Instead(path) | Unets::WithPruned(path) | Unets::Pair { pruned: path, .. } => path,
        Unets::Dense => panic!("the plan changes nothing"),
    }
}

#[test]
fn fed_graphs_give_torchs_outputs() {
    let index: Value =
        serde_json::from_str(&fs::read_to_string(family().join("golden/index.json")).unwrap()).unwrap();
    let inputs = read_npz(&family().join("golden/inputs.npz")).unwrap();
    let outputs = read_npz(&family().join("golden/outputs.npz")).unwrap();
    let engines: [Box<dyn Engine>; 2] =
        [Box::new(OrtEngine::open(&ort_library()).unwrap()), Box::new(RtenEngine)];
    let (_folder, mut compiler) = compiler();
    let (mut fed, mut stored) = (0, 0);
    for case in index["cases"].as_array().unwrap() {
        let is_pruned = ["prune", "prune_bypass"].contains(&case["kind"].as_str().unwrap());
        let name = case["name"].as_str().unwrap();
        if !is_pruned && !name.starts_with("amplified-weights/") {
            continue;
        }
        let graph = compiled(&mut compiler, &case["plan"].to_string());
        *(if graph.fed.is_empty() { &mut stored } else { &mut fed }) += 1;
        let (_, expected) = outputs.iter().find(|(key, _)| *key == format!("{name}/8x8")).unwrap();
        for engine in &engines {
            let mut session = engine.load(path(&graph), &SessionOptions::default()).unwrap();
            let named = inputs.iter().filter_map(|(key, tensor)| Some((key.strip_prefix("8x8/")?, tensor)));
            let weights = graph.fed.iter().map(|(name, tensor)| (name.as_str(), tensor));
            let all: Vec<(&str, &HostTensor)> = named.chain(weights).collect();
            let (_, output) = session.run(&all, None).unwrap().remove(0);
            let pairs = output.to_f32().into_iter().zip(expected.to_f32());
            let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < TOLERANCE, "{name}, {:?}: {difference}", engine.kind());
        }
    }
    assert_eq!((fed, stored), (12, 1), "kernels of convolutions are stored");
}

#[test]
fn trials_that_mask_the_same_weights_share_a_graph() {
    let (folder, mut compiler) = compiler();
    let first = compiled(&mut compiler, "{ version: 1, crdiff: { down: 0.3, up: 0.2 } }");
    let second = compiled(&mut compiler, "{ version: 1, crdiff: { down: 0.6, up: 0.1 } }");
    assert_eq!(path(&first), path(&second));
    assert_eq!(first.fed.len(), second.fed.len());
    assert_ne!(first.fed, second.fed);
    let other = compiled(&mut compiler, "{ version: 1, crdiff: { down: 0.6 } }");
    assert_ne!(path(&first), path(&other), "it masks fewer weights");
    let bypass = "{ version: 1, crdiff: { down: 0.6 }, rules: [{ bypass: mid_block.attentions.0 }] }";
    let bypassed = compiled(&mut compiler, bypass);
    assert_ne!(path(&other), path(&bypassed));
    let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let data: Vec<_> = names.filter(|name| name.to_string_lossy().ends_with("data")).collect();
    assert!(data.is_empty(), "masked weights are stored: {data:?}");
    let amplified = "{ version: 1, rules: [{ bypass: mid_block.attentions.0 }], amplify: { weight: W } }";
    let [one, three] = ["1", "3"].map(|w| compiled(&mut compiler, &amplified.replace('W', w)));
    assert_eq!(path(&one), path(&three), "they differ in w alone");
    // Every kind of edit is in what a graph is known by.
    let at = |module: &str, ratio: &str| {
        let map = format!("{{ attention: {{ modules: '{module}.**.attn1', map: identity }} }}");
        format!("{{ version: 1, rules: [{map}, {{ prune: {{ weights: '**.attn2.*', ratio: {ratio} }} }}] }}")
    };
    let plans = [at("mid_block", "0.1"), at("mid_block", "0.5"), at("up_blocks.1", "0.5")];
    let [mid, again, up] = plans.map(|plan| compiled(&mut compiler, &plan));
    assert_eq!(path(&mid), path(&again), "they differ in their ratio alone");
    assert_ne!(path(&again), path(&up));
    let dilated =
        "{ version: 1, rules: [{ dilate: { modules: '**.conv1', by: N } }], amplify: { weight: W } }";
    let of = |by: &str, w: &str| dilated.replace('N', by).replace('W', w);
    let [two, same, other] =
        [of("2", "1"), of("2", "3"), of("3", "1")].map(|plan| compiled(&mut compiler, &plan));
    assert!(path(&two) == path(&same) && path(&two) != path(&other), "attributes are of the graph");
    let kernels = "{ version: 1, rules: [{ bypass: mid_block.attentions.0 }, \
                   { prune: { weights: '**.resnets.*.conv1', ratio: R } }] }";
    let [little, much] = ["0.1", "0.5"].map(|ratio| compiled(&mut compiler, &kernels.replace('R', ratio)));
    assert!(path(&three) != path(&little) && path(&little) != path(&much), "their weights are stored");
    let files = || fs::read_dir(folder.path()).unwrap().count();
    let before = files();
    let gone = path(&first).to_path_buf();
    drop((first, second));
    assert!(!gone.exists() && files() < before, "nobody runs it any more");
}

/// Rules for both networks make a dense network of the trial's own, which trials share while these rules are the same.
#[test]
fn trials_with_rules_in_both_sets_have_two_graphs() {
    let (folder, mut compiler) = compiler();
    let plan = |module: &str, by: u32, ratio: f64, mode: &str| {
        format!(
            "{{ version: 1, always: [{{ attention: {{ modules: '{module}.**.attn1', map: identity }} }}, \
             {{ dilate: {{ modules: 'up_blocks.0.**.conv2', by: {by} }} }}], \
             rules: [{{ prune: {{ weights: '**.attn2.*', ratio: {ratio} }} }}], amplify: {{ {mode} }} }}"
        )
    };
    let paths = |graph: &TrialGraph| match &graph.unets {
        Unets::Pair { dense, pruned } => [dense.clone(), pruned.clone()],
        other => panic!("{other:?}"),
    };
    let first = compiled(&mut compiler, &plan("mid_block", 2, 0.1, "weight: 1.5"));
    let second = compiled(&mut compiler, &plan("mid_block", 2, 0.5, "weight: 2"));
    assert_eq!(paths(&first), paths(&second), "one is fed other weights");
    assert!(!first.fed.is_empty() && first.fed != second.fed);
    let other = compiled(&mut compiler, &plan("mid_block", 3, 0.5, "weight: 2"));
    assert!(paths(&second).iter().zip(&paths(&other)).all(|(a, b)| a != b), "both are dilated further");
    let alone = plan("mid_block", 2, 0.0, "weight: 2");
    let alone = compiled(&mut compiler, &alone);
    assert!(matches!(alone.unets, Unets::Instead(_)), "nothing is mixed: {:?}", alone.unets);

    // Each is what the verifier expects of the plan.
    compiler.masks = MaskForm::Stored;
    let graph = |path: &Path| onnx::open(path).and_then(Graph::load).unwrap();
    let original = graph(&folder.path().join("unet.onnx"));
    let is_proven = |text: &str, path: &Path, target: Target| {
        let plan = plan::parse("plan.yaml", text).unwrap();
        let verdict = verify(&original, &graph(path), &plan, Some(Required::from(target)), &()).unwrap();
        assert!(verdict.is_proven(), "{text}: {:?}", verdict.differences);
    };
    let text = plan("down_blocks.0", 2, 0.3, "weight: 1.5");
    let pair = compiled(&mut compiler, &text);
    let [dense, pruned] = paths(&pair);
    is_proven(&text, &dense, Target::Dense);
    is_proven(&text, &pruned, Target::Pruned);
    let text = plan("down_blocks.0", 2, 0.3, "mode: weights, weight: 1.5");
    let amplified = compiled(&mut compiler, &text);
    is_proven(&text, path(&amplified), Target::Amplified);
}
