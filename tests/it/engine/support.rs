//! Engines, fixtures and small models.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use crdiff::{
    engine::{
        Engine, HostTensor, OrtEngine, RtenEngine,
        io::{read_npy, read_npz},
    },
    onnx::{DataType, proto},
};
use prost::Message;

use crate::common::ort::ort_library;

pub fn ort() -> OrtEngine {
    OrtEngine::open(&ort_library()).expect("the pinned ONNX Runtime loads")
}

/// ONNX Runtime and rten.
pub fn engines() -> Vec<Box<dyn Engine>> {
    vec![Box::new(ort()), Box::new(RtenEngine)]
}

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// The golden inputs of one size, named as the model names them, and torch's output.
pub fn golden(family: &str, size: &str) -> (Vec<(String, HostTensor)>, HostTensor) {
    let inputs = read_npz(&fixture(&format!("{family}/golden/inputs.npz"))).unwrap();
    let prefix = format!("{size}/");
    let inputs: Vec<_> = inputs
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_string(), tensor)))
        .collect();
    assert_eq!(inputs.len(), 3, "{family} has no golden size {size}");
    let wanted = format!("dense/{size}");
    let outputs = read_npz(&fixture(&format!("{family}/golden/outputs.npz"))).unwrap();
    let (_, output) = outputs.into_iter().find(|(name, _)| *name == wanted).unwrap();
    (inputs, output)
}

pub fn named(inputs: &[(String, HostTensor)]) -> Vec<(&str, &HostTensor)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

pub fn max_difference(a: &HostTensor, b: &HostTensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let differences = a.to_f32().into_iter().zip(b.to_f32()).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most, d| if d.is_nan() { f32::INFINITY } else { most.max(d) })
}

/// `y = x + x` for `x [n, 2]` of this type: IR 8, opset 17.
pub fn doubling(data_type: DataType) -> Bytes {
    use proto::tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |value| Dimension { value: Some(value), ..Default::default() };
    let value = |name: &str| proto::ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(proto::TypeProto {
            value: Some(proto::type_proto::Value::TensorType(proto::type_proto::Tensor {
                elem_type: Some(data_type.0),
                shape: Some(proto::TensorShapeProto {
                    dim: vec![dim(Value::DimParam("n".into())), dim(Value::DimValue(2))],
                }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    };
    let add = proto::NodeProto {
        op_type: Some("Add".into()),
        input: vec!["x".into(), "x".into()],
        output: vec!["y".into()],
        ..Default::default()
    };
    let model = proto::ModelProto {
        ir_version: Some(8),
        opset_import: vec![proto::OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(proto::GraphProto {
            name: Some("doubling".into()),
            node: vec![add],
            input: vec![value("x")],
            output: vec![value("y")],
            ..Default::default()
        }),
        ..Default::default()
    };
    model.encode_to_vec().into()
}

#[test]
fn fixtures_are_read_alike_in_both_numpy_formats() {
    let folder = tempfile::tempdir().unwrap();
    let (inputs, _) = golden("sd15-mini", "8x8");
    for (name, tensor) in inputs {
        let path = folder.path().join(format!("{name}.npy"));
        crdiff::engine::io::write_npy(&path, &tensor).unwrap();
        assert_eq!(read_npy(&path).unwrap(), tensor);
    }
}
