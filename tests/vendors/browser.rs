//! Bundles of `export web` in headless Chromium, by WebAssembly and by WebGPU on SwiftShader, against torch.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crdiff::{
    compile::Target,
    deploy::web::{FILE_LIMIT, WebJob, export},
    engine::{HostTensor, TensorData, io::read_npz},
};
use serde_json::{Map, Value, json};

use super::{
    common::{node, outputs::of_range},
    compiled, printed, root,
};

/// Node, and the folder that packages are installed in for `script`.
fn installed(name: &str, script: &str) -> (Command, PathBuf) {
    let node = node::node_with_packages(name, &root().join(script));
    let folder = Path::new(node.get_args().next().unwrap()).parent().unwrap().to_path_buf();
    (Command::new(node.get_program()), folder)
}

fn look() -> (Command, PathBuf) {
    installed("browser", "tests/report/browser/look.mjs")
}

/// The folder with SwiftShader and a Vulkan loader, which are Chromium's.
pub fn swiftshader() -> PathBuf {
    look().1.join("unpacked")
}

#[test]
fn bundles_run_in_chromium() {
    let golden = |file: &str| read_npz(&root().join("fixtures/sd15-mini/golden").join(file)).unwrap();
    let input = |(name, tensor): (String, HostTensor)| {
        let values = match tensor.data() {
            TensorData::Float(values) => json!(values),
            TensorData::Int64(values) => json!(values),
            other => panic!("{other:?}"),
        };
        let described = json!({ "type": tensor.data_type().name(), "dims": tensor.dims(), "values": values });
        Some((name.strip_prefix("8x8/")?.to_string(), described))
    };
    let inputs: Map<String, Value> = golden("inputs.npz").into_iter().filter_map(input).collect();
    let outputs = golden("outputs.npz");
    let output = |name: &str| outputs.iter().find(|(known, _)| known == name).unwrap().1.to_f32();
    let (dense, pruned) = (output("dense/8x8"), output("prune/30-50-10/8x8"));
    let amplified: Vec<f32> = dense.iter().zip(&pruned).map(|(d, p)| d + 1.5 * (p - d)).collect();

    let folder = tempfile::tempdir().unwrap();
    let original = root().join("fixtures/sd15-mini/dynamo/unet.onnx");
    let plan = "version: 1\ncrdiff: { down: 0.3, mid: 0.5, up: 0.1 }\namplify: { weight: 1.5 }";
    let fused = compiled("sd15-mini/dynamo/unet.onnx", plan, Target::Fused, folder.path(), "fused");
    let bundle = |name: &str, model: &Path, file_limit: u64| {
        let output = folder.path().join(name);
        let bundle = export(&WebJob { model, output: &output, file_limit, observer: &() }).unwrap();
        (output, bundle.files.len())
    };
    let (one_file, files) = bundle("one", &original, FILE_LIMIT);
    assert_eq!(files, 1);
    let (split, files) = bundle("split", &fused, 1_500_000);
    assert!(files > 1, "{files}");

    let runs = [
        (&one_file, "wasm", &dense, 1e-5),
        (&split, "wasm", &amplified, 1e-5),
        (&split, "webgpu", &amplified, 1e-3),
    ];
    let described = runs
        .map(|(bundle, provider, ..)| json!({ "bundle": bundle, "provider": provider, "inputs": inputs }));
    let (mut node, chromium) = look();
    let (_, web) = installed("deploy-node", "tests/deploy/node/run.js");
    let dist = web.join("node_modules/onnxruntime-web/dist");
    let request = folder.path().join("request.json");
    let asked = json!({ "installed": chromium, "dist": dist, "runs": described });
    fs::write(&request, asked.to_string()).unwrap();
    let said = printed(node.arg(root().join("tests/vendors/browser.mjs")).arg(&request));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["adapter"]["architecture"], "swiftshader", "{}", said["adapter"]);
    let outputs = said["outputs"].as_array().unwrap();
    assert_eq!(outputs.len(), runs.len());
    for ((bundle, provider, expected, tolerance), found) in runs.iter().zip(outputs) {
        let values = found.as_array().unwrap().iter();
        let found: Vec<f32> = values.map(|value| value.as_f64().unwrap() as f32).collect();
        let off = of_range(&found, expected);
        assert!(off <= *tolerance, "{} by {provider}: off by {off:e} of the range", bundle.display());
    }
}
