//! Models as an independent decoder sees them.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use onnx_protobuf::{Message, ModelProto, TensorProto, tensor_proto::DataLocation};

/// A decoded model and where it lies.
pub struct Decoded {
    pub model: ModelProto,
    pub folder: PathBuf,
}

impl Decoded {
    pub fn open(path: &Path) -> Self {
        let model = ModelProto::parse_from_bytes(&fs::read(path).unwrap()).unwrap();
        Self { model, folder: path.parent().unwrap().to_path_buf() }
    }

    pub fn tensor(&self, name: &str) -> &TensorProto {
        self.model.graph.initializer.iter().find(|t| t.name == name).unwrap()
    }

    /// The bytes of the elements of an initializer with `raw_data` or external data.
    pub fn elements(&self, name: &str) -> Vec<u8> {
        elements(&self.folder, self.tensor(name))
    }
}

/// Whether the elements are in another file.
pub fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location.enum_value() == Ok(DataLocation::EXTERNAL)
}

/// The value of an `external_data` entry.
pub fn external<'t>(tensor: &'t TensorProto, key: &str) -> Option<&'t str> {
    tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str())
}

/// Where external elements begin.
pub fn offset(tensor: &TensorProto) -> u64 {
    external(tensor, "offset").map_or(0, |o| o.parse().unwrap())
}

/// The bytes of the elements of a tensor with `raw_data` or external data, of a model in `folder`.
pub fn elements(folder: &Path, tensor: &TensorProto) -> Vec<u8> {
    if !is_external(tensor) {
        return tensor.raw_data.clone();
    }
    let file = fs::File::open(folder.join(external(tensor, "location").unwrap())).unwrap();
    let rest = || file.metadata().unwrap().len() - offset(tensor);
    let length = external(tensor, "length").map_or_else(rest, |length| length.parse().unwrap());
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset(tensor)).unwrap();
    bytes
}
