//! Inferred shapes against those that ONNX Runtime computes (`tests/data/shapes`, made by `make.py` there).

use std::path::{Path, PathBuf};

use crdiff::{
    analysis::{
        macs::macs,
        shapes::{Agreement, Shapes, bind_sizes, shapes},
    },
    ir::{Graph, ValueId},
    onnx::{self, proto},
};
use prost::Message;
use serde::Deserialize;

/// One file of `tests/data/shapes`.
#[derive(Deserialize)]
struct Golden {
    model: PathBuf,
    /// Batch, height, width, sequence.
    sizes: Vec<[i64; 4]>,
    /// Element type, and the shape at each of `sizes`.
    shapes: Vec<(i32, Vec<Vec<i64>>)>,
    /// For each result of each node in order, an index into `shapes`.
    values: Vec<usize>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn load(path: impl AsRef<Path>) -> Graph {
    let path = root().join(path);
    Graph::load(onnx::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn goldens() -> Vec<Golden> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join("tests/data/shapes"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    assert!(files.len() >= 19, "only {} golden files", files.len());
    files.iter().map(|file| serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()).collect()
}

fn results(graph: &Graph) -> Vec<ValueId> {
    graph.nodes().flat_map(|(_, node)| node.results().collect::<Vec<_>>()).collect()
}

fn describe(graph: &Graph, shapes: &Shapes, value: ValueId) -> String {
    let node = graph.producer(value).map(|node| graph.node(node).describe()).unwrap_or_default();
    let shape = shapes.of(value).map_or("unknown".to_string(), ToString::to_string);
    format!("`{}` of {node}: {shape}", graph.value(value).name)
}

/// Differences of `graph` from the golden shapes, and how many values are not known.
fn differences(graph: &Graph, shapes: &Shapes, golden: &Golden) -> (Vec<String>, Vec<String>) {
    let values = results(graph);
    assert_eq!(values.len(), golden.values.len(), "{}: make the goldens again", golden.model.display());
    let mut wrong = Vec::new();
    for (i, [batch, height, width, sequence]) in golden.sizes.iter().enumerate() {
        let bindings = bind_sizes(graph, *batch, *height, *width, *sequence);
        let bindings: Vec<(&str, i64)> = bindings.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        let concrete = shapes.evaluate(&bindings);
        for (value, expected) in values.iter().zip(&golden.values) {
            let (data_type, expected) = &golden.shapes[*expected];
            if let Some(found) = concrete.of(*value)
                && found != expected[i]
            {
                wrong.push(format!(
                    "{} is {:?}, not {found:?}",
                    describe(graph, shapes, *value),
                    expected[i]
                ));
            }
            if let Some(found) = shapes.data_type(*value)
                && found.0 != *data_type
            {
                wrong.push(format!(
                    "{} has type {data_type}, not {}",
                    describe(graph, shapes, *value),
                    found.0
                ));
            }
        }
    }
    let unknown = values.iter().filter(|v| !shapes.is_known(**v)).map(|v| describe(graph, shapes, *v));
    (wrong, unknown.collect())
}

#[test]
fn shapes_of_real_exports_are_those_of_onnx_runtime() {
    for golden in goldens() {
        let graph = load(&golden.model);
        let shapes = shapes(&graph);
        let (wrong, unknown) = differences(&graph, &shapes, &golden);
        let count = golden.values.len();
        println!("{}: {} of {count} values known", golden.model.display(), count - unknown.len());
        assert!(wrong.is_empty(), "{}: {:#?}", golden.model.display(), &wrong[..wrong.len().min(10)]);
        assert!(
            unknown.is_empty(),
            "{}: {:#?}\n{:#?}",
            golden.model.display(),
            &unknown[..unknown.len().min(10)],
            shapes.notes()
        );
        assert_eq!(shapes.problems().collect::<Vec<_>>(), Vec::<&_>::new(), "{}", golden.model.display());
    }
}

/// A graph of these nodes over inputs of these dimensions (text for a symbol, nothing for unnamed ones).
fn graph(inputs: &[(&str, &[&str])], nodes: Vec<proto::NodeProto>) -> Graph {
    use proto::{tensor_shape_proto::Dimension, tensor_shape_proto::dimension::Value, type_proto};
    let input = |(name, dims): &(&str, &[&str])| {
        let dim = |text: &&str| Dimension {
            value: match text.parse() {
                Ok(size) => Some(Value::DimValue(size)),
                Err(_) if text.is_empty() => None,
                Err(_) => Some(Value::DimParam(text.to_string())),
            },
            ..Default::default()
        };
        let shape = proto::TensorShapeProto { dim: dims.iter().map(dim).collect() };
        let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(shape) };
        let value = Some(type_proto::Value::TensorType(tensor));
        proto::ValueInfoProto {
            name: Some(name.to_string()),
            r#type: Some(proto::TypeProto { value, ..Default::default() }),
            ..Default::default()
        }
    };
    let graph =
        proto::GraphProto { input: inputs.iter().map(input).collect(), node: nodes, ..Default::default() };
    let opset = proto::OperatorSetIdProto { domain: None, version: Some(18) };
    let model = proto::ModelProto { graph: Some(graph), opset_import: vec![opset], ..Default::default() };
    Graph::load(onnx::open_bytes(model.encode_to_vec().into(), ".").unwrap()).unwrap()
}

/// A node that is named after its first result.
fn node(
    op: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: Vec<proto::AttributeProto>,
) -> proto::NodeProto {
    proto::NodeProto {
        name: outputs.first().map(ToString::to_string),
        op_type: Some(op.to_string()),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: outputs.iter().map(ToString::to_string).collect(),
        attribute: attributes,
        ..Default::default()
    }
}

fn ints(name: &str, values: &[i64]) -> proto::AttributeProto {
    proto::AttributeProto { name: Some(name.into()), ints: values.to_vec(), ..Default::default() }
}

fn int(name: &str, value: i64) -> proto::AttributeProto {
    proto::AttributeProto { name: Some(name.into()), i: Some(value), ..Default::default() }
}

fn text(name: &str, value: &str) -> proto::AttributeProto {
    proto::AttributeProto { name: Some(name.into()), s: Some(value.to_string().into()), ..Default::default() }
}

fn constant(name: &str, values: &[i64]) -> proto::NodeProto {
    node("Constant", &[], &[name], vec![ints("value_ints", values)])
}

fn shape_of(graph: &Graph, name: &str) -> String {
    shapes(graph).of(graph.value_named(name).unwrap()).map_or("unknown".into(), ToString::to_string)
}

fn down(input: &str, output: &str) -> proto::NodeProto {
    node("Conv", &[input, "w"], &[output], vec![ints("strides", &[2, 2]), ints("pads", &[1; 4])])
}

fn up(input: &str, output: &str) -> Vec<proto::NodeProto> {
    let scales = proto::AttributeProto {
        name: Some("value_floats".into()),
        floats: vec![1.0, 1.0, 2.0, 2.0],
        ..Default::default()
    };
    let name = format!("{output}.scales");
    vec![
        node("Constant", &[], &[&name], vec![scales]),
        node("Resize", &[input, "", &name], &[output], vec![]),
    ]
}

const UNET: &[(&str, &[&str])] = &[("x", &["B", "4", "H", "W"]), ("w", &["4", "4", "3", "3"])];

#[test]
fn stated_shapes_play_no_part() {
    let path = root().join("fixtures/sd15-mini/dynamo/unet.onnx");
    let truth = load(&path);
    let bytes = std::fs::read(&path).unwrap();
    let mut model = proto::ModelProto::decode(bytes.as_slice()).unwrap();
    let infos = &mut model.graph.as_mut().unwrap().value_info;
    assert!(infos.len() > 100);
    let wrong = infos[0].r#type.clone();
    infos.iter_mut().for_each(|info| info.r#type.clone_from(&wrong));
    let folder = path.parent().unwrap();
    let misled = Graph::load(onnx::open_bytes(model.encode_to_vec().into(), folder).unwrap()).unwrap();
    model.graph.as_mut().unwrap().value_info.clear();
    let stripped = Graph::load(onnx::open_bytes(model.encode_to_vec().into(), folder).unwrap()).unwrap();
    let (expected, misled, stripped) = (shapes(&truth), shapes(&misled), shapes(&stripped));
    for value in results(&truth) {
        assert!(expected.is_known(value));
        assert_eq!(expected.of(value), misled.of(value));
        assert_eq!(expected.of(value), stripped.of(value));
    }
}

#[test]
fn a_unet_that_doubles_what_it_halved_agrees_with_its_input_at_divisible_sizes_only() {
    let mut nodes = vec![down("x", "a"), down("a", "b")];
    nodes.extend(up("b", "c"));
    nodes.extend(up("c", "d"));
    let graph = graph(UNET, nodes);
    let shapes = shapes(&graph);
    let value = |name: &str| graph.value_named(name).unwrap();
    assert_eq!(shape_of(&graph, "b"), "[B, 4, (H + 3)//4, (W + 3)//4]");
    assert_eq!(shape_of(&graph, "d"), "[B, 4, 4*((H + 3)//4), 4*((W + 3)//4)]");
    let agreement = shapes.compare(value("x"), value("d"));
    assert_eq!(agreement.to_string(), "equal when H and W are divisible by 4");
    assert!(matches!(agreement, Agreement::EqualWhenDivisible { by: 4, .. }));
    assert!(matches!(shapes.compare(value("a"), value("c")), Agreement::EqualWhenDivisible { by: 4, .. }));
    assert_eq!(shapes.compare(value("x"), value("a")).to_string(), "different in dimension 2");
    assert_eq!(shapes.compare(value("x"), value("x")), Agreement::Equal);
    assert_eq!(shapes.compare(value("x"), value("w")).to_string(), "different in dimension 0");
}

#[test]
fn a_concat_of_sizes_that_differ_is_reported() {
    let concat = |a: &str, b: &str| {
        let mut nodes = vec![down("x", "a")];
        nodes.extend(up("a", "c"));
        nodes.push(node("Concat", &[a, b], &["y"], vec![int("axis", 1)]));
        graph(UNET, nodes)
    };
    // The skip of a UNet: fine at even sizes.
    assert_eq!(shapes(&concat("x", "c")).problems().count(), 0);
    let shapes = shapes(&concat("x", "a"));
    let problems: Vec<&str> = shapes.problems().map(|note| note.what.as_str()).collect();
    let expected =
        "Concat of shapes [B, 4, H, W] and [B, 4, (H + 1)//2, (W + 1)//2], which differ in dimension";
    assert_eq!(problems, [2, 3].map(|dim| format!("Concat node `y`: {expected} {dim}")));
}

#[test]
fn operands_that_cannot_be_multiplied_are_reported() {
    let inputs: &[(&str, &[&str])] = &[("a", &["B", "7", "320"]), ("b", &["640", "5"]), ("c", &["3"])];
    let graph = graph(
        inputs,
        vec![node("MatMul", &["a", "b"], &["y"], vec![]), node("Add", &["b", "c"], &["z"], vec![])],
    );
    let shapes = shapes(&graph);
    let problems: Vec<&str> = shapes.problems().map(|note| note.what.as_str()).collect();
    let expected = [
        "MatMul node `y`: inner dimensions differ: 320 and 640",
        "Add node `z`: shapes [640, 5] and [3] do not broadcast",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn a_concat_settles_what_a_broadcast_left_open() {
    // A timestep with a dimension of its own (`steps`), as some exporters name it.
    let inputs: &[(&str, &[&str])] = &[("x", &["B", "4"]), ("t", &["steps", "4"])];
    let nodes = vec![
        node("Add", &["x", "t"], &["h"], vec![]),
        node("Concat", &["h", "x"], &["y"], vec![int("axis", 1)]),
    ];
    assert_eq!(shape_of(&graph(inputs, nodes[..1].to_vec()), "h"), "[broadcast(B, steps), 4]");
    assert_eq!(shape_of(&graph(inputs, nodes), "h"), "[B, 4]");
}

#[test]
fn sizes_follow_integers_through_the_operators_that_compute_them() {
    let nodes = vec![
        node("Shape", &["x"], &["shape"], vec![]),
        constant("two", &[2]),
        constant("axis0", &[0]),
        constant("from2", &[2]),
        constant("end", &[i64::MAX]),
        node("Slice", &["shape", "from2", "end", "axis0"], &["hw"], vec![]),
        node("Mul", &["hw", "two"], &["doubled"], vec![]),
        node("Div", &["doubled", "two"], &["again"], vec![]),
        node("ReduceProd", &["again", "axis0"], &["pixels"], vec![int("keepdims", 1)]),
        constant("minus1", &[-1]),
        node("Concat", &["pixels", "minus1"], &["target"], vec![int("axis", 0)]),
        node("Reshape", &["x", "target"], &["y"], vec![]),
        node("Einsum", &["y", "y"], &["z"], vec![text("equation", "pc,qc->pq")]),
    ];
    let graph = graph(UNET, nodes);
    assert_eq!(shape_of(&graph, "y"), "[H*W, 4*B]");
    assert_eq!(shape_of(&graph, "z"), "[H*W, H*W]");
}

#[test]
fn sizes_that_the_model_leaves_unnamed_get_names() {
    let inputs: &[(&str, &[&str])] = &[("sample", &["", "4", "H", "64"]), ("text", &["", "", "8"])];
    let graph = graph(inputs, vec![]);
    let shapes = shapes(&graph);
    assert_eq!(shapes.symbols().to_vec(), ["sample.0", "H", "text.0", "text.1"].map(Into::into));
    let bindings = bind_sizes(&graph, 2, 32, 48, 77);
    let expected = [("sample.0", 2), ("H", 32), ("text.0", 2), ("text.1", 77)];
    assert_eq!(bindings, expected.map(|(name, size)| (name.to_string(), size)));
    let concrete = shapes.evaluate(&expected);
    assert_eq!(concrete.of(graph.value_named("sample").unwrap()), Some(&[2, 4, 32, 64][..]));
    assert_eq!(concrete.elements(graph.value_named("text").unwrap()), Some(2 * 77 * 8));
    assert_eq!(shapes.evaluate(&expected[..1]).of(graph.value_named("sample").unwrap()), None);
}

/// torch.utils.flop_counter.FlopCounterMode on the diffusers model of the fixture (on the meta device): 11,402,240
/// floating-point operations for batch 2, latents of 8 x 16 and 5 text tokens.
#[test]
fn multiplications_of_a_unet_are_those_that_torch_counts() {
    for export in ["torchscript", "dynamo", "dynamo-opset23", "simplified", "slim"] {
        let graph = load(format!("fixtures/sd15-mini/{export}/unet.onnx"));
        let bindings = bind_sizes(&graph, 2, 8, 16, 5);
        let bindings: Vec<(&str, i64)> = bindings.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        let concrete = shapes(&graph).evaluate(&bindings);
        let total: u64 = graph.node_ids().map(|node| macs(&graph, &concrete, node)).sum();
        assert_eq!(total, 11_402_240 / 2, "{export}");
    }
}

#[test]
fn multiplications_of_single_operators() {
    let count = |inputs: &[(&str, &[&str])], op: &str, attributes: Vec<proto::AttributeProto>| {
        let names: Vec<&str> = inputs.iter().map(|(name, _)| *name).collect();
        let graph = graph(inputs, vec![node(op, &names, &["y"], attributes)]);
        let concrete = shapes(&graph).evaluate(&[]);
        macs(&graph, &concrete, graph.node_ids().next().unwrap())
    };
    // 8 of 4 x 4 results, each over 3 channels of 3 x 3.
    let conv: &[(&str, &[&str])] = &[("x", &["2", "6", "6", "6"]), ("w", &["8", "3", "3", "3"])];
    assert_eq!(count(conv, "Conv", vec![int("group", 2)]), 2 * 8 * 4 * 4 * 27);
    // Each of 6 x 3 x 3 elements goes through a kernel of 4 channels of 2 x 2.
    let transposed: &[(&str, &[&str])] = &[("x", &["2", "6", "3", "3"]), ("w", &["6", "4", "2", "2"])];
    assert_eq!(count(transposed, "ConvTranspose", vec![ints("strides", &[2, 2])]), 2 * 6 * 9 * 16);
    let gemm: &[(&str, &[&str])] = &[("a", &["5", "3"]), ("b", &["7", "5"])];
    assert_eq!(count(gemm, "Gemm", vec![int("transA", 1), int("transB", 1)]), 3 * 5 * 7);
    let matmul: &[(&str, &[&str])] = &[("a", &["2", "1", "3", "4"]), ("b", &["6", "4", "5"])];
    assert_eq!(count(matmul, "MatMul", vec![]), 2 * 6 * 3 * 4 * 5);
    let attention: &[(&str, &[&str])] =
        &[("q", &["2", "3", "5", "8"]), ("k", &["2", "3", "7", "8"]), ("v", &["2", "3", "7", "4"])];
    assert_eq!(count(attention, "Attention", vec![]), 2 * 3 * 5 * 7 * (8 + 4));
    let einsum: &[(&str, &[&str])] = &[("a", &["2", "3", "4"]), ("b", &["2", "5", "4"])];
    assert_eq!(count(einsum, "Einsum", vec![text("equation", "bid,bjd->bij")]), 2 * 3 * 5 * 4);
    assert_eq!(count(einsum, "Relu", vec![]), 0);
}

/// Extreme numbers in attributes and shape tensors, operands out of place: unknown or a note, never a panic.
#[test]
fn hostile_numbers_do_no_harm() {
    const EXTREMES: [i64; 12] =
        [i64::MIN, i64::MAX, i64::MIN + 1, i32::MIN as i64, i32::MAX as i64, 1 << 40, -2, -1, 0, 1, 5, 1000];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for name in ["torchscript", "dynamo-opset23", "quantized"] {
        let path = root().join(format!("fixtures/sd15-mini/{name}/unet.onnx"));
        let model = proto::ModelProto::decode(std::fs::read(&path).unwrap().as_slice()).unwrap();
        for _ in 0..40 {
            let mut broken = model.clone();
            let graph = broken.graph.as_mut().unwrap();
            for _ in 0..8 {
                let at = random(graph.node.len());
                let extreme = EXTREMES[random(EXTREMES.len())];
                let node = &mut graph.node[at];
                match random(4) {
                    0 => node.input.reverse(),
                    1 => node.input.truncate(1),
                    _ => {}
                }
                for attribute in &mut node.attribute {
                    if attribute.i.is_some() {
                        attribute.i = Some(extreme);
                    }
                    let count = attribute.ints.len();
                    if count > 0 {
                        attribute.ints[random(count)] = extreme;
                    }
                    if let Some(tensor) = &mut attribute.t
                        && tensor.data_type() == 7
                    {
                        tensor.raw_data = tensor
                            .raw_data
                            .as_ref()
                            .map(|b| extreme.to_le_bytes().repeat(b.len() / 8).into());
                    }
                }
                let at = random(graph.initializer.len());
                let tensor = &mut graph.initializer[at];
                if tensor.data_type() == 7 {
                    tensor.raw_data =
                        tensor.raw_data.as_ref().map(|b| extreme.to_le_bytes().repeat(b.len() / 8).into());
                } else if random(8) == 0 {
                    // A shape that doesn't fit the elements is refused when the model is read.
                    tensor.dims.push(1);
                }
            }
            let bytes = broken.encode_to_vec().into();
            let source = onnx::open_bytes(bytes, path.parent().unwrap()).unwrap();
            if let Ok(graph) = Graph::load(source) {
                let shapes = shapes(&graph);
                let bindings = bind_sizes(&graph, 2, 8, 8, 5);
                let bindings: Vec<(&str, i64)> =
                    bindings.iter().map(|(n, size)| (n.as_str(), *size)).collect();
                let concrete = shapes.evaluate(&bindings);
                for node in graph.node_ids() {
                    macs(&graph, &concrete, node);
                }
                let values = results(&graph);
                for pair in values.windows(2) {
                    shapes.compare(pair[0], pair[1]);
                }
            }
        }
    }
}
