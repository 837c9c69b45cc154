//! Compiling and verifying in a temporary folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crdiff::{
    compile::{CompileError, Job, Target, compile_file},
    ir::Graph,
    onnx::{self, WeightPolicy},
    passes::MaskForm,
    plan::{self, Plan},
    verify::conformance::{Verdict, verify},
};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// A copy of an exported model with its data, in a folder that goes away with it.
pub struct Model {
    folder: tempfile::TempDir,
}

impl Model {
    /// Copies `fixtures/<name>`.
    pub fn copy(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&fixtures().join(name), folder.path());
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("unet.onnx")
    }

    pub fn load(&self) -> Graph {
        load(&self.path())
    }

    /// Compiles `plan` to a pruned graph in a file of its own.
    pub fn compile(&self, plan: &Plan, policy: Weights) -> Result<PathBuf, CompileError> {
        self.compile_to(Target::Pruned, plan, policy)
    }

    /// Compiles `plan` to `target`.
    pub fn compile_to(&self, target: Target, plan: &Plan, policy: Weights) -> Result<PathBuf, CompileError> {
        let output = match policy {
            Weights::Share | Weights::Compact => self.folder.path().join("compiled.onnx"),
            Weights::Copy => {
                let other = self.folder.path().join("elsewhere");
                fs::create_dir_all(&other).unwrap();
                other.join("compiled.onnx")
            }
        };
        let model = self.path();
        let (weights, masks) = match policy {
            Weights::Share => (WeightPolicy::Share, MaskForm::Stored),
            Weights::Copy => (WeightPolicy::Copy, MaskForm::Stored),
            Weights::Compact => (WeightPolicy::Share, MaskForm::Computed),
        };
        let job = Job::new(&model, plan).target(target).output(&output).weights(weights).masks(masks);
        compile_file(&job, &())?;
        Ok(output)
    }
}

/// Where the weights of a compiled model are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    Share,
    Copy,
    Compact,
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub fn load(path: &Path) -> Graph {
    Graph::load(onnx::open(path).unwrap()).unwrap()
}

pub fn plan(text: &str) -> Plan {
    plan::parse("plan.yaml", text).unwrap()
}

/// Verifies the files.
pub fn verdict(original: &Path, compiled: &Path, plan: &Plan) -> Verdict {
    verdict_of(&load(original), compiled, plan)
}

/// Verifies a file against a graph that is loaded.
pub fn verdict_of(original: &Graph, compiled: &Path, plan: &Plan) -> Verdict {
    verify(original, &load(compiled), plan, None, &()).unwrap()
}
