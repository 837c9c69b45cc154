//! Models with functions of their own: what stands in the place of each call is what `onnx.inliner` puts there, and
//! ONNX Runtime computes the same with it (`fixtures/functions.py`).

use std::path::{Path, PathBuf};

use crdiff::{
    compile::{Job, compile_file},
    engine::{Engine, HostTensor, Optimization, OrtEngine, SessionOptions},
    ir::Graph,
    onnx::{self, OnnxError, WeightPolicy, WriteOptions, proto::ModelProto},
    plan,
    report::CompileReport,
    verify::structure::{WeightComparison, diff},
};
use prost::Message;

use crate::common::{onnx_text::parse_model, ort::ort_library};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/functions").join(format!("{name}.onnx"))
}

fn load(path: &Path) -> Graph {
    Graph::load(onnx::open(path).unwrap()).unwrap()
}

fn loaded(text: &str) -> Result<Graph, OnnxError> {
    onnx::open_bytes(parse_model(text).unwrap().encode_to_vec().into(), ".").and_then(Graph::load)
}

#[test]
fn the_reference_inlines_them_alike() {
    for name in ["attributes", "operands", "keys", "names", "bodies"] {
        let (ours, theirs) = (load(&fixture(name)), load(&fixture(&format!("{name}.inlined"))));
        let found = diff(&ours, &theirs, WeightComparison::Compared, &()).unwrap();
        assert!(found.is_same() && found.matched == ours.nodes().count(), "{name}: {:?}", found.differences);
    }
}

#[test]
fn engines_compute_the_same() {
    let engine = OrtEngine::open(&ort_library()).unwrap();
    let options = SessionOptions::default().optimization(Optimization::Disabled);
    let folder = tempfile::tempdir().unwrap();
    for name in ["attributes", "defaults", "operands", "keys", "names", "bodies"] {
        let graph = load(&fixture(name));
        let path = folder.path().join(format!("{name}.onnx"));
        onnx::write(&graph, &WriteOptions::new(&path, WeightPolicy::Inline)).unwrap();
        let written = ModelProto::decode(std::fs::read(&path).unwrap().as_slice()).unwrap();
        assert!(written.functions.is_empty(), "{name}");
        for chosen in [false, true] {
            let number = |i: usize| ((i * 37 % 11) as f32 - 5.0) / 3.0;
            let numbers = HostTensor::new([2, 3], (0..6).map(number).collect::<Vec<_>>()).unwrap();
            let inputs: Vec<(&str, HostTensor)> = graph
                .inputs()
                .map(|io| match io.info.name() {
                    "c" => ("c", HostTensor::scalar(chosen)),
                    name => (name, numbers.clone()),
                })
                .collect();
            let inputs: Vec<(&str, &HostTensor)> =
                inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
            let [theirs, ours] = [&fixture(name), &path].map(|path| {
                let outputs = engine.load(path, &options).unwrap().run(&inputs, None).unwrap();
                outputs.into_iter().map(|(name, tensor)| (name, tensor.to_le_bytes())).collect::<Vec<_>>()
            });
            assert_eq!(ours, theirs, "{name}, {chosen}");
        }
    }
}

/// One transformer block, layers as operators or as calls.
fn block(layer: &str) -> String {
    let weights = |name: &str, seed: usize| {
        let number = |i: usize| format!("{:.3}", ((i + seed) as f32 * 0.7371).sin());
        format!("float[8,8] {name} = {{{}}}", (0..64).map(number).collect::<Vec<_>>().join(", "))
    };
    format!(
        r#"<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
m (float[1,4,8] x) => (float[1,4,8] y) <{}, {}, {}> {{
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_q/L"] q = {layer} (x, a)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/Softmax"] s = Softmax <axis = -1> (q)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_v/L"] v = {layer} (s, b)
  ["/mid_block/attentions.0/transformer_blocks.0/Add"] h = Add (v, x)
  ["/mid_block/attentions.0/transformer_blocks.0/ff/net.2/L"] f = {layer} (h, c)
  ["/mid_block/attentions.0/transformer_blocks.0/Add_1"] y = Add (f, h)
}}
<domain: "local", opset_import: ["" : 18]> Linear (u, w) => (r) {{ r = MatMul (u, w) }}
<domain: "local", opset_import: ["" : 17]> Older (u, w) => (r) {{ r = MatMul (u, w) }}"#,
        weights("a", 0),
        weights("b", 100),
        weights("c", 200)
    )
}

/// Compiles `crdiff: { mid: 0.5 }`, or reports why not.
fn compiled(text: &str) -> Result<CompileReport, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, parse_model(text).unwrap().encode_to_vec()).unwrap();
    let plan = plan::parse("plan.yaml", "version: 1\ncrdiff: { mid: 0.5 }\n").unwrap();
    compile_file(&Job::new(&path, &plan), &()).map_err(|e| e.to_string())
}

#[test]
fn a_layer_in_a_function_is_a_layer() {
    let (flat, called) = (compiled(&block("MatMul")).unwrap(), compiled(&block("local.Linear")).unwrap());
    let [flat, called] = [flat, called].map(|report| serde_json::to_value(&report).unwrap()["prune"].clone());
    assert_eq!(flat[0]["weights"], 192);
    assert_eq!(called, flat);
}

#[test]
fn the_call_that_stays_is_in_the_way_of_a_rule() {
    let refused = compiled(&block("local.Older")).unwrap_err();
    assert!(refused.contains("version 17 of operator set `ai.onnx`, the model version 18"), "{refused}");
}

const CALL: &str = r#"<ir_version: 10, opset_import: ["" : 18, "local" : 1, "com.microsoft" : 1]>
m (float[2] x) => (float[2] y) { y = local.f (x) }
"#;

#[test]
fn calls_that_stay() {
    let (domain, sets) = (r#"domain: "local""#, r#"opset_import: ["" : 18, "local" : 1]"#);
    let cases = [
        (format!("<{domain}, opset_import: [\"\" : 17]> f (u) => (v) {{ v = Neg (u) }}"), "version 17"),
        (format!("<{domain}> f (u) => (v) {{ v = Neg (u) }}"), "which version of operator set `ai.onnx`"),
        (format!("<{domain}, {sets}> f (u) => (u) {{ v = Neg (u) }}"), "has the name of another"),
        (
            format!(
                "<{domain}, {sets}> f (u) => (v) {{ v = Neg (u) }}\n<{domain}, overload: \"o\", {sets}> f (u) => (v) {{ v = \
                 Abs (u) }}"
            ),
            "overload",
        ),
    ];
    for (functions, reason) in cases {
        let graph = loaded(&format!("{CALL}{functions}")).unwrap();
        let calls = &graph.source().calls;
        let why = calls.left.get(&("local".to_string(), "f".to_string())).unwrap();
        assert!(!calls.all && why.contains(reason), "{functions}: {why}");
        assert_eq!(graph.nodes().next().unwrap().1.op_type, "f", "{functions}");
    }
    let engines = CALL.replace("local.f", "com.microsoft.f");
    let function = "<domain: \"com.microsoft\", opset_import: [\"\" : 18]> f (u) => (v) { v = Neg (u) }";
    assert!(!loaded(&format!("{engines}{function}")).unwrap().source().calls.all);
    // Twice as many at each of forty levels.
    let levels = (0..40).map(|n| {
        let next = n + 1;
        format!("<{domain}, {sets}> f{n} (u) => (v) {{ k = local.f{next} (u) v = local.f{next} (k) }}\n")
    });
    let last = format!("<{domain}, {sets}> f40 (u) => (v) {{ v = Neg (u) }}");
    let graph =
        loaded(&format!("{}{}{last}", CALL.replace("local.f", "local.f0"), levels.collect::<String>()));
    assert!(graph.unwrap().source().calls.left.values().all(|why| why.contains("too many nodes")));
}

#[test]
fn what_is_no_function_or_no_call_is_an_error() {
    let head = r#"<domain: "local", opset_import: ["" : 18, "local" : 1]>"#;
    for (function, expected) in [
        ("f (u) => (v) { v = local.f (u) }", "it calls itself"),
        ("f (u) => (v) { v = Add (u, w) }", "reads `w`, which nothing defines"),
        ("f (u) => (v) { k = Neg (u) }", "nothing in it makes its output `v`"),
        ("f (u) => (v) { v = Neg (u) v = Abs (u) }", "`v` is defined twice"),
        ("f (u) => (v) { u = Neg (u) v = Abs (u) }", "`u` is defined twice"),
        ("f () => (v) { v = Constant <value_float = 1.0> () }", "its call `` has 1 operands, the function 0"),
    ] {
        let error = loaded(&format!("{CALL}{head} {function}")).unwrap_err().to_string();
        assert!(error.contains(expected), "{function}: {error}");
    }
}

/// The instances of a function with scopes in its names are not all the module that the names say.
#[test]
fn a_function_that_is_called_twice_names_no_module() {
    let text = r#"<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
m (float[2] x) => (float[2] y) {
  a = local.f (x)
  ["/blocks.1/act/Act"] y = local.f (a)
}
<domain: "local", opset_import: ["" : 18]> f (u) => (v) { ["/blocks.0/act/Neg"] v = Neg (u) }"#;
    let names = |text: &str| -> Vec<String> {
        loaded(text).unwrap().nodes().map(|(_, node)| node.name.to_string()).collect()
    };
    assert_eq!(names(text), ["Neg", "/blocks.1/act/Neg"]);
    assert_eq!(names(&text.replace("a = local.f", "a = Neg")), ["", "/blocks.0/act/Neg"]);
}

/// A plan that changes nothing leaves the file as it is.
#[test]
fn functions_stay_where_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("same.onnx");
    let source = fixture("bodies");
    onnx::write(&load(&source), &WriteOptions::new(&output, WeightPolicy::Copy)).unwrap();
    assert_eq!(std::fs::read(output).unwrap(), std::fs::read(source).unwrap());
}
