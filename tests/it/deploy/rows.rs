//! Graphs whose rows are requests of their own, against the originals, run row by row.

use std::path::{Path, PathBuf};

use crdiff::{
    compile::Target,
    engine::{Dim, HostTensor, Signature, TensorInfo},
    ir::Graph,
    onnx::{self, DataType},
    plan::{self, Plan},
    verify::conformance::{Required, verify},
};
use serde_json::json;

use crate::{
    common::outputs::of_range,
    deploy::support::{compiled, config, export_to, fixture, numbers, port, run, serving, session},
};

/// Largest difference between a row of a batch and the same alone, as a part of the range of the output.
const TOLERANCE: f32 = 3e-6;
const ROWS: usize = 3;

/// Exports with a timestep that is one number for all rows.
const SCALAR: [&str; 6] = [
    "sd15/torchscript/unet.onnx",
    "sd15/dynamo/unet.onnx",
    "sdxl/torchscript/unet.onnx",
    "sdxl/dynamo/unet.onnx",
    "pipelines/sd15/unet/model.onnx",
    "pipelines/sdxl/unet/model.onnx",
];
/// Exports with a timestep for each row.
const ROW_BY_ROW: [&str; 9] = [
    "sd15-mini/torchscript/unet.onnx",
    "sd15-mini/dynamo/unet.onnx",
    "sd15-mini/dynamo-opset23/unet.onnx",
    "sd15-mini/nofold/unet.onnx",
    "sd15-mini/simplified/unet.onnx",
    "sd15-mini/simplified-dynamo/unet.onnx",
    "sd15-mini/split/unet.onnx",
    "sd21/torchscript/unet.onnx",
    "sd3/dynamo/unet.onnx",
];

fn inputs_of(model: &Path) -> Vec<TensorInfo> {
    Signature::of(&onnx::open(model).unwrap()).unwrap().inputs
}

/// Inputs of three rows that have nothing in common, but for scalars.
fn batch(inputs: &[TensorInfo]) -> Vec<(String, HostTensor)> {
    let made = inputs.iter().filter_map(|input| {
        let dims = input.dims.as_ref().unwrap();
        if dims.is_empty() {
            return None;
        }
        let size = |(axis, dim): (usize, &Dim)| match (dim, axis, dims.len()) {
            (Dim::Fixed(size), ..) => usize::try_from(*size).unwrap(),
            (_, 0, _) => ROWS,
            (_, 2, 4) => 16,
            (_, 3, 4) => 8,
            (_, 1, 4) => 4,
            (_, 1, 3) => 5,
            _ => 6,
        };
        let dims: Vec<usize> = dims.iter().enumerate().map(size).collect();
        let count = dims.iter().product::<usize>();
        let shift = input.name.len() as f32;
        let tensor = match input.data_type {
            DataType::FLOAT if input.name == "timestep" => HostTensor::new(dims, vec![999f32, 1.0, 500.0]),
            DataType::FLOAT => {
                let value = |i: usize| (i as f32 * 0.7371 + shift).sin() * 1.5;
                HostTensor::new(dims, (0..count).map(value).collect::<Vec<f32>>())
            }
            DataType::INT64 => HostTensor::new(dims, vec![999i64, 1, 500]),
            other => panic!("{input}: {other:?}"),
        };
        Some((input.name.clone(), tensor.unwrap()))
    });
    made.collect()
}

/// Row `index` of a tensor.
fn row(tensor: &HostTensor, index: usize) -> HostTensor {
    let bytes = tensor.to_le_bytes();
    let width = bytes.len() / tensor.dims()[0];
    let dims: Vec<usize> = [1].into_iter().chain(tensor.dims()[1..].iter().copied()).collect();
    HostTensor::from_le_bytes(tensor.data_type(), dims, &bytes[index * width..][..width]).unwrap()
}

/// One element for each row, in the type of `input`.
fn rows_of(input: &TensorInfo, values: [f64; ROWS]) -> HostTensor {
    HostTensor::new([ROWS], values.map(|v| v as f32).to_vec()).unwrap().cast(input.data_type).unwrap()
}

/// Runs the original once a row, and the exported model once for all. `given` has what the original takes as scalars.
/// Returns the largest difference, and how far apart outputs are if all rows have the first row's scalars.
fn compare(original: &Path, exported: &Path, given: &[(String, HostTensor)]) -> (f32, f32) {
    let batch = batch(&inputs_of(original));
    let mut alone = session(original);
    let mut row_by_row = |pick: &dyn Fn(usize) -> usize| -> Vec<f32> {
        let one = |index: usize| {
            let scalars = given.iter().map(|(name, values)| {
                let value = row(values, pick(index));
                let bytes = value.to_le_bytes();
                (name.clone(), HostTensor::from_le_bytes(value.data_type(), Vec::new(), &bytes).unwrap())
            });
            let rows = batch.iter().map(|(name, tensor)| (name.clone(), row(tensor, index)));
            run(&mut *alone, &scalars.chain(rows).collect::<Vec<_>>()).to_f32()
        };
        (0..ROWS).flat_map(one).collect()
    };
    let expected = row_by_row(&|index| index);
    let same = row_by_row(&|_| 0);
    let whole: Vec<_> = given.iter().cloned().chain(batch.iter().cloned()).collect();
    let found = run(&mut *session(exported), &whole).to_f32();
    (of_range(&found, &expected), of_range(&same, &expected))
}

/// Checks that `exported` is proven to be the `target` of `plan` with these inputs for each row.
fn prove(original: &Path, exported: &Path, plan: &Plan, target: Target, per_row: &[String]) {
    let [original, exported] =
        [original, exported].map(|path| Graph::load(onnx::open(path).unwrap()).unwrap());
    let required = Required { target, cached: false, per_row: true };
    let verdict = verify(&original, &exported, plan, Some(required), &()).unwrap();
    assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    assert_eq!(verdict.form.per_row, per_row);
}

fn exported(model: &Path, folder: &Path) -> (PathBuf, Vec<String>) {
    let repository = folder.join("models");
    let [served] =
        <[_; 1]>::try_from(export_to(&repository, &[("unet", model)], &serving()).unwrap()).unwrap();
    assert_eq!((served.max_batch, &served.notes), (8, &Vec::new()), "{}", model.display());
    (repository, served.widened)
}

#[test]
fn a_scalar_timestep_becomes_one_a_row() {
    for model in SCALAR {
        let original = fixture(model);
        let folder = tempfile::tempdir().unwrap();
        let (repository, widened) = exported(&original, folder.path());
        assert_eq!(widened, ["timestep"], "{model}");
        let input = inputs_of(&original).into_iter().find(|input| input.name == "timestep").unwrap();
        let file = repository.join("unet/1/model.onnx");
        prove(&original, &file, &plan::parse("plan.yaml", "version: 1\n").unwrap(), Target::Pruned, &widened);
        for (values, least) in [([999.0, 1.0, 500.0], 1e-3), ([77.0; ROWS], 0.0)] {
            let given = [("timestep".to_string(), rows_of(&input, values))];
            let (difference, effect) = compare(&original, &file, &given);
            assert!(difference <= TOLERANCE, "{model} at {values:?}: off by {difference:e}");
            assert!(effect >= least, "{model}: timesteps change nothing ({effect:e})");
        }
        let config = config(&repository, "unet");
        let timestep = port(&config, "input", "timestep");
        assert_eq!((numbers(&timestep["dims"]), &timestep["reshape"]), (vec![1], &json!({})), "{model}");
        assert_eq!(config["dynamicBatching"], json!({}));
        // The edited graph has another name, or engines that are cached by name would be taken for it.
        let names = [&original, &file].map(|path| Graph::load(onnx::open(path).unwrap()).unwrap());
        assert_ne!(names[0].name(), names[1].name());
    }
}

#[test]
fn graphs_with_rows_stay_as_they_are() {
    for model in ROW_BY_ROW {
        let original = fixture(model);
        let folder = tempfile::tempdir().unwrap();
        let (repository, widened) = exported(&original, folder.path());
        assert!(widened.is_empty(), "{model}: {widened:?}");
        let file = repository.join("unet/1/model.onnx");
        assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&original).unwrap(), "{model}");
        let (difference, _) = compare(&original, &file, &[]);
        assert!(difference <= TOLERANCE, "{model}: off by {difference:e}");
    }
}

#[test]
fn w_of_a_fused_graph_becomes_one_a_row() {
    for model in ["sd15/torchscript/unet.onnx", "sdxl/dynamo/unet.onnx", "sd15-mini/dynamo/unet.onnx"] {
        let folder = tempfile::tempdir().unwrap();
        let fused = folder.path().join("fused.onnx");
        let plan = compiled(&fixture(model), Target::FusedWithInput, &fused);
        let (repository, widened) = exported(&fused, folder.path());
        let file = repository.join("unet/1/model.onnx");
        prove(&fixture(model), &file, &plan, Target::FusedWithInput, &widened);
        let mut given = Vec::new();
        for input in inputs_of(&fused).iter().filter(|input| input.dims.as_ref().unwrap().is_empty()) {
            let values = if input.name == "poa_weight" { [1.5, 0.0, 3.0] } else { [981.0, 21.0, 481.0] };
            given.push((input.name.clone(), rows_of(input, values)));
        }
        assert_eq!(widened, given.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), "{model}");
        assert!(widened.iter().any(|name| name == "poa_weight"), "{model}");
        let (difference, effect) = compare(&fused, &file, &given);
        assert!(difference <= TOLERANCE, "{model}: off by {difference:e}");
        assert!(effect >= 1e-3, "{model}: {effect:e}");
    }
}

#[test]
fn a_scalar_that_is_not_spread_stays_one() {
    let cases = [
        // Read by something else than what spreads it.
        ("float[N, 4] x, float t", "y = Pow(x, t)", "Pow node `n` reads it as one value"),
        // Spread over something else than the batch.
        ("float[N, 4] x, float t", "s = Shape(x) e = Expand(t, s) y = Add(x, e)", "Expand node"),
        ("float[N, 4] x, float[4, 4] t", "y = MatMul(x, t)", "its first dimension is fixed to 4"),
        ("float[2, 4] x, float t", "y = Mul(x, t)", "its batch is fixed to 2"),
        ("float[N, 4] x", "y = Transpose(x)", "output `y` is [4, 2] for a batch of 2"),
    ];
    for (inputs, body, why) in cases {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("unet.onnx");
        let nodes: String =
            body.split_inclusive(')').map(|node| format!("[\"n\"] {}\n", node.trim())).collect();
        let nodes = if body.contains(") ") { body.to_string() } else { nodes };
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 17]>\ng ({inputs}) => (float[P, Q] y) {{ {nodes} }}"
        );
        let proto = crate::common::onnx_text::parse_model(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        std::fs::write(&model, prost::Message::encode_to_vec(&proto)).unwrap();
        let repository = folder.path().join("models");
        let served = export_to(&repository, &[("unet", &model)], &serving()).unwrap();
        assert_eq!((served[0].max_batch, served[0].widened.len()), (0, 0), "{text}");
        assert!(served[0].notes[0].contains(why), "{}\n{text}", served[0].notes[0]);
        // The model itself is as it was.
        let written = std::fs::read(repository.join("unet/1/model.onnx")).unwrap();
        assert_eq!(written, std::fs::read(&model).unwrap());
        let config = config(&repository, "unet");
        assert!(config.get("dynamicBatching").is_none() && config.get("maxBatchSize").is_none());
        if inputs.ends_with("float t") {
            // Triton refuses an empty reshape here; its backend makes a scalar of [1] by itself.
            let t = port(&config, "input", "t");
            assert_eq!((numbers(&t["dims"]), t.get("reshape")), (vec![1], None));
        }
    }
}
