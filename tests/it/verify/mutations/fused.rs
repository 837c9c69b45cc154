//! Both networks and their mix in one graph.

use super::*;

/// A fused graph by hand: the original, the compiled graph beside it, and the mix.
fn fused(bench: &Bench) -> ModelProto {
    let mut dense = bench.original.clone();
    let mut pruned = bench.compiled.clone();
    let inputs: Vec<String> = graph(&mut dense).input.iter().map(|i| i.name().into()).collect();
    let prefix = |name: &mut String| {
        if !name.is_empty() && !inputs.contains(name) {
            name.insert_str(0, "pruned/");
        }
    };
    for node in &mut graph(&mut pruned).node {
        node.input.iter_mut().chain(&mut node.output).for_each(prefix);
    }
    for tensor in &mut graph(&mut pruned).initializer {
        tensor.name = tensor.name.take().map(|name| format!("pruned/{name}"));
    }
    for name in graph(&mut dense).node.iter_mut().flat_map(|n| &mut n.output).filter(|n| **n == "out_sample")
    {
        *name = "dense/out_sample".into();
    }
    let pruned = pruned.graph.unwrap();
    let target = graph(&mut dense);
    target.node.extend(pruned.node);
    target.initializer.extend(pruned.initializer);
    target.initializer.push(TensorProto {
        name: Some("poa_weight".into()),
        data_type: Some(1),
        raw_data: Some(1.5f32.to_le_bytes().to_vec().into()),
        ..TensorProto::default()
    });
    target.node.extend([
        simple("/poa/Sub", "Sub", &["pruned/out_sample", "dense/out_sample"], "difference"),
        simple("/poa/Mul", "Mul", &["difference", "poa_weight"], "scaled"),
        simple("/poa/Add", "Add", &["dense/out_sample", "scaled"], "out_sample"),
    ]);
    dense.metadata_props.clone_from(&bench.compiled.metadata_props);
    claim(&mut dense, &bench.plan, "fused");
    dense
}

#[test]
fn fused_graphs() {
    let mut bench = Bench::new();
    bench.compiled = fused(&bench);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven() && verdict.proof.masked > 0, "{:#?}", verdict.differences);
    bench.accept("w as an input", |m| {
        graph(m).initializer.retain(|t| t.name() != "poa_weight");
        let mut w = ValueInfoProto { name: Some("poa_weight".into()), ..graph(m).input[1].clone() };
        dims(&mut w).clear();
        graph(m).input.push(w);
    });
    bench.find("another w", "w is 1.25, expected 1.5", "", |m| set_float(tensor(m, "poa_weight"), 0, 1.25));
    bench.find("dense minus pruned", "is not the mix of both networks", "", |m| {
        node(m, "/poa/Sub").input.swap(0, 1);
    });
    bench.find("no mix", "Sub node `/poa/Add` makes the output, expected Add", "", |m| {
        node(m, "/poa/Add").op_type = Some("Sub".into());
    });
    let mut twice = bench.compiled.clone();
    node(&mut twice, "/poa/Sub").input[0] = "dense/out_sample".into();
    let differences = bench.verify(&twice).differences;
    assert!(differences[0].message.contains("`mid_block.attentions.0` is not bypassed"), "{differences:#?}");
    assert!(differences[1..].iter().all(|d| d.message.contains("is not masked")), "{differences:#?}");
    bench.find("a masked weight in the dense network", "operand 1 of MatMul", TO_Q_PATH, |m| {
        let masked = floats(operand(m, TO_Q, 1));
        let at = masked.iter().position(|w| *w != 0.0).unwrap();
        set_float(operand(m, TO_Q, 1), at, 0.0);
    });
}
