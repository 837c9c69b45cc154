//! The errors of a verification that could not be made.

use crate::{observer::Stopped, onnx::OnnxError, plan::PlanError};

/// Why a verification could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The plan does not fit the original.
    #[error(transparent)]
    Plan(#[from] Box<PlanError>),
    /// A model could not be read.
    #[error(transparent)]
    Onnx(OnnxError),
    /// The observer said stop.
    #[error("stopped")]
    Stopped,
}

impl From<OnnxError> for VerifyError {
    fn from(error: OnnxError) -> Self {
        match error {
            OnnxError::Stopped => Self::Stopped,
            other => Self::Onnx(other),
        }
    }
}

impl From<Stopped> for VerifyError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}
