//! Writing models: what must not change, where weights go, and when files appear.

mod files;
mod lossless;
mod nested;
mod weights;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crdiff::{
    ir::{Graph, InitializerId, Masked, NewData, Transform},
    onnx::{self, OnnxError, Payload, WeightPolicy, WriteOptions, Written},
};
use tempfile::TempDir;

use crate::common::{backend, decoded};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A folder `source` with a copy of `model` (as `unet.onnx`) and its data, inside a temporary folder.
fn workspace(model: &Path) -> (TempDir, PathBuf) {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("source");
    fs::create_dir(&folder).unwrap();
    let copy = folder.join("unet.onnx");
    fs::copy(model, &copy).unwrap();
    let data = model.with_extension("onnx.data");
    if data.exists() {
        fs::copy(data, folder.join("unet.onnx.data")).unwrap();
    }
    let split = model.with_file_name("weights");
    if split.is_dir() {
        fs::create_dir(folder.join("weights")).unwrap();
        for entry in fs::read_dir(split).unwrap() {
            let file = entry.unwrap();
            fs::copy(file.path(), folder.join("weights").join(file.file_name())).unwrap();
        }
    }
    (work, copy)
}

fn load(path: &Path) -> Graph {
    Graph::load(onnx::open(path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn write(graph: &Graph, output: &Path, policy: WeightPolicy) -> Result<Written, OnnxError> {
    onnx::write(graph, &WriteOptions::new(output, policy))
}

/// Returns the contents of `folder`: files, also those in folders in it, and empty folders.
fn listing(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let inside = if entry.path().is_dir() { listing(&entry.path()) } else { Vec::new() };
        names.extend(inside.iter().map(|inner| format!("{name}/{inner}")));
        if inside.is_empty() {
            names.push(name);
        }
    }
    names.sort();
    names
}

/// Zeroes float32 elements up to a magnitude.
#[derive(Debug)]
struct UpTo(f32);

impl Transform for UpTo {
    fn granularity(&self) -> usize {
        4
    }

    fn start(&self) -> Box<dyn FnMut(&mut [u8]) -> u64 + Send> {
        let limit = self.0;
        Box::new(move |piece| {
            let mut count = 0;
            for element in piece.chunks_exact_mut(4) {
                if f32::from_le_bytes(element.try_into().unwrap()).abs() <= limit {
                    element.fill(0);
                    count += 1;
                }
            }
            count
        })
    }
}

/// Masks the initializers whose elements take at least `at_least` bytes, every second one of them; returns their
/// names.
fn mask(graph: &mut Graph, at_least: u64, transform: Arc<dyn Transform>) -> Vec<(InitializerId, String)> {
    let chosen: Vec<_> = graph
        .initializers()
        .filter(|(_, i)| i.header.data_type == onnx::DataType::FLOAT)
        .filter(|(_, i)| !matches!(i.header.payload, Payload::Typed))
        .filter(|(_, i)| i.header.byte_len().unwrap() >= at_least)
        .step_by(2)
        .map(|(id, i)| (id, i.header.clone()))
        .collect();
    assert!(!chosen.is_empty());
    for (id, header) in &chosen {
        let original = graph.weight_reader(header).unwrap();
        let masked = Masked { original, transform: Arc::clone(&transform) };
        graph.edit().set_data(*id, NewData::Masked(masked)).unwrap();
    }
    chosen.into_iter().map(|(id, header)| (id, header.name)).collect()
}

/// Returns the elements that [`UpTo`] makes of others.
fn zeroed(elements: &[u8], limit: f32) -> Vec<u8> {
    let mut out = Vec::new();
    for element in elements.chunks_exact(4) {
        let x = f32::from_le_bytes(element.try_into().unwrap());
        out.extend(if x.abs() <= limit { 0f32 } else { x }.to_le_bytes());
    }
    out
}
