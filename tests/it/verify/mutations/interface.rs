//! Inputs, outputs, operator sets and metadata.

use super::*;

#[test]
fn interface() {
    let bench = Bench::new();
    bench.find("a renamed output", "an output is called `other`, expected `out_sample`", "", |m| {
        let output = graph(m).output[0].name().to_string();
        for name in graph(m).node.iter_mut().flat_map(|n| &mut n.output).filter(|n| **n == output) {
            *name = "other".into();
        }
        graph(m).output[0].name = Some("other".into());
    });
    bench.find("a removed output", "the output `out_sample` is missing", "", |m| graph(m).output.clear());
    bench.find("a renamed input", "an input is called `latents`, expected `sample`", "", |m| {
        for name in graph(m).node.iter_mut().flat_map(|n| &mut n.input).filter(|n| **n == "sample") {
            *name = "latents".into();
        }
        graph(m).input[0].name = Some("latents".into());
    });
    bench.find("another dimension", "input `sample` is float32[", "", |m| {
        dims(&mut graph(m).input[0])[0].value =
            Some(crdiff::onnx::proto::tensor_shape_proto::dimension::Value::DimValue(2));
    });
    bench.find("an extra input", "there is an input `unused`", "", |m| {
        let extra = ValueInfoProto { name: Some("unused".into()), ..graph(m).input[0].clone() };
        graph(m).input.push(extra);
    });
    bench.find("inputs in another order", "is number 2, expected 1", "", |m| graph(m).input.swap(0, 1));
    bench.find("another operator set", "operator set `ai.onnx` has version 18, expected 17", "", |m| {
        m.opset_import[0].version = Some(18);
    });
    bench.find("another IR version", "the IR version is 9, expected 8", "", |m| m.ir_version = Some(9));
    for key in ["crdiff.plan", "crdiff.source", "crdiff.emit", "crdiff.version"] {
        bench.find(&format!("{key} lost"), &format!("the metadata key `{key}` is lost"), "", |m| {
            m.metadata_props.retain(|e| e.key() != key);
        });
    }
    bench.find("another source", "it was made from another model", "", |m| {
        metadata(m, "crdiff.source").value = Some("0".repeat(64));
    });
    bench.find("the original's name", "the graph's name is `main_graph`", "", |m| {
        graph(m).name = Some("main_graph".into());
    });
    let mut silent = bench.compiled.clone();
    silent.metadata_props.clear();
    graph(&mut silent).name = Some("main_graph".into());
    let verdict = bench.verify(&silent);
    assert!(verdict.is_proven() && verdict.notes.len() == 1, "{verdict:#?}");
}
