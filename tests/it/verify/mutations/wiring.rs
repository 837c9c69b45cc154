//! Operators, attributes, operands, bodies, and modules that should be bypassed.

use std::path::PathBuf;

use super::*;

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
        fs::write(&path, crate::common::onnx_text::parse_model(text).unwrap().encode_to_vec()).unwrap();
        path
    };
    let plan = plan("version: 1\n");
    let original = write("original.onnx", &text(2.0));
    let renamed = write("renamed.onnx", &text(2.0).replace("k ", "other ").replace(" k)", " other)"));
    assert!(verdict(&original, &renamed, &plan).is_proven());
    let found = verdict(&original, &write("changed.onnx", &text(3.0)), &plan);
    assert!(found.differences[0].message.contains("`then_branch`"), "{:#?}", found.differences);
}

#[test]
fn operands_that_differ_by_their_tensors_only() {
    let text = "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[2] x) => (float[2] y) {\n  \
         a = Constant<value_floats = [1.0, 2.0]>() b = Constant<value_floats = [3.0, 4.0]>() \
         p = Sub(x, a) q = Sub(x, b) y = Mul(p, q)\n}\n";
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, crate::common::onnx_text::parse_model(text).unwrap().encode_to_vec()).unwrap();
        path
    };
    let plan = plan("version: 1\n");
    let original = write("original.onnx", text);
    let swapped = write("swapped.onnx", &text.replace("Mul(p, q)", "Mul(q, p)"));
    assert!(verdict(&original, &swapped, &plan).is_proven());
    let twice = write("twice.onnx", &text.replace("Mul(p, q)", "Mul(q, q)"));
    assert!(!verdict(&original, &twice, &plan).is_proven());
    let changed = text.replace("Mul(p, q)", "Mul(q, p)").replace("3.0", "5.0");
    assert!(!verdict(&original, &write("changed.onnx", &changed), &plan).is_proven());
}
