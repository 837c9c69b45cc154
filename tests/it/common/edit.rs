//! Copies of models, changed through their protobuf messages.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use crdiff::onnx::proto::{GraphProto, ModelProto};
use prost::Message;

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path).join("unet.onnx")
}

pub fn decode(path: &Path) -> ModelProto {
    ModelProto::decode(fs::read(path).unwrap().as_slice()).unwrap()
}

/// Writes `model` into `folder`.
pub fn save(model: &ModelProto, folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

/// The fixture at `path`, changed by `change`, in `folder`; external data is copied along.
pub fn changed(path: &Path, folder: &Path, change: impl FnOnce(&mut GraphProto)) -> PathBuf {
    let mut model = decode(path);
    change(model.graph.as_mut().unwrap());
    let data = path.with_extension("onnx.data");
    if data.is_file() {
        fs::copy(&data, folder.join("unet.onnx.data")).unwrap();
    }
    save(&model, folder, "changed.onnx")
}

/// Adds `by` to one float32 element of an initializer.
pub fn nudge(graph: &mut GraphProto, tensor: &str, index: usize, by: f32) {
    let tensor = graph.initializer.iter_mut().find(|t| t.name() == tensor).unwrap();
    let mut bytes = tensor.raw_data().to_vec();
    let at = &mut bytes[4 * index..4 * index + 4];
    let value = f32::from_le_bytes(at.try_into().unwrap()) + by;
    at.copy_from_slice(&value.to_le_bytes());
    tensor.raw_data = Some(Bytes::from(bytes));
}
