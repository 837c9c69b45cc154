//! Every plan of the goldens, compiled for every export with weights shared and copied, is proven.

use std::fs;

use crdiff::compile::{CompileError, Target};
use serde_json::Value;

use super::support::{Model, Weights, fixtures, plan, verdict_of};

/// Compiles and verifies every case of `fixtures/<golden>` for `fixtures/<model>`. Which plans are legal is tested
/// elsewhere; at least `least` of those that change something must be here.
fn check(model: &str, golden: &str, least: usize) {
    let index = fs::read_to_string(fixtures().join(golden).join("index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let copy = Model::copy(model);
    let original = copy.load();
    let (mut nodes, mut masked, mut proven, mut mixed, mut amplified) = (0, 0, 0, 0, 0);
    for (at, case) in index["cases"].as_array().unwrap().iter().enumerate() {
        let name = format!("{model}: {}", case["name"]);
        let plan = plan(&case["plan"].to_string());
        let (share, all) = ([Weights::Share], [Weights::Share, Weights::Copy, Weights::Compact]);
        // A bypass touches no weight: copying them all every time would tell nothing new.
        let policies: &[Weights] = if case["kind"] == "bypass" && at % 8 != 0 { &share } else { &all };
        for policy in policies {
            let compiled = match copy.compile(&plan, *policy) {
                Ok(compiled) => compiled,
                Err(CompileError::Plan(_)) => continue,
                Err(error) => panic!("{name}: {error}"),
            };
            let verdict = verdict_of(&original, &compiled, &plan);
            assert!(verdict.is_proven(), "{name}, {policy:?}: {:#?}", verdict.differences);
            assert_eq!(verdict.notes, [""; 0], "{name}");
            nodes += verdict.proof.nodes;
            masked += verdict.proof.masked;
            proven += usize::from(!plan.rules.is_empty() && *policy == Weights::Share);
        }
        if case["kind"] == "bypass" && at % 8 != 0 {
            continue;
        }
        for target in [Target::Fused, Target::FusedWithInput, Target::Amplified] {
            let compiled = match copy.compile_to(target, &plan, Weights::Share) {
                Ok(compiled) => compiled,
                // A plan that cannot be in one graph is tested with the compiler.
                Err(CompileError::Plan(_) | CompileError::Target(_)) => continue,
                Err(error) => panic!("{name}: {error}"),
            };
            let verdict = verdict_of(&original, &compiled, &plan);
            assert!(verdict.is_proven(), "{name}, {target:?}: {:#?}", verdict.differences);
            mixed += usize::from(target != Target::Amplified && !plan.rules.is_empty());
            amplified += usize::from(target == Target::Amplified && verdict.proof.masked > 0);
        }
    }
    assert!(proven >= least, "only {proven} plans of {golden} change something");
    assert!(nodes > 100 * proven && masked > 0, "{nodes} nodes, {masked} masked tensors");
    assert!(mixed > 1 && amplified > 0, "{mixed} fused, {amplified} amplified");
}

macro_rules! goldens {
    ($($test:ident: $model:literal, $golden:literal, $least:literal;)*) => {
        $(#[test]
        fn $test() {
            check($model, $golden, $least);
        })*
    };
}

goldens! {
    sd15_torchscript: "sd15/torchscript", "sd15/golden", 160;
    sd15_dynamo: "sd15/dynamo", "sd15/golden", 160;
    sd21_torchscript: "sd21/torchscript", "sd21/golden", 70;
    sd21_dynamo: "sd21/dynamo", "sd21/golden", 70;
    sdxl_torchscript: "sdxl/torchscript", "sdxl/golden", 100;
    sdxl_dynamo: "sdxl/dynamo", "sdxl/golden", 100;
    sd3_torchscript: "sd3/torchscript", "sd3/golden", 15;
    sd3_dynamo: "sd3/dynamo", "sd3/golden", 15;
    ldm_torchscript: "ldm/torchscript", "ldm/golden", 50;
    ldm_dynamo: "ldm/dynamo", "ldm/golden", 50;
    mini_torchscript: "sd15-mini/torchscript", "sd15-mini/golden", 70;
    mini_dynamo: "sd15-mini/dynamo", "sd15-mini/golden", 70;
    mini_opset21: "sd15-mini/dynamo-opset21", "sd15-mini/golden", 70;
    mini_opset23: "sd15-mini/dynamo-opset23", "sd15-mini/golden", 70;
    mini_nofold: "sd15-mini/nofold", "sd15-mini/golden", 70;
    mini_wrapped: "sd15-mini/wrapped", "sd15-mini/golden", 70;
    mini_wrapped_dynamo: "sd15-mini/wrapped-dynamo", "sd15-mini/golden", 70;
    mini_slim: "sd15-mini/slim", "sd15-mini/golden", 70;
    mini_simplified: "sd15-mini/simplified", "sd15-mini/golden", 70;
    mini_simplified_dynamo: "sd15-mini/simplified-dynamo", "sd15-mini/golden", 60;
    mini_ort_basic: "sd15-mini/ort-basic", "sd15-mini/golden", 70;
    mini_split: "sd15-mini/split", "sd15-mini/golden", 70;
    mini_fp16: "sd15-mini/torchscript-fp16", "sd15-mini/golden-fp16", 8;
    mini_bf16: "sd15-mini/dynamo-bf16", "sd15-mini/golden-bf16", 8;
    mini_tied: "sd15-mini/tied", "sd15-mini/golden-tied", 9;
    mini_tied_dynamo: "sd15-mini/tied-dynamo", "sd15-mini/golden-tied", 9;
    mini_merged: "sd15-mini/merged", "sd15-mini/golden-merged", 2;
    sd15_torchscript_dilation: "sd15/torchscript", "sd15/golden-dilation", 9;
    sd15_dynamo_dilation: "sd15/dynamo", "sd15/golden-dilation", 9;
    mini_fp16_dilation: "sd15-mini/torchscript-fp16", "sd15-mini/golden-dilation", 9;
    sdxl_dynamo_dilation: "sdxl/dynamo", "sdxl/golden-dilation", 9;
    ldm_torchscript_dilation: "ldm/torchscript", "ldm/golden-dilation", 9;
    sd15_maps_torchscript: "sd15/torchscript", "sd15/golden-attention", 9;
    sd15_maps_dynamo: "sd15/dynamo", "sd15/golden-attention", 9;
    sdxl_maps_torchscript: "sdxl/torchscript", "sdxl/golden-attention", 9;
    sdxl_maps_dynamo: "sdxl/dynamo", "sdxl/golden-attention", 9;
    mini_maps_opset23: "sd15-mini/dynamo-opset23", "sd15-mini/golden-attention", 9;
    mini_temperature_torchscript: "sd15-mini/torchscript", "sd15-mini/golden-temperature", 10;
    mini_temperature_opset23: "sd15-mini/dynamo-opset23", "sd15-mini/golden-temperature", 10;
    mini_temperature_fp16: "sd15-mini/torchscript-fp16", "sd15-mini/golden-temperature-fp16", 10;
    ldm_temperature_dynamo: "ldm/dynamo", "ldm/golden-temperature", 10;
    mini_mean_torchscript: "sd15-mini/torchscript", "sd15-mini/golden-attention-mean", 7;
    mini_mean_fp16: "sd15-mini/torchscript-fp16", "sd15-mini/golden-attention-mean", 7;
    ldm_mean_dynamo: "ldm/dynamo", "ldm/golden-attention-mean", 7;
    mini_window_torchscript: "sd15-mini/torchscript", "sd15-mini/golden-attention-window", 7;
    mini_window_opset23: "sd15-mini/dynamo-opset23", "sd15-mini/golden-attention-window", 7;
    mini_window_fp16: "sd15-mini/torchscript-fp16", "sd15-mini/golden-attention-window", 7;
    mini_freeu_torchscript: "sd15-mini/torchscript", "sd15-mini/golden-freeu", 8;
    mini_freeu_opset23: "sd15-mini/dynamo-opset23", "sd15-mini/golden-freeu", 8;
    mini_freeu_fp16: "sd15-mini/torchscript-fp16", "sd15-mini/golden-freeu", 8;
    mini_shrink_torchscript: "sd15-mini/torchscript", "sd15-mini/golden-shrink", 10;
    mini_shrink_opset23: "sd15-mini/dynamo-opset23", "sd15-mini/golden-shrink", 10;
    mini_shrink_bf16: "sd15-mini/dynamo-bf16", "sd15-mini/golden-shrink", 10;
    mini_output_scale: "sd15-mini/output-scale", "sd15-mini/golden-output-scale", 35;
}
