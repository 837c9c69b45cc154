//! Planted faults in small graphs, by kind: what a compiled graph has that the original plus the plan has not.

use std::fs;

use crdiff::{
    onnx::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
        TensorAnnotation, TensorProto, TrainingInfoProto, ValueInfoProto,
    },
    verify::conformance::Verdict,
};
use prost::Message;

use super::support::{plan, verdict};
use crate::common::onnx_text::parse_model;

const EMPTY: &str = "version: 1\n";

fn model(text: &str) -> ModelProto {
    parse_model(&format!("<ir_version: 10, opset_import: [\"\" : 21, \"own\" : 1]>\n{text}")).unwrap()
}

fn judge(original: &ModelProto, compiled: &ModelProto) -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, model: &ModelProto| {
        let path = folder.path().join(name);
        fs::write(&path, model.encode_to_vec()).unwrap();
        path
    };
    verdict(&write("original.onnx", original), &write("compiled.onnx", compiled), &plan(EMPTY))
}

fn accept(name: &str, original: &ModelProto, compiled: &ModelProto) {
    let verdict = judge(original, compiled);
    assert!(verdict.is_proven(), "{name}: {:#?}", verdict.differences);
}

/// Checks that `original` is proven to be itself, and not proven to be what `change` makes of it.
fn refuse(name: &str, original: &ModelProto, change: impl FnOnce(&mut ModelProto)) {
    accept(name, original, original);
    let mut changed = original.clone();
    change(&mut changed);
    assert!(changed != *original, "{name} changes nothing");
    assert!(!judge(original, &changed).is_proven(), "{name} was not found");
}

fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

fn node(model: &mut ModelProto, at: usize) -> &mut NodeProto {
    &mut graph(model).node[at]
}

fn scalar(name: &str, data_type: i32, bytes: &[u8]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(data_type),
        raw_data: Some(bytes.to_vec().into()),
        ..TensorProto::default()
    }
}

#[test]
fn operands_that_are_left_out() {
    let g = "g (float[2,3] x, float a, float b, int64[4] i, float[4] f) => (float[n,m] y)";
    for call in [
        "Clip(x, a, b)",
        "Pad(x, i, a, i)",
        "Resize(x, f, f, i)",
        "QuantizeLinear(x, a, i)",
        "own.Anything(x, a, b, i)",
        "Slice(x, i, i, i, i)",
    ] {
        let whole = model(&format!("{g} {{ y = {call} }}"));
        for slot in 1..whole.graph.as_ref().unwrap().node[0].input.len() {
            refuse(&format!("{call} without operand {slot}"), &whole, |m| node(m, 0).input[slot].clear());
        }
        refuse(&format!("{call} without the last operand"), &whole, |m| {
            node(m, 0).input.pop();
        });
        let mut absent = whole.clone();
        node(&mut absent, 0).input.push(String::new());
        accept(&format!("{call} with one more, which is absent"), &whole, &absent);
    }
    let identity = model("g (float[2] x) => (float[2] y) { z = Identity(x) y = Relu(z) }");
    refuse("an Identity of two values", &identity, |m| node(m, 0).input.push("x".into()));
    refuse("an Identity with an attribute", &identity, |m| {
        let name = Some("axis".into());
        node(m, 0).attribute.push(AttributeProto { name, r#type: Some(2), i: Some(1), ..Default::default() });
    });
    let two = model("g (float[2] x) => (float[2] y) { y, mask = Dropout(x) }");
    refuse("another result", &two, |m| node(m, 0).output[1].clear());
    refuse("fewer results", &two, |m| {
        node(m, 0).output.pop();
    });
}

#[test]
fn masks_on_what_cannot_be_masked() {
    // Everything that Shrink can be given and is no weight: it would not see NaN, or round, or do nothing.
    for (data_type, size) in [(2, 1), (3, 1), (4, 2), (5, 2), (6, 4), (7, 8), (11, 8), (12, 4), (13, 8)] {
        let mut original = model("g () => (float y) { y = Identity(w) }");
        graph(&mut original).initializer.push(scalar("w", data_type, &vec![1; size]));
        refuse(&format!("Shrink on type {data_type}"), &original, |m| {
            let mut shrink = NodeProto { output: vec!["s".into()], ..node(m, 0).clone() };
            shrink.op_type = Some("Shrink".into());
            shrink.attribute = vec![AttributeProto {
                name: Some("lambd".into()),
                r#type: Some(1),
                f: Some(1e6),
                ..AttributeProto::default()
            }];
            node(m, 0).input[0] = "s".into();
            graph(m).node.insert(0, shrink);
        });
    }
}

/// ONNX Runtime refuses a graph whose nodes share a name, though nothing else would be computed.
#[test]
fn names_that_nodes_share() {
    let original = model("g (float[2] x) => (float[2] y) { [\"a\"] z = Relu(x) [\"b\"] y = Abs(z) }");
    let mut unnamed = original.clone();
    graph(&mut unnamed).node.iter_mut().for_each(|node| node.name = None);
    accept("nodes without names", &original, &unnamed);
    let mut shared = original.clone();
    node(&mut shared, 1).name = Some("a".into());
    let said = |original| judge(original, &shared).notes.iter().any(|note| note.contains("are called `a`"));
    accept("two nodes of one name", &original, &shared);
    assert!(said(&original) && !said(&shared));
}

/// A weight of two elements, all of which are kept by a mask in front of it.
fn masked(dims: &str, t: &str, zero: &str, form: &str) -> ModelProto {
    let (less, branches) = match form {
        "Greater" => ("Greater", "w, zero"),
        _ => ("LessOrEqual", "zero, w"),
    };
    model(&format!(
        "g (float[2] x) => (float[a,b] y) <float[{dims}] w = {{1.0, 2.0}}, {t}, {zero}> {{ a = Abs(w) c = {less}(a, t) \
         m = Where(c, {branches}) y = Mul(x, m) }}"
    ))
}

#[test]
fn masks_that_change_more_than_elements() {
    let plain = model("g (float[2] x) => (float[a,b] y) <float[2] w = {1.0, 2.0}> { y = Mul(x, w) }");
    for form in ["Greater", "LessOrEqual"] {
        let found = |t: &str, zero: &str| judge(&plain, &masked("2", t, zero, form)).is_proven();
        assert!(found("float t = {0.5}", "float zero = {0.0}"), "{form}");
        assert!(found("float[1] t = {0.5}", "float[1] zero = {0.0}"), "{form}, of the weight's rank");
        assert!(!found("float[1,1,1,1] t = {0.5}", "float zero = {0.0}"), "{form}, t of rank 4");
        assert!(!found("float t = {0.5}", "float[1,1] zero = {0.0}"), "{form}, 0 of rank 2");
        assert!(!found("float t = {1.0}", "float zero = {0.0}"), "{form} masks an element");
        assert!(!found("double t = {0.5}", "float zero = {0.0}"), "{form}, t of another type");
        assert!(!found("float t = {0.5}", "float zero = {-0.0}"), "{form}, -0");
        let mut fed = plain.clone();
        let w = ValueInfoProto { name: Some("w".into()), ..graph(&mut fed).input[0].clone() };
        graph(&mut fed).input.push(w.clone());
        let mut masked_too = masked("2", "float t = {0.5}", "float zero = {0.0}", form);
        graph(&mut masked_too).input.push(w);
        assert!(!judge(&fed, &masked_too).is_proven(), "{form} of a weight that can be overridden");
        let mut overridable = masked("2", "float t = {0.5}", "float zero = {0.0}", form);
        let t = ValueInfoProto { name: Some("t".into()), ..graph(&mut overridable).input[0].clone() };
        let mut original = plain.clone();
        graph(&mut original).input.push(t.clone());
        graph(&mut original).initializer.push(scalar("t", 1, &0.5f32.to_le_bytes()));
        graph(&mut overridable).input.push(t);
        assert!(!judge(&original, &overridable).is_proven(), "{form}, t can be overridden");
    }
    // LessOrEqual keeps NaN, Greater doesn't.
    for (form, kept) in [("Greater", false), ("LessOrEqual", true)] {
        let nan = |model: &mut ModelProto| {
            let w = graph(model).initializer.iter_mut().find(|t| t.name() == "w").unwrap();
            *w = TensorProto { dims: vec![2], ..scalar("w", 1, &[0, 0, 192, 127, 0, 0, 128, 63]) };
        };
        let (mut original, mut compiled) =
            (plain.clone(), masked("2", "float t = {0.5}", "float zero = {0.0}", form));
        nan(&mut original);
        nan(&mut compiled);
        assert_eq!(judge(&original, &compiled).is_proven(), kept, "{form}");
    }
}

#[test]
fn inputs_and_outputs() {
    let original = model(
        "g (float[2] x, float[2] z, float[2] unread) => (float[2] a, float[2] b) { a = Neg(x) b = Abs(z) }",
    );
    let outputs = original.graph.as_ref().unwrap().output.clone();
    for order in ["bab", "ba", "a", "b", "", "aab", "abb", "abab", "aa", "bb"] {
        refuse(&format!("outputs {order}"), &original, |m| {
            graph(m).output = order.chars().map(|c| outputs[usize::from(c == 'b')].clone()).collect();
        });
    }
    refuse("inputs swapped", &original, |m| graph(m).input.swap(0, 1));
    refuse("an input fewer", &original, |m| {
        graph(m).input.pop();
    });
    refuse("an unused input of w's name", &original, |m| {
        let more = ValueInfoProto { name: Some("poa_weight".into()), ..graph(m).input[0].clone() };
        graph(m).input.push(more);
    });
}

#[test]
fn random_nodes() {
    let g = "g (float[2] x) => (float[2] y)";
    let calls = [
        "RandomNormalLike(x)",
        "RandomUniformLike <seed = 1.0> (x)",
        "RandomNormal <shape = [2]> ()",
        "Bernoulli(x)",
        "own.Sample(x)",
        "If(c) <then_branch = t () => (float[2] r) { r = RandomNormalLike(x) }, else_branch = e () => (float[2] r) { r = Neg(x) }>",
    ];
    for call in calls {
        let g = g.replace("x)", "x, bool c)");
        let two = model(&format!("{g} {{ a = {call} b = {call} y = Sub(a, b) }}"));
        refuse(&format!("two {call} merged"), &two, |m| node(m, 2).input[1] = "a".into());
        let one = model(&format!("{g} {{ a = {call} y = Sub(a, a) }}"));
        refuse(&format!("one {call} doubled"), &one, |m| {
            let second = NodeProto { output: vec!["b".into()], ..node(m, 0).clone() };
            graph(m).node.insert(1, second);
            node(m, 2).input[1] = "b".into();
        });
    }
    let merged = model(&format!("{g} {{ a = Neg(x) y = Add(a, a) }}"));
    let two = model(&format!("{g} {{ a = Neg(x) b = Neg(x) y = Add(a, b) }}"));
    accept("equal nodes merged", &two, &merged);
}

/// A tensor of each type that ONNX has, with elements that the returned function can change.
fn tensors() -> Vec<TensorProto> {
    let mut tensors = Vec::new();
    for data_type in (1..=28).filter(|t| *t != 8) {
        let tensor = TensorProto { dims: vec![2], data_type: Some(data_type), ..TensorProto::default() };
        let bytes = match data_type {
            15 => 32,
            7 | 11 | 13 | 14 => 16,
            1 | 6 | 12 => 8,
            4 | 5 | 10 | 16 => 4,
            2 | 3 | 9 | 17..=20 | 24 => 2,
            _ => 1,
        };
        tensors.push(TensorProto { raw_data: Some(vec![1; bytes].into()), ..tensor.clone() });
        let typed = match data_type {
            1 => TensorProto { float_data: vec![1.0; 2], ..tensor },
            14 => TensorProto { float_data: vec![1.0; 4], ..tensor },
            7 => TensorProto { int64_data: vec![1; 2], ..tensor },
            11 => TensorProto { double_data: vec![1.0; 2], ..tensor },
            15 => TensorProto { double_data: vec![1.0; 4], ..tensor },
            12 | 13 => TensorProto { uint64_data: vec![1; 2], ..tensor },
            21..=23 | 25 | 26 => TensorProto { int32_data: vec![1], ..tensor },
            _ => TensorProto { int32_data: vec![1; 2], ..tensor },
        };
        tensors.push(typed);
    }
    let strings = vec![b"a".to_vec().into(), b"b".to_vec().into()];
    tensors.push(TensorProto {
        dims: vec![2],
        data_type: Some(8),
        string_data: strings,
        ..TensorProto::default()
    });
    tensors
}

/// Changes one element, wherever it is.
fn change(tensor: &mut TensorProto) {
    if let Some(raw) = &tensor.raw_data {
        let mut raw = raw.to_vec();
        raw[0] = 0;
        tensor.raw_data = Some(raw.into());
    }
    tensor.float_data.iter_mut().take(1).for_each(|x| *x = 0.0);
    tensor.int32_data.iter_mut().take(1).for_each(|x| *x = 0);
    tensor.int64_data.iter_mut().take(1).for_each(|x| *x = 0);
    tensor.double_data.iter_mut().take(1).for_each(|x| *x = 0.0);
    tensor.uint64_data.iter_mut().take(1).for_each(|x| *x = 0);
    tensor.string_data.iter_mut().take(1).for_each(|x| *x = b"c".to_vec().into());
}

#[test]
fn elements_of_every_type() {
    for tensor in tensors() {
        let name = format!("{:?}", TensorProto { name: None, ..tensor.clone() });
        let mut initializer = model("g () => (float y) { y = own.Read(w) }");
        graph(&mut initializer).initializer.push(TensorProto { name: Some("w".into()), ..tensor.clone() });
        refuse(&format!("initializer {name}"), &initializer, |m| change(&mut graph(m).initializer[0]));
        let attribute = AttributeProto {
            name: Some("value".into()),
            r#type: Some(4),
            t: Some(Box::new(tensor)),
            ..AttributeProto::default()
        };
        for op in ["Constant", "ConstantOfShape"] {
            let mut constant = model("g () => (float y) { w = Neg() y = own.Read(w) }");
            node(&mut constant, 0).op_type = Some(op.into());
            node(&mut constant, 0).attribute.push(attribute.clone());
            refuse(&format!("{op} {name}"), &constant, |m| {
                change(node(m, 0).attribute[0].t.as_mut().unwrap());
            });
            let mut body = model(
                "g (bool c) => (float y) { y = If(c) <then_branch = b () => (float r) { r = Neg() }> }",
            );
            let inner = |m: &'_ mut ModelProto| node(m, 0).attribute[0].g.as_mut().unwrap().node[0].clone();
            let mut changed = inner(&mut body);
            changed.op_type = Some(op.into());
            changed.attribute.push(attribute.clone());
            node(&mut body, 0).attribute[0].g.as_mut().unwrap().node[0] = changed;
            refuse(&format!("{op} in a body {name}"), &body, |m| {
                let inner = &mut node(m, 0).attribute[0].g.as_mut().unwrap().node[0];
                change(inner.attribute[0].t.as_mut().unwrap());
            });
        }
    }
}

#[test]
fn what_stands_beside_the_graph() {
    let original = model("g (float[2] x) => (float[2] y) { y = Neg(x) }");
    let entry = || StringStringEntryProto { key: Some("ort_config".into()), value: Some("{}".into()) };
    refuse("model metadata", &original, |m| m.metadata_props.push(entry()));
    refuse("graph metadata", &original, |m| graph(m).metadata_props.push(entry()));
    refuse("a domain", &original, |m| m.domain = Some("x".into()));
    refuse("a model version", &original, |m| m.model_version = Some(1));
    refuse("training", &original, |m| m.training_info.push(TrainingInfoProto::default()));
    refuse("another operator set", &original, |m| {
        m.opset_import.push(OperatorSetIdProto { domain: Some("more".into()), version: Some(1) });
    });
    refuse("an annotation", &original, |m| {
        graph(m).quantization_annotation.push(TensorAnnotation {
            tensor_name: Some("x".into()),
            quant_parameter_tensor_names: vec![entry()],
        });
    });
    refuse("a device configuration", &original, |m| {
        node(m, 0).device_configurations.push(Default::default())
    });
    refuse("an overload", &original, |m| node(m, 0).overload = Some("other".into()));
    let seen_through = model(
        "g (float[2] x) => (float[2] y) { c = Constant <value_float = 1.0> () i = Identity(x) y = Mul(i, c) }",
    );
    for at in [0, 1] {
        refuse(&format!("an overload of node {at}"), &seen_through, |m| {
            node(m, at).overload = Some("other".into())
        });
    }
}

#[test]
fn fields_that_onnx_does_not_have() {
    let original =
        model("g (float[2] x) => (float[2] y) { t = Constant<value = float[1] {1.0}>() y = Mul(x, t) }");
    let bytes = original.encode_to_vec();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let path = write("original.onnx", &bytes);
    // Field 200, the number 1; appended to the model, and to its last message that is a node, with new lengths.
    let unknown = [0xC0, 0x0C, 1];
    let appended = [&bytes[..], &unknown].concat();
    let in_model = write("model.onnx", &appended);
    assert!(!verdict(&path, &in_model, &plan(EMPTY)).is_proven());
    assert!(verdict(&in_model, &in_model, &plan(EMPTY)).is_proven());
    let with = |node_at: usize| {
        let mut message = original.clone();
        let nodes = std::mem::take(&mut graph(&mut message).node);
        let rest = message.graph.take().unwrap().encode_to_vec();
        let mut whole = Vec::new();
        for (at, node) in nodes.iter().enumerate() {
            let mut node = node.encode_to_vec();
            if at == node_at {
                node.extend(unknown);
            }
            whole.push(0x0A);
            prost::encoding::encode_varint(node.len() as u64, &mut whole);
            whole.extend(node);
        }
        whole.extend(rest);
        let mut model = message.encode_to_vec();
        model.push(0x3A);
        prost::encoding::encode_varint(whole.len() as u64, &mut model);
        model.extend(whole);
        write(&format!("node{node_at}.onnx"), &model)
    };
    assert!(!verdict(&path, &with(1), &plan(EMPTY)).is_proven());
    assert!(verdict(&with(1), &with(1), &plan(EMPTY)).is_proven());
    assert!(!verdict(&with(0), &with(1), &plan(EMPTY)).is_proven());
}
