//! Handing a graph over to what serves it: a Triton model repository ([`triton`]), TensorRT's `trtexec`
//! ([`trtexec`]), a browser ([`web`]).
//!
//! Weights are copied, never read or converted. Folders appear complete or not at all.

mod atomic_dir;
mod batching;
mod profile;
pub mod triton;
pub mod trtexec;
pub mod web;

use std::path::{Path, PathBuf};

pub use batching::{Batching, make_rows};
pub use profile::{Range, Sizes, profile};

use crate::{
    diffusion::PipelineError,
    engine::{Signature, tensor_info},
    ir::{EditError, Graph, GraphIo, Origin},
    onnx::OnnxError,
    passes::PassError,
};

/// Why nothing was handed over. `Display` says what is wrong, where, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeployError {
    /// A model could not be read, or a copy of it not be written.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// A model cannot be handed over as it is.
    #[error("{}: {what}", model.display())]
    Model {
        /// The model.
        model: PathBuf,
        /// Which input, tensor or size, and what would be right.
        what: String,
    },
    /// The request contradicts itself.
    #[error("{0}")]
    Request(String),
    /// Something is in the way of the output.
    #[error("cannot write {}: {what}", path.display())]
    Output {
        /// The file or folder that would have been written.
        path: PathBuf,
        /// Why not, and what would do.
        what: String,
    },
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
    /// A pipeline's folder is not what it should be.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A graph could not be edited.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// A graph could not be given a row for each row of the batch.
    #[error(transparent)]
    Pass(#[from] PassError),
}

/// Returns what a graph in memory declares, edits included.
///
/// # Errors
/// [`OnnxError`] if a declaration is broken or an input or output is not a tensor.
fn signature(graph: &Graph) -> Result<Signature, OnnxError> {
    let is_fed = |io: &&GraphIo| matches!(graph.value(io.value).origin, Origin::Input(_));
    let inputs = graph.inputs().filter(is_fed).map(|io| tensor_info(io.raw.clone()));
    let outputs = graph.outputs().iter().map(|io| tensor_info(io.raw.clone()));
    Ok(Signature { inputs: inputs.collect::<Result<_, _>>()?, outputs: outputs.collect::<Result<_, _>>()? })
}

impl DeployError {
    fn model(model: &Path, what: impl Into<String>) -> Self {
        Self::Model { model: model.to_path_buf(), what: what.into() }
    }

    fn output(path: &Path, what: impl Into<String>) -> Self {
        Self::Output { path: path.to_path_buf(), what: what.into() }
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
