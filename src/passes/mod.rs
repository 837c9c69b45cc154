//! The passes, in order. A new pass is one file, one line in [`ordered`] and one test file.

mod bypass;
mod prune;
mod sweep;

use crate::{
    analysis::magnitude::MagnitudeError,
    ir::{CheckError, EditError, Editor, Graph},
    onnx::OnnxError,
    plan::ResolvedPlan,
};
pub use prune::{MaskedTensor, PruneOutcome};

/// A pass that could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// An edit was refused.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// Weights could not be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The graph was broken after the pass: a defect of this crate.
    #[error("the {pass} pass left a broken graph ({error}); please report this")]
    Broken {
        /// The pass.
        pass: &'static str,
        /// What is broken.
        error: CheckError,
    },
}
