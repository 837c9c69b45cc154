//! Fused graphs in clients that nobody here wrote: Python's `onnxruntime` and `onnxruntime-node`, each at its pinned
//! release. A client runs the original model, then the fused graph in its place, fed the same; the outputs must be
//! torch's. (`optimum/` does the same with Optimum's pipelines; it is too heavy to run with the others.)
//!
//! A client reads a request, `{model, runs: [{inputs: {name: {type, dims, file}}, output}]}`, where files hold the bare
//! elements, writes the first output of each run to its file and prints `{version, inputs, outputs}`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use assert_cmd::cargo::cargo_bin;
use crdiff::engine::{HostTensor, io};
use serde_json::{Value, json};

use crate::common::{node, outputs::of_range};

/// Largest difference to torch, as a part of the range of the output.
const TOLERANCE: f32 = 1e-5;
const EXPORTS: [(&str, &str); 2] = [("sd15", "torchscript"), ("sdxl", "dynamo")];
const CASES: [&str; 3] =
    ["amplified/30-50-10/1.5", "amplified/adjacent-resnets/1.5", "amplified/adjacent-resnets+30-50-10/1.5"];

#[test]
fn python_onnxruntime() {
    check("1.31.1", python_client);
}

#[test]
fn onnxruntime_node() {
    check("1.30.0", node_client);
}

/// Python with the client's packages, about to run `python/run.py`.
fn python_client() -> Command {
    let mut command = Command::new(node::python());
    command.env("PYTHONPATH", node::python_packages()).arg(here().join("python/run.py"));
    command
}

/// Node, about to run `node/run.js`.
fn node_client() -> Command {
    node::node_with_packages("clients-node", &here().join("node/run.js"))
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Runs every case; `client` makes the command that a request's path is added to.
fn check(version: &str, client: fn() -> Command) {
    for (family, export) in EXPORTS {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(family);
        let golden = Golden::load(&fixture.join("golden"));
        let original = fixture.join(export).join("unet.onnx");
        let folder = tempfile::tempdir().unwrap();
        let place = |case| Place { folder: folder.path(), case, golden: &golden };
        let dense = place("dense").run(&original, client(), version);
        for case in CASES {
            let plan = folder.path().join("plan.yaml");
            fs::write(&plan, golden.case(case)["plan"].to_string()).unwrap();
            let fused = folder.path().join("unet.onnx");
            let compiled = Command::new(cargo_bin("crdiff-compile"))
                .arg(&original)
                .arg(&plan)
                .args(["--emit", "fused", "--quiet", "-o"])
                .arg(&fused)
                .output()
                .unwrap();
            assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
            let described = place(case).run(&fused, client(), version);
            assert_eq!(
                described, dense,
                "{family}/{export} {case}: not the inputs and outputs of the original"
            );
        }
    }
}

/// A folder of goldens; `fixtures/README.md` says what is in it.
struct Golden {
    index: Value,
    inputs: BTreeMap<String, HostTensor>,
    outputs: BTreeMap<String, HostTensor>,
}

impl Golden {
    fn load(folder: &Path) -> Self {
        let npz = |name: &str| io::read_npz(&folder.join(name)).unwrap().into_iter().collect();
        let index = serde_json::from_str(&fs::read_to_string(folder.join("index.json")).unwrap()).unwrap();
        Self { index, inputs: npz("inputs.npz"), outputs: npz("outputs.npz") }
    }

    fn case(&self, name: &str) -> &Value {
        self.index["cases"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap()
    }
}

/// Where a client finds the inputs of a case and leaves its outputs.
struct Place<'a> {
    folder: &'a Path,
    case: &'a str,
    golden: &'a Golden,
}

impl Place<'_> {
    /// Has the client run `model` at the first two sizes of the case, and compares with torch. Returns what the client
    /// says of the model.
    fn run(&self, model: &Path, mut client: Command, version: &str) -> Value {
        let sizes: Vec<(&String, &Value)> =
            self.golden.case(self.case)["outputs"].as_object().unwrap().iter().take(2).collect();
        assert_eq!(sizes.len(), 2);
        let runs: Vec<Value> = sizes
            .iter()
            .map(|(size, _)| json!({ "inputs": self.inputs(size), "output": self.output(size) }))
            .collect();
        let request = self.folder.join("request.json");
        fs::write(&request, json!({ "model": model, "runs": runs }).to_string()).unwrap();
        let ran = client.arg(&request).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{client:?}, {}: {}\n{said}", self.case, ran.status);
        for (size, key) in sizes {
            let bytes = fs::read(self.output(size)).unwrap();
            let found: Vec<f32> =
                bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
            let expected = self.golden.outputs[key.as_str().unwrap()].to_f32();
            let difference = of_range(&found, &expected);
            assert!(difference <= TOLERANCE, "{} at {size}: off by {difference:e} of the range", self.case);
        }
        let described: Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!(described["version"], version, "another release answered");
        described
    }

    /// Writes the inputs of a size; returns their description.
    fn inputs(&self, size: &str) -> Value {
        let prefix = format!("{size}/");
        let described = self.golden.inputs.iter().filter_map(|(key, tensor)| {
            let name = key.strip_prefix(&prefix)?;
            let file = self.folder.join(format!("{size}-{name}.bin"));
            fs::write(&file, tensor.to_le_bytes()).unwrap();
            let kind = match tensor.data_type().name().as_str() {
                "float" => "float32".to_string(),
                other => other.to_string(),
            };
            Some((name.to_string(), json!({ "type": kind, "dims": tensor.dims(), "file": file })))
        });
        Value::Object(described.collect())
    }

    fn output(&self, size: &str) -> PathBuf {
        self.folder.join(format!("{size}.out"))
    }
}
