//! Web bundles in onnxruntime-web (its WebAssembly build, in Node) and in onnxruntime-node, against torch.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crdiff::deploy::{DeployError, web};
use serde_json::{Value, json};

use crate::{
    common::{
        node,
        outputs::{of_range, printed},
    },
    deploy::support::{Golden, fixture, root},
};

const TOLERANCE: f32 = 1e-5;
/// Both packages have the same release.
const VERSION: &str = "1.30.0";

fn export(model: &Path, output: &Path, file_limit: u64) -> Result<web::Bundle, DeployError> {
    web::export(&web::WebJob { model, output, file_limit, observer: &() })
}

/// Node, about to run `node/run.js`.
fn client() -> Command {
    node::node_with_packages("deploy-node", &root().join("tests/deploy/node/run.js"))
}

/// Runs a bundle in a package at the first two sizes of the goldens; returns its manifest.
fn check(package: &str, bundle: &Path, golden: &Golden) -> Value {
    let work = tempfile::tempdir().unwrap();
    let sizes: Vec<&str> = golden.index["sizes"]
        .as_array()
        .unwrap()
        .iter()
        .take(2)
        .map(|s| s["name"].as_str().unwrap())
        .collect();
    let run = |size: &&str| {
        let inputs: serde_json::Map<String, Value> = golden
            .inputs(size)
            .into_iter()
            .map(|(name, tensor)| {
                let file = work.path().join(format!("{size}-{name}.bin"));
                fs::write(&file, tensor.to_le_bytes()).unwrap();
                let kind = tensor.data_type().name();
                (name, json!({ "type": kind, "dims": tensor.dims(), "file": file }))
            })
            .collect();
        json!({ "inputs": inputs, "output": work.path().join(format!("{size}.out")) })
    };
    let runs: Vec<Value> = sizes.iter().map(run).collect();
    let request = work.path().join("request.json");
    let folder = format!("{}/", bundle.display());
    fs::write(&request, json!({ "folder": folder, "runs": runs }).to_string()).unwrap();
    let mut command = client();
    command.arg(package).arg(&request);
    let described: Value = serde_json::from_slice(&printed(&mut command)).unwrap();
    assert_eq!(described["version"], VERSION, "another release of {package} answered");
    for size in sizes {
        let bytes = fs::read(work.path().join(format!("{size}.out"))).unwrap();
        let found: Vec<f32> = bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
        let expected = golden.output("dense", size).to_f32();
        let difference = of_range(&found, &expected);
        assert!(difference <= TOLERANCE, "{package} at {size}: off by {difference:e} of the range");
    }
    described["manifest"].clone()
}

#[test]
fn external_data_is_merged_where_it_fits() {
    let work = tempfile::tempdir().unwrap();
    let golden = Golden::open("sd15-mini");
    for export_name in ["dynamo", "split", "torchscript"] {
        let model = fixture("sd15-mini").join(export_name).join("unet.onnx");
        let bundle = work.path().join(export_name);
        let written = export(&model, &bundle, web::FILE_LIMIT).unwrap();
        let names: Vec<String> = written.files.iter().map(|(path, _)| path.display().to_string()).collect();
        assert_eq!(names, [bundle.join("unet.onnx").display().to_string()]);
        assert_eq!(fs::metadata(bundle.join("unet.onnx")).unwrap().len(), written.files[0].1);
        for package in ["onnxruntime-web", "onnxruntime-node"] {
            let manifest = check(package, &bundle, &golden);
            assert_eq!(manifest["externalData"], json!([]));
            let file: Value =
                serde_json::from_str(&fs::read_to_string(bundle.join("manifest.json")).unwrap()).unwrap();
            assert_eq!(manifest, file);
        }
        if export_name == "torchscript" {
            assert_eq!(fs::read(&model).unwrap(), fs::read(bundle.join("unet.onnx")).unwrap());
        }
    }
}

#[test]
fn what_doesnt_fit_is_split() {
    let work = tempfile::tempdir().unwrap();
    let golden = Golden::open("sd15-mini");
    for (export_name, limit, files) in [("simplified-dynamo", 125_000, 3), ("dynamo", 810_000, 2)] {
        let bundle = work.path().join(export_name);
        let model = fixture("sd15-mini").join(export_name).join("unet.onnx");
        let written = export(&model, &bundle, limit).unwrap();
        assert_eq!(written.files.len(), files, "{:?}", written.files);
        for (path, bytes) in &written.files {
            assert_eq!(fs::metadata(path).unwrap().len(), *bytes);
            assert!(*bytes <= limit, "{}: {bytes}", path.display());
        }
        for package in ["onnxruntime-web", "onnxruntime-node"] {
            let manifest = check(package, &bundle, &golden);
            let listed: Vec<&str> = manifest["externalData"]
                .as_array()
                .unwrap()
                .iter()
                .map(|file| file["path"].as_str().unwrap())
                .collect();
            let there: Vec<String> = written.files[1..]
                .iter()
                .map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned())
                .collect();
            assert_eq!(listed, there);
        }
        // A file that the loader doesn't name is a model that doesn't load.
        let first = bundle.join(written.files[1].0.file_name().unwrap());
        fs::rename(&first, bundle.join("elsewhere")).unwrap();
        let request = work.path().join("request.json");
        fs::write(&request, json!({ "folder": format!("{}/", bundle.display()), "runs": [] }).to_string())
            .unwrap();
        let output = client().arg("onnxruntime-web").arg(&request).output().unwrap();
        assert!(!output.status.success(), "it loads without {}", first.display());
    }
}

/// A model with one tensor of external data that takes no room on the disk.
fn sparse(folder: &Path, kind: i32, elements: i64, width: u64) -> PathBuf {
    use crdiff::onnx::proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
        TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
    };
    let entry =
        |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
    let tensor = TensorProto {
        name: Some("w".into()),
        data_type: Some(kind),
        dims: vec![elements],
        data_location: Some(1),
        external_data: vec![
            entry("location", "data".into()),
            entry("offset", "0".into()),
            entry("length", (elements as u64 * width).to_string()),
        ],
        ..TensorProto::default()
    };
    let shape = type_proto::Tensor { elem_type: Some(kind), shape: Some(TensorShapeProto::default()) };
    let output = ValueInfoProto {
        name: Some("y".into()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(shape)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    };
    let node = NodeProto {
        op_type: Some("ReduceSum".into()),
        input: vec!["w".into()],
        output: vec!["y".into()],
        ..NodeProto::default()
    };
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() }],
        graph: Some(GraphProto {
            name: Some("g".into()),
            node: vec![node],
            initializer: vec![tensor],
            output: vec![output],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    let path = folder.join("large.onnx");
    fs::write(&path, prost::Message::encode_to_vec(&model)).unwrap();
    let data = fs::File::create(folder.join("data")).unwrap();
    data.set_len(elements as u64 * width).unwrap();
    path
}

#[test]
fn what_no_browser_loads_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let bundle = work.path().join("bundle");
    let refused = |model: &Path, limit: u64, what: &str| {
        let error = export(model, &bundle, limit).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert!(!bundle.exists());
    };
    let folder = |name: &str| {
        let folder = work.path().join(name);
        fs::create_dir(&folder).unwrap();
        folder
    };
    let limit = web::FILE_LIMIT;
    refused(&sparse(&folder("a"), 1, 1 << 30, 4), limit, "WebAssembly can address 4294967296");
    refused(
        &sparse(&folder("b"), 1, 600 << 20, 4),
        limit,
        "tensor `w` takes 2516582400 bytes, but a file may have",
    );
    refused(&sparse(&folder("c"), 16, 16, 2), limit, "bfloat16");
    let small = fixture("sd15-mini/torchscript/unet.onnx");
    refused(&small, limit + 1, "the longest ArrayBuffer of Chrome");
    refused(&small, 20_000, "without its weights unet.onnx still takes");
    refused(&small, 2000, "tensor `");
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 3, "nothing else is left");
    export(&small, &bundle, limit).unwrap();
    let error = export(&small, &bundle, limit).unwrap_err().to_string();
    assert!(error.contains("it is there already"), "{error}");
}
