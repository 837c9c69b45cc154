//! Triton's server, from NVIDIA's pytriton, with what `export triton` writes, as it is. A backend in Python takes the place of
//! the onnxruntime backend, which that package lacks (`triton/model.py`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crdiff::{
    compile::Target,
    engine::{Engine, HostTensor, OrtEngine, SessionOptions, io},
};
use serde_json::{Value, json};

use super::{
    common::{node, ort::ort_library, outputs::of_range},
    compiled, packages, printed, root,
};

#[path = "../it/deploy/drawn.rs"]
mod drawn;

use drawn::{Golden, answer};

/// A request: the model, its inputs, and where its outputs go.
type Run<'a> = (&'a str, Value, PathBuf);

/// Serves `repository`, and has it answer requests: those of a group are sent at once.
fn serve(repository: &Path, groups: &[Vec<Run<'_>>]) {
    let packages = packages("triton");
    let run =
        |(model, inputs, output): &Run<'_>| json!({ "model": model, "inputs": inputs, "output": output });
    let runs: Vec<Vec<Value>> = groups.iter().map(|group| group.iter().map(run).collect()).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    let request = json!({ "repository": repository, "packages": packages, "runs": runs });
    fs::write(file.path(), request.to_string()).unwrap();
    let mut command = Command::new(node::python());
    command.env("PYTHONPATH", &packages).arg(root().join("tests/vendors/triton/serve.py"));
    printed(command.arg(file.path()));
}

/// Runs `crdiff export triton`.
fn export(repository: &Path, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
    printed(command.args(["export", "triton", "-o"]).arg(repository).args(arguments));
}

/// The fused graph of a pipeline by the plan of its goldens.
fn fused(pipeline: &str, golden: &Golden, target: Target, folder: &Path) -> PathBuf {
    let plan = format!("version: 1\ncrdiff: {}", golden.index["prune"]);
    compiled(&format!("pipelines/{pipeline}/unet/model.onnx"), &plan, target, folder, "fused")
}

/// Requests for images of these cases, with further inputs.
fn images<'a>(golden: &Golden, cases: &[&str], more: &Value, folder: &Path) -> Vec<Run<'a>> {
    let request = |case: &&str| {
        let mut inputs = golden.request(case, folder);
        inputs.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("draw", inputs, folder.join(case.replace('/', "-")))
    };
    cases.iter().map(request).collect()
}

fn check(golden: &Golden, cases: &[&str], runs: &[Run<'_>]) {
    for (case, (.., output)) in cases.iter().zip(runs) {
        let (said, found) = answer(output);
        golden.check(case, found.as_ref().unwrap_or_else(|| panic!("{case}: {said}")));
    }
}

/// Inputs of a row that has nothing in common with the others.
fn row(index: usize, timestep: f32, weight: f32) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
    let wave = |count: usize, width: f32| -> Vec<f32> {
        (0..count).map(|i| ((i + 1000 * index) as f32 * 0.7371).sin() * width).collect()
    };
    vec![
        ("sample", vec![1, 4, 8, 8], wave(256, 1.5)),
        ("timestep", vec![1, 1], vec![timestep]),
        ("encoder_hidden_states", vec![1, 7, 32], wave(7 * 32, 1.0)),
        ("poa_weight", vec![1, 1], vec![weight]),
    ]
}

#[test]
fn it_draws_diffusers_images_and_joins_rows_of_different_steps_and_weights() {
    let golden = Golden::open("sd15");
    let folder = tempfile::tempdir().unwrap();
    let (work, repository) = (folder.path(), folder.path().join("models"));
    let unet = fused("sd15", &golden, Target::FusedWithInput, work);
    let unet_path = unet.display().to_string();
    let pipeline = root().join("fixtures/pipelines/sd15").display().to_string();
    export(&repository, &["--pipeline", &pipeline, "--name", "draw", &unet_path]);
    // It runs as soon as there are four rows.
    let joined = format!("joined={unet_path}");
    export(&repository, &[&joined, "--max-batch", "4", "--queue-delay", "60000000"]);

    let weight = |w: f64| json!({ "poa_weight": { "type": "TYPE_FP32", "dims": [1], "values": [w] } });
    let (dense, amplified) = (golden.cases("/dense/"), golden.cases("/amplified/"));
    // w = 0 is the dense network.
    let images_dense = images(&golden, &dense, &weight(0.0), work);
    let images_amplified = images(&golden, &amplified, &weight(1.5), work);
    let rows = [(901.0, 1.5), (21.0, 0.0), (501.0, 3.0), (1.0, 1.0)];
    let rows: Vec<_> = rows.iter().enumerate().map(|(i, (t, w))| row(i, *t, *w)).collect();
    let mixed: Vec<Run<'_>> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| {
            let inputs = row.iter().map(|(name, dims, values)| {
                let input = json!({ "type": "TYPE_FP32", "dims": dims, "values": values });
                (name.to_string(), input)
            });
            ("joined", Value::Object(inputs.collect()), work.join(format!("row-{index}")))
        })
        .collect();
    let no_number = json!({ "guidance_scale": { "type": "TYPE_FP32", "dims": [1], "values": [null] } });
    let mut refused = images(&golden, &dense[..1], &no_number, work);
    refused[0].2 = work.join("refused");
    serve(&repository, &[images_dense.clone(), images_amplified.clone(), mixed.clone(), refused]);

    check(&golden, &dense, &images_dense);
    check(&golden, &amplified, &images_amplified);
    let error = answer(&work.join("refused")).0["error"].as_str().unwrap().to_string();
    assert!(error.contains("`guidance_scale` must be a finite number, not nan"), "{error}");

    let engine = OrtEngine::open(&ort_library()).unwrap();
    let mut alone = engine.load(&unet, &SessionOptions::default()).unwrap();
    for (row, (.., output)) in rows.iter().zip(&mixed) {
        // The original takes timestep and w as scalars.
        let fed: Vec<(&str, HostTensor)> = row
            .iter()
            .map(|(name, dims, values)| {
                let dims = if dims.len() == 2 { Vec::new() } else { dims.clone() };
                (*name, HostTensor::new(dims, values.clone()).unwrap())
            })
            .collect();
        let fed: Vec<(&str, &HostTensor)> = fed.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let expected = alone.run(&fed, None).unwrap().swap_remove(0).1.to_f32();
        let path = output.with_added_extension("out_sample.npy");
        let off = of_range(&io::read_npy(&path).unwrap().to_f32(), &expected);
        assert!(off <= 3e-6, "off by {off:e} of the range");
    }
    // One run for four requests.
    let said = fs::read_to_string(mixed[0].2.with_added_extension("json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["calls"]["joined"], json!([1, 4]));
}

#[test]
fn it_draws_the_images_of_sdxl() {
    let golden = Golden::open("sdxl");
    let folder = tempfile::tempdir().unwrap();
    let (work, repository) = (folder.path(), folder.path().join("models"));
    let unet = fused("sdxl", &golden, Target::Fused, work).display().to_string();
    let pipeline = root().join("fixtures/pipelines/sdxl").display().to_string();
    export(&repository, &["--pipeline", &pipeline, "--name", "draw", &unet]);
    let cases = golden.cases("/amplified/");
    let runs = images(&golden, &cases, &json!({}), work);
    serve(&repository, &[runs.clone()]);
    check(&golden, &cases, &runs);
}
