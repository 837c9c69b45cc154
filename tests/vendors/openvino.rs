//! OpenVINO, as ONNX Runtime's provider, on the CPU.

use std::{collections::BTreeMap, process::Command};

use crdiff::{
    compile::Target,
    engine::{
        CpuFallback, Engine, EngineError, HostTensor, OrtEngine, Provider, ProviderKind, Session,
        SessionOptions, io,
    },
};
use serde_json::Value;

use super::{
    alone,
    common::{ort::ort_library, outputs::of_range},
    compiled, onnxruntime, packages, passes, root,
};

#[test]
fn networks_run_on_openvino() {
    passes(&mut alone("openvino::with_its_onnxruntime", &onnxruntime(&packages("openvino"))));
}

/// ONNX Runtime's own kernels in the same library are the reference.
#[test]
#[ignore = "networks_run_on_openvino runs it with the library that it needs"]
fn with_its_onnxruntime() {
    let engine = OrtEngine::open(&ort_library()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let all = "version: 1\ncrdiff: { down: 0.3, mid: 0.3, up: 0.3 }";
    // A convolution between two interpolations, sines and cosines; a part at half its size; windows rolled by half of one.
    let rules = "version: 1\nrules:
  - dilate: { modules: mid_block.resnets.1.conv1, by: 1.5 }
  - freeu: { backbone: [1.5, 1.6], skip: [0.9, 0.2] }
  - shrink: { within: mid_block.resnets.0, by: 2 }
  - attention: { modules: \"up_blocks.1.**.attn1\", map: window, windows: 2x2, shift: 0.5 }";
    let inputs = io::read_npz(&root().join("fixtures/sd15-mini/golden/inputs.npz")).unwrap();
    let prefix = inputs[0].0.split_once('/').unwrap().0.to_string();
    let inputs: Vec<(String, HostTensor)> = inputs
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(&format!("{prefix}/"))?.to_string(), tensor)))
        .collect();
    let run = |session: &mut dyn Session| -> Vec<f32> {
        let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        session.run(&inputs, None).unwrap().swap_remove(0).1.to_f32()
    };
    for (export, target) in [
        ("torchscript", None),
        ("dynamo", None),
        ("torchscript", Some((all, Target::Pruned))),
        ("torchscript", Some((all, Target::Fused))),
        ("dynamo", Some((all, Target::Fused))),
        ("torchscript", Some((rules, Target::Pruned))),
    ] {
        let model = format!("sd15-mini/{export}/unet.onnx");
        let path = match target {
            Some((plan, target)) => compiled(&model, plan, target, folder.path(), "compiled"),
            None => root().join("fixtures").join(&model),
        };
        let expected = run(&mut *engine.load(&path, &SessionOptions::default()).unwrap());
        let fixed: BTreeMap<String, Vec<usize>> =
            inputs.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        for dims in [BTreeMap::new(), fixed] {
            let mut options = SessionOptions::default().fixed_dims(dims);
            options.providers = vec![Provider::from(ProviderKind::OpenVino)];
            options.cpu_fallback = CpuFallback::Refuse;
            let mut session = engine.load(&path, &options).unwrap();
            assert!(session.placement().iter().all(|p| p.provider == "OpenVINOExecutionProvider"));
            let off = of_range(&run(&mut *session), &expected);
            assert!(off <= 2e-5, "{model} {target:?}: off by {off:e} of the range");
        }
    }
    options_are_its_own(&engine);
}

/// The provider takes every option of the table, and no other.
fn options_are_its_own(engine: &OrtEngine) {
    let values = |name: &str| {
        match name {
            "cache_dir" => return std::env::temp_dir().display().to_string(),
            "device_type" | "device_id" => "CPU",
            "device_luid" | "layout" | "reshape_input" => "",
            "load_config" => "{\"CPU\": {\"INFERENCE_PRECISION_HINT\": \"f32\"}}",
            "model_priority" => "HIGH",
            "num_of_threads" | "num_streams" => "1",
            "precision" => "FP32",
            _ => "false",
        }
        .to_string()
    };
    let model = root().join("fixtures/sd15-mini/torchscript/unet.onnx");
    for name in ProviderKind::OpenVino.options() {
        if values(name).is_empty() {
            continue;
        }
        let mut provider = Provider::from(ProviderKind::OpenVino);
        provider.options.insert(name.to_string(), values(name));
        let options = SessionOptions::default().providers(vec![provider]);
        engine.load(&model, &options).map(drop).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    // What cannot be had is an error, and no other device takes its place.
    for device in ["GPU", "NPU"] {
        let mut provider = Provider::from(ProviderKind::OpenVino);
        provider.options.insert("device_type".to_string(), device.to_string());
        let options = SessionOptions::default().providers(vec![provider]);
        let error = engine.load(&model, &options).map(drop).unwrap_err();
        assert!(matches!(error, EngineError::Provider { .. }), "{device}: {error}");
    }
}

#[test]
fn doctor_and_device_words_know_it() {
    let library = onnxruntime(&packages("openvino"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
    let output = command.args(["doctor", "--json", "--ort-lib"]).arg(&library).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let works = |name: &str| {
        let all = report["providers"].as_array().unwrap();
        all.iter().find(|p| p["provider"] == name).unwrap()["works"].as_bool().unwrap()
    };
    assert!(works("cpu") && works("openvino") && !works("cuda") && !works("webgpu"), "{report}");
    let pipeline = root().join("fixtures/pipelines/sd15");
    let folder = tempfile::tempdir().unwrap();
    let run = |device: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
        command.arg("run").arg(&pipeline).args(["--prompt", "the cat", "--size", "32x32"]);
        command.args(["--steps", "2", "--dense", "--device", device, "--ort-lib"]).arg(&library);
        command.arg("-o").arg(folder.path().join(format!("{device}.png"))).output().unwrap()
    };
    let said = |output: std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let done = run("openvino");
    assert!(done.status.success(), "{}", said(done));
    for device in ["gpu", "npu", "cuda"] {
        let refused = run(device);
        assert!(!refused.status.success() && !folder.path().join(format!("{device}.png")).exists());
        assert!(said(refused).contains(if device == "cuda" { "cuda" } else { "openvino" }));
    }
}
