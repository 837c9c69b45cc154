//! Skip connections and queries that are not changed as the plan says.

use super::*;

const FREEU: &str = "version: 1\nrules:\n  - freeu: { backbone: [1.5, 1.6], skip: [0.9, 0.2] }\n";
const BLOCK: &str = "up_blocks.1.resnets.1";
const MEAN: &str = "version: 1\nrules:\n  - attention: { modules: \"up_blocks.**.attn1\", map: mean }\n";
const ATTENTION: &str = "up_blocks.1.attentions.0.transformer_blocks.0.attn1";

fn of_template(module: &str, rule: &str, operator: &str) -> String {
    format!("{module}/{rule}/{operator}")
}

#[test]
fn skip_connections() {
    let bench = Bench::of(FREEU);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    let node_of = |operator: &str| of_template(BLOCK, "freeu", operator);
    let factors = node_of("Mul");
    bench.find("a channel too many", "", BLOCK, |m| {
        let tensor = operand(m, &factors, 1);
        let half = floats(tensor).len() / 2;
        set_float(tensor, half, 1.6);
    });
    bench.find("a channel too few", "", BLOCK, |m| {
        let tensor = operand(m, &factors, 1);
        let half = floats(tensor).len() / 2;
        set_float(tensor, half - 1, 1.0);
    });
    bench.find("the other resolution's", "", BLOCK, |m| {
        let share = graph(m).node.iter().rfind(|n| n.name().starts_with(&node_of("Div"))).unwrap();
        let share = share.name().to_string();
        set_float(operand(m, &share, 0), 0, 0.9 - 1.0);
    });
    bench.find("sine for cosine", "", BLOCK, |m| node(m, &node_of("Cos")).op_type = Some("Sin".into()));
    bench.find("height for width", "", BLOCK, |m| {
        edit_bytes(operand(m, &node_of("Gather"), 1), |raw| raw[0] = 3);
    });
    bench.find("not done", "has no FreeU", BLOCK, |m| {
        let (result, value) = (node(m, &factors).output[0].clone(), node(m, &factors).input[0].clone());
        for input in graph(m).node.iter_mut().flat_map(|n| &mut n.input).filter(|input| **input == result) {
            input.clone_from(&value);
        }
    });
    bench.find("backbone for skip", "", "up_blocks.1", |m| {
        let concat = graph(m)
            .node
            .iter()
            .position(|n| n.op_type() == "Concat" && n.input.iter().any(|i| i.starts_with(BLOCK)));
        graph(m).node[concat.unwrap()].input.swap(0, 1);
    });
}

#[test]
fn queries_averaged() {
    let bench = Bench::of(MEAN);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    let mean = of_template(ATTENTION, "attention", "ReduceMean");
    let first = bench.find("not done", "still has its attention map", ATTENTION, |m| {
        let expand = of_template(ATTENTION, "attention", "Expand");
        let (result, value) = (node(m, &expand).output[0].clone(), node(m, &mean).input[0].clone());
        for input in graph(m).node.iter_mut().flat_map(|n| &mut n.input).filter(|input| **input == result) {
            input.clone_from(&value);
        }
    });
    assert!(first.rule.is_some(), "the rule is not named");
    bench.find("the mean of another axis", "`axes` = [1], expected [2]", ATTENTION, |m| {
        attribute(m, &mean, "axes").ints = vec![1];
    });
    bench.find("the largest", "", ATTENTION, |m| node(m, &mean).op_type = Some("ReduceMax".into()));
    bench.find("the mean of keys", "", ATTENTION, |m| {
        let keys = "/up_blocks.1/attentions.0/transformer_blocks.0/attn1/MatMul";
        let keys = node(m, keys).input[1].clone();
        node(m, &mean).input[0] = keys;
    });
}
