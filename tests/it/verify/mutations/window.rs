//! Windows of attentions that are not those of the plan.

use super::*;

const WINDOWS: &str = "version: 1\nrules:\n  - attention: { modules: \"up_blocks.**.attn1\", map: window, windows: 2x2, shift: 0.25 }\n";
const ATTENTION: &str = "up_blocks.1.attentions.0.transformer_blocks.0.attn1";

#[test]
fn windows() {
    let bench = Bench::of(WINDOWS);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    let node_of = |operator: &str| format!("{ATTENTION}/attention/{operator}");
    // Numbers of the template are shared: rows and columns, a quarter, how many quarters.
    for (name, of, from) in
        [("four rows", "Div", "Div_3"), ("half of a window", "Div_3", "Div"), ("another shift", "Mul", "Div")]
    {
        bench.find(name, "", ATTENTION, |m| {
            let number = node(m, &node_of(from)).input[1].clone();
            node(m, &node_of(of)).input[1] = number;
        });
    }
    bench.find("the other way back", "", ATTENTION, |m| {
        let last = graph(m).node.iter().rfind(|n| n.name().starts_with(&node_of("Sub"))).unwrap();
        let name = last.name().to_string();
        node(m, &name).input.swap(0, 1);
    });
    bench.find("columns before rows", "", ATTENTION, |m| {
        attribute(m, &node_of("Transpose"), "perm").ints = vec![0, 1, 4, 2, 3, 5, 6];
    });
    bench.find("no softmax", "", ATTENTION, |m| {
        node(m, &node_of("Softmax")).op_type = Some("LogSoftmax".into())
    });
    bench.find("queries for values", "", ATTENTION, |m| {
        let queries = node(m, &node_of("Reshape")).input[0].clone();
        node(m, &node_of("Reshape_7")).input[0] = queries;
    });
}
