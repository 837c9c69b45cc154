//! The denoising loop for Triton's Python backend, run by a stand-in for Triton, against diffusers' goldens.

use std::{fs, path::Path};

use crdiff::{
    deploy::triton::{Pipeline, Serving, TritonJob, export},
    engine::{HostTensor, Signature, io},
    onnx, plan,
};
use serde_json::{Map, Value, json};

use crate::{
    common::outputs::printed,
    deploy::{
        drawn::{Golden, answer},
        support::{compiled_by, config, fixture, python, serving},
    },
};

const NAME: &str = "draw";

/// Serves a fixture's pipeline, with `unet` in place of its UNet.
fn serve(pipeline: &str, unet: Option<&Path>, serving: &Serving, repository: &Path) {
    let folder = fixture("pipelines").join(pipeline);
    let (pipeline, entries) = Pipeline::open(NAME, &folder, unet).unwrap();
    let job = TritonJob { entries: &entries, pipeline: Some(&pipeline), serving, repository, observer: &() };
    let served = export(&job).unwrap();
    assert_eq!(served.len(), entries.len() + 1);
}

/// The configurations of a repository, by model. Whether an input is a scalar in the model, which Triton knows from
/// ONNX Runtime, is added.
fn configs(repository: &Path) -> Value {
    let mut configs = Map::new();
    for entry in fs::read_dir(repository).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let mut config = config(repository, &name);
        let model = repository.join(&name).join("1/model.onnx");
        if model.exists() {
            let inputs = Signature::of(&onnx::open(&model).unwrap()).unwrap().inputs;
            for input in config["input"].as_array_mut().unwrap() {
                let model = inputs.iter().find(|model| input["name"] == model.name).unwrap();
                if model.dims.as_ref().unwrap().is_empty() {
                    input["scalar"] = json!(true);
                }
            }
        }
        configs.insert(name, config);
    }
    Value::Object(configs)
}

/// Runs requests; each answer is the calls it made, and the error or the latents and images.
fn answers(repository: &Path, requests: &[Value]) -> Vec<(Value, Option<[HostTensor; 2]>)> {
    let work = tempfile::tempdir().unwrap();
    let output = |index: usize| work.path().join(index.to_string());
    let runs: Vec<Value> = requests
        .iter()
        .enumerate()
        .map(|(index, inputs)| json!({ "inputs": inputs, "output": output(index) }))
        .collect();
    let file = work.path().join("request.json");
    let request =
        json!({ "repository": repository, "model": NAME, "configs": configs(repository), "runs": runs });
    fs::write(&file, request.to_string()).unwrap();
    printed(python("run_bls.py").arg(&file));
    (0..requests.len()).map(|index| answer(&output(index))).collect()
}

fn run_cases(golden: &Golden, repository: &Path, names: &[&str], more: &Value) -> Vec<Value> {
    let work = tempfile::tempdir().unwrap();
    let requests: Vec<Value> = names
        .iter()
        .map(|name| {
            let mut request = golden.request(name, work.path());
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            request
        })
        .collect();
    let answers = answers(repository, &requests);
    for (name, (said, found)) in names.iter().zip(&answers) {
        golden.check(name, found.as_ref().unwrap_or_else(|| panic!("{name}: {said}")));
    }
    answers.into_iter().map(|(said, _)| said["calls"].clone()).collect()
}

#[test]
fn the_loop_makes_diffusers_images() {
    for pipeline in ["sd15", "sdxl"] {
        let golden = Golden::open(pipeline);
        // Requests joined, and as many rows as a request has; not joined, so scalars stay scalars; and one row at most,
        // so that both branches of guidance go one after the other.
        for (most, unet_calls) in [(8, 1), (0, 1), (1, 2)] {
            let folder = tempfile::tempdir().unwrap();
            let repository = folder.path().join("models");
            serve(pipeline, None, &Serving { max_batch: most, ..serving() }, &repository);
            let calls = run_cases(&golden, &repository, &golden.cases("/dense/"), &json!({}));
            let steps = golden.index["defaults"]["steps"].as_u64().unwrap() as usize;
            let unet = calls[0].as_array().unwrap().iter().filter(|model| **model == "unet").count();
            assert_eq!(unet, steps * unet_calls, "{pipeline}, batches of {most}");
        }
    }
}

#[test]
fn a_fused_graph_takes_the_unets_place() {
    for pipeline in ["sd15", "sdxl"] {
        let golden = Golden::open(pipeline);
        let folder = tempfile::tempdir().unwrap();
        let plan =
            plan::parse("plan.yaml", &format!("version: 1\ncrdiff: {}", golden.index["prune"])).unwrap();
        let unet = fixture("pipelines").join(pipeline).join("unet/model.onnx");
        for (target, name) in [
            (crdiff::compile::Target::Fused, "fused"),
            (crdiff::compile::Target::FusedWithInput, "fused-input"),
        ] {
            let fused = folder.path().join(format!("{name}.onnx"));
            compiled_by(&plan, &unet, target, &fused);
            let repository = folder.path().join(name);
            serve(pipeline, Some(&fused), &serving(), &repository);
            let weight = match name {
                "fused" => json!({}),
                _ => json!({ "poa_weight": { "type": "TYPE_FP32", "dims": [1], "values": [1.5] } }),
            };
            run_cases(&golden, &repository, &golden.cases("/amplified/"), &weight);
            if name == "fused-input" {
                // With w at 0 it is the dense network.
                let weight = json!({ "poa_weight": { "type": "TYPE_FP32", "dims": [1], "values": [0.0] } });
                run_cases(&golden, &repository, &golden.cases("/dense/")[..1], &weight);
            }
        }
    }
}

#[test]
fn requests_are_as_varied_as_the_pipelines() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Golden::open("sdxl");
    let repository = folder.path().join("sdxl");
    serve("sdxl", None, &serving(), &repository);
    let work = tempfile::tempdir().unwrap();
    let name = golden.cases("/dense/")[0];
    let request = |changes: &dyn Fn(&mut Map<String, Value>)| {
        let mut request = golden.request(name, work.path());
        changes(request.as_object_mut().unwrap());
        request
    };
    let number = |kind: &str, value: f64| match kind {
        "TYPE_FP32" => json!({ "type": kind, "dims": [1], "values": [value] }),
        _ => json!({ "type": kind, "dims": [1], "values": [value as i64] }),
    };
    let drawn = |seed: f64| {
        request(&|inputs| {
            inputs.remove("latents");
            inputs.insert("height".into(), number("TYPE_INT32", 32.0));
            inputs.insert("width".into(), number("TYPE_INT32", 48.0));
            inputs.insert("seed".into(), number("TYPE_INT64", seed));
        })
    };
    let requests = [
        drawn(1.0),
        drawn(1.0),
        drawn(2.0),
        request(&|inputs| drop(inputs.insert("guidance_scale".into(), number("TYPE_FP32", 1.0)))),
        request(&|inputs| {
            inputs.remove("negative_input_ids");
            inputs.remove("negative_input_ids_2");
        }),
        request(&|inputs| drop(inputs.remove("negative_input_ids_2"))),
        request(&|inputs| drop(inputs.insert("steps".into(), number("TYPE_INT32", 0.0)))),
        request(&|inputs| {
            inputs.remove("latents");
            inputs.insert("height".into(), number("TYPE_INT32", 33.0));
        }),
        // The VAE takes it, the UNet halves it once more.
        request(&|inputs| {
            inputs.remove("latents");
            inputs.insert("height".into(), number("TYPE_INT32", 36.0));
        }),
        request(&|inputs| {
            inputs.insert(
                "guidance_scale".into(),
                json!({ "type": "TYPE_FP32", "dims": [1], "values": [null] }),
            );
        }),
        request(&|inputs| {
            let file = work.path().join("nan.npy");
            let latents = HostTensor::new([1, 4, 8, 8], vec![f32::NAN; 4 * 8 * 8]).unwrap();
            io::write_npy(&file, &latents).unwrap();
            inputs.insert("latents".into(), json!({ "file": file }));
        }),
    ];
    let answers = answers(&repository, &requests);
    let tensors = |index: usize| answers[index].1.as_ref().unwrap();
    assert_eq!(tensors(0)[1].dims(), [1, 32, 48, 3]);
    assert_eq!(tensors(0)[1].to_le_bytes(), tensors(1)[1].to_le_bytes(), "a seed is an image");
    assert_ne!(tensors(0)[1].to_le_bytes(), tensors(2)[1].to_le_bytes(), "another is another");
    // Without guidance the negative prompt is not even encoded.
    let encoded = |index: usize| {
        let calls = answers[index].0["calls"].as_array().unwrap();
        calls.iter().filter(|call| **call == "text_encoder").count()
    };
    assert_eq!([encoded(0), encoded(3), encoded(4)], [2, 1, 1]);
    assert_ne!(tensors(3)[0].to_le_bytes(), tensors(4)[0].to_le_bytes());
    for (index, what) in [
        (5, "the input `negative_input_ids_2` is missing"),
        (6, "steps must be from 1 to 1000, not 0"),
        (7, "height and width must be divisible by 8"),
        (8, "height and width must be divisible by 8, not [36, "),
        (9, "`guidance_scale` must be a finite number, not nan"),
        (10, "the UNet gave values that are not finite"),
    ] {
        let error = answers[index].0["error"].as_str().unwrap();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn what_the_loop_cannot_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("models");
    let lcm = fixture("pipelines/lcm/unet/model.onnx");
    let (pipeline, entries) = Pipeline::open(NAME, &fixture("pipelines/sd15"), Some(&lcm)).unwrap();
    let job = TritonJob {
        entries: &entries,
        pipeline: Some(&pipeline),
        serving: &serving(),
        repository: &repository,
        observer: &(),
    };
    let error = export(&job).unwrap_err().to_string();
    assert!(error.contains("the loop cannot feed its input `timestep_cond`"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(Pipeline::open(NAME, folder.path(), None).is_err());
}
