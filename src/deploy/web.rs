//! A graph for onnxruntime-web: files that a browser can load, and the code that loads them.
//!
//! The limits are those of onnxruntime-web's documentation ("Working with Large Models"): a protobuf message has less
//! than 2 GiB, an `ArrayBuffer` in Chrome at most [`FILE_LIMIT`] bytes, and WebAssembly, whose addresses have 32 bits,
//! at most [`MEMORY_LIMIT`] bytes in all.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    DeployError,
    atomic_dir::{self, Staging},
};
use crate::{
    engine::TensorInfo,
    ir::Graph,
    observer::Observer,
    onnx::{self, DataType, WeightPolicy, WriteOptions},
};

/// The most bytes that one file may have: the longest `ArrayBuffer` of Chrome, less than a protobuf message may have.
pub const FILE_LIMIT: u64 = 0x7fe0_0000;
/// The memory of WebAssembly: 32-bit addresses.
pub const MEMORY_LIMIT: u64 = 1 << 32;
/// The least that a file may be limited to; it must hold the graph without its weights.
const LEAST_LIMIT: u64 = 1 << 10;
/// Beyond this share of the memory, weights leave little for what a network computes.
const MUCH: u64 = MEMORY_LIMIT / 2;

/// The code that loads a bundle, but for its manifest.
const LOADER: &str = include_str!("web/load.js");
/// The placeholder of the manifest in `LOADER`.
const MANIFEST: &str = "/* manifest */ {}";

/// A bundle to write.
#[derive(Clone, Copy)]
pub struct WebJob<'a> {
    /// The model.
    pub model: &'a Path,
    /// The folder to put it in; made if it isn't there.
    pub output: &'a Path,
    /// The most bytes that one file may have, at most [`FILE_LIMIT`].
    pub file_limit: u64,
    /// Observes the writing.
    pub observer: &'a dyn Observer,
}

/// A bundle that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The files with their lengths, the model first.
    pub files: Vec<(PathBuf, u64)>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Writes the model, in one file if it fits, else with its weights in files of at most `file_limit` bytes; its manifest
/// `manifest.json`; and `load.js`, which makes a session of them. Element types stay what they are.
///
/// # Errors
/// [`DeployError`] if WebAssembly's memory cannot hold the weights, if a tensor is larger than a file may be, if the
/// weights are of a type that onnxruntime-web doesn't compute in, if one of the files is there already, or if the model
/// cannot be read.
pub fn export(job: &WebJob<'_>) -> Result<Bundle, DeployError> {
    let fail = |what: String| DeployError::model(job.model, what);
    if !(LEAST_LIMIT..=FILE_LIMIT).contains(&job.file_limit) {
        return Err(DeployError::Request(format!(
            "a file of {} bytes: the limit of a file must be from {LEAST_LIMIT} to {FILE_LIMIT} bytes, the longest \
             ArrayBuffer of Chrome",
            job.file_limit
        )));
    }
    let graph = Graph::load(onnx::open_with_weights(job.model)?)?;
    let weights = weights(&graph, job.file_limit).map_err(fail)?;
    let mut notes = Vec::new();
    if weights > MUCH {
        notes.push(format!(
            "the weights take {weights} of the {MEMORY_LIMIT} bytes that WebAssembly can address; what is left must \
             hold all that the network computes"
        ));
    }
    let name = job.model.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| fail("its name is not valid UTF-8".to_string()))?;
    let files = atomic_dir::complete(job.output, |staging| fill(staging, job, &graph, name, weights))?;
    Ok(Bundle { files, notes })
}

/// Writes the files of a bundle, and returns each with its bytes, the model first.
fn fill(
    staging: &Staging,
    job: &WebJob<'_>,
    graph: &Graph,
    name: &str,
    weights: u64,
) -> Result<Vec<(PathBuf, u64)>, DeployError> {
    let fail = |what: String| DeployError::model(job.model, what);
    let model = staging.path(name)?;
    let options = |policy| WriteOptions::new(&model, policy).observer(job.observer);
    // The model file is small without its weights; where it isn't, the writer's own limit decides.
    let whole = weights.saturating_add(graph_bytes(graph));
    let written = match whole <= job.file_limit {
        true => onnx::write(graph, &options(WeightPolicy::Inline))?,
        false => onnx::write(graph, &options(WeightPolicy::Split(job.file_limit)))?,
    };
    if let Some((path, bytes)) = written.files.iter().find(|(_, bytes)| *bytes > job.file_limit) {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        return Err(fail(format!(
            "without its weights {file} still takes {bytes} bytes, and a file may have only {}",
            job.file_limit
        )));
    }
    let data: Vec<(String, u64)> = written
        .files
        .iter()
        .skip(1)
        .map(|(path, bytes)| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), *bytes))
        .collect();
    for (file, _) in &data {
        staging.path(file)?;
    }
    let manifest = manifest(name, graph, &data)?;
    let text = serde_json::to_string_pretty(&manifest).map_err(|e| fail(e.to_string()))?;
    staging.write(&staging.path("manifest.json")?, &format!("{text}\n"))?;
    staging.write(&staging.path("load.js")?, &LOADER.replacen(MANIFEST, &text, 1))?;
    let placed =
        |(path, bytes): &(PathBuf, u64)| (job.output.join(path.file_name().unwrap_or_default()), *bytes);
    Ok(written.files.iter().map(placed).collect())
}

/// Returns the bytes of the weights, if they are of types and a size that can be loaded.
fn weights(graph: &Graph, file_limit: u64) -> Result<u64, String> {
    let sizes = || graph.initializers().map(|(_, initializer)| &initializer.header);
    if let Some(header) = sizes().find(|header| header.data_type == DataType::BFLOAT16) {
        return Err(format!(
            "tensor `{}` is in bfloat16, in which onnxruntime-web computes nothing; export the model in float16 or \
             float32",
            header.name
        ));
    }
    let bytes = |header: &onnx::TensorHeader| header.byte_len().unwrap_or(0);
    let sum = sizes().fold(0u64, |sum, header| sum.saturating_add(bytes(header)));
    if sum >= MEMORY_LIMIT {
        return Err(format!(
            "its weights take {sum} bytes, and WebAssembly can address {MEMORY_LIMIT} in all; export it in half \
             precision or bypass more of it"
        ));
    }
    match sizes().find(|header| bytes(header) > file_limit) {
        Some(header) => Err(format!(
            "tensor `{}` takes {} bytes, but a file may have only {file_limit}",
            header.name,
            bytes(header)
        )),
        None => Ok(sum),
    }
}

/// Returns about how many bytes the model file takes without the elements of its initializers.
fn graph_bytes(graph: &Graph) -> u64 {
    let inside = |initializer: &crate::ir::Initializer| match &initializer.header.payload {
        onnx::Payload::Raw(bytes) => bytes.len() as u64,
        onnx::Payload::Typed | onnx::Payload::External(_) => 0,
    };
    let elements: u64 = graph.initializers().map(|(_, initializer)| inside(initializer)).sum();
    // A field's head for each tensor that moves inside.
    let heads = 16 * graph.initializers().count() as u64;
    (graph.source().bytes.len() as u64).saturating_sub(elements).saturating_add(heads)
}

fn manifest(model: &str, graph: &Graph, data: &[(String, u64)]) -> Result<Value, DeployError> {
    let signature = super::signature(graph)?;
    let port = |info: &TensorInfo| {
        let dim = |dim: &crate::engine::Dim| match dim {
            crate::engine::Dim::Fixed(size) => json!(size),
            crate::engine::Dim::Named(name) => json!(name),
            crate::engine::Dim::Unknown => Value::Null,
        };
        let dims: Option<Vec<Value>> = info.dims.as_ref().map(|dims| dims.iter().map(dim).collect());
        json!({ "name": info.name, "type": info.data_type.name(), "dims": dims })
    };
    Ok(json!({
        "model": model,
        "externalData": data.iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes })).collect::<Vec<_>>(),
        "inputs": signature.inputs.iter().map(port).collect::<Vec<_>>(),
        "outputs": signature.outputs.iter().map(port).collect::<Vec<_>>(),
    }))
}
