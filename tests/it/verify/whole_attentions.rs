//! Fused graphs in which an attention stands twice although only a part of it differs: what is copied without need must be
//! what it is a copy of.

use crdiff::{compile::Target, onnx::proto::GraphProto};

use super::support::{Model, Weights, plan, verdict};
use crate::common::edit::changed;

const BLOCK: &str = "/mid_block/attentions.0/transformer_blocks.0";

/// Makes operand `slot` of a node read what a node like it, or another one, reads or gives.
fn reads(graph: &mut GraphProto, node: &str, slot: usize, value: &str) {
    let found = graph.node.iter_mut().find(|n| n.name() == node).unwrap_or_else(|| panic!("no {node}"));
    assert_ne!(found.input[slot], value, "{node} reads it already");
    found.input[slot] = value.to_string();
}

fn operand(graph: &GraphProto, node: &str, slot: usize) -> String {
    graph.node.iter().find(|n| n.name() == node).unwrap().input[slot].clone()
}

#[test]
fn what_is_copied_without_need_is_proven_and_cannot_be_another() {
    let model = Model::copy("sd15-mini/torchscript");
    let plan = plan("version: 1\nrules:\n  - bypass: mid_block.attentions.0.transformer_blocks.0.attn1");
    let fused = model.compile_to(Target::Fused, &plan, Weights::Copy).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let judge = |change: &dyn Fn(&mut GraphProto)| {
        let path = changed(&fused, folder.path(), change);
        verdict(&model.path(), &path, &plan).is_proven()
    };
    assert!(judge(&|_| {}));
    let [root, key, value] =
        ["/mid_block/attentions.0/Reshape", "attn2/to_k/MatMul", "attn2/to_v/MatMul"].map(|name| {
            if name.starts_with('/') { format!("{name}_pruned") } else { format!("{BLOCK}/{name}_pruned") }
        });
    let norm = format!("{BLOCK}/norm2/LayerNormalization_pruned");
    type Fault<'a> = &'a dyn Fn(&mut GraphProto);
    let faults: [(&str, Fault<'_>); 6] = [
        ("keys by the values' weight", &|graph| {
            let weight = operand(graph, &value, 1);
            reads(graph, &key, 1, &weight);
        }),
        ("keys of the values", &|graph| {
            let wrong = format!("{BLOCK}/attn2/to_v/MatMul_output_0_pruned");
            reads(graph, &format!("{BLOCK}/attn2/Reshape_1_pruned"), 0, &wrong);
        }),
        ("another root", &|graph| {
            let other = operand(graph, "/mid_block/attentions.0/norm/Reshape", 0);
            reads(graph, &root, 0, &other);
        }),
        ("another shape", &|graph| {
            let other = operand(graph, "/mid_block/attentions.0/Reshape_1_pruned", 1);
            reads(graph, &root, 1, &other);
        }),
        ("another norm", &|graph| {
            reads(graph, &norm, 1, "mid_block.attentions.0.transformer_blocks.0.norm1.weight");
        }),
        ("the residual of the dense branch", &|graph| {
            let dense = format!("{BLOCK}/Add_output_0");
            reads(graph, &format!("{BLOCK}/Add_1_pruned"), 1, &dense);
        }),
    ];
    for (name, fault) in faults {
        assert!(!judge(fault), "{name} was not found");
    }
    // The dense branch's own values in the copies' place compute the same.
    assert!(judge(&|graph| {
        reads(graph, &norm, 0, "/mid_block/attentions.0/Reshape_output_0");
        reads(graph, &format!("{BLOCK}/Add_1_pruned"), 1, "/mid_block/attentions.0/Reshape_output_0");
    }));
}
