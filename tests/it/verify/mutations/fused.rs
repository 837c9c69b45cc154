//! Both networks and their mix in one graph.

use crdiff::verify::conformance::verify;

use super::*;
use crate::verify::support::load;

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
        let mut w = ValueInfoProto { name: Some("poa_weight".into()), ..graph(m).input[0].clone() };
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

#[test]
fn w_is_exactly_the_plans() {
    let mut bench = Bench::new();
    bench.compiled = fused(&bench);
    let w = |m: &mut ModelProto, dims: &[i64], data_type: i32, bytes: Vec<u8>| {
        let old = tensor(m, "poa_weight");
        (old.dims, old.data_type, old.raw_data) = (dims.to_vec(), Some(data_type), Some(bytes.into()));
    };
    let float = || 1.5f32.to_le_bytes().to_vec();
    bench.find("w of rank 5", "w is float32[1, 1, 1, 1, 1], expected a float32 scalar", "", |m| {
        w(m, &[1; 5], 1, float());
    });
    bench.find("w as bfloat16", "w is bfloat16[], expected a float32 scalar", "", |m| {
        w(m, &[], 16, half::bf16::from_f32(1.5).to_le_bytes().to_vec());
    });
    bench.find("w through a Cast", "expected the constant 1.5", "", |m| {
        w(m, &[], 16, half::bf16::from_f32(1.5).to_le_bytes().to_vec());
        insert(m, "/poa/Mul", 1, "Cast");
        let mut to = attribute_i("to", 1);
        to.r#type = Some(2);
        node(m, "/inserted").attribute.push(to);
    });
    let input = |m: &mut ModelProto| {
        let mut w = ValueInfoProto { name: Some("poa_weight".into()), ..graph(m).input[0].clone() };
        dims(&mut w).clear();
        w
    };
    let mut overridable = bench.compiled.clone();
    let w_input = input(&mut overridable);
    graph(&mut overridable).input.push(w_input);
    assert!(!bench.verify(&overridable).is_proven());
    let fed = |change: &dyn Fn(&mut ValueInfoProto)| {
        let mut m = bench.compiled.clone();
        let mut w = input(&mut m);
        change(&mut w);
        graph(&mut m).initializer.retain(|t| t.name() != "poa_weight");
        node(&mut m, "/poa/Mul").input[1] = w.name().into();
        graph(&mut m).input.push(w);
        bench.verify(&m)
    };
    assert!(fed(&|_| {}).is_proven());
    assert!(!fed(&|w| dims(w).push(Default::default())).is_proven());
    assert!(!fed(&|w| w.name = Some("w".into())).is_proven());
    let mut unused = bench.compiled.clone();
    let mut second = input(&mut unused);
    second.name = Some("poa_weight_1".into());
    graph(&mut unused).input.push(second);
    assert!(!bench.verify(&unused).is_proven());
}

fn attribute_i(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: Some(name.into()), i: Some(value), ..AttributeProto::default() }
}

#[test]
fn the_form_is_told_from_the_graph() {
    let bench = Bench::new();
    let path = |name: &str, model: &ModelProto| {
        let path = bench.model.folder().join(name);
        fs::write(&path, model.encode_to_vec()).unwrap();
        path
    };
    let silent = |mut model: ModelProto| {
        model.metadata_props.clear();
        graph(&mut model).name = Some("main_graph".into());
        model
    };
    let fused_graph = fused(&bench);
    let prune = "prune: { weights: \"up_blocks.**.attn1.**\", ratio: 0.3";
    let amplified_plan =
        plan(&format!("version: 1\nrules: [{{ {prune} }} }}]\namplify: {{ mode: weights, weight: 1.5 }}\n"));
    let scaled = compiled_with(&bench, &format!("version: 1\nrules: [{{ {prune}, scale: -0.5 }} }}]\n"));
    let graphs = [
        (Target::Pruned, &bench.plan, path("pruned.onnx", &bench.compiled)),
        (Target::Pruned, &bench.plan, path("silent-pruned.onnx", &silent(bench.compiled.clone()))),
        (Target::Fused, &bench.plan, path("fused.onnx", &fused_graph)),
        (Target::Fused, &bench.plan, path("silent-fused.onnx", &silent(fused_graph.clone()))),
        (Target::Amplified, &amplified_plan, path("silent-amplified.onnx", &silent(scaled))),
    ];
    for (form, plan, file) in &graphs {
        let (original, compiled) = (bench.model.load(), load(file));
        let found = |required| verify(&original, &compiled, plan, required, &()).unwrap();
        let any = found(None);
        assert!(any.is_proven() && any.form.target == *form, "{}: {any:#?}", file.display());
        for required in [Target::Pruned, Target::Fused, Target::FusedWithInput, Target::Amplified] {
            assert_eq!(
                found(Some(required.into())).is_proven(),
                required == *form,
                "{} as {required:?}",
                file.display()
            );
        }
    }
    // Metadata alone make nothing another form.
    for stamp in ["fused", "amplified"] {
        let mut lying = bench.compiled.clone();
        claim(&mut lying, &bench.plan, stamp);
        assert!(!bench.verify(&lying).is_proven(), "{stamp}");
    }
}
