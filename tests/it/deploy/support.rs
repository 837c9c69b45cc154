//! Fixtures, goldens, and configurations as Triton reads them.

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crdiff::{
    compile::{self, Target, compile_file},
    deploy::DeployError,
    deploy::triton::{Accelerator, Devices, Entry, Served, Serving, TritonJob, export},
    engine::{Engine, HostTensor, Optimization, OrtEngine, Session, SessionOptions, io},
    onnx::WeightPolicy,
    plan,
};
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;

use crate::common::{node, ort::ort_library};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn fixture(path: &str) -> PathBuf {
    root().join("fixtures").join(path)
}

/// A batch for 8 rows, wherever there is a device.
pub fn serving() -> Serving {
    Serving {
        max_batch: 8,
        queue_delay: None,
        devices: Devices::Any,
        instances: 1,
        accelerator: Accelerator::None,
    }
}

/// Exports models to a repository.
pub fn export_to(
    repository: &Path,
    models: &[(&str, &Path)],
    serving: &Serving,
) -> Result<Vec<Served>, DeployError> {
    let entry = |(name, model): &(&str, &Path)| Entry { name: name.to_string(), model: model.to_path_buf() };
    let entries: Vec<Entry> = models.iter().map(entry).collect();
    export(&TritonJob { entries: &entries, pipeline: None, serving, repository, observer: &() })
}

/// Triton's schema.
fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let folder = root().join("proto/triton");
        let files = protox::compile(["model_config.proto"], [folder]).unwrap();
        DescriptorPool::from_file_descriptor_set(files).unwrap()
    })
}

/// The `config.pbtxt` of a model, parsed by Triton's schema: unknown fields and wrong types are errors.
pub fn config(repository: &Path, model: &str) -> Value {
    let text = fs::read_to_string(repository.join(model).join("config.pbtxt")).unwrap();
    let descriptor = pool().get_message_by_name("inference.ModelConfig").unwrap();
    let message = DynamicMessage::parse_text_format(descriptor, &text)
        .unwrap_or_else(|error| panic!("{model}: {error:?}\n{text}"));
    serde_json::to_value(&message).unwrap()
}

/// 64-bit numbers are strings in protobuf's JSON.
pub fn numbers(list: &Value) -> Vec<i64> {
    let number = |value: &Value| value.as_str().unwrap().parse().unwrap();
    list.as_array().into_iter().flatten().map(number).collect()
}

/// An input or output of a configuration.
pub fn port<'a>(config: &'a Value, key: &str, name: &str) -> &'a Value {
    config[key].as_array().unwrap().iter().find(|port| port["name"] == name).unwrap()
}

pub fn session(model: &Path) -> Box<dyn Session> {
    static ENGINE: OnceLock<OrtEngine> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| OrtEngine::open(&ort_library()).unwrap());
    // Small networks load longer than they run.
    let options =
        SessionOptions::default().intra_threads(NonZeroUsize::new(1)).optimization(Optimization::Disabled);
    engine.load(model, &options).unwrap()
}

/// Python with onnxruntime and numpy, about to run a script of `python/`.
pub fn python(script: &str) -> Command {
    let mut command = Command::new(node::python());
    command.env("PYTHONPATH", node::python_packages()).arg(root().join("tests/deploy/python").join(script));
    command
}

/// The first output for these inputs.
pub fn run(session: &mut dyn Session, inputs: &[(String, HostTensor)]) -> HostTensor {
    let inputs: Vec<(&str, &HostTensor)> =
        inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    session.run(&inputs, None).unwrap().swap_remove(0).1
}

/// A folder of goldens; `fixtures/README.md` says what is in it.
pub struct Golden {
    pub index: Value,
    inputs: BTreeMap<String, HostTensor>,
    pub outputs: BTreeMap<String, HostTensor>,
}

impl Golden {
    pub fn open(family: &str) -> Self {
        let folder = fixture(family).join("golden");
        let npz = |name: &str| io::read_npz(&folder.join(name)).unwrap().into_iter().collect();
        let index = serde_json::from_str(&fs::read_to_string(folder.join("index.json")).unwrap()).unwrap();
        Self { index, inputs: npz("inputs.npz"), outputs: npz("outputs.npz") }
    }

    /// The inputs at a size, by name.
    pub fn inputs(&self, size: &str) -> Vec<(String, HostTensor)> {
        let prefix = format!("{size}/");
        let named = |(key, tensor): (&String, &HostTensor)| {
            Some((key.strip_prefix(&prefix)?.to_string(), tensor.clone()))
        };
        self.inputs.iter().filter_map(named).collect()
    }

    /// torch's output of a case at a size.
    pub fn output(&self, case: &str, size: &str) -> &HostTensor {
        let case = self.index["cases"].as_array().unwrap().iter().find(|c| c["name"] == case).unwrap();
        &self.outputs[case["outputs"][size].as_str().unwrap()]
    }
}

/// Compiles `model` by CR-Diff's rule, with its weights, into `output`; returns the plan.
pub fn compiled(model: &Path, target: Target, output: &Path) -> plan::Plan {
    let plan = plan::parse("plan.yaml", "version: 1\ncrdiff: { down: 0.3, mid: 0.3, up: 0.3 }").unwrap();
    compiled_by(&plan, model, target, output);
    plan
}

/// Compiles `model` by `plan`, with its weights, into `output`.
pub fn compiled_by(plan: &plan::Plan, model: &Path, target: Target, output: &Path) {
    let job = compile::Job::new(model, plan).target(target).output(output).weights(WeightPolicy::Copy);
    compile_file(&job, &()).unwrap();
}
