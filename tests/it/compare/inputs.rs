//! Inputs made from what a model declares.

use crdiff::{
    engine::{Engine, RtenEngine, SessionOptions, Signature},
    ir::Graph,
    numeric::{Case, Sizes, inputs::seeded},
    onnx::{self, DataType},
};

use crate::common::edit::fixture;

fn made(family: &str, sizes: &Sizes, seed: u64) -> (Graph, Case) {
    let graph = Graph::load(onnx::open(fixture(family)).unwrap()).unwrap();
    let signature = Signature::of(graph.source()).unwrap();
    let case = seeded(&graph, &signature, sizes, seed).unwrap();
    (graph, case)
}

const SIZES: Sizes = Sizes { latents: Some((16, 8)), batch: 2, sequence: 5 };

/// Every family's own inputs are made, and its network takes them.
#[test]
fn every_family_runs_on_made_inputs() {
    for family in ["sd15", "sd15-mini", "sd21", "sdxl", "ldm", "sd3"] {
        for export in ["torchscript", "dynamo"] {
            let path = format!("{family}/{export}");
            let (_, case) = made(&path, &SIZES, 1);
            assert_eq!(case.name, "16x8 batch 2");
            let inputs: Vec<_> = case.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            let mut session = RtenEngine.load(&fixture(&path), &SessionOptions::default()).unwrap();
            let outputs = session.run(&inputs, None).unwrap_or_else(|e| panic!("{path}: {e}"));
            let finite = outputs[0].1.to_f32().iter().all(|x| x.is_finite());
            assert!(finite, "{path}: not finite");
        }
    }
}

#[test]
fn inputs_are_what_their_places_need() {
    let (_, case) = made("sdxl/torchscript", &SIZES, 1);
    let find = |name: &str| &case.inputs.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(find("sample").dims()[2..], [16, 8]);
    let one = [128.0, 64.0, 0.0, 0.0, 128.0, 64.0];
    assert_eq!(find("time_ids").to_f32(), [one, one].concat());
    let (_, case) = made("sd15-mini/torchscript", &SIZES, 1);
    let (_, timestep) = case.inputs.iter().find(|(n, _)| n == "timestep").unwrap();
    assert_eq!((timestep.data_type(), timestep.dims()), (DataType::INT64, &[2][..]));
    assert!(timestep.to_i64().iter().all(|t| (1..1000).contains(t)));
}

#[test]
fn seeds_decide() {
    let of = |seed| made("sd15-mini/torchscript", &SIZES, seed).1.inputs;
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
}

#[test]
fn sizes_that_the_model_fixes() {
    let work = tempfile::tempdir().unwrap();
    let path = crate::common::edit::changed(&fixture("sd15-mini/torchscript"), work.path(), |graph| {
        use crdiff::onnx::proto::{tensor_shape_proto::dimension::Value, type_proto};
        let sample = graph.input.iter_mut().find(|i| i.name() == "sample").unwrap();
        let Some(type_proto::Value::TensorType(tensor)) = sample.r#type.as_mut().unwrap().value.as_mut()
        else {
            panic!("no tensor")
        };
        let dims = &mut tensor.shape.as_mut().unwrap().dim;
        (dims[2].value, dims[3].value) = (Some(Value::DimValue(24)), Some(Value::DimValue(12)));
    });
    let graph = Graph::load(onnx::open(path).unwrap()).unwrap();
    let signature = Signature::of(graph.source()).unwrap();
    let free = seeded(&graph, &signature, &Sizes { latents: None, ..SIZES }, 0).unwrap();
    assert_eq!(free.name, "24x12 batch 2");
    let error = seeded(&graph, &signature, &SIZES, 0).unwrap_err().to_string();
    assert!(error.contains("16x8 was asked for, but the model fixes `sample`"), "{error}");
}
