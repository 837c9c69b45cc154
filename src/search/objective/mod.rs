//! Objectives: scorers of images.

mod clip;
mod combine;
mod command;
mod drawn;
mod onnx;
pub mod resample;
mod serve;

use std::path::Path;

pub use drawn::Drawn;
pub use onnx::open_graph;

use super::{
    SearchError,
    space::{ObjectiveSpec, OnnxSpec},
};

/// Gives images numbers; higher is better.
pub trait Objective: Send {
    /// Returns the score of an image.
    ///
    /// # Errors
    /// [`SearchError::Objective`] if there is none.
    fn score(&mut self, drawn: &Drawn<'_>) -> Result<Scored, SearchError>;
}

/// An image's number.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// It; finite.
    pub score: f64,
    /// Those it was made of, by name.
    pub parts: Vec<(String, f64)>,
}

impl Scored {
    /// Makes an objective that returns a number of nothing else.
    pub fn of(score: f64) -> Self {
        Self { score, parts: Vec::new() }
    }
}

/// Opens graphs that score.
pub type OpenGraph<'a> = &'a dyn Fn(&OnnxSpec) -> Result<Box<dyn Objective>, SearchError>;

/// Makes ready what `spec` says. Relative paths start from `folder`, and programs run in it.
///
/// # Errors
/// [`SearchError`] if a graph or program cannot be opened.
pub fn open(
    spec: &ObjectiveSpec,
    folder: &Path,
    graph: OpenGraph<'_>,
) -> Result<Box<dyn Objective>, SearchError> {
    Ok(match spec {
        ObjectiveSpec::Command(spec) => Box::new(command::Command::new(spec, folder)),
        ObjectiveSpec::Serve(spec) => Box::new(serve::Serve::new(spec, folder)),
        ObjectiveSpec::Onnx(spec) => graph(spec)?,
        ObjectiveSpec::Clip(path) => graph(&clip::spec(path, folder)?)?,
        ObjectiveSpec::Mean(parts) => Box::new(combine::open(parts, combine::How::Mean, folder, graph)?),
        ObjectiveSpec::Min(parts) => Box::new(combine::open(parts, combine::How::Min, folder, graph)?),
    })
}

/// Checks that what scores is there, without scoring: programs are found, graphs are opened.
///
/// # Errors
/// [`SearchError`] if one is not.
pub fn check(spec: &ObjectiveSpec, folder: &Path, graph: OpenGraph<'_>) -> Result<(), SearchError> {
    match spec {
        ObjectiveSpec::Command(spec) | ObjectiveSpec::Serve(spec) => command::find(spec, folder),
        ObjectiveSpec::Onnx(spec) => graph(spec).map(drop),
        ObjectiveSpec::Clip(path) => graph(&clip::spec(path, folder)?).map(drop),
        ObjectiveSpec::Mean(parts) | ObjectiveSpec::Min(parts) => {
            parts.iter().try_for_each(|part| check(&part.objective, folder, graph))
        }
    }
}

/// Parses the number in the output of a program: the last line that is not empty.
fn printed_number(printed: &str) -> Result<f64, String> {
    let line = printed.lines().map(str::trim).rfind(|line| !line.is_empty());
    let line = line.ok_or("it printed nothing; it must print a number as its last line")?;
    match line.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(number) => Err(format!("it printed {number}, which is no score; print a finite number")),
        Err(_) => Err(format!("its last line is {line:?}; it must be a number")),
    }
}
