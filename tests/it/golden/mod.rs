//! Every golden case of the fixtures, compiled and run: the outputs are torch's own, and so are the thresholds, counts
//! and zeros. One test for each exported model; `fixtures/README.md` describes the formats.

mod family;
mod prune;

use std::{fs, path::Path};

use crdiff::{
    analysis::Analysis,
    compile::Target,
    engine::{Engine, OrtEngine, RtenEngine},
    ir::Graph,
    onnx,
};
use family::{Case, Family};
use serde_json::{Value, json};

use crate::common::ort::ort_library;

/// fp32: difference to torch, relative to the largest output.
const FP32: f32 = 1e-5;
/// fp16 runs in another order and precision in every engine; what counts is that the mask is the same.
const FP16: f32 = 2e-2;

macro_rules! goldens {
    ($($name:ident: $family:literal / $golden:literal, $export:literal, $tolerance:expr;)*) => {
        $(
            #[test]
            fn $name() {
                family::check(&Family::load($family, $golden), $export, $tolerance);
            }
        )*
    };
}

goldens! {
    sd15_torchscript: "sd15" / "golden", "torchscript", FP32;
    sd15_dynamo: "sd15" / "golden", "dynamo", FP32;
    mini_torchscript: "sd15-mini" / "golden", "torchscript", FP32;
    mini_dynamo: "sd15-mini" / "golden", "dynamo", FP32;
    mini_dynamo_opset21: "sd15-mini" / "golden", "dynamo-opset21", FP32;
    mini_dynamo_opset23: "sd15-mini" / "golden", "dynamo-opset23", FP32;
    mini_nofold: "sd15-mini" / "golden", "nofold", FP32;
    mini_wrapped: "sd15-mini" / "golden", "wrapped", FP32;
    mini_wrapped_dynamo: "sd15-mini" / "golden", "wrapped-dynamo", FP32;
    mini_slim: "sd15-mini" / "golden", "slim", FP32;
    mini_simplified: "sd15-mini" / "golden", "simplified", FP32;
    mini_simplified_dynamo: "sd15-mini" / "golden", "simplified-dynamo", FP32;
    mini_ort_basic: "sd15-mini" / "golden", "ort-basic", FP32;
    mini_split: "sd15-mini" / "golden", "split", FP32;
    mini_fp16: "sd15-mini" / "golden-fp16", "torchscript-fp16", FP16;
    mini_tied: "sd15-mini" / "golden-tied", "tied", FP32;
    mini_tied_dynamo: "sd15-mini" / "golden-tied", "tied-dynamo", FP32;
    mini_output_scale: "sd15-mini" / "golden-output-scale", "output-scale", FP32;
    ip_adapter_torchscript: "ip-adapter" / "golden", "torchscript", FP32;
    ip_adapter_dynamo: "ip-adapter" / "golden", "dynamo", FP32;
    sd21_torchscript: "sd21" / "golden", "torchscript", FP32;
    sd21_dynamo: "sd21" / "golden", "dynamo", FP32;
    sdxl_torchscript: "sdxl" / "golden", "torchscript", FP32;
    sdxl_dynamo: "sdxl" / "golden", "dynamo", FP32;
    ldm_torchscript: "ldm" / "golden", "torchscript", FP32;
    ldm_dynamo: "ldm" / "golden", "dynamo", FP32;
    sd3_torchscript: "sd3" / "golden", "torchscript", FP32;
    sd3_dynamo: "sd3" / "golden", "dynamo", FP32;
    sd15_torchscript_dilation: "sd15" / "golden-dilation", "torchscript", FP32;
    sd15_dynamo_dilation: "sd15" / "golden-dilation", "dynamo", FP32;
    mini_torchscript_dilation: "sd15-mini" / "golden-dilation", "torchscript", FP32;
    mini_dynamo_dilation: "sd15-mini" / "golden-dilation", "dynamo", FP32;
    mini_dynamo_opset23_dilation: "sd15-mini" / "golden-dilation", "dynamo-opset23", FP32;
    mini_simplified_dilation: "sd15-mini" / "golden-dilation", "simplified", FP32;
    mini_simplified_dynamo_dilation: "sd15-mini" / "golden-dilation", "simplified-dynamo", FP32;
    sd21_torchscript_dilation: "sd21" / "golden-dilation", "torchscript", FP32;
    sd21_dynamo_dilation: "sd21" / "golden-dilation", "dynamo", FP32;
    sdxl_torchscript_dilation: "sdxl" / "golden-dilation", "torchscript", FP32;
    sdxl_dynamo_dilation: "sdxl" / "golden-dilation", "dynamo", FP32;
    ldm_torchscript_dilation: "ldm" / "golden-dilation", "torchscript", FP32;
    ldm_dynamo_dilation: "ldm" / "golden-dilation", "dynamo", FP32;
    sd15_maps_torchscript: "sd15" / "golden-attention", "torchscript", FP32;
    sd15_maps_dynamo: "sd15" / "golden-attention", "dynamo", FP32;
    mini_maps_torchscript: "sd15-mini" / "golden-attention", "torchscript", FP32;
    mini_maps_dynamo: "sd15-mini" / "golden-attention", "dynamo", FP32;
    mini_maps_opset21: "sd15-mini" / "golden-attention", "dynamo-opset21", FP32;
    mini_maps_opset23: "sd15-mini" / "golden-attention", "dynamo-opset23", FP32;
    mini_maps_nofold: "sd15-mini" / "golden-attention", "nofold", FP32;
    mini_maps_simplified_dynamo: "sd15-mini" / "golden-attention", "simplified-dynamo", FP32;
    sd21_maps_torchscript: "sd21" / "golden-attention", "torchscript", FP32;
    sd21_maps_dynamo: "sd21" / "golden-attention", "dynamo", FP32;
    sdxl_maps_torchscript: "sdxl" / "golden-attention", "torchscript", FP32;
    sdxl_maps_dynamo: "sdxl" / "golden-attention", "dynamo", FP32;
    mini_temperature_torchscript: "sd15-mini" / "golden-temperature", "torchscript", FP32;
    mini_temperature_dynamo: "sd15-mini" / "golden-temperature", "dynamo", FP32;
    mini_temperature_opset23: "sd15-mini" / "golden-temperature", "dynamo-opset23", FP32;
    mini_temperature_simplified_dynamo: "sd15-mini" / "golden-temperature", "simplified-dynamo", FP32;
    mini_temperature_fp16: "sd15-mini" / "golden-temperature-fp16", "torchscript-fp16", FP16;
    ldm_temperature_torchscript: "ldm" / "golden-temperature", "torchscript", FP32;
    ldm_temperature_dynamo: "ldm" / "golden-temperature", "dynamo", FP32;
    mini_mean_torchscript: "sd15-mini" / "golden-attention-mean", "torchscript", FP32;
    mini_mean_dynamo: "sd15-mini" / "golden-attention-mean", "dynamo", FP32;
    mini_mean_opset23: "sd15-mini" / "golden-attention-mean", "dynamo-opset23", FP32;
    ldm_mean_torchscript: "ldm" / "golden-attention-mean", "torchscript", FP32;
    ldm_mean_dynamo: "ldm" / "golden-attention-mean", "dynamo", FP32;
    mini_window_torchscript: "sd15-mini" / "golden-attention-window", "torchscript", FP32;
    mini_window_dynamo: "sd15-mini" / "golden-attention-window", "dynamo", FP32;
    mini_window_opset23: "sd15-mini" / "golden-attention-window", "dynamo-opset23", FP32;
    mini_freeu_torchscript: "sd15-mini" / "golden-freeu", "torchscript", FP32;
    mini_freeu_dynamo: "sd15-mini" / "golden-freeu", "dynamo", FP32;
    mini_freeu_opset23: "sd15-mini" / "golden-freeu", "dynamo-opset23", FP32;
    sd15_freeu_dynamo: "sd15" / "golden-freeu", "dynamo", FP32;
    mini_freeu_fp16: "sd15-mini" / "golden-freeu-fp16", "torchscript-fp16", FP16;
    mini_mean_fp16: "sd15-mini" / "golden-attention-mean-fp16", "torchscript-fp16", FP16;
    ldm_window_torchscript: "ldm" / "golden-attention-window", "torchscript", FP32;
    ldm_window_dynamo: "ldm" / "golden-attention-window", "dynamo", FP32;
    mini_window_fp16: "sd15-mini" / "golden-attention-window-fp16", "torchscript-fp16", FP16;
    mini_shrink_torchscript: "sd15-mini" / "golden-shrink", "torchscript", FP32;
    mini_shrink_dynamo: "sd15-mini" / "golden-shrink", "dynamo", FP32;
    mini_shrink_opset23: "sd15-mini" / "golden-shrink", "dynamo-opset23", FP32;
    mini_shrink_simplified_dynamo: "sd15-mini" / "golden-shrink", "simplified-dynamo", FP32;
    mini_shrink_fp16: "sd15-mini" / "golden-shrink-fp16", "torchscript-fp16", FP16;
    sd15_shrink_torchscript: "sd15" / "golden-shrink", "torchscript", FP32;
    ldm_shrink_torchscript: "ldm" / "golden-shrink", "torchscript", FP32;
    ldm_shrink_dynamo: "ldm" / "golden-shrink", "dynamo", FP32;
    sdxl_shrink_dynamo: "sdxl" / "golden-shrink", "dynamo", FP32;
}

/// At the trained size logits are multiplied by exactly 1.
#[test]
fn a_temperature_at_the_trained_size() {
    let family = Family::load("sd15-mini", "golden-temperature");
    let ort = OrtEngine::open(&ort_library()).unwrap();
    for (export, engine) in
        [("torchscript", &ort as &dyn Engine), ("torchscript", &RtenEngine), ("dynamo-opset23", &ort)]
    {
        family::check_unchanged(&family, export, engine, "temperature/trained-8", "8x8");
    }
}

/// ONNX Runtime's CPU build has no bf16 convolution, so nothing runs: counts, thresholds and masks are checked.
#[test]
fn mini_bf16_masks() {
    let family = Family::load("sd15-mini", "golden-bf16");
    for case in family.cases.iter().filter(|c| c.is_prune()) {
        let compiled = family.compile(case, "dynamo-bf16", Target::Pruned);
        prune::check(&family, case, &compiled);
    }
}

#[test]
fn every_module_that_torch_can_bypass_is_bypassable_and_no_other() {
    for (name, export) in [
        ("sd15", "torchscript"),
        ("sd15", "dynamo"),
        ("sd15-mini", "torchscript"),
        ("sd15-mini", "simplified"),
        ("sd15-mini", "simplified-dynamo"),
        ("sd15-mini", "ort-basic"),
        ("sd15-mini", "functions"),
        ("ip-adapter", "torchscript"),
        ("ip-adapter", "dynamo"),
        ("sd21", "dynamo"),
        ("sdxl", "torchscript"),
        ("sdxl", "dynamo"),
        ("ldm", "torchscript"),
        ("ldm", "dynamo"),
        ("sd3", "torchscript"),
        ("sd3", "dynamo"),
    ] {
        family::check_bypassable(&Family::load(name, "golden"), export);
    }
}

/// Each sixth case: what differs from other exports of this network is gone once the graph is loaded.
#[test]
fn mini_functions() {
    let mut family = Family::load("sd15-mini", "golden");
    let mut at = 0;
    family.cases.retain(|_| {
        at += 1;
        at % 6 == 1
    });
    family::check(&family, "functions", FP32);
}

/// The layers that both exporters' graphs have are torch's.
#[test]
fn an_ip_adapter_has_the_same_layers_in_both_exports() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ip-adapter");
    let modules = fs::read_to_string(folder.join("golden/modules.json")).unwrap();
    let modules: Value = serde_json::from_str(&modules).unwrap();
    let layers = modules.as_array().unwrap().iter();
    let layers = layers.filter(|m| ["Linear", "Conv2d"].contains(&m["class"].as_str().unwrap()));
    let mut expected: Vec<&str> = layers.map(|m| m["path"].as_str().unwrap()).collect();
    expected.sort_unstable();
    assert_eq!(expected.iter().filter(|path| path.contains(".processor.to_k_ip.0")).count(), 4);
    for export in ["torchscript", "dynamo"] {
        let graph = Graph::load(onnx::open(folder.join(export).join("unet.onnx")).unwrap()).unwrap();
        let analysis = Analysis::of(&graph);
        let mut found: Vec<&str> = analysis.weights.editable.iter().map(|w| w.path.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{export}");
    }
}

/// The authors' result, whose `mid` a network without a middle lacks, is torch's rule for the other two.
#[test]
fn the_authors_result_without_a_middle() {
    let mut family = Family::load("bk-sdm", "golden");
    for case in family.cases.iter_mut().filter(|case| case.is_prune()) {
        let crdiff = &case.json["plan"]["crdiff"];
        let ratios = json!({ "down_ratio": crdiff["down"], "mid_ratio": 0.4, "up_ratio": crdiff["up"] });
        case.json["plan"] = json!({ "best_avg_score": 0.8, "best_global_params_ratio": ratios });
    }
    family::check(&family, "torchscript", FP32);
    let case = family.cases.iter().find(|case| case.is_prune()).unwrap();
    let notes = family.compile(case, "torchscript", Target::Pruned).report.notes;
    assert!(notes.iter().any(|note| note.contains("no attention or feed-forward in `mid`")), "{notes:?}");
}

impl Case {
    fn is_prune(&self) -> bool {
        self.json["prune"].is_array()
    }
}
