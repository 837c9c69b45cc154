//! Losslessness: bytes that no edit touches come out as they went in.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crdiff::{
    ir::{NewData, NodeSpec, Place},
    onnx::{DataType, ValueInfo, WeightPolicy, model_field, wire::Field},
};
use onnx_protobuf::{GraphProto, Message, ModelProto, StringStringEntryProto};

use super::{
    UpTo, backend,
    decoded::{Decoded, elements, is_external},
    fixture, listing, load, mask, workspace, write,
};

fn every_model() -> Vec<PathBuf> {
    let mut models = Vec::new();
    backend::find_onnx(&fixture(""), &mut models);
    assert!(!models.is_empty(), "no fixtures");
    models.extend_from_slice(backend::models());
    models
}

#[test]
fn an_unedited_graph_is_the_same_file() {
    for model in every_model() {
        let (work, source) = workspace(&model);
        let before = listing(source.parent().unwrap());
        let beside = source.with_file_name("out.onnx");
        let written = write(&load(&source), &beside, WeightPolicy::Share).unwrap();
        assert_eq!(fs::read(&beside).unwrap(), fs::read(&source).unwrap(), "{}", model.display());
        assert_eq!(written.files, [(beside.clone(), fs::metadata(&source).unwrap().len())]);
        assert_eq!(listing(source.parent().unwrap()).len(), before.len() + 1);

        for policy in [WeightPolicy::Share, WeightPolicy::Copy] {
            let folder = work.path().join(format!("{policy:?}"));
            fs::create_dir(&folder).unwrap();
            let written = write(&load(&source), &folder.join("unet.onnx"), policy).unwrap();
            assert_eq!(listing(&folder), before);
            for name in &before {
                assert_eq!(
                    fs::read(folder.join(name)).unwrap(),
                    fs::read(source.with_file_name(name)).unwrap()
                );
            }
            assert_eq!(written.files.len(), before.len());
            assert_eq!(written.bytes_shared, 0);
        }
    }
}

#[test]
fn a_rewritten_model_differs_only_in_what_was_set() {
    for model in every_model() {
        let (_work, source) = workspace(&model);
        let mut graph = load(&source);
        graph.edit().set_metadata("crdiff.test", "1");
        let output = source.with_file_name("out.onnx");
        write(&graph, &output, WeightPolicy::Copy).unwrap();
        let mut out = with_elements(&output);
        let added = out.metadata_props.pop().unwrap();
        assert_eq!((added.key.as_str(), added.value.as_str()), ("crdiff.test", "1"));
        let mut expected = with_elements(&source);
        if !expected.functions.is_empty() {
            // Bodies stand in the places of calls: which, is tested in `functions`.
            assert!(out.functions.is_empty(), "{}", model.display());
            expected.functions.clear();
            for model in [&mut out, &mut expected] {
                model.graph.mut_or_insert_default().node.clear();
            }
        }
        assert!(out == expected, "{}", model.display());
    }
}

/// The model with external elements read into it.
fn with_elements(path: &Path) -> ModelProto {
    let Decoded { mut model, folder } = Decoded::open(path);
    for tensor in &mut model.graph.mut_or_insert_default().initializer {
        if is_external(tensor) {
            tensor.raw_data = elements(&folder, tensor);
            tensor.external_data.clear();
            tensor.data_location = Default::default();
        }
    }
    model
}

#[test]
fn unknown_fields_survive_in_every_message_that_is_touched() {
    let (_work, source) = workspace(&fixture("sd15-mini/torchscript/unet.onnx"));
    let mut model = Decoded::open(&source).model;
    model.special_fields.mut_unknown_fields().add_varint(1001, 1);
    let graph = model.graph.mut_or_insert_default();
    graph.special_fields.mut_unknown_fields().add_length_delimited(1002, b"graph".to_vec());
    for tensor in &mut graph.initializer {
        tensor.special_fields.mut_unknown_fields().add_fixed32(1003, 3);
        tensor.doc_string = "kept".into();
    }
    for node in &mut graph.node {
        node.special_fields.mut_unknown_fields().add_fixed64(1004, 4);
    }
    fs::write(&source, model.write_to_bytes().unwrap()).unwrap();

    let mut graph = load(&source);
    let masked = mask(&mut graph, 0, Arc::new(UpTo(0.01)));
    let reads = graph.initializer(masked[0].0).unwrap().value;
    let (node, slot) = graph
        .nodes()
        .find_map(|(id, n)| Some((id, n.inputs.iter().position(|i| *i == Some(reads))?)))
        .unwrap();
    let (_, fresh) =
        graph.edit().add_initializer("fresh", DataType::FLOAT, &[1], NewData::Bytes(vec![0; 4].into()));
    graph.edit().set_input(node, slot, fresh).unwrap();
    let output = source.with_file_name("out.onnx");
    write(&graph, &output, WeightPolicy::Share).unwrap();

    let out = Decoded::open(&output).model;
    assert_eq!(out.special_fields, model.special_fields);
    assert_eq!(out.graph.special_fields, model.graph.special_fields);
    assert_eq!(out.graph.node.len(), model.graph.node.len());
    for (node, original) in out.graph.node.iter().zip(&model.graph.node) {
        assert_eq!(node.special_fields, original.special_fields);
        assert_eq!(node.attribute, original.attribute);
    }
    let (added, kept) = out.graph.initializer.split_last().unwrap();
    assert_eq!(
        (added.name.as_str(), added.dims.as_slice(), added.raw_data.as_slice()),
        ("fresh", &[1][..], &[0; 4][..])
    );
    for (tensor, original) in kept.iter().zip(&model.graph.initializer) {
        assert_eq!(tensor.special_fields, original.special_fields);
        assert_eq!(tensor.doc_string, "kept");
        assert_eq!(
            (&tensor.dims, tensor.data_type, &tensor.name),
            (&original.dims, original.data_type, &original.name)
        );
    }
}

#[test]
fn what_is_added_and_removed_goes_beside_its_like() {
    let (_work, source) = workspace(&fixture("sd15-mini/dynamo/unet.onnx"));
    let original = Decoded::open(&source).model;
    let mut graph = load(&source);
    let unread: Vec<_> = graph.outputs().iter().map(|io| io.value).collect();
    let sample = graph.inputs().next().unwrap().value;
    // The output becomes the input: nothing else is needed.
    graph.edit().redirect(unread[0], sample).unwrap();
    let mut doomed: Vec<_> = graph.node_ids().filter(|id| graph.node(*id).op_type != "Identity").collect();
    let spec = NodeSpec {
        name: "first",
        op_type: "Neg",
        inputs: &[Some(sample)],
        output: "neg",
        attributes: vec![],
    };
    graph.edit().add_node(spec, Place::First).unwrap();
    let kept = doomed.remove(0);
    for node in doomed.into_iter().rev() {
        graph.edit().remove_node(node).unwrap();
    }
    let extra = ValueInfo::tensor("weight", DataType::FLOAT, None);
    graph.edit().add_input(extra).unwrap();
    graph.edit().set_graph_name("renamed");
    graph.check().unwrap();
    let output = source.with_file_name("out.onnx");
    write(&graph, &output, WeightPolicy::Share).unwrap();

    let out = Decoded::open(&output).model;
    let ops: Vec<_> = out.graph.node.iter().map(|n| n.op_type.as_str()).collect();
    assert_eq!(ops.first(), Some(&"Neg"));
    assert_eq!(ops.last(), Some(&"Identity"));
    assert!(out.graph.node.contains(&original.graph.node[0]), "{}", graph.node(kept).describe());
    assert_eq!(out.graph.name, "renamed");
    let inputs: Vec<_> = out.graph.input.iter().map(|i| i.name.as_str()).collect();
    let mut expected: Vec<_> = original.graph.input.iter().map(|i| i.name.as_str()).collect();
    expected.push("weight");
    assert_eq!(inputs, expected);
    let tensors = out.graph.initializer.iter().map(|t| &t.name);
    let defined: Vec<_> = out.graph.node.iter().flat_map(|n| &n.output).chain(tensors).collect();
    let is_defined = |name: &str| defined.iter().any(|d| *d == name) || inputs.contains(&name);
    assert!(out.graph.value_info.len() < original.graph.value_info.len());
    assert!(out.graph.value_info.iter().all(|v| is_defined(&v.name)));
    load(&output).check().unwrap();
}

/// The wire format does not fix the order of a graph's fields.
#[test]
fn a_type_that_stands_before_everything_is_forgotten() {
    let (_work, source) = workspace(&fixture("sd15-mini/dynamo/unet.onnx"));
    let mut model = Decoded::open(&source).model;
    let mut graph = model.graph.take().unwrap();
    let types = GraphProto { value_info: std::mem::take(&mut graph.value_info), ..GraphProto::new() };
    let graph = [types.write_to_bytes().unwrap(), graph.write_to_bytes().unwrap()].concat();
    let graph = Field::message(model_field::GRAPH, &graph).raw;
    fs::write(&source, [&model.write_to_bytes().unwrap()[..], &graph].concat()).unwrap();
    let mut expected = with_elements(&source);
    let gone = expected.graph.mut_or_insert_default().value_info.remove(1);

    let mut graph = load(&source);
    let value = graph.value_named(&gone.name).unwrap();
    graph.edit().forget_types(&[value]);
    let output = source.with_file_name("out.onnx");
    write(&graph, &output, WeightPolicy::Copy).unwrap();
    assert!(with_elements(&output) == expected);
}

#[test]
fn metadata_is_replaced_in_its_place_and_a_stale_hash_dropped() {
    let (_work, source) = workspace(&fixture("sd15-mini/torchscript/unet.onnx"));
    let mut model: ModelProto = Decoded::open(&source).model;
    model.metadata_props = ["a", "model_hash", "b"]
        .map(|key| {
            let mut entry = StringStringEntryProto::new();
            entry.key = key.into();
            entry.value = "old".into();
            entry
        })
        .to_vec();
    fs::write(&source, model.write_to_bytes().unwrap()).unwrap();
    let mut graph = load(&source);
    for (key, value) in [("c", "1"), ("a", "1"), ("c", "2")] {
        graph.edit().set_metadata(key, value);
    }
    let output = source.with_file_name("out.onnx");
    write(&graph, &output, WeightPolicy::Copy).unwrap();
    let out = Decoded::open(&output).model;
    let entries: Vec<_> = out.metadata_props.iter().map(|e| (e.key.as_str(), e.value.as_str())).collect();
    assert_eq!(entries, [("a", "1"), ("b", "old"), ("c", "2")]);
}
