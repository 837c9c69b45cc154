//! Changes that don't count.

use super::*;

#[test]
fn harmless() {
    let bench = Bench::new();
    let original = &bench.original;
    bench.accept("an extra Identity", |m| insert(m, CONV1, 0, "Identity"));
    bench.accept("a weight behind an Identity", |m| insert(m, TO_Q, 1, "Identity"));
    bench.accept("renamed values and nodes", |m| {
        let outputs: Vec<String> = graph(m).output.iter().map(|o| o.name().into()).collect();
        let inputs: Vec<String> = graph(m).input.iter().map(|o| o.name().into()).collect();
        let fixed = |name: &String| name.is_empty() || outputs.contains(name) || inputs.contains(name);
        for node in &mut graph(m).node {
            node.name = Some(String::new());
            for name in node.input.iter_mut().chain(&mut node.output).filter(|n| !fixed(n)) {
                name.insert_str(0, "renamed/");
            }
        }
        for tensor in &mut graph(m).initializer {
            tensor.name = Some(format!("renamed/{}", tensor.name()));
        }
    });
    bench.accept("reordered nodes", |m| graph(m).node.sort_by_key(|n| n.op_type() != "Constant"));
    // Decided: Add and Mul give the same bits in either order (IEEE 754), so tools may swap their operands.
    bench.accept("swapped operands of an Add", |m| node(m, "/up_blocks.0/resnets.0/Add_1").input.swap(0, 1));
    bench.accept("a Constant for an initializer", |m| {
        let weight = operand(m, CONV1, 1).clone();
        graph(m).initializer.retain(|t| t.name() != weight.name());
        let mut constant = simple("/constant", "Constant", &[], weight.name());
        constant.attribute.push(AttributeProto {
            name: Some("value".into()),
            r#type: Some(4),
            t: Some(weight.into()),
            ..AttributeProto::default()
        });
        graph(m).node.insert(0, constant);
    });
    bench.accept("an initializer for a Constant", |m| {
        let at = graph(m).node.iter().position(|n| n.op_type() == "Constant").unwrap();
        let constant = graph(m).node.remove(at);
        let tensor = constant.attribute[0].t.clone().unwrap();
        graph(m).initializer.push(TensorProto { name: Some(constant.output[0].clone()), ..*tensor });
    });
    bench.accept("another way to store a tensor", |m| {
        let bias = operand(m, CONV1, 2);
        bias.float_data = floats(bias);
        bias.raw_data = None;
    });
    bench.accept("doc strings", |m| {
        m.doc_string = Some("touched".into());
        m.producer_name = Some("another tool".into());
        node(m, CONV1).doc_string = Some("touched".into());
    });
    bench.accept("attributes in another order", |m| node(m, CONV1).attribute.reverse());
    bench.accept("a new dead node", |m| graph(m).node.push(simple("/dead", "Relu", &["sample"], "dead")));
    for form in ["Shrink", "Where"] {
        bench.accept(&format!("a mask made by {form}"), |m| masked_by_operators(m, original, form));
    }
}
