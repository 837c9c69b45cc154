//! Dense fixtures against torch's own outputs.

use std::{fs, num::NonZeroUsize};

use crdiff::{
    engine::{Engine, HostTensor, MemoryMode, Optimization, Provider, ProviderKind, SessionOptions},
    onnx::proto,
};
use prost::Message;

use crate::engine::support::{engines, fixture, golden, max_difference, named, ort};

const TOLERANCE: f32 = 1e-5;

fn assert_golden(engine: &dyn Engine, family: &str, export: &str, sizes: &[&str], options: &SessionOptions) {
    let path = fixture(&format!("{family}/{export}/unet.onnx"));
    let mut session = engine.load(&path, options).unwrap();
    for size in sizes {
        let (inputs, expected) = golden(family, size);
        let outputs = session.run(&named(&inputs), None).unwrap();
        assert_eq!(outputs.len(), 1);
        assert_eq!(outputs[0].0, "out_sample");
        let difference = max_difference(&outputs[0].1, &expected);
        assert!(
            difference <= TOLERANCE,
            "{} {family}/{export} {size}: {difference} off {options:?}",
            engine.kind()
        );
    }
}

#[test]
fn torchscript_exports() {
    for engine in engines() {
        let options = SessionOptions::default();
        assert_golden(&*engine, "sd15", "torchscript", &["16x8", "24x8"], &options);
        assert_golden(&*engine, "sd15-mini", "torchscript", &["8x8", "12x8", "18x10"], &options);
    }
}

#[test]
fn dynamo_exports_with_external_data() {
    for engine in engines() {
        let options = SessionOptions::default();
        assert_golden(&*engine, "sd15", "dynamo", &["16x8", "24x8"], &options);
        assert_golden(&*engine, "sd15-mini", "dynamo", &["8x8", "12x8", "18x10"], &options);
    }
}

#[test]
fn every_option_gives_the_same_result() {
    let low = SessionOptions::default().memory(MemoryMode::Low);
    let one_thread = SessionOptions::default().intra_threads(NonZeroUsize::new(1));
    let plain = SessionOptions::default().optimization(Optimization::Disabled);
    let cpu = SessionOptions::default().providers(vec![Provider::from(ProviderKind::Cpu)]);
    for engine in engines() {
        for options in [&low, &one_thread, &plain, &cpu] {
            assert_golden(&*engine, "sd15-mini", "dynamo", &["8x8"], options);
        }
    }
}

#[test]
fn dimensions_can_be_fixed_when_loading() {
    let (inputs, _) = golden("sd15-mini", "8x8");
    let fixed_dims = inputs.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
    let options = SessionOptions::default().fixed_dims(fixed_dims);
    for engine in engines() {
        assert_golden(&*engine, "sd15-mini", "torchscript", &["8x8"], &options);
    }
    let session = ort().load(&fixture("sd15-mini/torchscript/unet.onnx"), &options).unwrap();
    let sample = session.inputs().iter().find(|i| i.name == "sample").unwrap();
    assert_eq!(sample.to_string(), "`sample` float32[2, 4, 8, 8]");
}

/// The layout that `share` writes: weights in whatever file they were in, at whatever offset.
#[test]
fn external_data_can_lie_anywhere_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(fixture("sd15-mini/dynamo/unet.onnx")).unwrap();
    let mut model = proto::ModelProto::decode(bytes.as_slice()).unwrap();
    let mut moved = 0;
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        for entry in &mut tensor.external_data {
            match entry.key() {
                "location" => entry.value = Some("weights/original.onnx".into()),
                "offset" => {
                    let offset: u64 = entry.value().parse().unwrap();
                    entry.value = Some((offset + 3).to_string());
                    moved += 1;
                }
                _ => {}
            }
        }
    }
    assert!(moved > 0, "the fixture has no external data");
    fs::create_dir(folder.path().join("weights")).unwrap();
    let mut data = vec![0u8; 3];
    data.extend(fs::read(fixture("sd15-mini/dynamo/unet.onnx.data")).unwrap());
    fs::write(folder.path().join("weights/original.onnx"), data).unwrap();
    let path = folder.path().join("unet.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();

    let (inputs, expected) = golden("sd15-mini", "8x8");
    for engine in engines() {
        let mut session = engine.load(&path, &SessionOptions::default()).unwrap();
        let outputs = session.run(&named(&inputs), None).unwrap();
        assert!(max_difference(&outputs[0].1, &expected) <= TOLERANCE, "{}", engine.kind());
    }
}

#[test]
fn a_later_run_leaves_earlier_outputs_and_the_inputs_alone() {
    for engine in engines() {
        let path = fixture("sd15-mini/torchscript/unet.onnx");
        let mut session = engine.load(&path, &SessionOptions::default()).unwrap();
        let (inputs, expected) = golden("sd15-mini", "8x8");
        let before = inputs.clone();
        let first = session.run(&named(&inputs), Some(&["out_sample"])).unwrap();
        let zeros = HostTensor::new(inputs[0].1.dims(), vec![0f32; inputs[0].1.data().len()]).unwrap();
        let mut other = named(&inputs);
        other[0].1 = &zeros;
        let second = session.run(&other, None).unwrap();
        assert_ne!(first, second);
        assert_eq!(inputs, before);
        assert!(max_difference(&first[0].1, &expected) <= TOLERANCE);
        let both = session.run(&named(&inputs), Some(&["out_sample", "out_sample"])).unwrap();
        assert_eq!((both.len(), &both[0], &both[1]), (2, &first[0], &first[0]));
    }
}

#[test]
fn where_nodes_run_is_told_when_a_provider_is_asked_for() {
    let path = fixture("sd15-mini/torchscript/unet.onnx");
    let options = SessionOptions::default().providers(vec![Provider::from(ProviderKind::Cpu)]);
    let session = ort().load(&path, &options).unwrap();
    let [placement] = session.placement() else { panic!("{:?}", session.placement()) };
    assert_eq!(placement.provider, "CPUExecutionProvider");
    assert!(placement.nodes > 100, "{placement:?}");
    assert!(ort().load(&path, &SessionOptions::default()).unwrap().placement().is_empty());
}
