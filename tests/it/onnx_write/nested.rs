//! External tensors below the graph: in attributes, subgraph bodies, functions and sparse initializers.

use std::{fs, path::Path};

use crdiff::{observer::Event, onnx::WeightPolicy};
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, StringStringEntryProto, TensorProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataLocation,
};
use protobuf::MessageField;

use crate::common::observer::Hears;

use super::{
    decoded::{Decoded, elements, external},
    load, write,
};

const LENGTHS: [usize; 4] = [4096, 8, 2048, 1024];

/// Tensor `index` in `weights/w.bin`, filled with `index + 1`.
fn tensor(index: usize) -> TensorProto {
    let mut tensor = TensorProto { dims: vec![LENGTHS[index] as i64], ..TensorProto::default() };
    tensor.name = format!("t{index}");
    tensor.data_type = 2;
    tensor.data_location = DataLocation::EXTERNAL.into();
    let offset: usize = LENGTHS[..index].iter().sum();
    let length = LENGTHS[index].to_string();
    for (key, value) in [("location", "weights/w.bin"), ("offset", &offset.to_string()), ("length", &length)]
    {
        let mut entry = StringStringEntryProto::new();
        entry.key = key.into();
        entry.value = value.into();
        tensor.external_data.push(entry);
    }
    tensor.special_fields.mut_unknown_fields().add_varint(1000, index as u64);
    tensor
}

fn node(op_type: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let mut node = NodeProto {
        input: names(inputs),
        output: names(outputs),
        attribute: attributes,
        ..Default::default()
    };
    node.op_type = op_type.into();
    node
}

fn named(name: &str) -> ValueInfoProto {
    let mut info = ValueInfoProto::new();
    info.name = name.into();
    info
}

fn constant(index: usize) -> NodeProto {
    let mut value = AttributeProto { t: MessageField::some(tensor(index)), ..Default::default() };
    value.name = "value".into();
    value.type_ = AttributeType::TENSOR.into();
    node("Constant", &[], &["c"], vec![value])
}

/// `If` with a body that has an initializer and reads the outer `x`; a `Constant`; a function with another; a sparse
/// initializer.
fn model() -> ModelProto {
    let mut body =
        GraphProto { output: vec![named("y")], initializer: vec![tensor(0)], ..Default::default() };
    body.node.push(node("Add", &["x", "t0"], &["y"], vec![]));
    let branch = |name: &str| {
        let mut branch = AttributeProto { g: MessageField::some(body.clone()), ..Default::default() };
        branch.name = name.into();
        branch.type_ = AttributeType::GRAPH.into();
        branch
    };
    let sparse = SparseTensorProto {
        values: MessageField::some(tensor(3)),
        dims: vec![4096],
        ..SparseTensorProto::default()
    };
    let graph = GraphProto {
        input: vec![named("p"), named("x")],
        output: vec![named("z")],
        sparse_initializer: vec![sparse],
        node: vec![
            constant(1),
            node("If", &["p"], &["z"], vec![branch("then_branch"), branch("else_branch")]),
        ],
        ..GraphProto::default()
    };
    let mut function =
        FunctionProto { node: vec![constant(2)], output: vec!["c".into()], ..Default::default() };
    function.name = "F".into();
    function.domain = "test".into();
    let mut opset = OperatorSetIdProto::new();
    opset.version = 18;
    let mut model = ModelProto {
        graph: MessageField::some(graph),
        functions: vec![function],
        opset_import: vec![opset],
        ..ModelProto::default()
    };
    model.ir_version = 10;
    model
}

/// The tensors of [`model`], by index.
fn tensors(model: &ModelProto) -> [Vec<&TensorProto>; 4] {
    let bodies = &model.graph.node[1].attribute;
    [
        bodies.iter().map(|a| &a.g.initializer[0]).collect(),
        vec![model.graph.node[0].attribute[0].t.as_ref().unwrap()],
        vec![model.functions[0].node[0].attribute[0].t.as_ref().unwrap()],
        vec![model.graph.sparse_initializer[0].values.as_ref().unwrap()],
    ]
}

fn check_elements(output: &Path) {
    let out = Decoded::open(output);
    for (index, found) in tensors(&out.model).iter().enumerate() {
        for tensor in found {
            assert_eq!(elements(&out.folder, tensor), vec![index as u8 + 1; LENGTHS[index]]);
            assert_eq!(tensor.special_fields, self::tensor(index).special_fields);
        }
    }
}

#[test]
fn tensors_below_the_graph_follow_the_policy_too() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("source");
    fs::create_dir_all(folder.join("weights")).unwrap();
    let data: Vec<u8> = (0..4).flat_map(|index| vec![index as u8 + 1; LENGTHS[index]]).collect();
    fs::write(folder.join("weights/w.bin"), &data).unwrap();
    let source = folder.join("m.onnx");
    let bytes = model().write_to_bytes().unwrap();
    fs::write(&source, &bytes).unwrap();

    let mut graph = load(&source);
    graph.check().unwrap();
    let elsewhere = work.path().join("unedited");
    fs::create_dir(&elsewhere).unwrap();
    write(&graph, &elsewhere.join("m.onnx"), WeightPolicy::Copy).unwrap();
    assert_eq!(fs::read(elsewhere.join("m.onnx")).unwrap(), bytes);
    assert_eq!(fs::read(elsewhere.join("weights/w.bin")).unwrap(), data);

    graph.edit().set_graph_name("edited");
    let beside = folder.join("shared.onnx");
    write(&graph, &beside, WeightPolicy::Share).unwrap();
    let mut expected = model();
    expected.graph.mut_or_insert_default().name = "edited".into();
    let mut shared = Decoded::open(&beside).model;
    assert_eq!(shared.metadata_props.pop().unwrap().key, "crdiff.shared");
    assert!(shared == expected);

    let above = work.path().join("above.onnx");
    let written = write(&graph, &above, WeightPolicy::Share).unwrap();
    check_elements(&above);
    for tensor in tensors(&Decoded::open(&above).model).concat() {
        assert_eq!(external(tensor, "location"), Some("source/weights/w.bin"));
    }
    assert_eq!(written.bytes_shared, 4096 * 2 + 8 + 2048 + 1024);

    let copy = elsewhere.join("copy.onnx");
    write(&graph, &copy, WeightPolicy::Copy).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    check_elements(&copy);
    let copied = Decoded::open(&copy);
    for (tensor, len) in tensors(&copied.model).iter().zip(LENGTHS) {
        assert_eq!(external(tensor[0], "location"), (len >= 1024).then_some("copy.onnx_data"));
    }
}

#[test]
fn folders_made_for_an_output_that_failed_are_removed() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("source");
    fs::create_dir_all(folder.join("weights")).unwrap();
    fs::write(folder.join("weights/w.bin"), vec![0; 8192]).unwrap();
    fs::write(folder.join("m.onnx"), model().write_to_bytes().unwrap()).unwrap();
    let elsewhere = work.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let stop = Hears::new(|event| !matches!(event, Event::Bytes(_, 0)));
    let output = elsewhere.join("m.onnx");
    let options = crdiff::onnx::WriteOptions::new(&output, WeightPolicy::Copy).observer(&stop);
    crdiff::onnx::write(&load(&folder.join("m.onnx")), &options).unwrap_err();
    assert_eq!(super::listing(&elsewhere), [""; 0]);
}
