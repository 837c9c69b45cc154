//! `compile`: what a plan makes of a graph, or why it cannot.
//!
//! The graph's new name and its `crdiff.*` metadata have digests in them that change with every letter of the case;
//! they are left out here and looked at in `tests/it/cli.rs`.

use crdiff::{
    compile::{CompileError, Target, compile},
    ir::Graph,
    onnx::{WeightPolicy, WriteOptions, open_bytes, proto::ModelProto, text::print_model, write},
    passes::MaskForm,
    plan,
};
use miette::Diagnostic;
use prost::Message;

use crate::{common::onnx_text::parse_model, filetests::case::Case};

pub fn run(case: &Case) -> Result<String, String> {
    let model = parse_model(case.required("input")?).map_err(|e| format!("input: {e}"))?;
    let encoded = model.encode_to_vec();
    let mut graph =
        open_bytes(encoded.clone().into(), ".").and_then(Graph::load).map_err(|e| format!("input: {e}"))?;
    let plan = plan::parse("plan", case.required("plan")?).map_err(|e| format!("plan: {e}"))?;
    match compile(&mut graph, &plan, Target::Pruned, MaskForm::Stored, &()) {
        Ok(_) => {
            let written = written(&graph)?;
            if written == encoded {
                return Ok("identical".into());
            }
            let mut model = ModelProto::decode(&*written).map_err(|e| format!("output: {e}"))?;
            drop_provenance(&mut model)?;
            Ok(print_model(&model))
        }
        Err(CompileError::Plan(error)) => Ok(error.problems().map(message).collect::<Vec<_>>().join("\n")),
        Err(error) => Ok(format!("error: {error}")),
    }
}

fn written(graph: &Graph) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let output = folder.path().join("out.onnx");
    let options = WriteOptions::new(&output, WeightPolicy::Copy);
    write(graph, &options).map_err(|e| format!("output: {e}"))?;
    std::fs::read(&output).map_err(|e| e.to_string())
}

fn drop_provenance(model: &mut ModelProto) -> Result<(), String> {
    model.metadata_props.retain(|entry| !entry.key().starts_with("crdiff."));
    let name = model.graph.as_mut().and_then(|g| g.name.as_mut()).ok_or("the output's graph has no name")?;
    let (own, _) = name.rsplit_once("_crdiff_pruned_").ok_or("the output's graph has its old name")?;
    *name = own.to_string();
    Ok(())
}

fn message(problem: &plan::Problem) -> String {
    match problem.help() {
        Some(help) => format!("error: {problem}\nhelp: {help}"),
        None => format!("error: {problem}"),
    }
}
