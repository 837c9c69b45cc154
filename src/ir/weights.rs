//! Elements of tensors: reading them from wherever they are, and describing new ones without making them.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::Graph;
use crate::onnx::{DataFile, OnnxError, Payload, TensorHeader, tensor};

/// A reader of the little-endian elements of one tensor, a range at a time.
#[derive(Clone, Debug)]
pub enum WeightReader {
    /// They are in a file.
    File {
        /// The file.
        file: Arc<DataFile>,
        /// Where they begin.
        offset: u64,
        /// How many bytes they take.
        len: u64,
    },
    /// They are in memory.
    Memory(Bytes),
    /// They are computed when they are read.
    Computed(Arc<dyn Elements>),
}

/// Elements of a tensor that are computed when they are read, a range at a time.
pub trait Elements: Send + Sync + fmt::Debug {
    /// Returns the number of bytes.
    fn byte_len(&self) -> u64;

    /// Fills `buffer` with the bytes from `at` on. The range is inside the tensor.
    ///
    /// # Errors
    /// [`OnnxError`] if that which they are computed from cannot be read.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<(), OnnxError>;
}

impl WeightReader {
    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Computed(elements) => elements.byte_len(),
        }
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether both are known, without reading any, to have the same elements: they come from one place.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { file, offset, len }, Self::File { file: other, offset: at, len: bytes }) => {
                Arc::ptr_eq(file, other) && (offset, len) == (at, bytes)
            }
            (Self::Memory(bytes), Self::Memory(other)) => bytes == other,
            (Self::Computed(elements), Self::Computed(other)) => Arc::ptr_eq(elements, other),
            _ => false,
        }
    }

    /// Fills `buffer` with the bytes from `at` on.
    ///
    /// # Errors
    /// [`OnnxError::Io`] if a file cannot be read; [`OnnxError::Invalid`] for a range outside the tensor.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<(), OnnxError> {
        let end = at.checked_add(buffer.len() as u64).filter(|end| *end <= self.len());
        let Some(end) = end else {
            return Err(OnnxError::invalid("a tensor", format!("read past its end, at byte {at}")));
        };
        match self {
            Self::File { file, offset, .. } => file.read_at(offset + at, buffer),
            Self::Memory(bytes) => {
                buffer.copy_from_slice(&bytes[at as usize..end as usize]);
                Ok(())
            }
            Self::Computed(elements) => elements.read_at(at, buffer),
        }
    }
}

/// One run of a [`Transform`] over a tensor: edits the next piece in place, returns how many elements it masked.
pub type TransformRun = Box<dyn FnMut(&mut [u8]) -> u64 + Send>;

/// A change of a tensor's elements on their way through: called with one piece after the other, in order. Pieces are
/// whole multiples of [`Transform::granularity`] bytes (but the last may be shorter).
pub trait Transform: Send + Sync + fmt::Debug {
    /// Returns the number of bytes that must be seen together.
    fn granularity(&self) -> usize;

    /// Returns the threshold, if all that it does is to set elements of magnitude up to some threshold to 0.
    fn threshold(&self) -> Option<f32> {
        None
    }

    /// Returns a fresh run over the tensor's bytes. Each call of the closure edits the next piece in place and returns
    /// how many of its elements are masked.
    fn start(&self) -> TransformRun;
}

/// New elements for a tensor: the old ones, masked.
#[derive(Clone, Debug)]
pub struct Masked {
    /// The original elements.
    pub original: WeightReader,
    /// Their replacement.
    pub transform: Arc<dyn Transform>,
}

/// New elements of an initializer.
#[derive(Clone, Debug)]
pub enum NewData {
    /// These bytes.
    Bytes(Bytes),
    /// Those of a reader, computed while they are written.
    Computed(WeightReader),
    /// The original's, masked while they are written.
    Masked(Masked),
}

impl NewData {
    /// Returns whether both are known, without reading or making any, to be the same elements: they are made of the same
    /// ones in the same way.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bytes(bytes), Self::Bytes(other)) => bytes == other,
            (Self::Computed(reader), Self::Computed(other)) => reader.is_same(other),
            (Self::Masked(masked), Self::Masked(other)) => {
                Arc::ptr_eq(&masked.transform, &other.transform) && masked.original.is_same(&other.original)
            }
            _ => false,
        }
    }
}

impl Graph {
    /// Returns a reader of the original elements of the tensor `header`.
    ///
    /// # Errors
    /// [`OnnxError`] if external data is missing or too short, or the elements do not fit the shape.
    pub fn weight_reader(&self, header: &TensorHeader) -> Result<WeightReader, OnnxError> {
        let fail = |what: String| OnnxError::invalid(format!("tensor `{}`", header.name), what);
        let Some(len) = header.byte_len() else {
            return Err(fail(format!("elements of type {} cannot be read", header.data_type.name())));
        };
        match &header.payload {
            Payload::External(range) => {
                let file = self.source.data.locate(&header.name, range, len)?;
                Ok(WeightReader::File { file, offset: range.offset, len })
            }
            Payload::Raw(bytes) if bytes.len() as u64 != len => {
                Err(fail(format!("its shape takes {len} bytes, but raw_data has {}", bytes.len())))
            }
            Payload::Raw(bytes) => match (&self.source.file, self.source.offset_of(bytes)) {
                (Some(file), Some(offset)) => Ok(WeightReader::File { file: Arc::clone(file), offset, len }),
                _ => Ok(WeightReader::Memory(bytes.clone())),
            },
            Payload::Typed => Ok(WeightReader::Memory(tensor::typed_elements(header)?)),
        }
    }
}
