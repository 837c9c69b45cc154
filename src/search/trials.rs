//! Trials for other optimisers: values in, scores out.

use serde::Serialize;
use serde_json::Value;

use super::{
    SearchError, Space,
    compile::Compiler,
    run::{networks, run_one},
    space::{Bound, SpaceError},
    trial::{Scores, Shot, Worker},
};
use crate::observer::Observer;

/// A space on a model, ready to be tried.
pub struct Trials<'a> {
    bound: Bound<'a>,
    compiler: Compiler,
    worker: Worker,
    shots: Vec<Shot>,
}

/// The result of a trial, and the trial.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The value of each variable.
    pub values: Value,
    /// The plan that they make.
    pub plan: Value,
    /// Its result.
    #[serde(flatten)]
    pub scores: Scores,
}

/// Puts the model's modules into a space; each option is tried on the model.
///
/// # Errors
/// [`SpaceError`] if one doesn't fit.
pub fn bound<'a>(space: &'a Space, compiler: &Compiler) -> Result<Bound<'a>, SpaceError> {
    let mut bound = Bound::new(space, &compiler.analysis())?;
    for probe in bound.probes() {
        let plan = bound.plan(&bound.settings(&probe))?;
        bound.notes.extend(compiler.resolve(&plan)?.notes());
    }
    Ok(bound)
}

impl<'a> Trials<'a> {
    /// Trials of a space that was [`bound`], whose images `worker` draws and scores.
    pub fn new(bound: Bound<'a>, compiler: Compiler, worker: Worker, shots: Vec<Shot>) -> Self {
        Self { bound, compiler, worker, shots }
    }

    /// Tries values: an object with a value for each variable of the space.
    ///
    /// # Errors
    /// [`SearchError`] if they are none, or the observer said stop. A trial that fails has scores that say so.
    pub fn run(&mut self, values: Value, observer: &dyn Observer) -> Result<Answer, SearchError> {
        let settings = self.bound.settings_from_json(&values)?;
        let over = self.bound.space.over;
        let scores = match networks(&self.bound, &settings, &mut self.compiler, observer) {
            Ok((networks, _graph)) => run_one(&networks, &mut self.worker, &self.shots, over, observer)?,
            Err(SearchError::Stopped) => return Err(SearchError::Stopped),
            Err(error) => Scores::failed(error),
        };
        Ok(Answer { plan: self.bound.plan_json(&settings), values, scores })
    }
}
