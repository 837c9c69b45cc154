//! Models of a pipeline that are loaded when they are needed.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    diffusion::PipelineError,
    engine::{Engine, Session, SessionOptions},
};

/// A model that is loaded when it is needed.
pub(super) struct Model {
    pub(super) path: PathBuf,
    pub(super) session: Option<Box<dyn Session>>,
}

impl Model {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, session: None }
    }

    pub(super) fn session(
        &mut self,
        engine: &dyn Engine,
        options: &SessionOptions,
        loading: &mut Duration,
    ) -> Result<&mut dyn Session, PipelineError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => load(engine, &self.path, options, loading)?,
        };
        Ok(&mut **self.session.insert(session))
    }
}

pub(super) fn load(
    engine: &dyn Engine,
    path: &Path,
    options: &SessionOptions,
    loading: &mut Duration,
) -> Result<Box<dyn Session>, PipelineError> {
    let started = Instant::now();
    let session = engine.load(path, options)?;
    *loading += started.elapsed();
    Ok(session)
}
