//! The fixture pipelines, their goldens, and a folder to compile into.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crdiff::{
    compile::{Job, Target, compile_file},
    engine::{Engine, HostTensor, OrtEngine, RtenEngine, io::read_npz},
    onnx::WeightPolicy,
    plan,
};
use serde_json::Value;

use crate::common::ort::ort_library;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    OnnxRuntime,
    Rten,
}

impl Runner {
    pub fn engine(self) -> Box<dyn Engine> {
        match self {
            Self::OnnxRuntime => Box::new(OrtEngine::open(&ort_library()).unwrap()),
            Self::Rten => Box::new(RtenEngine),
        }
    }
}

pub fn pipelines() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pipelines")
}

/// `golden/index.json` and `golden/golden.npz`.
pub struct Golden {
    pub index: Value,
    tensors: Vec<(String, HostTensor)>,
}

impl Golden {
    pub fn open(name: &str) -> Self {
        Self::in_folder(&pipelines().join(name).join("golden"))
    }

    pub fn in_folder(folder: &Path) -> Self {
        let index = serde_json::from_str(&fs::read_to_string(folder.join("index.json")).unwrap()).unwrap();
        Self { index, tensors: read_npz(&folder.join("golden.npz")).unwrap() }
    }

    pub fn tensor(&self, name: &str) -> &HostTensor {
        &self.tensors.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name}")).1
    }
}

/// The plan of the goldens: CR-Diff's rule at the goldens' ratios.
pub fn plan(index: &Value) -> plan::Plan {
    plan::parse("plan.yaml", &format!("version: 1\ncrdiff: {}", index["prune"])).unwrap()
}

/// A pipeline in a folder of its own, with `pruned.onnx` compiled beside it.
pub struct Prepared {
    _folder: tempfile::TempDir,
    pub pipeline: PathBuf,
    pub pruned: PathBuf,
}

pub fn prepare(name: &str) -> Prepared {
    prepare_with(name, &plan(&Golden::open(name).index))
}

/// The same, with another plan.
pub fn prepare_with(name: &str, plan: &plan::Plan) -> Prepared {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = folder.path().join("pipeline");
    if name == "lcm" {
        // Only its UNet and scheduler differ.
        copy(&pipelines().join("sd15"), &pipeline);
    }
    copy(&pipelines().join(name), &pipeline);
    let pruned = folder.path().join("pruned.onnx");
    compile(&pipeline, plan, Target::Pruned, &pruned);
    Prepared { _folder: folder, pipeline, pruned }
}

/// Compiles the UNet of a pipeline.
pub fn compile(pipeline: &Path, plan: &plan::Plan, target: Target, output: &Path) {
    let model = pipeline.join("unet/model.onnx");
    let job = Job::new(&model, plan).target(target).output(output).weights(WeightPolicy::Copy);
    compile_file(&job, &()).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true if entry.file_name() == "golden" => {}
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}
