//! Pruning against torch's own numbers: `fixtures/*/golden` says, for each prune rule, what torch computed on the
//! network before it was exported (`fixtures/maker/prune.py`). Counts and thresholds are compared bit for bit, and
//! where torch's masks were kept, every element's fate too.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc};

use crdiff::{
    analysis::{
        magnitude::{Magnitude, MagnitudeHistogram, PoolTensor, TieMask},
        modules::modules,
        weights::{MatrixLayout, Weight, weights},
    },
    ir::{Graph, Masked, Transform, count_masked, for_each_piece},
    onnx::{self, DataType, OnnxError},
    passes::mask::{MagnitudeMask, PatternMask},
};
use ndarray::Array1;
use ndarray_npy::NpzReader;
use serde_json::Value;

#[test]
fn sd15_mini() {
    check("sd15-mini/torchscript", "sd15-mini/golden");
    check("sd15-mini/dynamo", "sd15-mini/golden");
}

#[test]
fn sd15() {
    check("sd15/torchscript", "sd15/golden");
    check("sd15/dynamo", "sd15/golden");
}

fn check(model: &str, golden: &str) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let graph = Graph::load(onnx::open(fixtures.join(model).join("unet.onnx")).unwrap()).unwrap();
    let found = weights(&graph, &modules(&graph)).editable;
    let of_path: BTreeMap<&str, &Weight> = found.iter().map(|w| (w.path.as_str(), w)).collect();
    let index = std::fs::read_to_string(fixtures.join(golden).join("index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let mut masks = NpzReader::new(File::open(fixtures.join(golden).join("masks.npz")).unwrap()).unwrap();

    let mut rules = 0;
    let mut masks_compared = 0;
    for case in index["cases"].as_array().unwrap() {
        for rule in case.get("prune").and_then(Value::as_array).into_iter().flatten() {
            let what = format!("{model} {}", case["name"]);
            let layers = rule["layers"].as_array().unwrap();
            let weights: Vec<&Weight> =
                layers.iter().map(|l| of_path[l["module"].as_str().unwrap()]).collect();
            let transforms = check_rule(&graph, rule, &weights, &what);
            let mut zeros = 0;
            for ((weight, transform), layer) in weights.iter().zip(transforms).zip(layers) {
                let masked = masked(&graph, weight, transform);
                let count = count_masked(&masked).unwrap();
                assert_eq!(count, layer["zeros"].as_u64().unwrap(), "{what}: {}", weight.path);
                zeros += count;
                if rule["scale"] == 0.0 && case.get("masks").is_some() {
                    let name = format!("{}/{}", case["name"].as_str().unwrap(), weight.path);
                    let kept: Array1<u8> = masks.by_name(&name).unwrap();
                    check_elements(weight, &masked, kept.as_slice().unwrap(), &what);
                    masks_compared += 1;
                }
            }
            assert_eq!(zeros, rule["zeros"].as_u64().unwrap(), "{what}");
            rules += 1;
        }
    }
    assert!(rules > 0 && masks_compared > 0, "{golden} has no prune cases with masks");
}

/// The transform of each weight, once torch's `n`, `k` and threshold were found.
fn check_rule(graph: &Graph, rule: &Value, weights: &[&Weight], what: &str) -> Vec<Arc<dyn Transform>> {
    let scale = rule["scale"].as_f64().unwrap() as f32;
    let elements: u64 = weights.iter().map(|w| w.elements()).sum();
    assert_eq!(elements, rule["n"].as_u64().unwrap(), "{what}");
    let mask = |weight: &Weight, t| -> Arc<dyn Transform> {
        Arc::new(MagnitudeMask::new(&weight.path, weight.data_type, t, TieMask::All, scale).unwrap())
    };
    match (rule["mode"].as_str().unwrap(), rule["pool"].as_str()) {
        ("ratio", Some("all")) => {
            let t = check_ratio(graph, rule, weights, rule["ratio"].as_f64().unwrap(), what);
            weights.iter().map(|w| t.map_or_else(|| nothing(w), |t| mask(w, t))).collect()
        }
        ("ratio", Some("tensor")) => (weights.iter().zip(rule["layers"].as_array().unwrap()))
            .map(|(weight, layer)| {
                let t = check_ratio(graph, layer, &[weight], rule["ratio"].as_f64().unwrap(), what);
                t.map_or_else(|| nothing(weight), |t| mask(weight, t))
            })
            .collect(),
        ("threshold", _) => {
            let given = rule["given"].as_f64().unwrap();
            let t = Magnitude::given(given, weights[0].data_type).unwrap();
            assert_eq!(t.bits(weights[0].data_type), Some(bits(&rule["threshold"])), "{what}");
            weights.iter().map(|w| mask(w, t)).collect()
        }
        ("pattern", _) => {
            let (keep, of) = rule["pattern"].as_str().unwrap().split_once(':').unwrap();
            let (keep, of) = (keep.parse().unwrap(), of.parse().unwrap());
            let pattern = |w: &&Weight| -> Arc<dyn Transform> {
                Arc::new(PatternMask::new(w, keep, of, scale).unwrap())
            };
            weights.iter().map(pattern).collect()
        }
        other => panic!("{what}: unknown mode {other:?}"),
    }
}

/// The threshold of `ratio`, the same as torch's `k` and `threshold`.
fn check_ratio(
    graph: &Graph,
    torch: &Value,
    weights: &[&Weight],
    ratio: f64,
    what: &str,
) -> Option<Magnitude> {
    let pool: Vec<PoolTensor> = weights
        .iter()
        .map(|weight| PoolTensor { reader: reader(graph, weight), data_type: weight.data_type })
        .collect();
    let histogram = MagnitudeHistogram::read(&pool, &()).unwrap();
    let found = histogram.threshold(ratio, &()).unwrap();
    assert_eq!(found.map_or(0, |t| t.k), torch["k"].as_u64().unwrap(), "{what}");
    let expected = torch.get("threshold").filter(|t| !t.is_null()).map(bits);
    assert_eq!(found.and_then(|found| found.t.bits(weights[0].data_type)), expected, "{what}");
    if let (Some(found), Some(zeros)) = (found, torch["zeros"].as_u64()) {
        assert_eq!(found.below + found.at, zeros, "{what}");
    }
    found.map(|found| found.t)
}

/// A mask of nothing: no weight is below 0, and those that are 0 stay.
fn nothing(weight: &Weight) -> Arc<dyn Transform> {
    let mask = MagnitudeMask::new(&weight.path, weight.data_type, Magnitude::of(0.0), TieMask::First(0), 0.0);
    Arc::new(mask.unwrap())
}

fn bits(threshold: &Value) -> u32 {
    let bits = threshold["bits"].as_str().unwrap().trim_start_matches("0x");
    u32::from_str_radix(bits, 16).unwrap()
}

fn reader(graph: &Graph, weight: &Weight) -> crdiff::ir::WeightReader {
    graph.weight_reader(&graph.initializer(weight.initializer).unwrap().header).unwrap()
}

fn masked(graph: &Graph, weight: &Weight, transform: Arc<dyn Transform>) -> Masked {
    Masked { original: reader(graph, weight), transform }
}

/// Checks that exactly the elements that torch kept stay as they are, and the others are +0.0. `kept` has one bit an
/// element, the most significant first, in torch's `[out, in, ...]` order.
fn check_elements(weight: &Weight, masked: &Masked, kept: &[u8], what: &str) {
    let mut before = vec![0; masked.original.len() as usize];
    masked.original.read_at(0, &mut before).unwrap();
    let mut after = Vec::new();
    let collect = |_, piece: &[u8]| {
        after.extend_from_slice(piece);
        Ok::<(), OnnxError>(())
    };
    for_each_piece(masked, 100, collect).unwrap();
    let size = if weight.data_type == DataType::FLOAT { 4 } else { 2 };
    let count = before.len() / size;
    for torch_index in 0..count {
        let file_index = match (weight.layout, weight.dims.as_slice()) {
            (MatrixLayout::InputFirst, [input, output]) => {
                let (input, output) = (*input as usize, *output as usize);
                torch_index % input * output + torch_index / input
            }
            _ => torch_index,
        };
        let element = file_index * size..(file_index + 1) * size;
        let expected = match kept[torch_index / 8] >> (7 - torch_index % 8) & 1 {
            1 => &before[element.clone()],
            _ => &[0; 4][..size],
        };
        assert_eq!(&after[element], expected, "{what}: {} at {torch_index}", weight.path);
    }
}
