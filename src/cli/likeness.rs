//! Likeness of a model that somebody took for a UNet: a text encoder, a VAE, another network.

use std::path::Path;

use crate::{ir::Graph, report::compile::compiled_already};

/// Returns what is to be said of the model at `path` when a plan doesn't fit it: it is no UNet, or it was compiled before.
fn note(path: &Path, graph: &Graph) -> Option<String> {
    let path = path.display();
    if let Some(how) = compiled_already(graph) {
        return Some(format!("{path} was {how}; compile the model that it was made of"));
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
