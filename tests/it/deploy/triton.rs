//! Repositories as Triton reads them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crdiff::{
    compile::Target,
    deploy::{
        Range, Sizes,
        triton::{Accelerator, Devices, Precision, Serving, TensorRt},
    },
};
use serde_json::{Value, json};

use crate::{
    common::outputs::printed,
    deploy::support::{compiled, config, export_to, fixture, numbers, python, serving},
};

/// ONNX Runtime's own description of models.
fn described<'a>(models: impl IntoIterator<Item = &'a PathBuf>) -> Vec<Value> {
    serde_json::from_slice(&printed(python("describe.py").args(models))).unwrap()
}

/// The checks that Triton's onnxruntime backend makes when it loads a model (`ValidateInputs`, `ValidateOutputs` and
/// `CompareDimsSupported` in its sources) and its core before (`ValidateIOShape`).
fn as_the_backend_checks(config: &Value, described: &Value) -> Result<(), String> {
    let batched = config["maxBatchSize"].as_i64().unwrap_or(0) > 0;
    for (key, exact) in [("input", false), ("output", true)] {
        let (stated, found) =
            (config[key].as_array().unwrap(), described[format!("{key}s")].as_array().unwrap());
        if key == "input" && stated.len() != found.len() {
            return Err(format!("{} inputs, model provides {}", stated.len(), found.len()));
        }
        for port in stated {
            let name = &port["name"];
            let model =
                found.iter().find(|f| f["name"] == *name).ok_or(format!("unexpected {key} {name}"))?;
            let kind = match model["type"].as_str().unwrap() {
                "tensor(float)" => "TYPE_FP32",
                "tensor(float16)" => "TYPE_FP16",
                "tensor(int64)" => "TYPE_INT64",
                "tensor(int32)" => "TYPE_INT32",
                other => return Err(format!("{name}: {other}")),
            };
            if port["dataType"] != kind {
                return Err(format!("{name} is {}, model provides {kind}", port["dataType"]));
            }
            let model: Vec<i64> =
                model["shape"].as_array().unwrap().iter().map(|dim| dim.as_i64().unwrap_or(-1)).collect();
            if numbers(&port["dims"]).is_empty() {
                return Err(format!("{name} must specify dims"));
            }
            let stated = match port.get("reshape") {
                Some(reshape) if !batched && numbers(&reshape["shape"]).is_empty() => {
                    return Err(format!("{name} cannot have empty reshape for non-batching model"));
                }
                Some(reshape) => numbers(&reshape["shape"]),
                None => numbers(&port["dims"]),
            };
            if model.is_empty() {
                match stated.iter().all(|dim| *dim == 1) && !batched {
                    true => continue,
                    false => return Err(format!("{name} is a scalar")),
                }
            }
            let full: Vec<i64> = if batched { [-1].into_iter().chain(stated).collect() } else { stated };
            let fits = |(model, stated): (&i64, &i64)| (!exact && *model == -1) || model == stated;
            if batched && model[0] != -1 || model.len() != full.len() || !model.iter().zip(&full).all(fits) {
                return Err(format!("{name}: model expects {model:?}, configuration specifies {full:?}"));
            }
        }
    }
    Ok(())
}

const MODELS: [&str; 16] = [
    "sd15/torchscript/unet.onnx",
    "sd15/dynamo/unet.onnx",
    "sd15-mini/torchscript/unet.onnx",
    "sd15-mini/torchscript-fp16/unet.onnx",
    "sd15-mini/dynamo-opset21/unet.onnx",
    "sd15-mini/simplified-dynamo/unet.onnx",
    "sd15-mini/slim/unet.onnx",
    "sd21/dynamo/unet.onnx",
    "sdxl/torchscript/unet.onnx",
    "sdxl/dynamo/unet.onnx",
    "ldm/torchscript/unet.onnx",
    "pipelines/sd15/text_encoder/model.onnx",
    "pipelines/sd15/vae_decoder/model.onnx",
    "pipelines/sdxl/unet/model.onnx",
    "pipelines/sdxl/text_encoder_2/model.onnx",
    "pipelines/lcm/unet/model.onnx",
];

#[test]
fn configurations_are_what_the_backend_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let mut exported = Vec::new();
    for (index, model) in MODELS.iter().enumerate() {
        for most in [0, 4] {
            let repository = folder.path().join(format!("{index}-{most}"));
            let serving = Serving { max_batch: most, ..serving() };
            let served = export_to(&repository, &[("m", &fixture(model))], &serving).unwrap();
            assert_eq!(served[0].max_batch, most, "{model}: {:?}", served[0].notes);
            let config = config(&repository, "m");
            assert_eq!((&config["name"], &config["backend"]), (&json!("m"), &json!("onnxruntime")));
            exported.push((format!("{model} at {most}"), config, repository.join("m/1/model.onnx")));
        }
    }
    let described = described(exported.iter().map(|(_, _, file)| file));
    assert_eq!(described.len(), 2 * MODELS.len());
    for ((name, config, _), described) in exported.iter().zip(&described) {
        as_the_backend_checks(config, described).unwrap_or_else(|why| panic!("{name}: {why}"));
    }
    // The checks can fail: at a scalar in a batch, and at a dimension that the model doesn't have.
    let mut wrong = exported[0].1.clone();
    wrong["maxBatchSize"] = json!(4);
    assert!(as_the_backend_checks(&wrong, &described[0]).is_err());
    let mut wrong = exported[0].1.clone();
    wrong["output"][0]["dims"][1] = json!("-1");
    assert!(as_the_backend_checks(&wrong, &described[0]).is_err());
}

#[test]
fn a_configuration_says_what_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("sd15/torchscript/unet.onnx");
    let repository = folder.path().join("models");
    let serving = Serving {
        queue_delay: Some(500),
        devices: Devices::Gpus(vec![0, 3]),
        instances: 2,
        accelerator: Accelerator::Cuda(BTreeMap::from([("use_tf32".to_string(), "0".to_string())])),
        ..serving()
    };
    export_to(&repository, &[("unet", &model)], &serving).unwrap();
    let expected = json!({
        "name": "unet",
        "backend": "onnxruntime",
        "maxBatchSize": 8,
        "input": [
            { "name": "sample", "dataType": "TYPE_FP32", "dims": ["4", "-1", "-1"] },
            { "name": "timestep", "dataType": "TYPE_INT64", "dims": ["1"], "reshape": {} },
            { "name": "encoder_hidden_states", "dataType": "TYPE_FP32", "dims": ["-1", "16"] },
        ],
        "output": [{ "name": "out_sample", "dataType": "TYPE_FP32", "dims": ["4", "-1", "-1"] }],
        "dynamicBatching": { "maxQueueDelayMicroseconds": "500" },
        "instanceGroup": [{ "count": 2, "kind": "KIND_GPU", "gpus": [0, 3] }],
        "optimization": { "executionAccelerators": {
            "gpuExecutionAccelerator": [{ "name": "cuda", "parameters": { "use_tf32": "0" } }],
        } },
    });
    assert_eq!(config(&repository, "unet"), expected);
    let cpu = Serving { devices: Devices::Cpu, ..crate::deploy::support::serving() };
    export_to(&repository, &[("cpu", &model)], &cpu).unwrap();
    assert_eq!(config(&repository, "cpu")["instanceGroup"], json!([{ "count": 1, "kind": "KIND_CPU" }]));
    assert_eq!(config(&repository, "unet"), expected, "models that are there stay");
}

#[test]
fn tensorrt_gets_shapes_and_a_cache_for_each_graph() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = Sizes {
        images: vec![(128, 64), (64, 64)],
        batch: Range { min: 1, max: 1 },
        tokens: 77,
        factor: 8,
        named: BTreeMap::new(),
    };
    let tensorrt = TensorRt {
        precision: None,
        workspace: 1 << 30,
        cache: Some("/cache".to_string()),
        sizes: Some(sizes),
        options: BTreeMap::from([("trt_builder_optimization_level".to_string(), "5".to_string())]),
    };
    let served = |models: &[(&str, &Path)], tensorrt: &TensorRt| {
        let repository = tempfile::tempdir_in(folder.path()).unwrap().keep();
        let serving = Serving { accelerator: Accelerator::TensorRt(tensorrt.clone()), ..serving() };
        let served = export_to(&repository, models, &serving).unwrap();
        let parameters = |name: &str| {
            let accelerators = &config(&repository, name)["optimization"]["executionAccelerators"];
            let [one] = accelerators["gpuExecutionAccelerator"].as_array().unwrap().as_slice() else {
                panic!()
            };
            assert_eq!(one["name"], "tensorrt");
            one["parameters"].clone()
        };
        let parameters: Vec<Value> = models.iter().map(|(name, _)| parameters(name)).collect();
        (parameters, served)
    };
    let dense = fixture("sd15/dynamo/unet.onnx");
    let [pruned, other] = ["pruned.onnx", "other.onnx"].map(|name| folder.path().join(name));
    compiled(&dense, Target::Pruned, &pruned);
    // The same graph with other weights, as of another training.
    fs::copy(&dense, &other).unwrap();
    let mut weights = fs::read(fixture("sd15/dynamo/unet.onnx.data")).unwrap();
    weights.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
    fs::write(folder.path().join("unet.onnx.data"), weights).unwrap();
    let half = fixture("sd15-mini/torchscript-fp16/unet.onnx");
    let models: [(&str, &Path); 4] =
        [("dense", &dense), ("pruned", &pruned), ("other", &other), ("half", &half)];
    let (parameters, notes) = served(&models, &tensorrt);
    assert!(notes.iter().all(|served| served.notes.is_empty()));
    let expected = json!({
        "precision_mode": "FP32",
        "max_workspace_size_bytes": "1073741824",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache",
        "trt_engine_cache_prefix": parameters[0]["trt_engine_cache_prefix"],
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/cache",
        "trt_profile_min_shapes": "sample:1x4x8x8,timestep:1,encoder_hidden_states:1x77x16",
        "trt_profile_opt_shapes": "sample:8x4x16x8,timestep:8,encoder_hidden_states:8x77x16",
        "trt_profile_max_shapes": "sample:8x4x16x8,timestep:8,encoder_hidden_states:8x77x16",
        "trt_builder_optimization_level": "5",
    });
    assert_eq!(parameters[0], expected);
    assert_eq!(parameters[3]["precision_mode"], "FP16");
    let mut prefixes: Vec<&str> =
        parameters.iter().map(|p| p["trt_engine_cache_prefix"].as_str().unwrap()).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    assert_eq!(prefixes.len(), 4, "one graph's engine would be taken for another's");

    let bare = TensorRt { precision: Some(Precision::Fp16), cache: None, sizes: None, ..tensorrt };
    let (parameters, served) = served(&[("dense", &dense)], &bare);
    assert_eq!(parameters[0]["precision_mode"], "FP16");
    assert_eq!(parameters[0].as_object().unwrap().len(), 3);
    assert_eq!(served[0].notes.len(), 2, "{:?}", served[0].notes);
}

#[test]
fn external_data_comes_along() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("models");
    let split = fixture("sd15-mini/split/unet.onnx");
    let dynamo = fixture("sd15-mini/dynamo/unet.onnx");
    // A graph whose weights lie in a model called as Triton wants its own to be called.
    let beside = folder.path().join("model.onnx");
    fs::copy(fixture("sd15-mini/torchscript/unet.onnx"), &beside).unwrap();
    let plan = folder.path().join("plan.yaml");
    fs::write(&plan, "version: 1\nrules: [{ bypass: mid_block.attentions.0 }]").unwrap();
    let sharing = folder.path().join("sharing.onnx");
    let compile = assert_cmd::Command::cargo_bin("crdiff-compile")
        .unwrap()
        .args([&beside, &plan])
        .args(["--quiet", "-o"])
        .arg(&sharing)
        .output()
        .unwrap();
    assert!(compile.status.success());
    let models: [(&str, &Path); 3] = [("split", &split), ("dynamo", &dynamo), ("sharing", &sharing)];
    export_to(&repository, &models, &serving()).unwrap();
    for (name, _) in models {
        let moved = folder.path().join("moved").join(name);
        fs::create_dir_all(moved.parent().unwrap()).unwrap();
        fs::rename(repository.join(name), &moved).unwrap();
    }
    // They load without anything that lies elsewhere.
    let moved = models.map(|(name, _)| folder.path().join("moved").join(name).join("1/model.onnx"));
    assert_eq!(described(&moved).len(), 3);
    assert!(folder.path().join("moved/split/1/weights").is_dir());
    assert!(folder.path().join("moved/dynamo/1/unet.onnx.data").is_file());
    assert!(folder.path().join("moved/sharing/1/model.onnx_data").is_file());
}

#[test]
fn mistakes_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("models");
    let good = fixture("sd15/torchscript/unet.onnx");
    let missing = folder.path().join("missing.onnx");
    let half = fixture("sd15-mini/dynamo-bf16/unet.onnx");
    let with = |accelerator| Serving { accelerator, ..serving() };
    let tensorrt = |key: &str, images: &[(i64, i64)]| {
        let (batch, named) = (Range { min: 1, max: 1 }, BTreeMap::new());
        with(Accelerator::TensorRt(TensorRt {
            precision: None,
            workspace: 1,
            cache: None,
            sizes: (!images.is_empty()).then(|| Sizes {
                images: images.to_vec(),
                batch,
                tokens: 77,
                factor: 8,
                named,
            }),
            options: [(key.to_string(), "1".to_string())]
                .into_iter()
                .filter(|(key, _)| !key.is_empty())
                .collect(),
        }))
    };
    type Models<'a> = &'a [(&'a str, &'a Path)];
    let cases: [(Models<'_>, Serving, &str); 8] = [
        (&[("a", &good), ("b", &missing)], serving(), "missing.onnx: cannot open"),
        (&[("a", &good), ("a", &good)], serving(), "two models would be called `a`"),
        (&[("a/b", &good)], serving(), "`a/b` is no name for a model"),
        (&[("a", &half)], serving(), "takes no bfloat16"),
        (&[("a", &good)], tensorrt("trt_speed", &[]), "knows no parameter `trt_speed` for TensorRT"),
        (&[("a", &good)], tensorrt("", &[(100, 64)]), "100x64 is not divisible by 8"),
        (
            &[("a", &good)],
            Serving { devices: Devices::Cpu, ..with(Accelerator::Cuda(BTreeMap::new())) },
            "leave out --cpu",
        ),
        (&[("a", &good)], Serving { instances: 0, ..serving() }, "at least one instance"),
    ];
    for (models, serving, what) in cases {
        let error = export_to(&repository, models, &serving).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{what}");
    }
    export_to(&repository, &[("a", &good)], &serving()).unwrap();
    let error = export_to(&repository, &[("b", &good), ("a", &good)], &serving()).unwrap_err().to_string();
    assert!(error.contains("it is there already"), "{error}");
    assert_eq!(fs::read_dir(&repository).unwrap().count(), 1);
}
