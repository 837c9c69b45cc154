//! A folder of goldens, and what it takes to compare a compiled graph with them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crdiff::{
    analysis::Analysis,
    compile::{Job, Target, compile_file},
    engine::{Engine, HostTensor, Optimization, OrtEngine, RtenEngine, Session, SessionOptions, io},
    ir::Graph,
    onnx, plan,
    report::CompileReport,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{common::ort::ort_library, golden::prune};

pub struct Family {
    pub name: String,
    pub golden: PathBuf,
    pub cases: Vec<Case>,
    pub json: Value,
    inputs: BTreeMap<String, HostTensor>,
    outputs: BTreeMap<String, HostTensor>,
}

pub struct Case {
    pub name: String,
    pub kind: String,
    pub json: Value,
}

pub struct Compiled {
    pub report: CompileReport,
    pub model: PathBuf,
    pub source: PathBuf,
    _folder: TempDir,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn npz(path: &Path) -> BTreeMap<String, HostTensor> {
    match path.exists() {
        true => io::read_npz(path).unwrap().into_iter().collect(),
        false => BTreeMap::new(),
    }
}

impl Family {
    pub fn load(name: &str, golden: &str) -> Self {
        let golden = fixtures().join(name).join(golden);
        let text = fs::read_to_string(golden.join("index.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let cases: Vec<Case> = json["cases"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| Case {
                name: c["name"].as_str().unwrap().to_string(),
                kind: c["kind"].as_str().unwrap().to_string(),
                json: c.clone(),
            })
            .collect();
        assert!(!cases.is_empty());
        Self {
            name: name.to_string(),
            cases,
            json,
            inputs: npz(&golden.join("inputs.npz")),
            outputs: npz(&golden.join("outputs.npz")),
            golden,
        }
    }

    fn model(&self, export: &str) -> PathBuf {
        fixtures().join(&self.name).join(export).join("unet.onnx")
    }

    /// Compiles the case's plan into a folder of its own. The weights are copied there, so that nothing is written
    /// among the fixtures.
    pub fn compile(&self, case: &Case, export: &str, target: Target) -> Compiled {
        let plan = case.json["plan"].clone();
        let plan =
            plan::parse(&case.name, &plan.to_string()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let folder = TempDir::new().unwrap();
        let output = folder.path().join("unet.onnx");
        let source = self.model(export);
        let job = Job::new(&source, &plan).target(target).output(&output);
        let report =
            compile_file(&job, &()).unwrap_or_else(|e| panic!("{} {export} {}: {e}", self.name, case.name));
        Compiled { report, model: output, source, _folder: folder }
    }

    fn run(&self, session: &mut dyn Session, size: &str) -> HostTensor {
        let inputs: Vec<(String, HostTensor)> = session
            .inputs()
            .iter()
            .map(|info| {
                let tensor = &self.inputs[&format!("{size}/{}", info.name)];
                (info.name.clone(), tensor.cast(info.data_type).unwrap())
            })
            .collect();
        let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        session.run(&inputs, None).unwrap().remove(0).1
    }
}

/// Loads the graph as it was written: the engine's own optimizer would only make loading thousands of graphs slow.
fn load(model: &Path, engine: &dyn Engine) -> Box<dyn Session> {
    let options = SessionOptions::default()
        .intra_threads(Some(1.try_into().unwrap()))
        .optimization(Optimization::Disabled);
    engine.load(model, &options).unwrap()
}

/// Exports whose networks ONNX Runtime runs for one case of eight, and rten for the others. ONNX Runtime takes 0.1 s to
/// load a small export, 1.4 s the largest, and rten a tenth of that; it runs all cases on the family's `dynamo` export.
const MOSTLY_RTEN: [&str; 9] = [
    "torchscript",
    "nofold",
    "wrapped",
    "wrapped-dynamo",
    "slim",
    "simplified",
    "simplified-dynamo",
    "ort-basic",
    "split",
];

/// Returns the engine that runs case `index` on `export`. rten has no cubic Resize.
fn engine(family: &Family, export: &str, index: usize) -> Box<dyn Engine> {
    let is_cubic = family.cases[index].json["plan"].to_string().contains("cubic");
    match MOSTLY_RTEN.contains(&export) && !index.is_multiple_of(8) && !is_cubic {
        true => Box::new(RtenEngine),
        false => Box::new(OrtEngine::open(&ort_library()).unwrap()),
    }
}

/// Compiles a case and runs it at all its sizes: which it is, and how far the output is from torch's.
fn differences(family: &Family, index: usize, export: &str) -> Vec<(String, f32)> {
    let case = &family.cases[index];
    let compiled = family.compile(case, export, case.target());
    if case.kind != "dense" && !case.is_identity() {
        let [model, source] = [&compiled.model, &compiled.source].map(|path| fs::read(path).unwrap());
        assert_ne!(model, source, "{}", case.name);
    }
    prune::check(family, case, &compiled);
    let sizes = case.json["outputs"].as_object().into_iter().flatten();
    let mut session = None;
    sizes
        .filter(|(size, _)| family.runs_at(case, export, size))
        .map(|(size, key)| {
            let session =
                session.get_or_insert_with(|| load(&compiled.model, engine(family, export, index).as_ref()));
            let output = family.run(session.as_mut(), size).to_f32();
            let expected = family.outputs[key.as_str().unwrap()].to_f32();
            (format!("{} at {size}", case.name), relative_difference(&output, &expected))
        })
        .collect()
}

/// Compiles and runs every case of `family` on `export`, as many at once as there are processors; fails with all that are off.
pub fn check(family: &Family, export: &str, tolerance: f32) {
    let next = AtomicUsize::new(0);
    let work = || -> Vec<(String, f32)> {
        let indices = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        let indices = indices.take_while(|index| *index < family.cases.len());
        indices.flat_map(|index| differences(family, index, export)).collect()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let differences: Vec<(String, f32)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let compared = differences.len();
    let worst = differences.iter().map(|(_, difference)| *difference).fold(0.0, f32::max);
    let failures: Vec<String> = differences
        .into_iter()
        .filter(|(_, difference)| difference.is_nan() || *difference > tolerance)
        .map(|(what, difference)| format!("{what}: off by {difference:e}"))
        .collect();
    println!("{}/{export}: {compared} outputs compared, worst {worst:e}", family.name);
    assert!(compared > 0 || family.outputs.is_empty());
    assert!(failures.is_empty(), "{}/{export}:\n{}", family.name, failures.join("\n"));
}

/// Checks that what the case is compiled to gives the same bytes at `size` as the export does.
pub fn check_unchanged(family: &Family, export: &str, engine: &dyn Engine, name: &str, size: &str) {
    let case = family.cases.iter().find(|case| case.name == name).unwrap();
    let compiled = family.compile(case, export, Target::Pruned);
    let [ours, dense] = [&compiled.model, &compiled.source].map(|model| {
        let output = family.run(load(model, engine).as_mut(), size).to_f32();
        output.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    });
    assert_eq!(ours, dense, "{export}");
}

impl Family {
    /// Odd sizes are for the dense model, and only where the exported graph itself can run them.
    fn runs_at(&self, case: &Case, export: &str, size: &str) -> bool {
        if case.kind != "dense" {
            return true;
        }
        let checks = self.json["export_check"].as_array().unwrap();
        let check = checks.iter().find(|c| c["export"] == export);
        check.is_some_and(|c| c["difference"][size].is_number() || c["max_difference"][size].is_number())
            || !size.contains("18x10")
    }
}

impl Case {
    /// The graph whose output torch's is: of an amplified case the fused one, or the one with amplified weights.
    fn target(&self) -> Target {
        match (self.kind.as_str(), self.json["plan"]["amplify"]["mode"].as_str()) {
            ("amplified", Some("weights")) => Target::Amplified,
            ("amplified", _) => Target::Fused,
            _ => Target::Pruned,
        }
    }

    /// Whether the plan asks for nothing (a ratio of 0).
    fn is_identity(&self) -> bool {
        self.json["max_change"] == 0.0
    }
}

fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(1f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| if (a - b).is_nan() { f32::NAN } else { m.max((a - b).abs()) })
        / scale
}

pub fn check_bypassable(family: &Family, export: &str) {
    let graph = Graph::load(onnx::open(family.model(export)).unwrap()).unwrap();
    let analysis = Analysis::of(&graph);
    let candidates = analysis.modules.iter().filter(|(id, _)| analysis.is_candidate(*id));
    let mut found: Vec<&str> = candidates.map(|(_, module)| module.path.as_str()).collect();
    let mut expected: Vec<&str> =
        family.json["bypassable"].as_array().unwrap().iter().map(|b| b["module"].as_str().unwrap()).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{}/{export}", family.name);
}
