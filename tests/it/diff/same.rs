//! Equal graphs, and what the digests ignore.

use std::{fs, path::Path};

use bytes::Bytes;
use crdiff::{
    onnx::proto::{ModelProto, StringStringEntryProto, attribute_proto::AttributeType},
    verify::structure::WeightComparison,
};

use crate::{
    common::{
        edit::{changed, decode, fixture, nudge, save},
        onnx_text::parse_model,
    },
    diff::{
        compared, digest,
        rearrange::{node, rename_and_reorder},
    },
};

const EXPORTS: [&str; 8] = [
    "sd15/torchscript",
    "sd15/dynamo",
    "sd21/torchscript",
    "sdxl/dynamo",
    "ldm/torchscript",
    "sd3/dynamo",
    "sd15-mini/torchscript",
    "sd15-mini/dynamo-bf16",
];

#[test]
fn a_model_and_itself() {
    for export in EXPORTS {
        let path = fixture(export);
        for weights in [WeightComparison::Compared, WeightComparison::Ignored] {
            let diff = compared(&path, &path, weights);
            assert!(diff.is_same() && diff.matched == diff.nodes_a, "{export}: {:?}", diff.differences);
        }
    }
}

#[test]
fn names_and_order_do_not_count() {
    for export in EXPORTS {
        let path = fixture(export);
        let folder = tempfile::tempdir().unwrap();
        let copy = changed(&path, folder.path(), rename_and_reorder);
        for weights in [WeightComparison::Compared, WeightComparison::Ignored] {
            let diff = compared(&path, &copy, weights);
            assert!(diff.is_same(), "{export} {weights:?}: {:?}", diff.differences);
        }
        assert_eq!(digest(&path), digest(&copy), "{export}");
    }
}

/// The exporter wrote the network once by itself and once inside of another module, and onnx moved its weights to other
/// files.
#[test]
fn other_exports_of_the_same_network() {
    for (a, b) in [
        ("sd15-mini/torchscript", "sd15-mini/wrapped"),
        ("sd15-mini/dynamo", "sd15-mini/wrapped-dynamo"),
        ("sd15-mini/torchscript", "sd15-mini/split"),
    ] {
        let diff = compared(&fixture(a), &fixture(b), WeightComparison::Compared);
        assert!(diff.is_same(), "{a}, {b}: {:?}", diff.differences);
        assert_eq!(digest(&fixture(a)), digest(&fixture(b)), "{a}, {b}");
    }
}

#[test]
fn where_weights_are_kept_does_not_count() {
    let path = fixture("sd15-mini/dynamo");
    let folder = tempfile::tempdir().unwrap();
    let data = Bytes::from(fs::read(path.with_extension("onnx.data")).unwrap());
    let mut model = decode(&path);
    let mut moved = 0;
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key() == key).map(|e| e.value());
        if let (Some(offset), Some(length)) = (entry("offset"), entry("length")) {
            let (offset, length): (usize, usize) = (offset.parse().unwrap(), length.parse().unwrap());
            tensor.raw_data = Some(data.slice(offset..offset + length));
            tensor.external_data.clear();
            tensor.data_location = None;
            moved += 1;
        }
    }
    assert!(moved > 50, "only {moved} tensors were external");
    let inline = save(&model, folder.path(), "inline.onnx");
    assert_eq!(digest(&path), digest(&inline));
    assert!(compared(&path, &inline, WeightComparison::Compared).is_same());
}

#[test]
fn digests_tell_weights_from_structure() {
    let path = fixture("sd15-mini/torchscript");
    let folder = tempfile::tempdir().unwrap();
    let before = digest(&path);
    let other_weight = changed(&path, folder.path(), |g| nudge(g, "conv_in.weight", 3, 0.5));
    let after = digest(&other_weight);
    assert_eq!(before.structure, after.structure);
    assert_ne!(before.weights, after.weights);
    assert!(compared(&path, &other_weight, WeightComparison::Ignored).is_same());
    assert!(!compared(&path, &other_weight, WeightComparison::Compared).is_same());

    let other_stride = changed(&path, folder.path(), |g| {
        let conv = node(g, "/down_blocks.0/downsamplers.0/conv/Conv");
        conv.attribute.iter_mut().find(|a| a.name() == "strides").unwrap().ints[0] = 1;
    });
    let after = digest(&other_stride);
    assert_ne!(before.structure, after.structure);
    assert_ne!(before.weights, after.weights);
}

/// Digests that were written down somewhere must not change with a new version of this crate.
#[test]
fn digests_stay_what_they_are() {
    let found = digest(&fixture("sd15-mini/torchscript"));
    assert_eq!(found.structure, "d2ad772efec4ea0c4d2b11b4cf2b4e0ae5168500674f22a7019a04afb9cf496d");
    assert_eq!(found.weights, "94b6191ec3f78a469d2f1ae7c145478f40bdeb410461b28b41f6bd5afc6aab5c");
}

fn saved(text: &str, folder: &Path, name: &str) -> std::path::PathBuf {
    save(&parse_model(text).unwrap(), folder, name)
}

const BRANCHES: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
g (bool c, float[2] x) => (float[2] y) {
  a = Relu(x)
  b = Neg(x)
  y = If(c) <
    then_branch = t () => (float[2] p) { p = Exp(a) },
    else_branch = e () => (float[2] q) { r = Abs(b)  q = Add(r, x) }
  >
}"#;

#[test]
fn subgraphs_count_by_what_they_compute() {
    let folder = tempfile::tempdir().unwrap();
    let original = saved(BRANCHES, folder.path(), "a.onnx");
    let renamed = BRANCHES
        .replace("a = Relu", "first = Relu")
        .replace("Exp(a)", "Exp(first)")
        .replace("r = Abs", "inner = Abs")
        .replace("Add(r,", "Add(inner,");
    let renamed = saved(&renamed, folder.path(), "b.onnx");
    assert!(compared(&original, &renamed, WeightComparison::Compared).is_same());
    assert_eq!(digest(&original), digest(&renamed));
    for (name, from, to) in [("body", "Abs(b)", "Sqrt(b)"), ("capture", "Abs(b)", "Abs(a)")] {
        let other = saved(&BRANCHES.replace(from, to), folder.path(), "c.onnx");
        assert!(!compared(&original, &other, WeightComparison::Compared).is_same(), "{name}");
        assert_ne!(digest(&original), digest(&other), "{name}");
    }
}

const CALL: &str = r#"<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
g (float[2] x) => (float[2] y) { y = local.twice(x) }
<domain: "local", opset_import: ["" : 17]>
twice (u) => (v) { v = Add(u, u) }"#;

#[test]
fn functions_count_by_what_they_compute() {
    let folder = tempfile::tempdir().unwrap();
    let original = saved(CALL, folder.path(), "a.onnx");
    let renamed = saved(
        &CALL.replace("(u) => (v) { v = Add(u, u)", "(m) => (n) { n = Add(m, m)"),
        folder.path(),
        "b.onnx",
    );
    assert!(compared(&original, &renamed, WeightComparison::Compared).is_same());
    assert_eq!(digest(&original), digest(&renamed));
    let other = saved(&CALL.replace("Add(u, u)", "Mul(u, u)"), folder.path(), "c.onnx");
    assert!(!compared(&original, &other, WeightComparison::Compared).is_same());
    assert_ne!(digest(&original), digest(&other));
}

#[test]
fn a_constant_node_is_an_initializer() {
    let folder = tempfile::tempdir().unwrap();
    let path = fixture("sd15-mini/torchscript");
    let copy = changed(&path, folder.path(), |graph| {
        let mut moved = Vec::new();
        graph.node.retain(|node| {
            let value = node.attribute.iter().find(|a| a.r#type() == AttributeType::Tensor);
            match (node.op_type(), value.and_then(|a| a.t.clone())) {
                ("Constant", Some(mut tensor)) => {
                    tensor.name = Some(node.output[0].clone());
                    moved.push(tensor);
                    false
                }
                _ => true,
            }
        });
        assert!(moved.len() > 100, "only {} Constant nodes", moved.len());
        graph.initializer.extend(moved.into_iter().map(|tensor| *tensor));
    });
    assert!(compared(&path, &copy, WeightComparison::Compared).is_same());
    assert_eq!(digest(&path), digest(&copy));
}

#[test]
fn what_is_broken_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut model: ModelProto = decode(&fixture("sd15-mini/torchscript"));
    let tensor = &mut model.graph.as_mut().unwrap().initializer[3];
    (tensor.raw_data, tensor.data_location) = (None, Some(1));
    let location = StringStringEntryProto { key: Some("location".into()), value: Some("short".into()) };
    tensor.external_data.push(location);
    fs::write(folder.path().join("short"), "abc").unwrap();
    let broken = save(&model, folder.path(), "broken.onnx");
    let graph = crate::diff::load(&broken);
    let error = crdiff::verify::structure::digests(&graph, &()).unwrap_err().to_string();
    assert!(error.contains("has only 3"), "{error}");
}
