//! Graphs with a value for each row of the batch where the original has one for all, and what is wrong with them.

use crdiff::{
    compile::{Job, Target, compile_file},
    deploy::{Batching, make_rows},
    ir::Graph,
    onnx::{self, WeightPolicy},
    report::{
        self,
        outcome::{Format, render},
    },
    verify::conformance::{Required, verify},
};

use super::*;
use crate::{common::onnx_text::parse_model, verify::support::load};

/// A timestep that is spread over the batch and, apart from that, divides the latents.
const TEXT: &str = r#"<ir_version: 10, opset_import: ["" : 21], producer_name: "hand">
g (float[N,4,H,W] sample, int64 timestep) => (float[N,4,H,W] out)
<
  float[4,4,1,1] w = {0.5, -0.25, 0.75, 0.1, -0.6, 0.3, 0.2, -0.9, 0.4, 0.8, -0.7, 0.15, 0.35, -0.45, 0.55, 0.65},
  float[1,2] frequencies = {0.5, 0.25}, float[2,4] w_time = {1.0, -2.0, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8},
  int64 zero = {0}, int64[1] first = {0}, int64[1] second = {1}, int64[4] places = {0, 4, 1, 1}
>
{
  ["/Shape"] s = Shape(sample)
  ["/Gather"] n = Gather(s, zero)
  ["/Unsqueeze"] rows = Unsqueeze(n, first)
  ["/Unsqueeze_1"] t1 = Unsqueeze(timestep, first)
  ["/Expand"] e = Expand(t1, rows)
  ["/time_proj/Cast"] ef = Cast <to = 1> (e)
  ["/time_proj/Unsqueeze"] eu = Unsqueeze(ef, second)
  ["/time_proj/Mul"] m = Mul(eu, frequencies)
  ["/time_embedding/MatMul"] te = MatMul(m, w_time)
  ["/time_embedding/Reshape"] tr = Reshape(te, places)
  ["/scale/Cast"] tf = Cast <to = 1> (timestep)
  ["/scale/Div"] d = Div(sample, tf)
  ["/mid_block/resnets.0/conv1/Conv"] b = Conv(d, w)
  ["/mid_block/resnets.0/Add"] r = Add(d, b)
  ["/conv_out/Add"] out = Add(r, tr)
}
"#;
const BYPASS: &str = "version: 1\nrules:\n  - bypass: mid_block.resnets.0\n";

/// The graph, and what is made of it with a value for each row.
struct Rows {
    folder: tempfile::TempDir,
    plan: Plan,
    exported: ModelProto,
}

impl Rows {
    fn new(text: &str, target: Target) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let original = folder.path().join("original.onnx");
        fs::write(&original, parse_model(TEXT).unwrap().encode_to_vec()).unwrap();
        let (plan, compiled) = (plan(text), folder.path().join("compiled.onnx"));
        let job = Job::new(&original, &plan).target(target).output(&compiled).weights(WeightPolicy::Copy);
        compile_file(&job, &()).unwrap();
        let exported = exported(load(&compiled), &folder.path().join("exported.onnx"));
        Self { folder, plan, exported }
    }

    fn verify(&self, model: &ModelProto, required: Option<Required>) -> Verdict {
        let path = self.folder.path().join("changed.onnx");
        fs::write(&path, model.encode_to_vec()).unwrap();
        let original = load(&self.folder.path().join("original.onnx"));
        verify(&original, &load(&path), &self.plan, required, &()).unwrap()
    }

    fn find(&self, name: &str, message: &str, change: impl FnOnce(&mut ModelProto)) {
        let mut changed = self.exported.clone();
        change(&mut changed);
        assert!(changed != self.exported, "{name} changes nothing");
        let verdict = self.verify(&changed, None);
        assert!(!verdict.is_proven(), "{name} was not found");
        let told = verdict.differences.iter().any(|difference| difference.message.contains(message));
        assert!(told, "{name}: {:#?}", verdict.differences);
    }
}

fn exported(mut graph: Graph, path: &std::path::Path) -> ModelProto {
    let Batching::Rows(_) = make_rows(&mut graph).unwrap() else { panic!("no rows") };
    let options = onnx::WriteOptions::new(path, WeightPolicy::Copy);
    onnx::write(&graph, &options).unwrap();
    decode(path)
}

#[test]
fn a_value_for_each_row_is_proven_and_stated() {
    for (text, target, inputs) in [
        ("version: 1\n", Target::Pruned, &["timestep"][..]),
        (BYPASS, Target::Pruned, &["timestep"]),
        (BYPASS, Target::Fused, &["timestep"]),
        (BYPASS, Target::FusedWithInput, &["timestep", "poa_weight"]),
    ] {
        let (rows, inputs) =
            (Rows::new(text, target), inputs.iter().map(|i| i.to_string()).collect::<Vec<_>>());
        for required in [None, Some(Required { target, cached: false, per_row: true })] {
            let verdict = rows.verify(&rows.exported, required);
            assert!(verdict.is_proven(), "{target:?}: {:#?}", verdict.differences);
            let outcome = report::verify::outcome("a", "b", &rows.plan.source, &verdict);
            for format in [Format::Text, Format::Json, Format::Junit, Format::Sarif] {
                let text = format!("{} for each row of the batch", inputs.join(" and "));
                assert!(render(&outcome, format).contains(&text), "{format:?}");
            }
            assert_eq!((verdict.form.target, &verdict.form.per_row[..]), (target, &inputs[..]));
        }
        let plain = rows.verify(&rows.exported, Some(target.into()));
        assert!(plain.differences[0].message.contains("for each row of the batch: timestep"), "{target:?}");
    }
    let bench = Bench::new();
    let required = Required { target: Target::Pruned, cached: false, per_row: true };
    let path = bench.model.folder().join("plain.onnx");
    fs::write(&path, bench.compiled.encode_to_vec()).unwrap();
    let verdict = verify(&bench.model.load(), &load(&path), &bench.plan, Some(required), &()).unwrap();
    assert!(verdict.differences[0].message.contains("no input has an element for each row"));
}

/// Puts `new` in front of what node `before` reads as operand `slot`.
fn put(model: &mut ModelProto, before: &str, slot: usize, op: &str, operand: Option<TensorProto>) {
    insert(model, before, slot, op);
    if let Some(operand) = operand {
        node(model, "/inserted").input.push(operand.name().to_string());
        graph(model).initializer.push(operand);
    }
}

fn indices(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(7),
        dims: vec![values.len() as i64],
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

fn input<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut ValueInfoProto {
    graph(model).input.iter_mut().find(|io| io.name() == name).unwrap()
}

/// The node that makes operand `slot` of node `of`.
fn producer(model: &mut ModelProto, of: &str, slot: usize) -> String {
    let read = node(model, of).input[slot].clone();
    let made = graph(model).node.iter().find(|n| n.output.contains(&read)).unwrap();
    made.name().to_string()
}

const CAST: &str = "/time_proj/Cast";
const DIV: &str = "/scale/Div";

#[test]
fn rows_that_are_read_otherwise() {
    use crdiff::onnx::proto::tensor_shape_proto::dimension::Value::{DimParam, DimValue};
    let bench = Rows::new(BYPASS, Target::FusedWithInput);
    let column = producer(&mut bench.exported.clone(), DIV, 1);
    let w = {
        let mut model = bench.exported.clone();
        let output = graph(&mut model).node.iter().find(|n| n.output[0] == "out").unwrap().name().to_string();
        let add = producer(&mut model, &output, 0);
        producer(&mut model, &add, 1)
    };
    bench.find("another row's timestep", "", |m| {
        put(m, CAST, 0, "Gather", Some(indices("other", &[1, 0])));
    });
    bench.find("another row's column", "", |m| {
        put(m, DIV, 1, "Gather", Some(indices("other", &[1, 0])));
    });
    bench.find("another row's w", "is not the mix of both networks: w is", |m| {
        put(m, &w, 1, "Gather", Some(indices("other", &[1, 0])));
    });
    bench.find("the first row for all", "", |m| {
        let mut first = indices("one", &[0]);
        first.dims = vec![1];
        put(m, &column, 0, "Gather", Some(first));
    });
    bench.find("still spread", "", |m| {
        put(m, CAST, 0, "Expand", Some(indices("rows_of", &[2])));
    });
    bench.find("no column", "expected the value of each row as [rows, 1, 1, 1]", |m| {
        let read = node(m, &column).input[0].clone();
        node(m, DIV).input[1] = read;
    });
    bench.find("no column of w", "w is", |m| node(m, &w).input[1] = "poa_weight".into());
    for shape in
        [&[1, -1, 1, 1][..], &[1, 1, 1, -1], &[-1, 1, 1], &[-1, 1, 1, 1, 1], &[-1, 1, 1, 2], &[2, 1, 1, 1]]
    {
        bench.find("another shape", "expected the value of each row as [rows, 1, 1, 1]", |m| {
            graph(m).initializer.push(indices("shape", shape));
            node(m, &column).input[1] = "shape".into();
        });
        bench.find("another shape of w", "w is", |m| {
            let reshape = producer(m, &w, 1);
            graph(m).initializer.push(indices("shape", shape));
            node(m, &reshape).input[1] = "shape".into();
        });
    }
    bench.find("a shape that callers give", "expected the value of each row", |m| {
        let shape = node(m, &column).input[1].clone();
        let other = input(m, "timestep").clone();
        graph(m).input.push(ValueInfoProto { name: Some(shape), ..other });
    });
    bench.find("a shape that means something else", "expected the value of each row", |m| {
        node(m, &column).attribute.push(AttributeProto {
            name: Some("allowzero".into()),
            r#type: Some(2),
            i: Some(1),
            ..AttributeProto::default()
        });
    });
    bench.find("w for the timestep", "", |m| {
        let read = node(m, &w).input[1].clone();
        node(m, DIV).input[1] = read;
    });
    bench.find("operands exchanged", "", |m| node(m, DIV).input.swap(0, 1));
    bench.find("another constant", "element 1 of `frequencies` is", |m| {
        let frequencies = tensor(m, "frequencies");
        frequencies.float_data.clear();
        frequencies.raw_data = Some([0.5f32, 0.75].map(f32::to_le_bytes).concat().into());
    });
    bench.find("another Cast", "is Cast node `/time_proj/Cast`", |m| attribute(m, CAST, "to").i = Some(11));
    for (value, text) in
        [(DimValue(2), "int64[2]"), (DimParam("M".into()), "int64[M]"), (DimValue(1), "int64[1]")]
    {
        bench.find("another batch", &format!("input `timestep` is {text}, expected int64"), |m| {
            dims(input(m, "timestep"))[0].value = Some(value);
        });
    }
    bench.find("a scalar", "input `timestep` is int64[N, N], expected int64[]", |m| {
        let again = dims(input(m, "timestep"))[0].clone();
        dims(input(m, "timestep")).push(again);
    });
    bench.find("no rows", "", |m| dims(input(m, "timestep")).clear());
    bench.find("w without rows", "input `poa_weight`", |m| {
        dims(input(m, "poa_weight"))[0].value = Some(DimValue(1))
    });
    bench.find(
        "other inputs claimed",
        "`crdiff.per_row_inputs` is \"timestep\", expected \"timestep,poa_weight\"",
        |m| {
            metadata(m, "crdiff.per_row_inputs").value = Some("timestep".into());
        },
    );
    bench.find("nothing claimed", "`crdiff.per_row_inputs` is \"\"", |m| {
        m.metadata_props.retain(|entry| entry.key() != "crdiff.per_row_inputs");
    });
    bench.find("the name of the graph without rows", "the graph's name is", |m| {
        let name = graph(m).name().trim_end_matches("_rows").to_string();
        graph(m).name = Some(name);
    });
}

/// The original itself, but for what it states about its input: nothing in it knows rows.
#[test]
fn one_element_that_is_read_as_such() {
    let plan = plan("version: 1\n");
    let head =
        "<ir_version: 10, opset_import: [\"\" : 21]>\ng (float[N,4] x, float t, bool c) => (float[N,4] out";
    for (what, outputs, body) in [
        ("Pow", "", "out = Pow(x, t)"),
        ("the exponent", "", "d = Mul(x, t) out = Pow(d, t)"),
        ("both operands", "", "u = Mul(t, t) out = Mul(x, u)"),
        ("no column", "", "out = Mul(x, t)"),
        ("a matrix", "", "r = Reshape(t, one) out = Mul(r, x)"),
        ("a size", "", "i = Cast <to = 7> (t) r = Reshape(i, one) e = Expand(x, r) out = Mul(e, x)"),
        ("an output", ", float u", "u = Identity(t) out = Relu(x)"),
        (
            "a body",
            "",
            "out = If(c) <then_branch = a () => (float[N,4] y) { y = Mul(x, t) }, else_branch = b () => (float[N,4] z) { z = Relu(x) }>",
        ),
        ("other sizes", "", "f = Expand(t, four) out = Mul(x, f)"),
    ] {
        let text = format!("{head}{outputs}) <int64[1] one = {{1}}, int64[1] four = {{4}}> {{ {body} }}");
        let mut model = parse_model(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let folder = tempfile::tempdir().unwrap();
        let [original, compiled] = ["original.onnx", "compiled.onnx"].map(|name| folder.path().join(name));
        fs::write(&original, model.encode_to_vec()).unwrap();
        assert!(verdict(&original, &original, &plan).is_proven(), "{what}");
        let rows = dims(input(&mut model, "x"))[0].clone();
        dims(input(&mut model, "t")).push(rows);
        fs::write(&compiled, model.encode_to_vec()).unwrap();
        let verdict = verdict(&original, &compiled, &plan);
        assert_eq!(verdict.form.per_row, ["t"], "{what}");
        assert!(!verdict.is_proven(), "{what} is proven");
    }
}

/// Replacements by the plan are followed too.
#[test]
fn one_element_that_stands_in_for_a_module() {
    let text = r#"<ir_version: 10, opset_import: ["" : 21]>
g (float[N,4] x, float[1] t) => (float[N,4] out) <float[1] w = {2.0}> {
  ["/blocks.0/ReduceMean"] a = ReduceMean <keepdims = 0> (x)
  ["/blocks.0/Mul"] m = Mul(a, w)
  ["/blocks.0/Add"] u = Add(t, m)
  ["/out/Pow"] out = Pow(x, u)
}"#;
    let mut model = parse_model(text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [original, compiled] = ["original.onnx", "compiled.onnx"].map(|name| folder.path().join(name));
    fs::write(&original, model.encode_to_vec()).unwrap();
    let plan = plan("version: 1\nrules:\n  - bypass: blocks.0\n");
    let job = Job::new(&original, &plan).output(&compiled).weights(WeightPolicy::Copy);
    compile_file(&job, &()).unwrap();
    assert!(verdict(&original, &compiled, &plan).is_proven());
    let rows = dims(input(&mut model, "x"))[0].clone();
    let mut changed = decode(&compiled);
    dims(input(&mut changed, "t"))[0] = rows;
    fs::write(&compiled, changed.encode_to_vec()).unwrap();
    assert!(!verdict(&original, &compiled, &plan).is_proven());
}
