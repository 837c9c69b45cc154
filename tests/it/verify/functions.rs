//! Faults planted into models whose functions stay, as another tool that masks weights would leave them, and into what
//! stands in the places of calls.

use std::fs;

use crdiff::{
    compile::{Job, Target, compile_file},
    onnx::{
        WeightPolicy,
        proto::{AttributeProto, FunctionProto, ModelProto, NodeProto},
    },
    plan::Plan,
};
use prost::Message;
use tempfile::TempDir;

use super::support::{plan, verdict};
use crate::common::{edit::decode, onnx_text::parse_model};

const PLAN: &str = "version: 1\nrules:\n  - prune: { weights: \"blocks.0.**\", ratio: 0.5 }\n";

const MODEL: &str = r#"<ir_version: 10, opset_import: ["" : 18, "local" : 1, "other" : 1]>
m (float[2,4] x, float[2,4] z) => (float[2,4] y) <
  float[4,4] w = {0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8, 0.9, -1.0, 1.1, -1.2, 1.3, -1.4, 1.5, -1.6}
> {
  ["/blocks.0/fc/Linear"] a = local.linear (x, w)
  ["/blocks.0/act/Act"] b = local.act <alpha = 0.5> (a)
  ["/blocks.0/act/Act_1"] c = local.act (b)
  ["/blocks.0/Mix"] y = local.mix (c, z)
}
<domain: "local", opset_import: ["" : 18]> linear (u, w) => (v) { v = MatMul (u, w) }
<domain: "local", opset_import: ["" : 18]> act <alpha: float = 0.25> (u) => (v) { v = LeakyRelu <alpha: float = @alpha> (u) }
<domain: "local", opset_import: ["" : 18, "local" : 1]> mix (u, v) => (y) {
  k = local.act <alpha = 0.125> (u)
  d = Sub (k, v)
  y = Tanh (d)
}
<domain: "other", opset_import: ["" : 18]> act (u) => (v) { v = Elu (u) }
"#;

struct Pair {
    plan: Plan,
    original: ModelProto,
    /// The original with its weights masked as the plan says.
    kept: ModelProto,
    /// What the compiler makes of it.
    compiled: ModelProto,
    folder: TempDir,
}

impl Pair {
    fn new() -> Self {
        let (folder, plan) = (tempfile::tempdir().unwrap(), plan(PLAN));
        let original = parse_model(MODEL).unwrap();
        let (source, output) = (folder.path().join("original.onnx"), folder.path().join("compiled.onnx"));
        fs::write(&source, original.encode_to_vec()).unwrap();
        let job = Job::new(&source, &plan).target(Target::Pruned).output(&output).weights(WeightPolicy::Copy);
        compile_file(&job, &()).unwrap();
        let compiled = decode(&output);
        let mut kept = original.clone();
        let masked = compiled.graph.as_ref().unwrap().initializer.clone();
        kept.graph.as_mut().unwrap().initializer = masked;
        Self { plan, original, kept, compiled, folder }
    }

    /// Returns whether `compiled` is proven.
    fn proven(&self, compiled: &ModelProto) -> bool {
        let path = self.folder.path().join("changed.onnx");
        fs::write(&path, compiled.encode_to_vec()).unwrap();
        verdict(&self.folder.path().join("original.onnx"), &path, &self.plan).is_proven()
    }

    fn refuse(&self, what: &str, change: impl FnOnce(&mut ModelProto)) {
        let mut changed = self.kept.clone();
        change(&mut changed);
        assert_ne!(changed, self.kept, "{what}");
        assert!(!self.proven(&changed), "{what}");
    }
}

fn calls(model: &mut ModelProto) -> &mut Vec<NodeProto> {
    &mut model.graph.as_mut().unwrap().node
}

fn function<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut FunctionProto {
    model.functions.iter_mut().find(|f| f.domain() == "local" && f.name() == name).unwrap()
}

#[test]
fn functions_may_stay_or_go() {
    let pair = Pair::new();
    assert!(pair.compiled.functions.is_empty() && pair.original.functions.len() == 4);
    assert!(pair.proven(&pair.compiled));
    assert!(pair.proven(&pair.kept));
    let mut fewer = pair.kept.clone();
    fewer.functions.retain(|f| f.domain() == "local");
    assert!(pair.proven(&fewer), "nobody calls `other.act`");
}

#[test]
fn another_function() {
    let pair = Pair::new();
    let set = |number| move |attribute: &mut AttributeProto| attribute.f = Some(number);
    pair.refuse("another operator", |m| function(m, "mix").node[1].op_type = Some("Add".into()));
    pair.refuse("operands exchanged", |m| function(m, "mix").node[1].input.reverse());
    pair.refuse("parameters exchanged", |m| function(m, "mix").input.reverse());
    pair.refuse("another default", |m| set(0.3)(&mut function(m, "act").attribute_proto[0]));
    pair.refuse("no default", |m| function(m, "act").attribute_proto.clear());
    pair.refuse("another value handed on", |m| set(0.3)(&mut function(m, "mix").node[0].attribute[0]));
    pair.refuse("a number in place of a reference", |m| {
        let attribute = &mut function(m, "act").node[0].attribute[0];
        (attribute.ref_attr_name, attribute.f) = (None, Some(0.25));
    });
    pair.refuse("another output", |m| function(m, "mix").output[0] = "d".into());
    pair.refuse("another operator set", |m| function(m, "mix").opset_import[0].version = Some(17));
    pair.refuse("a function gone", |m| m.functions.retain(|f| f.name() != "mix"));
    pair.refuse("one more function", |m| {
        let more = FunctionProto { name: Some("more".into()), ..m.functions[0].clone() };
        m.functions.push(more);
    });
    pair.refuse("an overload", |m| {
        let mut other = function(m, "act").clone();
        (other.overload, other.node[0].op_type) = (Some("o".into()), Some("Elu".into()));
        m.functions.push(other);
    });
}

#[test]
fn another_call() {
    let pair = Pair::new();
    pair.refuse("operands exchanged", |m| calls(m)[3].input.reverse());
    pair.refuse("another domain", |m| calls(m)[2].domain = Some("other".into()));
    pair.refuse("another domain in a function", |m| function(m, "mix").node[0].domain = Some("other".into()));
    pair.refuse("an overload that is not there", |m| calls(m)[2].overload = Some("o".into()));
    pair.refuse("no attribute", |m| calls(m)[1].attribute.clear());
    pair.refuse("another attribute", |m| calls(m)[1].attribute[0].f = Some(0.6));
    pair.refuse("an attribute where the default was", |m| {
        let attribute = calls(m)[1].attribute.clone();
        calls(m)[2].attribute = attribute;
    });
    pair.refuse("an operand left out", |m| calls(m)[3].input.truncate(1));
    pair.refuse("a call less", |m| {
        calls(m).remove(2);
        calls(m)[2].input[0] = "b".into();
    });
}

#[test]
fn another_body_in_the_place_of_a_call() {
    let pair = Pair::new();
    let at = |op: &str, m: &mut ModelProto| calls(m).iter().position(|node| node.op_type() == op).unwrap();
    for (what, change) in [
        (
            "another operator",
            &(|m: &mut ModelProto| {
                let sub = at("Sub", m);
                calls(m)[sub].op_type = Some("Add".into());
            }) as &dyn Fn(&mut ModelProto),
        ),
        ("operands exchanged", &|m| {
            let sub = at("Sub", m);
            calls(m)[sub].input.reverse();
        }),
        ("another attribute", &|m| {
            let relu = at("LeakyRelu", m);
            calls(m)[relu].attribute[0].f = Some(0.25);
        }),
        ("no attribute", &|m| {
            let relu = at("LeakyRelu", m);
            calls(m)[relu].attribute.clear();
        }),
    ] {
        let mut changed = pair.compiled.clone();
        change(&mut changed);
        assert!(!pair.proven(&changed), "{what}");
    }
}
