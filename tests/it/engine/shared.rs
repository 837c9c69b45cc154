//! Graphs that share weights with a file which becomes another one: no engine runs them, though each would read whatever
//! lies there now. A file that is copied, touched or linked is the same.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crdiff::{
    compile::{Job, compile_file},
    engine::{Engine, OrtEngine, RtenEngine, SessionOptions},
    onnx::{WeightPolicy, open_with_weights},
    plan,
};

use crate::common::{
    edit::{decode, fixture, save},
    ort::ort_library,
};

const PLAN: &str = "version: 1\nrules: [{ bypass: mid_block.attentions.0 }]";

/// A graph in a folder with the model whose weights it shares: the file with the weights, and the graph.
struct Beside {
    folder: tempfile::TempDir,
    weights: PathBuf,
    graph: PathBuf,
}

fn shared(model: &Path) -> Beside {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("unet.onnx");
    fs::copy(model, &copy).unwrap();
    let data = model.with_extension("onnx.data");
    let mut weights = copy.clone();
    if data.exists() {
        weights = folder.path().join("unet.onnx.data");
        fs::copy(data, &weights).unwrap();
    }
    let (plan, graph) = (plan::parse("plan.yaml", PLAN).unwrap(), folder.path().join("out.onnx"));
    compile_file(&Job::new(&copy, &plan).output(&graph).weights(WeightPolicy::Share), &()).unwrap();
    Beside { folder, weights, graph }
}

/// Returns what the engine that is always there says of a graph.
fn refusal(graph: &Path) -> Option<String> {
    RtenEngine.load(graph, &SessionOptions::default()).err().map(|error| error.to_string())
}

/// Returns offset and length of a tensor that the graph shares.
fn shared_tensor(graph: &Path) -> [usize; 2] {
    let graph = decode(graph).graph.unwrap();
    let entries = graph.initializer.iter().find(|tensor| !tensor.external_data.is_empty());
    let entries = &entries.unwrap().external_data;
    ["offset", "length"].map(|key| entries.iter().find(|e| e.key() == key).unwrap().value().parse().unwrap())
}

#[test]
fn other_weights_are_noticed() {
    for model in ["sd15-mini/torchscript", "sd15-mini/dynamo"] {
        let Beside { folder: _folder, weights, graph } = shared(&fixture(model));
        assert_eq!(refusal(&graph), None, "{model}");
        let original = fs::read(&weights).unwrap();
        let [offset, length] = shared_tensor(&graph);
        let (mut first, mut last, mut moved) = (original.clone(), original.clone(), original.clone());
        first[offset] ^= 1;
        last[offset + length - 1] ^= 1;
        moved.rotate_right(4);
        let longer = [&original[..offset], &[0; 16], &original[offset..]].concat();
        let shorter = original[..offset + length / 2].to_vec();
        let is_there = |name: &str| name.ends_with(weights.file_name().unwrap().to_str().unwrap());
        let cases = [
            ("the first byte", first, "are not those"),
            ("the last byte", last, "are not those"),
            ("other places", moved, "are not those"),
            ("a longer file", longer, "are not those"),
            ("a shorter file", shorter, "does not have the weights"),
        ];
        for (what, bytes, expected) in cases {
            fs::write(&weights, bytes).unwrap();
            let error = refusal(&graph).unwrap_or_else(|| panic!("{model}: {what} is not noticed"));
            assert!(error.contains(expected) && error.contains("--weights copy"), "{model}, {what}: {error}");
            assert!(error.split(": ").any(is_there), "{model}, {what}: {error}");
        }
        fs::remove_file(&weights).unwrap();
        let error = refusal(&graph).unwrap();
        assert!(error.contains("does not have the weights"), "{model}: {error}");
        fs::write(&weights, original).unwrap();
        assert_eq!(refusal(&graph), None, "{model}");
    }
}

#[test]
fn onnxruntime_alone_would_run_them() {
    let Beside { folder: _folder, weights, graph } = shared(&fixture("sd15-mini/torchscript"));
    let mut bytes = fs::read(&weights).unwrap();
    let [offset, _] = shared_tensor(&graph);
    bytes[offset] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let engine = OrtEngine::open(&ort_library()).unwrap();
    let error = engine.load(&graph, &SessionOptions::default()).err().unwrap().to_string();
    assert!(error.contains("are not those"), "{error}");
    // Without the samples nothing is noticed.
    let mut model = decode(&graph);
    model.metadata_props.retain(|entry| entry.key() != "crdiff.shared");
    let unmarked = save(&model, graph.parent().unwrap(), "unmarked.onnx");
    engine.load(&unmarked, &SessionOptions::default()).unwrap();
}

#[test]
fn the_same_weights_elsewhere_are_the_same() {
    for model in ["sd15-mini/torchscript", "sd15-mini/dynamo"] {
        let Beside { folder, weights, graph } = shared(&fixture(model));
        let check = |graph: &Path| drop(open_with_weights(graph).unwrap());
        fs::File::options().write(true).open(&weights).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        check(&graph);
        let elsewhere = tempfile::tempdir().unwrap();
        for file in fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), elsewhere.path().join(file.file_name())).unwrap();
        }
        check(&elsewhere.path().join("out.onnx"));
        // As in a download cache.
        let links = tempfile::tempdir().unwrap();
        for file in [&graph, &weights] {
            std::os::unix::fs::symlink(file, links.path().join(file.file_name().unwrap())).unwrap();
        }
        check(&links.path().join("out.onnx"));
        // Another program has put the weights inside.
        let mut inside = decode(&graph);
        for tensor in &mut inside.graph.as_mut().unwrap().initializer {
            let length = tensor.external_data.iter().find(|entry| entry.key() == "length");
            if let Some(length) = length.map(|entry| entry.value().parse().unwrap()) {
                tensor.raw_data = Some(vec![0; length].into());
            }
            (tensor.external_data, tensor.data_location) = (Vec::new(), None);
        }
        fs::remove_file(&weights).unwrap();
        check(&save(&inside, folder.path(), "inside.onnx"));
    }
}

#[test]
fn a_copy_says_nothing_of_files() {
    let Beside { folder, graph, .. } = shared(&fixture("sd15-mini/torchscript"));
    let states = |path: &Path| decode(path).metadata_props.iter().any(|entry| entry.key() == "crdiff.shared");
    assert!(states(&graph));
    let (plan, copy) = (plan::parse("plan.yaml", PLAN).unwrap(), folder.path().join("copy.onnx"));
    let again =
        plan::parse("plan.yaml", "version: 1\nrules: [{ bypass: down_blocks.0.attentions.0 }]").unwrap();
    for (model, plan) in [(&folder.path().join("unet.onnx"), &plan), (&graph, &again)] {
        compile_file(&Job::new(model, plan).output(&copy).weights(WeightPolicy::Copy), &()).unwrap();
        assert!(!states(&copy));
    }
}
