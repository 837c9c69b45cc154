//! Compiled graphs corrupted in named ways: what is harmful is found, and the place named; what is harmless is
//! accepted.

use std::{fs, path::PathBuf};

use crdiff::{
    onnx::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
        ValueInfoProto, type_proto,
    },
    plan::Plan,
    verify::conformance::{Difference, Verdict},
};
use prost::Message;

use super::support::{Model, Weights, plan, verdict};

const PLAN: &str = "version: 1\nrules:\n  - bypass: mid_block.attentions.0\n  - prune: { weights: \"up_blocks.**.attn1.**\", ratio: 0.3 }\n";
const TO_Q: &str = "/up_blocks.1/attentions.0/transformer_blocks.0/attn1/to_q/MatMul";
const TO_K: &str = "/up_blocks.1/attentions.0/transformer_blocks.0/attn1/to_k/MatMul";
const TO_Q_PATH: &str = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";
const CONV1: &str = "/up_blocks.0/resnets.0/conv1/Conv";
const CONV1_PATH: &str = "up_blocks.0.resnets.0.conv1";

/// A model and what its plan made of it, decoded.
struct Bench {
    model: Model,
    original: ModelProto,
    compiled: ModelProto,
    plan: Plan,
}

impl Bench {
    fn new() -> Self {
        let model = Model::copy("sd15-mini/torchscript");
        let plan = plan(PLAN);
        let compiled = decode(&model.compile(&plan, Weights::Copy).unwrap());
        Self { original: decode(&model.path()), compiled, plan, model }
    }

    fn verify(&self, changed: &ModelProto) -> Verdict {
        let path = self.model.folder().join("changed.onnx");
        fs::write(&path, changed.encode_to_vec()).unwrap();
        verdict(&self.model.path(), &path, &self.plan)
    }

    fn accept(&self, name: &str, change: impl FnOnce(&mut ModelProto)) {
        let mut changed = self.compiled.clone();
        change(&mut changed);
        assert!(changed != self.compiled, "{name} changes nothing");
        let verdict = self.verify(&changed);
        assert!(verdict.is_proven(), "{name}: {:#?}", verdict.differences);
    }

    /// Checks that the first difference says `message` and is in `module`.
    fn find(
        &self,
        name: &str,
        message: &str,
        module: &str,
        change: impl FnOnce(&mut ModelProto),
    ) -> Difference {
        let mut changed = self.compiled.clone();
        change(&mut changed);
        assert!(changed != self.compiled, "{name} changes nothing");
        let verdict = self.verify(&changed);
        let first = verdict.differences.first().unwrap_or_else(|| panic!("{name} was not found"));
        assert!(first.message.contains(message), "{name}: {:#?}", verdict.differences);
        assert_eq!(first.module.as_deref().unwrap_or_default(), module, "{name}: {:#?}", verdict.differences);
        assert!(verdict.differences.len() <= 3, "{name} is one change: {:#?}", verdict.differences);
        first.clone()
    }
}

fn decode(path: &std::path::Path) -> ModelProto {
    ModelProto::decode(fs::read(path).unwrap().as_slice()).unwrap()
}

fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

fn node<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut NodeProto {
    graph(model).node.iter_mut().find(|n| n.name() == name).unwrap()
}

fn attribute<'m>(model: &'m mut ModelProto, of: &str, name: &str) -> &'m mut AttributeProto {
    node(model, of).attribute.iter_mut().find(|a| a.name() == name).unwrap()
}

fn tensor<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut TensorProto {
    graph(model).initializer.iter_mut().find(|t| t.name() == name).unwrap()
}

/// The tensor that operand `slot` of node `of` is.
fn operand<'m>(model: &'m mut ModelProto, of: &str, slot: usize) -> &'m mut TensorProto {
    let name = node(model, of).input[slot].clone();
    tensor(model, &name)
}

fn bytes(tensor: &TensorProto) -> Vec<u8> {
    tensor.raw_data.as_ref().unwrap().to_vec()
}

fn edit_bytes(tensor: &mut TensorProto, edit: impl FnOnce(&mut [u8])) {
    let mut raw = bytes(tensor);
    edit(&mut raw);
    tensor.raw_data = Some(raw.into());
}

fn floats(tensor: &TensorProto) -> Vec<f32> {
    bytes(tensor).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn set_float(tensor: &mut TensorProto, index: usize, value: f32) {
    edit_bytes(tensor, |raw| raw[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes()));
}

fn simple(name: &str, op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        name: Some(name.into()),
        op_type: Some(op.into()),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    }
}

/// Puts `new` in front of node `before`, which reads its result as operand `slot`.
fn insert(model: &mut ModelProto, before: &str, slot: usize, op: &str) {
    let reader = node(model, before);
    let old = std::mem::replace(&mut reader.input[slot], "inserted".into());
    let at = graph(model).node.iter().position(|n| n.name() == before).unwrap();
    graph(model).node.insert(at, simple("/inserted", op, &[&old], "inserted"));
}

fn metadata<'m>(model: &'m mut ModelProto, key: &str) -> &'m mut StringStringEntryProto {
    model.metadata_props.iter_mut().find(|e| e.key() == key).unwrap()
}

/// Makes `model` say that it comes from `plan`.
fn claim(model: &mut ModelProto, plan: &Plan, emit: &str) {
    metadata(model, "crdiff.plan").value = Some(plan.digest.clone());
    metadata(model, "crdiff.emit").value = Some(emit.into());
    graph(model).name = Some(format!("main_graph_crdiff_{emit}_{}", &plan.digest[..12]));
}

fn dims(input: &mut ValueInfoProto) -> &mut Vec<crdiff::onnx::proto::tensor_shape_proto::Dimension> {
    match input.r#type.as_mut().unwrap().value.as_mut().unwrap() {
        type_proto::Value::TensorType(tensor) => &mut tensor.shape.as_mut().unwrap().dim,
        other => panic!("{other:?}"),
    }
}

#[test]
fn harmless() {
    let bench = Bench::new();
    let original = &bench.original;
    bench.accept("an extra Identity", |m| insert(m, CONV1, 0, "Identity"));
    bench.accept("a weight behind an Identity", |m| insert(m, TO_Q, 1, "Identity"));
    bench.accept("renamed values and nodes", |m| {
        let outputs: Vec<String> = graph(m).output.iter().map(|o| o.name().into()).collect();
        let inputs: Vec<String> = graph(m).input.iter().map(|o| o.name().into()).collect();
        let fixed = |name: &String| name.is_empty() || outputs.contains(name) || inputs.contains(name);
        for node in &mut graph(m).node {
            node.name = Some(String::new());
            for name in node.input.iter_mut().chain(&mut node.output).filter(|n| !fixed(n)) {
                name.insert_str(0, "renamed/");
            }
        }
        for tensor in &mut graph(m).initializer {
            tensor.name = Some(format!("renamed/{}", tensor.name()));
        }
    });
    bench.accept("reordered nodes", |m| graph(m).node.sort_by_key(|n| n.op_type() != "Constant"));
    // Decided: Add and Mul give the same bits in either order (IEEE 754), so tools may swap their operands.
    bench.accept("swapped operands of an Add", |m| node(m, "/up_blocks.0/resnets.0/Add_1").input.swap(0, 1));
    bench.accept("a Constant for an initializer", |m| {
        let weight = operand(m, CONV1, 1).clone();
        graph(m).initializer.retain(|t| t.name() != weight.name());
        let mut constant = simple("/constant", "Constant", &[], weight.name());
        constant.attribute.push(AttributeProto {
            name: Some("value".into()),
            r#type: Some(4),
            t: Some(weight.into()),
            ..AttributeProto::default()
        });
        graph(m).node.insert(0, constant);
    });
    bench.accept("an initializer for a Constant", |m| {
        let at = graph(m).node.iter().position(|n| n.op_type() == "Constant").unwrap();
        let constant = graph(m).node.remove(at);
        let tensor = constant.attribute[0].t.clone().unwrap();
        graph(m).initializer.push(TensorProto { name: Some(constant.output[0].clone()), ..*tensor });
    });
    bench.accept("another way to store a tensor", |m| {
        let bias = operand(m, CONV1, 2);
        bias.float_data = floats(bias);
        bias.raw_data = None;
    });
    bench.accept("doc strings", |m| {
        m.doc_string = Some("touched".into());
        m.producer_name = Some("another tool".into());
        node(m, CONV1).doc_string = Some("touched".into());
    });
    bench.accept("attributes in another order", |m| node(m, CONV1).attribute.reverse());
    bench.accept("a new dead node", |m| graph(m).node.push(simple("/dead", "Relu", &["sample"], "dead")));
    for form in ["Shrink", "Where"] {
        bench.accept(&format!("a mask made by {form}"), |m| masked_by_operators(m, original, form));
    }
}

/// Gives to_q its original weight back, behind operators that mask it.
fn masked_by_operators(m: &mut ModelProto, original: &ModelProto, form: &str) {
    let name = node(m, TO_Q).input[1].clone();
    let mut original = original.clone();
    let dense = operand(&mut original, TO_Q, 1).clone();
    let kept = floats(operand(m, TO_Q, 1));
    let masked = floats(&dense).into_iter().zip(kept).filter(|(_, kept)| *kept == 0.0);
    let t = masked.map(|(w, _)| w.abs()).fold(0.0, f32::max);
    edit_bytes(tensor(m, &name), |raw| raw.copy_from_slice(&bytes(&dense)));
    node(m, TO_Q).input[1] = "masked".into();
    let scalar = |name: &str, value: f32| TensorProto {
        name: Some(name.into()),
        data_type: Some(1),
        raw_data: Some(value.to_le_bytes().to_vec().into()),
        ..TensorProto::default()
    };
    let nodes = if form == "Shrink" {
        let mut shrink = simple("/shrink", "Shrink", &[&name], "masked");
        shrink.attribute.push(AttributeProto {
            name: Some("lambd".into()),
            r#type: Some(1),
            f: Some(t),
            ..AttributeProto::default()
        });
        vec![shrink]
    } else {
        graph(m).initializer.extend([scalar("t", t), scalar("zero", 0.0)]);
        vec![
            simple("/abs", "Abs", &[&name], "abs"),
            simple("/greater", "Greater", &["abs", "t"], "greater"),
            simple("/where", "Where", &["greater", &name, "zero"], "masked"),
        ]
    };
    graph(m).node.splice(0..0, nodes);
}

#[test]
fn tensors() {
    let bench = Bench::new();
    let found = bench.find("one bit of a weight", "operand 1 of Conv node", CONV1_PATH, |m| {
        edit_bytes(operand(m, CONV1, 1), |raw| raw[4 * 5] ^= 1);
    });
    assert_eq!(
        (found.element, found.tensor.as_deref()),
        (Some(5), Some("up_blocks.0.resnets.0.conv1.weight"))
    );
    let kept = |m: &mut ModelProto| floats(operand(m, TO_Q, 1)).iter().position(|w| *w != 0.0).unwrap();
    let masked = |m: &mut ModelProto| floats(operand(m, TO_Q, 1)).iter().position(|w| *w == 0.0).unwrap();
    bench.find("one element masked too many", "is 0.0, expected", TO_Q_PATH, |m| {
        let at = kept(m);
        set_float(operand(m, TO_Q, 1), at, 0.0);
    });
    let found = bench.find("one element masked too few", "expected 0.0", TO_Q_PATH, |m| {
        let at = masked(m);
        let original = floats(operand(&mut bench.original.clone(), TO_Q, 1));
        set_float(operand(m, TO_Q, 1), at, original[at]);
    });
    assert!(found.rule.is_some() && found.help.unwrap().contains("weights with magnitudes up to"));
    bench.find("a masked element that is -0", "is -0.0, expected 0.0", TO_Q_PATH, |m| {
        let at = masked(m);
        set_float(operand(m, TO_Q, 1), at, -0.0);
    });
    bench.find("a kept element changed", "the masked weight of", TO_Q_PATH, |m| {
        let at = kept(m);
        let weight = operand(m, TO_Q, 1);
        let value = floats(weight)[at];
        set_float(weight, at, value.next_up());
    });
    bench.find("a stale dense copy", "is not masked", TO_Q_PATH, |m| {
        let dense = bytes(operand(&mut bench.original.clone(), TO_Q, 1));
        edit_bytes(operand(m, TO_Q, 1), |raw| raw.copy_from_slice(&dense));
    });
    bench.find("a mask made by operators, off by one ulp", "the masked weight of", TO_Q_PATH, |m| {
        masked_by_operators(m, &bench.original, "Shrink");
        let t = attribute(m, "/shrink", "lambd");
        t.f = t.f.map(f32::next_down);
    });
    bench.find("a weight of another layer", "the masked weight of", TO_Q_PATH, |m| {
        let other = node(m, TO_K).input[1].clone();
        node(m, TO_Q).input[1] = other;
    });
    bench.find("a bias of another layer", "operand 2 of Conv node", CONV1_PATH, |m| {
        node(m, CONV1).input[2] = "up_blocks.0.resnets.0.conv2.bias".into();
    });
    let div = "/up_blocks.0/resnets.0/Div";
    bench.find("another Div constant", "is 2.0, expected 1.0", "up_blocks.0.resnets.0", |m| {
        let constant = node(m, div).input[1].clone();
        let maker = graph(m).node.iter_mut().find(|n| n.output[0] == constant).unwrap();
        maker.attribute[0].t.as_mut().unwrap().raw_data = Some(2f32.to_le_bytes().to_vec().into());
    });
    bench.find("another type of a bias", "is float16[", CONV1_PATH, |m| {
        let bias = operand(m, CONV1, 2);
        let halves = floats(bias).into_iter().flat_map(|x| half::f16::from_f32(x).to_le_bytes());
        bias.raw_data = Some(halves.collect::<Vec<u8>>().into());
        bias.data_type = Some(10);
    });
}

#[test]
fn wiring() {
    let bench = Bench::new();
    bench.find(
        "a wrong operand",
        "expected Mul node `/up_blocks.0/resnets.1/nonlinearity_1/Mul`",
        "up_blocks.0.resnets.1.conv2",
        |m| {
            node(m, "/up_blocks.0/resnets.1/conv2/Conv").input[0] =
                "/up_blocks.0/resnets.1/nonlinearity/Mul_output_0".into();
        },
    );
    bench.find("a dropped node", "is missing", "up_blocks.0.resnets.0.norm1", |m| {
        let dropped = node(m, "/up_blocks.0/resnets.0/norm1/Mul").clone();
        node(m, "/up_blocks.0/resnets.0/norm1/Add").input[0] = dropped.input[0].clone();
        graph(m).node.retain(|n| n.name() != dropped.name());
    });
    bench.find("an extra Relu", "Relu node `/inserted`, which is not in the original", CONV1_PATH, |m| {
        insert(m, CONV1, 0, "Relu");
    });
    bench.find("swapped operands of a Concat", "of Concat node `/up_blocks.0/Concat`", "up_blocks.0", |m| {
        node(m, "/up_blocks.0/Concat").input.swap(0, 1);
    });
    bench.find(
        "another operator",
        "Sub node `/up_blocks.0/resnets.0/Add_1`, expected Add",
        "up_blocks.0.resnets.0",
        |m| {
            node(m, "/up_blocks.0/resnets.0/Add_1").op_type = Some("Sub".into());
        },
    );
    let changed =
        |name: &str, of: &str, attribute_name: &str, module: &str, change: fn(&mut AttributeProto)| {
            bench.find(name, &format!("attribute `{attribute_name}` = "), module, |m| {
                change(attribute(m, of, attribute_name))
            });
        };
    changed("another axis", "/up_blocks.0/Concat", "axis", "up_blocks.0", |a| a.i = Some(2));
    let norm = "up_blocks.1.attentions.0.transformer_blocks.0.norm1";
    let layer_norm = "/up_blocks.1/attentions.0/transformer_blocks.0/norm1/LayerNormalization";
    changed("another epsilon", layer_norm, "epsilon", norm, |a| a.f = Some(1e-3));
    let transpose = "/up_blocks.1/attentions.0/Transpose";
    changed("another permutation", transpose, "perm", "up_blocks.1.attentions.0", |a| a.ints.swap(1, 2));
    changed("another stride", CONV1, "strides", CONV1_PATH, |a| a.ints[0] = 2);
    bench.find("an attribute lost", "no attribute `strides`", CONV1_PATH, |m| {
        node(m, CONV1).attribute.retain(|a| a.name() != "strides");
    });
    let found = bench.find(
        "a bypass not done",
        "`mid_block.attentions.0` is not bypassed",
        "mid_block.attentions.0",
        |m| {
            *m = compiled_with(&bench, &PLAN.replace("  - bypass: mid_block.attentions.0\n", ""));
        },
    );
    assert!(found.rule.is_some());
    let mut other = compiled_with(&bench, &PLAN.replace("mid_block", "down_blocks.0"));
    let verdict = bench.verify(&other);
    let modules: Vec<_> = verdict.differences.iter().filter_map(|d| d.module.as_deref()).collect();
    assert_eq!(modules.first(), Some(&"down_blocks.0.attentions.0"), "{:#?}", verdict.differences);
    assert!(modules.contains(&"mid_block.attentions.0"), "{:#?}", verdict.differences);
    claim(&mut other, &plan(&PLAN.replace("mid_block", "down_blocks.0")), "pruned");
    assert!(bench.verify(&other).differences.iter().any(|d| d.message.contains("from another plan")));
}

/// What another plan makes of the model, with the metadata of the bench's plan.
fn compiled_with(bench: &Bench, text: &str) -> ModelProto {
    let mut other = decode(&bench.model.compile(&plan(text), Weights::Copy).unwrap());
    claim(&mut other, &bench.plan, "pruned");
    other
}

#[test]
fn a_threshold_off_by_one_ulp() {
    let mut bench = Bench::new();
    let weights = floats(operand(&mut bench.original.clone(), TO_Q, 1));
    let text = |t: f32| {
        format!(
            "version: 1\nrules: [{{ prune: {{ weights: {TO_Q_PATH}, threshold: {:?} }} }}]\n",
            f64::from(t)
        )
    };
    let t = weights[10].abs();
    bench.plan = plan(&text(t));
    let right = compiled_with(&bench, &text(t));
    assert!(bench.verify(&right).is_proven());
    let verdict = bench.verify(&compiled_with(&bench, &text(t.next_down())));
    assert_eq!(verdict.differences.len(), 1, "{:#?}", verdict.differences);
    assert_eq!(weights[verdict.differences[0].element.unwrap() as usize].abs(), t);
}

#[test]
fn interface() {
    let bench = Bench::new();
    bench.find("a renamed output", "an output is called `other`, expected `out_sample`", "", |m| {
        let output = graph(m).output[0].name().to_string();
        for name in graph(m).node.iter_mut().flat_map(|n| &mut n.output).filter(|n| **n == output) {
            *name = "other".into();
        }
        graph(m).output[0].name = Some("other".into());
    });
    bench.find("a removed output", "the output `out_sample` is missing", "", |m| graph(m).output.clear());
    bench.find("a renamed input", "an input is called `latents`, expected `sample`", "", |m| {
        for name in graph(m).node.iter_mut().flat_map(|n| &mut n.input).filter(|n| **n == "sample") {
            *name = "latents".into();
        }
        graph(m).input[0].name = Some("latents".into());
    });
    bench.find("another dimension", "input `sample` is float32[", "", |m| {
        dims(&mut graph(m).input[0])[0].value =
            Some(crdiff::onnx::proto::tensor_shape_proto::dimension::Value::DimValue(2));
    });
    bench.find("an extra input", "there is an input `unused`", "", |m| {
        let extra = ValueInfoProto { name: Some("unused".into()), ..graph(m).input[0].clone() };
        graph(m).input.push(extra);
    });
    bench.find("inputs in another order", "is number 2, expected 1", "", |m| graph(m).input.swap(0, 1));
    bench.find("another operator set", "operator set `ai.onnx` has version 18, expected 17", "", |m| {
        m.opset_import[0].version = Some(18);
    });
    bench.find("another IR version", "the IR version is 9, expected 8", "", |m| m.ir_version = Some(9));
    for key in ["crdiff.plan", "crdiff.source", "crdiff.emit", "crdiff.version"] {
        bench.find(&format!("{key} lost"), &format!("the metadata key `{key}` is lost"), "", |m| {
            m.metadata_props.retain(|e| e.key() != key);
        });
    }
    bench.find("another source", "it was made from another model", "", |m| {
        metadata(m, "crdiff.source").value = Some("0".repeat(64));
    });
    bench.find("the original's name", "the graph's name is `main_graph`", "", |m| {
        graph(m).name = Some("main_graph".into());
    });
    let mut silent = bench.compiled.clone();
    silent.metadata_props.clear();
    graph(&mut silent).name = Some("main_graph".into());
    let verdict = bench.verify(&silent);
    assert!(verdict.is_proven() && verdict.notes.len() == 1, "{verdict:#?}");
}

#[test]
fn amplified() {
    let mut bench = Bench::new();
    let rule = "prune: { weights: \"up_blocks.**.attn1.**\", ratio: 0.3";
    let mut compiled = compiled_with(&bench, &format!("version: 1\nrules: [{{ {rule}, scale: -0.5 }} }}]\n"));
    bench.plan =
        plan(&format!("version: 1\nrules: [{{ {rule} }} }}]\namplify: {{ mode: weights, weight: 1.5 }}\n"));
    claim(&mut compiled, &bench.plan, "amplified");
    let verdict = bench.verify(&compiled);
    assert!(verdict.is_proven() && verdict.proof.masked > 0, "{verdict:#?}");
    claim(&mut compiled, &bench.plan, "pruned");
    assert!(!bench.verify(&compiled).is_proven());
}

/// A fused graph by hand: the original, the compiled graph beside it, and the mix.
fn fused(bench: &Bench) -> ModelProto {
    let mut dense = bench.original.clone();
    let mut pruned = bench.compiled.clone();
    let inputs: Vec<String> = graph(&mut dense).input.iter().map(|i| i.name().into()).collect();
    let prefix = |name: &mut String| {
        if !name.is_empty() && !inputs.contains(name) {
            name.insert_str(0, "pruned/");
        }
    };
    for node in &mut graph(&mut pruned).node {
        node.input.iter_mut().chain(&mut node.output).for_each(prefix);
    }
    for tensor in &mut graph(&mut pruned).initializer {
        tensor.name = tensor.name.take().map(|name| format!("pruned/{name}"));
    }
    for name in graph(&mut dense).node.iter_mut().flat_map(|n| &mut n.output).filter(|n| **n == "out_sample")
    {
        *name = "dense/out_sample".into();
    }
    let pruned = pruned.graph.unwrap();
    let target = graph(&mut dense);
    target.node.extend(pruned.node);
    target.initializer.extend(pruned.initializer);
    target.initializer.push(TensorProto {
        name: Some("poa_weight".into()),
        data_type: Some(1),
        raw_data: Some(1.5f32.to_le_bytes().to_vec().into()),
        ..TensorProto::default()
    });
    target.node.extend([
        simple("/poa/Sub", "Sub", &["pruned/out_sample", "dense/out_sample"], "difference"),
        simple("/poa/Mul", "Mul", &["difference", "poa_weight"], "scaled"),
        simple("/poa/Add", "Add", &["dense/out_sample", "scaled"], "out_sample"),
    ]);
    dense.metadata_props.clone_from(&bench.compiled.metadata_props);
    claim(&mut dense, &bench.plan, "fused");
    dense
}

#[test]
fn fused_graphs() {
    let mut bench = Bench::new();
    bench.compiled = fused(&bench);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven() && verdict.proof.masked > 0, "{:#?}", verdict.differences);
    bench.accept("w as an input", |m| {
        graph(m).initializer.retain(|t| t.name() != "poa_weight");
        let mut w = ValueInfoProto { name: Some("poa_weight".into()), ..graph(m).input[1].clone() };
        dims(&mut w).clear();
        graph(m).input.push(w);
    });
    bench.find("another w", "w is 1.25, expected 1.5", "", |m| set_float(tensor(m, "poa_weight"), 0, 1.25));
    bench.find("dense minus pruned", "is not the mix of both networks", "", |m| {
        node(m, "/poa/Sub").input.swap(0, 1);
    });
    bench.find("no mix", "Sub node `/poa/Add` makes the output, expected Add", "", |m| {
        node(m, "/poa/Add").op_type = Some("Sub".into());
    });
    let mut twice = bench.compiled.clone();
    node(&mut twice, "/poa/Sub").input[0] = "dense/out_sample".into();
    let differences = bench.verify(&twice).differences;
    assert!(differences[0].message.contains("`mid_block.attentions.0` is not bypassed"), "{differences:#?}");
    assert!(differences[1..].iter().all(|d| d.message.contains("is not masked")), "{differences:#?}");
    bench.find("a masked weight in the dense network", "operand 1 of MatMul", TO_Q_PATH, |m| {
        let masked = floats(operand(m, TO_Q, 1));
        let at = masked.iter().position(|w| *w != 0.0).unwrap();
        set_float(operand(m, TO_Q, 1), at, 0.0);
    });
}

#[test]
fn bodies() {
    let text = |number: f32| {
        format!(
            "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[2] x, bool c) => (float[2] y) {{\n  \
             y = If(c) <then_branch = a () => (float[2] t) {{ k = Constant<value_float = {number:?}>() t = Mul(x, k) }}, \
             else_branch = b () => (float[2] e) {{ e = Neg(x) }}>\n}}\n"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, crdiff::onnx::text::parse_model(text).unwrap().encode_to_vec()).unwrap();
        path
    };
    let plan = plan("version: 1\n");
    let original = write("original.onnx", &text(2.0));
    let renamed = write("renamed.onnx", &text(2.0).replace("k ", "other ").replace(" k)", " other)"));
    assert!(verdict(&original, &renamed, &plan).is_proven());
    let found = verdict(&original, &write("changed.onnx", &text(3.0)), &plan);
    assert!(found.differences[0].message.contains("`then_branch`"), "{:#?}", found.differences);
}
