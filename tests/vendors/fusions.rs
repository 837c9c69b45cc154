//! ONNX Runtime's transformer fusions, which make a UNet several times as fast on a GPU: each branch of a fused graph must
//! have as many fused attentions as the network has alone.

use std::{path::Path, process::Command};

use crdiff::compile::Target;
use serde_json::Value;

use super::{common::node, compiled, compiled_pair, packages, printed, root};

const MODEL: &str = "sd15-mini/torchscript/unet.onnx";

/// The operators after the fusions, and how far the outputs are off where the CPU can run them.
fn fused(models: &[&Path]) -> Vec<Value> {
    let mut command = Command::new(node::python());
    command.env("PYTHONPATH", packages("fusions")).arg(root().join("tests/vendors/fusions.py")).args(models);
    let all: Vec<Value> =
        printed(&mut command).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(all.len(), models.len());
    for (model, one) in models.iter().zip(&all) {
        assert!(one["off"].as_f64().unwrap() < 1e-5, "{}: {one}", model.display());
        assert!(one["attentions_run"].as_u64().unwrap() >= 1, "{}: {one}", model.display());
    }
    all
}

fn count(one: &Value, operator: &str) -> u64 {
    one["counts"][operator].as_u64().unwrap_or(0)
}

#[test]
fn every_attention_of_both_branches_is_fused() {
    let folder = tempfile::tempdir().unwrap();
    let all = "version: 1\ncrdiff: { down: 0.3, mid: 0.3, up: 0.3 }";
    // The branches part in the middle block: where the attention is gone from one, or reads its values alone.
    let without = "version: 1\nrules:\n  - bypass: mid_block.attentions.0.transformer_blocks.0.attn1";
    let perturbed =
        "version: 1\nrules:\n  - attention: { modules: \"mid_block.attentions.0.**.attn1\", map: identity }";
    let make = |plan, target, name| compiled(MODEL, plan, target, folder.path(), name);
    let dense = root().join("fixtures").join(MODEL);
    let [pruned, both, gone, gone_both, own] = [
        make(all, Target::Pruned, "pruned"),
        make(all, Target::Fused, "fused"),
        make(without, Target::Pruned, "without"),
        make(without, Target::Fused, "fused-without"),
        make(perturbed, Target::Fused, "perturbed"),
    ];
    // Two graphs for a cache: the shallow one has one block, whose transformer has two attentions.
    let cached = format!("{all}\ncache: {{ at: up_blocks.1.resnets.1 }}");
    let [full, shallow] = compiled_pair(MODEL, &cached, Target::Pruned, folder.path(), "cached");
    let [_, shallow_both] = compiled_pair(MODEL, &cached, Target::Fused, folder.path(), "cached-fused");
    let found = fused(&[&dense, &pruned, &both, &gone, &gone_both, &own, &full, &shallow, &shallow_both]);
    let [dense, pruned, both, gone, gone_both, own, full, shallow, shallow_both] = found.as_slice() else {
        unreachable!()
    };
    let attentions = |one| count(one, "MultiHeadAttention");
    assert_eq!((attentions(dense), count(dense, "Softmax")), (8, 0));
    for operator in ["MultiHeadAttention", "Softmax", "SkipLayerNormalization", "GroupNorm", "BiasSplitGelu"]
    {
        assert_eq!(count(pruned, operator), count(dense, operator), "{operator}");
    }
    assert_eq!((attentions(both), count(both, "Softmax")), (16, 0));
    assert_eq!(count(both, "SkipLayerNormalization"), 2 * count(dense, "SkipLayerNormalization"));
    assert_eq!(count(both, "BiasSplitGelu"), 2 * count(dense, "BiasSplitGelu"));
    // Alone it keeps one too: a cross-attention behind a Reshape, which they don't know. Two attentions are before it.
    assert_eq!((attentions(gone), count(gone, "Softmax")), (6, 1));
    assert_eq!((attentions(gone_both), count(gone_both, "Softmax")), (8 + 6 - 2, 1));
    assert_eq!((attentions(own), count(own, "Softmax")), (8 + 7 - 2, 0));
    assert_eq!(full["counts"]["MultiHeadAttention"], dense["counts"]["MultiHeadAttention"]);
    for (one, many) in [(full, 8), (shallow, 2), (shallow_both, 4)] {
        assert_eq!((attentions(one), count(one, "Softmax")), (many, 0));
    }
}
