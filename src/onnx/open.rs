//! Opening a model: map the file, check its messages, split the outer ones.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use memmap2::Mmap;

use super::{
    Calls, DataFiles, OnnxError, Unknown, check,
    external::{self, DataFile},
    foreign,
    wire::{self, Field},
};

/// Field numbers of `ModelProto` that this crate reads or writes.
pub mod model_field {
    /// `int64 ir_version`
    pub const IR_VERSION: u32 = 1;
    /// `GraphProto graph`
    pub const GRAPH: u32 = 7;
    /// `repeated OperatorSetIdProto opset_import`
    pub const OPSET_IMPORT: u32 = 8;
    /// `repeated StringStringEntryProto metadata_props`
    pub const METADATA_PROPS: u32 = 14;
    /// `repeated TrainingInfoProto training_info`
    pub const TRAINING_INFO: u32 = 20;
    /// `repeated FunctionProto functions`
    pub const FUNCTIONS: u32 = 25;
}

/// Field numbers of `GraphProto`.
pub mod graph_field {
    /// `repeated NodeProto node`
    pub const NODE: u32 = 1;
    /// `string name`
    pub const NAME: u32 = 2;
    /// `repeated TensorProto initializer`
    pub const INITIALIZER: u32 = 5;
    /// `repeated ValueInfoProto input`
    pub const INPUT: u32 = 11;
    /// `repeated ValueInfoProto output`
    pub const OUTPUT: u32 = 12;
    /// `repeated ValueInfoProto value_info`
    pub const VALUE_INFO: u32 = 13;
    /// `repeated TensorAnnotation quantization_annotation`
    pub const QUANTIZATION_ANNOTATION: u32 = 14;
    /// `repeated SparseTensorProto sparse_initializer`
    pub const SPARSE_INITIALIZER: u32 = 15;
    /// `repeated StringStringEntryProto metadata_props`
    pub const METADATA_PROPS: u32 = 16;
}

/// How errors call a model that has no name.
const WHOLE: &str = "the model";

/// A model, split into the fields of `ModelProto`, and where it came from.
#[derive(Debug)]
pub struct Source {
    /// The whole file.
    pub bytes: Bytes,
    /// The fields of `ModelProto`, in order, the graph among them.
    pub fields: Vec<Field>,
    /// The model's graph.
    pub graph: GraphSource,
    /// The file; `None` for a model that was opened from memory.
    pub file: Option<Arc<DataFile>>,
    /// The external data beside it.
    pub data: Arc<DataFiles>,
    /// Fields that ONNX's schema doesn't have, wherever they are.
    pub unknown: Vec<Unknown>,
    /// The calls of model-local functions in whose places the nodes of `graph` have the functions' bodies; none of them
    /// before the graph is loaded.
    pub calls: Calls,
}

/// A `GraphProto`, whose fields were found to fit when it was opened.
#[derive(Debug)]
pub struct GraphSource {
    /// Stretches of whole fields.
    parts: Vec<Bytes>,
}

impl GraphSource {
    /// Returns a graph of these stretches of whole fields.
    pub(crate) fn new(parts: Vec<Bytes>) -> Self {
        Self { parts }
    }

    /// Returns the fields, in order. They are found anew each time: a list of a large graph's would take a tenth of the
    /// memory that the graph itself takes.
    pub fn fields(&self) -> impl Iterator<Item = Field> + '_ {
        self.parts.iter().flat_map(wire::fields).filter_map(Result::ok)
    }

    /// Returns the fields with this number, in order.
    pub fn fields_of(&self, number: u32) -> impl Iterator<Item = Field> + '_ {
        self.fields().filter(move |field| field.number == number)
    }
}

impl Source {
    /// Returns where the model was opened from; an empty path for one from memory.
    pub fn path(&self) -> PathBuf {
        self.file.as_ref().map(|f| f.path.clone()).unwrap_or_default()
    }

    /// Returns the fields of `ModelProto` with this number, in order.
    pub fn fields_of(&self, number: u32) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(move |field| field.number == number)
    }

    /// Returns the version of ONNX's format that the model states.
    pub fn ir_version(&self) -> Option<u64> {
        self.fields_of(model_field::IR_VERSION).next().and_then(Field::as_varint)
    }

    /// Returns the offset of `slice` in the model file, if it is a slice of it.
    pub fn offset_of(&self, slice: &Bytes) -> Option<u64> {
        let start = (slice.as_ptr() as usize).checked_sub(self.bytes.as_ptr() as usize)?;
        (start + slice.len() <= self.bytes.len()).then_some(start as u64)
    }
}

/// Opens the model at `path` without reading its weights.
///
/// # Errors
/// [`OnnxError`] if the file cannot be mapped or is not an ONNX model.
pub fn open(path: impl AsRef<Path>) -> Result<Source, OnnxError> {
    let path = path.as_ref();
    let file = external::open_file(path)?;
    let meta = file.metadata().map_err(|e| OnnxError::io("read the size", path, e))?;
    // An empty file cannot be mapped everywhere.
    let bytes = if meta.len() == 0 {
        Bytes::new()
    } else {
        // SAFETY: the map is read-only and private to this process. If another process truncates the file while
        // it is mapped, reads of the lost pages end this process with SIGBUS; no memory of ours can be corrupted.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| OnnxError::io("map", path, e))?;
        Bytes::from_owner(map)
    };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let kind = foreign::kind(&bytes);
    let mut source = open_bytes(bytes, folder).map_err(|e| match (e, kind) {
        (_, Some(kind)) => OnnxError::invalid(path.display().to_string(), kind),
        (OnnxError::Invalid { place, what }, None) if place == WHOLE => {
            OnnxError::invalid(path.display().to_string(), what)
        }
        (other, None) => OnnxError::invalid(path.display().to_string(), other.to_string()),
    })?;
    source.file = Some(Arc::new(DataFile::open(path)?));
    Ok(source)
}

/// Opens a model that is in memory; its external data, if any, lies in `folder`.
///
/// # Errors
/// [`OnnxError`] if the bytes are not an ONNX model.
pub fn open_bytes(bytes: Bytes, folder: impl Into<PathBuf>) -> Result<Source, OnnxError> {
    let unknown = check("ModelProto", &bytes)?;
    let fields = wire::split(&bytes)?;
    let mut graphs = fields.iter().filter(|f| f.number == model_field::GRAPH);
    let graph =
        graphs.next().ok_or_else(|| OnnxError::invalid(WHOLE, "it has no graph: is this an ONNX file?"))?;
    let graph = GraphSource::new(vec![graph.value()]);
    let (data, calls) = (Arc::new(DataFiles::new(folder)), Calls::default());
    Ok(Source { bytes, fields, graph, file: None, data, unknown, calls })
}
