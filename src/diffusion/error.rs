//! Errors between a pipeline folder and an image.

use std::path::{Path, PathBuf};

use super::{guidance::GuidanceError, sampler::SamplerError};
use crate::{engine::EngineError, observer::Stopped};

/// An error of loading or running a pipeline. `Display` says what is wrong, where, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The attempt, as a verb phrase.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of the pipeline is not what it should be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The fault, and the remedy.
        what: String,
    },
    /// A network has inputs or outputs that don't belong to its place in the pipeline.
    #[error("{model}: {what}")]
    Graph {
        /// The model's path.
        model: String,
        /// Which input or output, and what was expected.
        what: String,
    },
    /// The pipeline cannot do the request.
    #[error("{0}")]
    Request(String),
    /// A network returned NaN or infinities.
    #[error("{stage} gave values that are not finite{hint}")]
    NotFinite {
        /// The part of the pipeline.
        stage: &'static str,
        /// A remedy; empty or starting with `; `.
        hint: String,
    },
    /// An engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The network failed at a size that it may not have been exported for.
    #[error(
        "{source}\nlatents of {height}x{width} are not divisible by {factor}, which this export may need; try --size {tried}"
    )]
    Size {
        /// The engine's error.
        source: Box<EngineError>,
        /// Height of the latents.
        height: usize,
        /// Width of the latents.
        width: usize,
        /// The factor by which the UNet divides latents.
        factor: usize,
        /// The next size that is divisible, in pixels.
        tried: String,
    },
    /// The scheduler config or the number of steps is wrong.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// Outputs of a network don't fit each other.
    #[error(transparent)]
    Guidance(#[from] GuidanceError),
    /// The observer said stop.
    #[error("stopped")]
    Stopped,
}

impl From<Stopped> for PipelineError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl PipelineError {
    pub(super) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_path_buf(), what: what.into() }
    }
}

/// Reads a JSON file.
pub(super) fn read_json(path: &Path) -> Result<serde_json::Value, PipelineError> {
    serde_json::from_str(&read_text(path)?)
        .map_err(|e| PipelineError::file(path, format!("it is no JSON: {e}")))
}

pub(super) fn read_text(path: &Path) -> Result<String, PipelineError> {
    std::fs::read_to_string(path).map_err(|source| PipelineError::Io {
        action: "read",
        path: path.to_path_buf(),
        source,
    })
}
