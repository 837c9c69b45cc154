//! Prune statistics and masks against torch's.

use std::{collections::BTreeMap, path::Path};

use crdiff::{
    analysis::{
        modules,
        weights::{self, MatrixLayout},
    },
    engine::io,
    ir::Graph,
    onnx::{self, DataType},
    report::PruneReport,
};

use crate::golden::family::{Case, Compiled, Family};

/// Compares what the report says of every prune rule with torch's numbers, and the masks bit for bit where there are
/// goldens of them.
pub fn check(family: &Family, case: &Case, compiled: &Compiled) {
    let Some(expected) = case.json["prune"].as_array() else { return };
    let mut rules: Vec<&PruneReport> = compiled.report.prune.iter().collect();
    assert_eq!(rules.len(), expected.len(), "{}", case.name);
    for torch in expected {
        let layers: BTreeMap<&str, u64> = torch["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| (l["module"].as_str().unwrap(), l["zeros"].as_u64().unwrap()))
            .collect();
        let index = rules
            .iter()
            .position(|r| r.per_tensor.iter().any(|t| layers.contains_key(t.module.as_str())))
            .unwrap_or_else(|| panic!("{}: no rule for {layers:?}", case.name));
        let rule = rules.remove(index);
        let zeros: BTreeMap<&str, u64> =
            rule.per_tensor.iter().map(|t| (t.module.as_str(), t.zeros)).collect();
        assert_eq!(zeros, layers, "{}: zeros of each tensor", case.name);
        assert_eq!(rule.tensors, layers.len(), "{}", case.name);
        if let Some(n) = torch["n"].as_u64() {
            assert_eq!(rule.weights, n, "{}: n", case.name);
        }
        if let Some(zeros) = torch["zeros"].as_u64() {
            assert_eq!(rule.zeros, zeros, "{}: zeros", case.name);
        }
        if torch["mode"] == "ratio" && torch["pool"] != "tensor" {
            assert_eq!(rule.k, torch["k"].as_u64(), "{}: k", case.name);
            assert_eq!(rule.threshold, threshold(&torch["threshold"]), "{}: threshold", case.name);
        }
        for layer in torch["layers"].as_array().unwrap().iter().filter(|l| l["k"].is_u64()) {
            let tensor =
                rule.per_tensor.iter().find(|t| t.module == layer["module"].as_str().unwrap()).unwrap();
            // Where k is 0 torch has no threshold, and the report no k.
            assert_eq!(
                tensor.k.unwrap_or(0),
                layer["k"].as_u64().unwrap(),
                "{}: {}",
                case.name,
                tensor.module
            );
            assert_eq!(tensor.threshold, threshold(&layer["threshold"]), "{}: {}", case.name, tensor.module);
        }
    }
    if case.json["masks"] == true {
        check_masks(family, case, compiled);
    }
}

/// Torch's threshold, from its bits; JSON's decimals are not read back exactly by every parser.
fn threshold(json: &serde_json::Value) -> Option<f64> {
    let bits = u32::from_str_radix(json["bits"].as_str()?.strip_prefix("0x")?, 16).unwrap();
    Some(match json["dtype"].as_str()? {
        "float32" => f32::from_bits(bits).into(),
        "float16" => half::f16::from_bits(bits as u16).into(),
        "bfloat16" => half::bf16::from_bits(bits as u16).into(),
        other => panic!("{other}"),
    })
}

/// Every masked tensor of the written file: the elements that torch dropped are zero, the others as they were.
fn check_masks(family: &Family, case: &Case, compiled: &Compiled) {
    let masks: BTreeMap<String, _> =
        io::read_npz(&family.golden.join("masks.npz")).unwrap().into_iter().collect();
    let original = Weights::of(&compiled.source);
    let written = Weights::of(&compiled.model);
    let rules = &compiled.report.prune;
    let tensors: Vec<_> = rules.iter().flat_map(|r| r.per_tensor.iter().map(move |t| (t, r.scale))).collect();
    assert!(!tensors.is_empty(), "{}", case.name);
    for (tensor, scale) in tensors {
        let key = format!("{}/{}", case.name, tensor.module);
        let mask = masks.get(&key).unwrap_or_else(|| panic!("no mask {key}")).to_le_bytes();
        let kept: Vec<bool> = mask.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1 == 1)).collect();
        let before = original.in_torch_order(&tensor.module);
        for (index, element) in written.in_torch_order(&tensor.module).iter().enumerate() {
            let expected = match (kept[index], scale) {
                (true, _) => before[index].clone(),
                (false, None) => vec![0; element.len()],
                (false, Some(scale)) => scaled(&before[index], original.data_type(&tensor.module), scale),
            };
            assert_eq!(element, &expected, "{key}: element {index}, which torch keeps: {}", kept[index]);
        }
    }
}

/// An element times a number, as torch multiplies it: in float32, then rounded to the element's type.
fn scaled(element: &[u8], data_type: DataType, scale: f64) -> Vec<u8> {
    let scale = scale as f32;
    match (data_type, element) {
        (DataType::FLOAT, &[a, b, c, d]) => (f32::from_le_bytes([a, b, c, d]) * scale).to_le_bytes().to_vec(),
        (DataType::FLOAT16, &[a, b]) => {
            half::f16::from_f32(half::f16::from_le_bytes([a, b]).to_f32() * scale).to_le_bytes().to_vec()
        }
        (DataType::BFLOAT16, &[a, b]) => {
            half::bf16::from_f32(half::bf16::from_le_bytes([a, b]).to_f32() * scale).to_le_bytes().to_vec()
        }
        _ => panic!("{data_type:?}"),
    }
}

struct Weights {
    graph: Graph,
    weights: weights::Weights,
}

impl Weights {
    fn of(model: &Path) -> Self {
        let graph = Graph::load(onnx::open(model).unwrap()).unwrap();
        let weights = weights::weights(&graph, &modules::modules(&graph));
        Self { graph, weights }
    }

    fn data_type(&self, module: &str) -> DataType {
        self.weights.editable.iter().find(|w| w.path == module).unwrap().data_type
    }

    /// The elements of a module's weight as torch flattens them: outputs first.
    fn in_torch_order(&self, module: &str) -> Vec<Vec<u8>> {
        let weight = self.weights.editable.iter().find(|w| w.path == module).unwrap();
        let header = &self.graph.initializer(weight.initializer).unwrap().header;
        let reader = self.graph.weight_reader(header).unwrap();
        let mut bytes = vec![0; reader.len() as usize];
        reader.read_at(0, &mut bytes).unwrap();
        let size = (header.data_type.bits().unwrap() / 8) as usize;
        let element = |i: usize| bytes[i * size..(i + 1) * size].to_vec();
        match weight.layout {
            MatrixLayout::OutputFirst => (0..bytes.len() / size).map(element).collect(),
            MatrixLayout::InputFirst => {
                let (input, output) = (header.dims[0] as usize, header.dims[1] as usize);
                (0..output).flat_map(|o| (0..input).map(move |i| i * output + o)).map(element).collect()
            }
        }
    }
}
