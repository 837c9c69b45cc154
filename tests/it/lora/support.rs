//! Compiling fixtures with LoRA files, and reading weights in torch's order.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crdiff::{
    analysis::{
        modules,
        weights::{self, MatrixLayout},
    },
    compile::{Job, Target, compile_file},
    ir::Graph,
    onnx::{self, WeightPolicy},
    plan::{self, Plan, PlanError},
    report::CompileReport,
    verify::conformance::{Verdict, verify},
};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

pub fn lora(name: &str) -> PathBuf {
    fixtures().join("lora").join(name)
}

/// A folder with a copy of a model, and what is compiled from it.
pub struct Folder {
    folder: tempfile::TempDir,
    pub model: PathBuf,
}

impl Folder {
    /// Copies the model (and the data beside it) at `path` of the fixtures.
    pub fn of(path: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let from = fixtures().join(path);
        for entry in fs::read_dir(from.parent().unwrap()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Self { model: folder.path().join(from.file_name().unwrap()), folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Reads a plan in the folder.
    pub fn plan(&self, text: &str) -> Result<Plan, PlanError> {
        let path = self.path().join("plan.yaml");
        fs::write(&path, text).unwrap();
        plan::load(path)
    }

    /// A plan that merges the file with these keys, in both networks.
    pub fn always(&self, keys: &str) -> Plan {
        self.plan(&format!("version: 1\nalways: [{{ lora: {{ {keys} }} }}]")).unwrap()
    }

    pub fn compile(&self, plan: &Plan, target: Target) -> (PathBuf, CompileReport) {
        let output = self.path().join(format!("{}.onnx", target.name()));
        let job = Job::new(&self.model, plan).target(target).output(&output).weights(WeightPolicy::Share);
        let report = compile_file(&job, &()).unwrap_or_else(|error| panic!("{error}: {error:?}"));
        (output, report)
    }

    pub fn verdict(&self, compiled: &Path, plan: &Plan) -> Verdict {
        verify(&load(&self.model), &load(compiled), plan, None, &()).unwrap()
    }

    /// Compiles and proves.
    pub fn proven(&self, plan: &Plan, target: Target) -> PathBuf {
        let (output, _) = self.compile(plan, target);
        let verdict = self.verdict(&output, plan);
        assert!(verdict.is_proven(), "{:#?}", verdict.differences);
        output
    }
}

pub fn load(path: &Path) -> Graph {
    Graph::load(onnx::open(path).unwrap()).unwrap()
}

/// The bytes of a module's weight as torch flattens them: outputs first.
pub fn in_torch_order(path: &Path, module: &str) -> Vec<u8> {
    let graph = load(path);
    let weights = weights::weights(&graph, &modules::modules(&graph));
    let weight = weights.editable.iter().find(|w| w.path == module).unwrap();
    let header = &graph.initializer(weight.initializer).unwrap().header;
    let reader = graph.weight_reader(header).unwrap();
    let mut bytes = vec![0; reader.len() as usize];
    reader.read_at(0, &mut bytes).unwrap();
    match weight.layout {
        MatrixLayout::OutputFirst => bytes,
        MatrixLayout::InputFirst => {
            let size = (header.data_type.bits().unwrap() / 8) as usize;
            let (inputs, outputs) = (header.dims[0] as usize, header.dims[1] as usize);
            let places = (0..outputs).flat_map(|o| (0..inputs).map(move |i| (i * outputs + o) * size));
            places.flat_map(|at| bytes[at..at + size].to_vec()).collect()
        }
    }
}
