//! One plan, every weight policy, every engine: the same numbers.

use std::{fs, path::Path};

use crdiff::{
    compile::{Job, Target, compile_file},
    engine::{Engine, HostTensor, OrtEngine, RtenEngine, SessionOptions, io},
    onnx::WeightPolicy,
    passes::MaskForm,
    plan,
};

const PLAN: &str =
    "version: 1\ncrdiff: {down: 0.3, mid: 0.5, up: 0.1}\nrules: [{bypass: mid_block.resnets.0}]\n";

fn run(engine: &dyn Engine, model: &Path, inputs: &[(String, HostTensor)]) -> Vec<f32> {
    let mut session = engine.load(model, &SessionOptions::default()).unwrap();
    let types: Vec<_> = session.inputs().to_vec();
    let cast: Vec<(String, HostTensor)> = types
        .iter()
        .map(|info| {
            let (_, tensor) = inputs.iter().find(|(name, _)| *name == info.name).unwrap();
            (info.name.clone(), tensor.cast(info.data_type).unwrap())
        })
        .collect();
    let cast: Vec<(&str, &HostTensor)> = cast.iter().map(|(n, t)| (n.as_str(), t)).collect();
    session.run(&cast, None).unwrap().remove(0).1.to_f32()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn every_policy_gives_the_same_network_in_every_engine() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sd15-mini");
    let inputs: Vec<(String, HostTensor)> = io::read_npz(&fixtures.join("golden/inputs.npz"))
        .unwrap()
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("8x8/")?.to_string(), tensor)))
        .collect();
    assert!(!inputs.is_empty());
    let ort = OrtEngine::open(&crate::common::ort::ort_library()).unwrap();
    let engines: [&dyn Engine; 2] = [&ort, &RtenEngine];
    let plan = plan::parse("plan", PLAN).unwrap();
    for (export, tolerance) in
        [("torchscript", 1e-5), ("dynamo", 1e-5), ("split", 1e-5), ("torchscript-fp16", 2e-2)]
    {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&fixtures.join(export), folder.path());
        let model = folder.path().join("unet.onnx");
        let mut outputs: Vec<(String, Vec<f32>)> = Vec::new();
        for target in [Target::Pruned, Target::Fused] {
            let mut of_target = Vec::new();
            for (name, weights, masks) in [
                ("share", WeightPolicy::Share, MaskForm::Stored),
                ("copy", WeightPolicy::Copy, MaskForm::Stored),
                ("compact", WeightPolicy::Share, MaskForm::Computed),
            ] {
                let output = folder.path().join(format!("{}-{name}.onnx", target.name()));
                let job =
                    Job::new(&model, &plan).target(target).output(&output).weights(weights).masks(masks);
                compile_file(&job, &()).unwrap();
                for engine in engines {
                    let label = format!("{export} {} {name} {}", target.name(), engine.kind());
                    of_target.push((label, run(engine, &output, &inputs)));
                }
            }
            let (first, reference) = of_target[0].clone();
            for (label, output) in &of_target {
                let off = output.iter().zip(&reference).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                println!("{label:<44} {off:.1e} from {first}");
                assert!(off <= tolerance, "{label}: {off:e} from {first}");
            }
            outputs.push(of_target.swap_remove(0));
        }
        assert_ne!(outputs[0].1, outputs[1].1, "{export}: pruned and fused graph must differ");
    }
}
