//! Errors of reading and writing model files.

use std::path::PathBuf;

use crate::observer::Stopped;

/// An error of reading or writing a model. `Display` says what is wrong and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// A file could not be opened, read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The attempt, as a verb phrase: "open", "read 12 bytes at 40".
        action: String,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The bytes are not the protobuf message that they should be.
    #[error("not a valid ONNX model: {what} at byte {offset}")]
    Wire {
        /// The expected or the found item.
        what: String,
        /// Offset from the start of the message that was being split.
        offset: usize,
    },
    /// The message is well formed, but says something that ONNX does not allow.
    #[error("{place}: {what}")]
    Invalid {
        /// Which node, tensor or graph.
        place: String,
        /// The fault.
        what: String,
    },
    /// External data does not hold what a tensor claims.
    #[error("tensor `{tensor}`: {what}")]
    ExternalData {
        /// Name of the initializer.
        tensor: String,
        /// The fault.
        what: String,
    },
    /// A file cannot be, or must not be, written under this name.
    #[error("cannot write {}: {what}", path.display())]
    Output {
        /// The file that would have been written.
        path: PathBuf,
        /// Why not, and what would do.
        what: String,
    },
    /// The observer said stop; nothing was changed.
    #[error("stopped before anything was changed")]
    Stopped,
}

impl From<Stopped> for OnnxError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl OnnxError {
    pub(crate) fn wire(what: impl Into<String>, offset: usize) -> Self {
        Self::Wire { what: what.into(), offset }
    }

    pub(crate) fn invalid(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Invalid { place: place.into(), what: what.into() }
    }

    pub(crate) fn output(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Output { path: path.into(), what: what.into() }
    }

    pub(crate) fn io(action: impl Into<String>, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action: action.into(), path: path.into(), source }
    }
}
