//! Errors of a search.

use std::path::{Path, PathBuf};

use super::space::SpaceError;
use crate::{
    compile::CompileError, diffusion::PipelineError, engine::EngineError, observer::Stopped, onnx::OnnxError,
    plan_cache::PlanCacheError,
};

/// Why a search could not go on. `Display` says what is wrong, where, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    /// The space is wrong, or doesn't fit the pipeline's model.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// The pipeline cannot be run.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// An engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A plan cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The model cannot be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The model's digest cannot be had.
    #[error(transparent)]
    PlanCache(#[from] PlanCacheError),
    /// An image could not be scored.
    #[error("{objective}: {what}")]
    Objective {
        /// Which objective: its name in the space, or what it runs.
        objective: String,
        /// The fault, and the remedy.
        what: String,
    },
    /// The journal is not this search's, or cannot be used.
    #[error("{}: {what}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// The fault, and the remedy.
        what: String,
    },
    /// Values that don't fit the space.
    #[error("{0}")]
    Values(String),
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
    /// Nothing that was tried worked.
    #[error("all of the first {trials} trials failed, so the search stops; the last one: {what}")]
    AllFailed {
        /// How many.
        trials: u64,
        /// Why the last one did.
        what: String,
    },
    /// None of the best trials could be confirmed.
    #[error(
        "none of the best {trials} trials could be drawn from fresh noises; the first: {what}; to try again, remove the \
         lines with \"confirmed\" from the journal, or change `noises` of `confirm`"
    )]
    Unconfirmed {
        /// How many.
        trials: usize,
        /// Why the first one could not.
        what: String,
    },
    /// The observer said stop.
    #[error("stopped")]
    Stopped,
}

impl From<Stopped> for SearchError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl SearchError {
    pub(super) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }

    pub(super) fn objective(objective: &str, what: impl Into<String>) -> Self {
        Self::Objective { objective: objective.to_string(), what: what.into() }
    }

    pub(super) fn journal(path: &Path, what: impl Into<String>) -> Self {
        Self::Journal { path: path.to_path_buf(), what: what.into() }
    }
}
