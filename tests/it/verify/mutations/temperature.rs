//! Logits that are not multiplied as the plan says.

use std::collections::HashSet;

use crdiff::compile::Target;

use super::*;

const TEMPERED: &str = "version: 1\nrules:\n  - temperature: { modules: \"up_blocks.**.attn1\", trained: 4x4, output_factor: 0.5 }\n";
const ATTENTION: &str = "up_blocks.1.attentions.0.transformer_blocks.0.attn1";
const SOFTMAX: &str = "/up_blocks.1/attentions.0/transformer_blocks.0/attn1/Softmax";
const OTHER: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
const OTHER_SOFTMAX: &str = "/down_blocks.0/attentions.0/transformer_blocks.0/attn1/Softmax";

/// A node of the template of [`ATTENTION`].
fn of_template(operator: &str) -> String {
    format!("{ATTENTION}/temperature/{operator}")
}

/// The node that multiplies the logits.
fn product() -> String {
    of_template("Mul_2")
}

/// Whoever reads the result of `of` reads its operand `slot` instead.
fn bypass(m: &mut ModelProto, of: &str, slot: usize) {
    let (result, operand) = (node(m, of).output[0].clone(), node(m, of).input[slot].clone());
    for input in graph(m).node.iter_mut().flat_map(|n| &mut n.input).filter(|input| **input == result) {
        input.clone_from(&operand);
    }
}

/// Puts each node after those that it reads.
fn sort(m: &mut ModelProto) {
    let mut waiting = std::mem::take(&mut graph(m).node);
    while !waiting.is_empty() {
        let missing: HashSet<String> = waiting.iter().flat_map(|n| n.output.clone()).collect();
        let (later, next): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|n| n.input.iter().any(|input| missing.contains(input)));
        assert!(!next.is_empty(), "a circle");
        graph(m).node.extend(next);
        waiting = later;
    }
}

#[test]
fn tempered_attentions() {
    let bench = Bench::of(TEMPERED);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    let first = bench.find("not done", "has the temperature that it had", ATTENTION, |m| {
        bypass(m, &product(), 0);
    });
    assert!(first.rule.is_some(), "the rule is not named");
    // 64 keys at 8x8, 4 at the level below.
    for (name, operator, number) in [
        ("T of another size", "Div", 64.0f32),
        ("T of another level", "Div", 4.0),
        ("1 / log 64", "Mul", 0.240_449_17),
    ] {
        bench.find(name, "", ATTENTION, |m| set_float(operand(m, &of_template(operator), 1), 0, number));
    }
    bench.find("queries for keys", "", ATTENTION, |m| {
        edit_bytes(operand(m, &of_template("Gather"), 1), |raw| raw[0] = 2);
    });
    bench.find("T / N", "", ATTENTION, |m| node(m, &of_template("Div")).input.swap(0, 1));
    bench.find("no root", "", ATTENTION, |m| bypass(m, &of_template("Sqrt"), 0));
    bench.find("no guard", "", ATTENTION, |m| bypass(m, &of_template("Relu"), 0));
    bench.find("half of it", "has the temperature that it had", ATTENTION, |m| {
        bypass(m, &of_template("Mul_3"), 0);
    });
    bench.find("another half", "", ATTENTION, |m| {
        set_float(operand(m, &of_template("Mul_3"), 1), 0, 0.25);
    });
    bench.find("twice", "", ATTENTION, |m| {
        let factor = node(m, &product()).input[1].clone();
        insert(m, &product(), 0, "Mul");
        node(m, "/inserted").input.push(factor);
    });
    bench.find("one too many", "", OTHER, |m| {
        let number = node(m, &of_template("Div")).input[1].clone();
        insert(m, OTHER_SOFTMAX, 0, "Mul");
        node(m, "/inserted").input.push(number);
    });
}

#[test]
fn the_wrong_network_tempered() {
    let mut bench = Bench::of(TEMPERED);
    let fused = bench.model.compile_to(Target::Fused, &bench.plan, Weights::Copy).unwrap();
    bench.compiled = decode(&fused);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    let copy = format!("{SOFTMAX}_pruned");
    bench.find("neither", "", ATTENTION, |m| {
        let dense = node(m, SOFTMAX).input[0].clone();
        node(m, &copy).input[0] = dense;
    });
    bench.find("both", "", ATTENTION, |m| {
        let tempered = node(m, &copy).input[0].clone();
        node(m, SOFTMAX).input[0] = tempered;
        sort(m);
    });
}
