//! Differences, and their places.

use std::{collections::BTreeMap, fs};

use crdiff::{
    analysis::{modules::modules, weights::weights},
    ir::Graph,
    onnx,
    verify::structure::{Difference, WeightComparison, What, diff, digests},
};
use prost::Message;
use serde_json::Value;

use crate::{
    common::{
        compiled::compiled,
        edit::{changed, fixture, nudge},
        onnx_text::parse_model,
    },
    diff::{compared, load, rearrange::node},
};

/// `(module, from, to)` of every rewiring.
fn rewired(differences: &[Difference]) -> Vec<(&str, &str, &str)> {
    let mut found = Vec::new();
    for Difference { module, what, .. } in differences {
        if let What::Rewired { from, to, .. } = what {
            found.push((module.as_str(), from.as_str(), to.as_str()));
        }
    }
    found
}

#[test]
fn a_bypass_removes_its_module_and_rewires_what_read_it() {
    let model = fixture("sd15-mini/torchscript");
    let folder = tempfile::tempdir().unwrap();
    let plan = "version: 1\nrules: [{ bypass: mid_block.attentions.0 }]\n";
    let diff = compared(&model, &compiled(&model, plan, folder.path()), WeightComparison::Compared);

    let graph = load(&model);
    let tree = modules(&graph);
    let inside = tree.nodes(tree.named("mid_block.attentions.0").unwrap());
    let inside = inside.into_iter().filter(|id| graph.node(*id).op_type != "Constant").count();
    let removed: Vec<_> =
        diff.differences.iter().filter(|d| matches!(d.what, What::ModuleRemoved { .. })).collect();
    assert_eq!(removed.len(), 1, "{:?}", diff.differences);
    assert_eq!(removed[0].module, "mid_block.attentions.0");
    assert_eq!(removed[0].what, What::ModuleRemoved { nodes: inside });
    assert_eq!((diff.nodes_a - diff.matched, diff.nodes_b - diff.matched), (inside, 0));

    let (from, to) = ("Add `/mid_block/attentions.0/Add`", "Div `/mid_block/resnets.0/Div`");
    assert_eq!(
        rewired(&diff.differences),
        [
            ("mid_block.resnets.1.norm1", from, to),
            ("mid_block.resnets.1.norm1", from, to),
            ("mid_block.resnets.1", from, to),
        ]
    );
    assert_eq!(diff.differences.len(), 4);
}

/// Two neighbours of one shape: what is left must not be taken for what is gone.
#[test]
fn of_two_equal_modules_the_right_one_is_gone() {
    for export in ["sd15/torchscript", "sd15/dynamo"] {
        for gone in ["mid_block.resnets.0", "mid_block.resnets.1", "down_blocks.3.resnets.0"] {
            let model = fixture(export);
            let folder = tempfile::tempdir().unwrap();
            let plan = format!("version: 1\nrules: [{{ bypass: {gone} }}]\n");
            let output = compiled(&model, &plan, folder.path());
            for weights in [WeightComparison::Compared, WeightComparison::Ignored] {
                let diff = compared(&model, &output, weights);
                for difference in &diff.differences {
                    match &difference.what {
                        What::ModuleRemoved { .. } | What::Removed => {
                            assert!(difference.module.starts_with(gone), "{export} {gone}: {difference:?}")
                        }
                        What::Rewired { .. } => {}
                        _ => panic!("{export} {gone}: {difference:?}"),
                    }
                }
            }
        }
    }
}

/// Torch counted the zeros of each layer before the network was exported.
#[test]
fn changed_elements_are_torchs_zeros() {
    let index = fs::read_to_string(fixture("sd15-mini/golden").with_file_name("index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let cases = index["cases"].as_array().unwrap();
    let mut checked = 0;
    for case in cases.iter().filter(|c| c["kind"] == "prune") {
        let rules = case["prune"].as_array().unwrap();
        if rules.iter().any(|rule| rule["scale"] != 0.0) {
            continue;
        }
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        for layer in rules.iter().flat_map(|rule| rule["layers"].as_array().unwrap()) {
            let zeros = layer["zeros"].as_u64().unwrap();
            if zeros > 0 {
                expected.insert(layer["module"].as_str().unwrap().to_string(), zeros);
            }
        }
        for export in ["sd15-mini/torchscript", "sd15-mini/dynamo"] {
            let model = fixture(export);
            let folder = tempfile::tempdir().unwrap();
            let plan = serde_json::to_string(&case["plan"]).unwrap();
            let diff = compared(&model, &compiled(&model, &plan, folder.path()), WeightComparison::Compared);
            let graph = load(&model);
            let all = weights(&graph, &modules(&graph)).editable;
            let mut found = BTreeMap::new();
            for difference in &diff.differences {
                let What::Tensor { tensor, difference, .. } = &difference.what else {
                    panic!("{export} {}: {difference:?}", case["name"]);
                };
                let (id, _) = graph.initializer_of(graph.value_named(tensor).unwrap()).unwrap();
                let weight = all.iter().find(|w| w.initializer == id).unwrap();
                found.insert(weight.path.clone(), difference.differing);
                assert!(difference.max_abs > Some(0.0) && difference.mean_abs <= difference.max_abs);
            }
            assert_eq!(found, expected, "{export} {}", case["name"]);
            checked += 1;
        }
    }
    assert!(checked >= 6, "only {checked} cases");
}

#[test]
fn an_attribute() {
    let model = fixture("sd15-mini/dynamo");
    let folder = tempfile::tempdir().unwrap();
    let mut name = String::new();
    let other = changed(&model, folder.path(), |graph| {
        let norm = graph.node.iter_mut().find(|n| n.op_type() == "LayerNormalization").unwrap();
        name = norm.name().to_string();
        norm.attribute.iter_mut().find(|a| a.name() == "epsilon").unwrap().f = Some(0.5);
    });
    for weights in [WeightComparison::Compared, WeightComparison::Ignored] {
        let diff = compared(&model, &other, weights);
        let [only] = diff.differences.as_slice() else { panic!("{:?}", diff.differences) };
        assert_eq!(only.node.as_deref(), Some(format!("LayerNormalization node `{name}`").as_str()));
        let What::Attribute { name, from, to } = &only.what else { panic!("{only:?}") };
        assert_eq!((name.as_str(), to.as_deref()), ("epsilon", Some("0.5")));
        assert!(from.as_deref().is_some_and(|f| f.starts_with("0.00001")), "{from:?}");
    }
}

#[test]
fn one_element_of_one_tensor() {
    let model = fixture("sd15-mini/torchscript");
    let folder = tempfile::tempdir().unwrap();
    let other = changed(&model, folder.path(), |g| nudge(g, "conv_in.weight", 3, 0.5));
    let diff = compared(&model, &other, WeightComparison::Compared);
    let [only] = diff.differences.as_slice() else { panic!("{:?}", diff.differences) };
    assert_eq!(only.module, "conv_in");
    let What::Tensor { difference, .. } = &only.what else { panic!("{only:?}") };
    assert_eq!((difference.elements, difference.differing), (288, 1));
    assert!((difference.max_abs.unwrap() - 0.5).abs() < 1e-6);
}

#[test]
fn an_operand_and_an_input() {
    let model = fixture("sd15-mini/torchscript");
    let folder = tempfile::tempdir().unwrap();
    let other = changed(&model, folder.path(), |graph| {
        node(graph, "/mid_block/resnets.1/Add_1").input[0] = "/mid_block/resnets.0/Div_output_0".into();
    });
    let diff = compared(&model, &other, WeightComparison::Compared);
    let [only] = diff.differences.as_slice() else { panic!("{:?}", diff.differences) };
    assert_eq!(only.module, "mid_block.resnets.1");
    assert!(matches!(only.what, What::Rewired { .. }), "{only:?}");

    let other = changed(&model, folder.path(), |graph| {
        let input = graph.input.iter_mut().find(|i| i.name() == "timestep").unwrap();
        input.name = Some("t".into());
        for name in graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|n| *n == "timestep") {
            *name = "t".into();
        }
    });
    let diff = compared(&model, &other, WeightComparison::Compared);
    let interface = diff.differences.iter().filter(|d| matches!(d.what, What::Interface { .. }));
    assert_eq!(interface.count(), 2, "{:?}", diff.differences);
    assert_eq!(diff.nodes_a, diff.matched);
}

/// Tools rewrite much of a graph; what they leave is still recognised.
#[test]
fn optimised_copies() {
    for (a, b) in [
        ("torchscript", "slim"),
        ("torchscript", "ort-basic"),
        ("torchscript", "simplified"),
        ("torchscript", "nofold"),
        ("dynamo", "simplified-dynamo"),
    ] {
        let diff = compared(
            &fixture(&format!("sd15-mini/{a}")),
            &fixture(&format!("sd15-mini/{b}")),
            WeightComparison::Compared,
        );
        assert!(!diff.is_same());
        let common = diff.nodes_a.min(diff.nodes_b);
        assert!(diff.matched * 10 >= common * 9, "{a}, {b}: {} of {common}", diff.matched);
        let convolutions = diff.differences.iter().filter(|d| {
            matches!(d.what, What::Removed | What::Added)
                && d.node.as_deref().is_some_and(|n| n.starts_with("Conv"))
        });
        assert_eq!(convolutions.count(), 0, "{a}, {b}");
    }
}

/// ONNX calls domain, name and overload together what is unique to a function.
#[test]
fn overloads_of_one_name_are_functions_of_their_own() {
    let model = |[first, second]: [&str; 2], [a, b]: [&str; 2]| {
        let sets = r#"domain: "local", opset_import: ["" : 18]"#;
        let text = format!(
            "<ir_version: 10, opset_import: [\"\" : 18, \"local\" : 1]>
g (float[2] x) => (float[2] y) {{ u = local.f:{a} (x) y = local.f:{b} (u) }}
<{sets}, overload: \"one\"> f (u) => (v) {{ v = {first} (u) }}
<{sets}, overload: \"two\"> f (u) => (v) {{ v = {second} (u) }}"
        );
        onnx::open_bytes(parse_model(&text).unwrap().encode_to_vec().into(), ".")
            .and_then(Graph::load)
            .unwrap()
    };
    let functions = ["Neg", "Abs"];
    let original = model(functions, ["one", "two"]);
    let others = [
        (model(functions, ["one", "two"]), 0, true),
        (model(["Exp", "Abs"], ["one", "two"]), 1, false),
        (model(["Neg", "Exp"], ["one", "two"]), 1, false),
        (model(functions, ["one", "one"]), 1, false),
        // The same functions in another order.
        (model(functions, ["two", "one"]), 0, false),
    ];
    for (other, changed, same) in others {
        let found = diff(&original, &other, WeightComparison::Compared, &()).unwrap().differences;
        let functions = found.iter().filter(|difference| difference.what == What::Function).count();
        assert_eq!((functions, found.is_empty()), (changed, same), "{found:?}");
        assert_eq!(digests(&original, &()).unwrap() == digests(&other, &()).unwrap(), same, "{found:?}");
    }
}
