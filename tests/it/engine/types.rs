//! Element types, and ONNX's tensor files as another library writes them.

use crdiff::{
    engine::{
        Dim, EngineKind, HostTensor, SessionOptions,
        io::{read_tensor_proto, read_test_data_set},
    },
    onnx::DataType,
};
use onnx_protobuf::{Message, TensorProto};

use crate::engine::support::{doubling, engines};

#[test]
fn inputs_and_outputs_have_the_models_types() {
    for data_type in [DataType::FLOAT, DataType::FLOAT16, DataType::DOUBLE, DataType::INT64, DataType::INT32]
    {
        let model = doubling(data_type);
        let x = HostTensor::new([3, 2], vec![0.5f32, 1.0, -2.0, 3.0, 100.0, 0.0])
            .unwrap()
            .cast(data_type)
            .unwrap();
        for engine in engines() {
            let mut session = engine.load_bytes(model.clone(), &SessionOptions::default()).unwrap();
            let info = &session.inputs()[0];
            assert_eq!((info.name.as_str(), info.data_type), ("x", data_type));
            assert_eq!(info.dims, Some(vec![Dim::Named("n".into()), Dim::Fixed(2)]));
            assert_eq!(session.outputs()[0].data_type, data_type);
            let outputs = session.run(&[("x", &x)], None).unwrap();
            let doubled =
                HostTensor::new([3, 2], x.to_f32().iter().map(|v| 2.0 * v).collect::<Vec<_>>()).unwrap();
            assert_eq!(outputs, [("y".to_string(), doubled.cast(data_type).unwrap())], "{}", engine.kind());
        }
    }
}

#[test]
fn rten_refuses_integers_that_it_would_cut_off() {
    let model = doubling(DataType::INT64);
    let x = HostTensor::new([1, 2], vec![1i64 << 40, 0]).unwrap();
    for engine in engines() {
        let mut session = engine.load_bytes(model.clone(), &SessionOptions::default()).unwrap();
        let result = session.run(&[("x", &x)], None);
        if engine.kind() == EngineKind::Ort {
            let doubled = HostTensor::new([1, 2], vec![1i64 << 41, 0]).unwrap();
            assert_eq!(result.unwrap()[0].1, doubled);
        } else {
            assert!(result.unwrap_err().to_string().contains("1099511627776 does not fit"));
        }
    }
}

#[test]
fn tensor_files_of_the_onnx_backend_tests() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut raw = TensorProto::new();
    raw.name = "sample".to_string();
    raw.dims = vec![1, 2];
    raw.data_type = 1;
    raw.raw_data = [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    raw.write_to_writer(&mut std::fs::File::create(path("input_0.pb")).unwrap()).unwrap();
    let mut typed = TensorProto::new();
    typed.data_type = 7;
    typed.int64_data = vec![-5];
    typed.write_to_writer(&mut std::fs::File::create(path("input_1.pb")).unwrap()).unwrap();
    let mut half = TensorProto::new();
    half.dims = vec![2];
    half.data_type = 10;
    half.int32_data = vec![0x3e00, 0xc000];
    half.write_to_writer(&mut std::fs::File::create(path("output_0.pb")).unwrap()).unwrap();

    let set = read_test_data_set(folder.path()).unwrap();
    let sample = HostTensor::new([1, 2], vec![1.5f32, -2.0]).unwrap();
    let halves = HostTensor::new([2], vec![1.5f32, -2.0]).unwrap().cast(DataType::FLOAT16).unwrap();
    assert_eq!(set.inputs, [("sample".to_string(), sample), (String::new(), HostTensor::scalar(-5i64))]);
    assert_eq!(set.outputs, [(String::new(), halves)]);

    let mut short = TensorProto::new();
    short.dims = vec![3];
    short.data_type = 1;
    short.float_data = vec![1.0];
    short.write_to_writer(&mut std::fs::File::create(path("short.pb")).unwrap()).unwrap();
    let error = read_tensor_proto(&path("short.pb")).unwrap_err().to_string();
    assert!(error.contains("short.pb") && error.contains("takes 12 bytes"), "{error}");
    let error = read_test_data_set(&path("none")).unwrap_err().to_string();
    assert!(error.contains("no `input_0.pb`"), "{error}");
}
