//! Compiled graphs corrupted in named ways: what is harmful is found, and the place named; what is harmless is
//! accepted.

mod attention;
mod cached;
mod dilation;
mod freeu;
mod fused;
mod harmless;
mod interface;
#[cfg(feature = "runner")]
mod per_row;
mod shrink;
mod temperature;
mod tensors;
mod window;
mod wiring;

use std::fs;

use crdiff::{
    compile::Target,
    onnx::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
        ValueInfoProto, type_proto,
    },
    plan::Plan,
    verify::conformance::{Verdict, Violation},
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
        Self::of(PLAN)
    }

    fn of(text: &str) -> Self {
        let model = Model::copy("sd15-mini/torchscript");
        let plan = plan(text);
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
    ) -> Violation {
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

/// Returns the model as another plan makes it, with the metadata of the bench's plan.
fn compiled_with(bench: &Bench, text: &str) -> ModelProto {
    let mut other = decode(&bench.model.compile(&plan(text), Weights::Copy).unwrap());
    claim(&mut other, &bench.plan, "pruned");
    other
}
