//! Likeness of a model that somebody took for a UNet: a text encoder, a VAE, another network.

use std::path::Path;

use crate::{ir::Graph, onnx::model_field, onnx::proto::StringStringEntryProto};
use prost::Message;

/// Returns what is to be said of the model at `path` when a plan doesn't fit it: it is no UNet, or it was compiled before.
fn note(path: &Path, graph: &Graph) -> Option<String> {
    let path = path.display();
    if let Some(plan) = metadata(graph, "crdiff.plan") {
        let (emit, version) = (metadata(graph, "crdiff.emit"), metadata(graph, "crdiff.version"));
        let with = match metadata(graph, "crdiff.lora").map_or(0, |files| files.split(',').count()) {
            0 => String::new(),
            1 => " and a LoRA".to_string(),
            files => format!(" and {files} LoRAs"),
        };
        return Some(format!(
            "{path} was compiled already, by crdiff {} ({}) with the plan of digest {}...{with}; compile the model that it \
             was made of",
            version.unwrap_or_default(),
            emit.unwrap_or_default(),
            plan.get(..12).unwrap_or(&plan)
        ));
    }
    let what = likeness(graph)?;
    Some(format!(
        "{path} looks like {what}, not like a UNet, which in a pipeline's folder is unet/model.onnx"
    ))
}

/// Says of the model at `path` what [`note`] does, if anything.
pub fn say(path: &Path, graph: &Graph) {
    if let Some(note) = note(path, graph) {
        anstream::eprintln!("note: {note}");
    }
}

/// Returns what a model looks like that is no UNet.
fn likeness(graph: &Graph) -> Option<&'static str> {
    let has = |name: &str| graph.inputs().any(|io| io.info.name() == name);
    let inputs = graph.inputs().count();
    let gives_latents = graph.outputs().iter().any(|io| io.info.name().starts_with("latent"));
    if has("sample") && has("timestep") {
        return None;
    }
    if has("input_ids") {
        return Some("a text encoder");
    }
    match inputs {
        1 if has("latent_sample") => Some("a VAE decoder"),
        1 if has("pixel_values") || has("sample") && gives_latents => Some("a VAE encoder"),
        _ => None,
    }
}

/// Returns a value of the model's metadata.
fn metadata(graph: &Graph, key: &str) -> Option<String> {
    let fields = graph.source().fields.iter().filter(|field| field.number == model_field::METADATA_PROPS);
    let mut entries = fields.filter_map(|field| StringStringEntryProto::decode(field.value()).ok());
    entries.find(|entry| entry.key() == key).map(|entry| entry.value().to_string())
}
