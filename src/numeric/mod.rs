//! Two models run on the same inputs, or one against stored outputs.

pub mod bisect;
pub mod inputs;
mod metrics;
mod probe;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use inputs::{Case, Sizes};
pub use metrics::{Metrics, Tolerance, measure};

use crate::{
    engine::{Engine, EngineError, HostTensor, SessionOptions},
    ir::{EditError, Graph},
    observer::{Observer, Stopped},
    onnx::{DataType, OnnxError},
};

/// Why models could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NumericError {
    /// Inputs that don't fit the model, or cannot be made.
    #[error("{place}: {what}")]
    Inputs {
        /// The file or input.
        place: String,
        /// The fault.
        what: String,
    },
    /// A model, run by the engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A model file.
    #[error(transparent)]
    Onnx(OnnxError),
    /// An intermediate value could not be made an output.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// No place for a copy of the model.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The attempt, as a verb phrase.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The observer said stop.
    #[error("stopped")]
    Stopped,
}

impl From<OnnxError> for NumericError {
    fn from(error: OnnxError) -> Self {
        match error {
            OnnxError::Stopped => Self::Stopped,
            other => Self::Onnx(other),
        }
    }
}

impl From<Stopped> for NumericError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// Tolerances as the user gave them; the rest follows from element types.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    /// Absolute.
    pub absolute: Option<f64>,
    /// Relative to a tensor's magnitude.
    pub relative: Option<f64>,
    /// The coarsest type that the models compute with, by which float outputs of every type are judged.
    pub precision: DataType,
}

impl Tolerances {
    /// Returns the tolerance for a tensor that should be `expected`, given `actual`.
    pub fn between(&self, expected: DataType, actual: DataType) -> Tolerance {
        let types = [expected, actual];
        let is_float = |t: DataType| t.is_weight_float() || t == DataType::DOUBLE;
        let coarsest = match types.iter().all(|t| is_float(*t)) {
            true => types.into_iter().fold(self.precision, coarser),
            false => expected,
        };
        let default = Tolerance::of(coarsest);
        Tolerance {
            absolute: self.absolute.unwrap_or(default.absolute),
            relative: self.relative.unwrap_or(default.relative),
        }
    }
}

/// Returns the coarsest float type among the weights of `graph`; float32 if there is none coarser.
pub fn precision(graph: &Graph) -> DataType {
    let types = graph.initializers().map(|(_, i)| &i.header).filter(|h| h.elements() > 1);
    types.map(|h| h.data_type).filter(|t| t.is_weight_float()).fold(DataType::FLOAT, coarser)
}

/// Returns the one of two float types with the fewer bits of mantissa.
pub fn coarser(a: DataType, b: DataType) -> DataType {
    let rank = |t: DataType| match t {
        DataType::BFLOAT16 => 0,
        DataType::FLOAT16 => 1,
        _ => 2,
    };
    if rank(b) < rank(a) { b } else { a }
}

/// One output on one case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputComparison {
    /// The case.
    pub case: String,
    /// The output's name.
    pub output: String,
    /// How far it is off; `None` if there is nothing to measure.
    pub metrics: Option<Metrics>,
    /// The tolerance.
    pub tolerance: Tolerance,
    /// The reason why the two cannot be compared: the dimensions, that one is missing, or that all that was expected is
    /// infinite or not a number.
    pub problem: Option<String>,
    /// Whether it is close enough.
    pub within: bool,
}

/// The named outputs of each case.
pub type Outputs = Vec<Vec<(String, HostTensor)>>;

/// Runs the model at `path` on every case. Inputs are cast to the types that it declares.
///
/// # Errors
/// [`NumericError`] if the engine refuses the model or an input, or fails, or `observer` says stop between two cases.
pub fn run(
    engine: &dyn Engine,
    path: &Path,
    cases: &[Case],
    options: &SessionOptions,
    observer: &dyn Observer,
) -> Result<Outputs, NumericError> {
    let mut session = engine.load(path, options)?;
    let mut all = Vec::with_capacity(cases.len());
    for case in cases {
        observer.check()?;
        let mut inputs = Vec::with_capacity(case.inputs.len());
        for (name, tensor) in &case.inputs {
            let declared = session.inputs().iter().find(|info| info.name == *name);
            let data_type = declared.map_or(tensor.data_type(), |info| info.data_type);
            inputs.push((name.as_str(), tensor.cast(data_type)?));
        }
        let fed: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        all.push(session.run(&fed, None)?);
    }
    Ok(all)
}

/// Compares the outputs of every case: by name or, if none of the names is the same, in their order.
pub fn compare(
    cases: &[Case],
    expected: &Outputs,
    actual: &Outputs,
    tolerances: &Tolerances,
) -> Vec<OutputComparison> {
    let mut all = Vec::new();
    for ((case, expected), actual) in cases.iter().zip(expected).zip(actual) {
        let by_name = expected.iter().any(|(name, _)| actual.iter().any(|(other, _)| other == name));
        for (index, (name, tensor)) in expected.iter().enumerate() {
            let found = match by_name {
                true => actual.iter().find(|(other, _)| other == name),
                false => actual.get(index),
            };
            let (metrics, tolerance, problem) = match found {
                None => {
                    let problem = "the model has no such output".to_string();
                    (None, tolerances.between(tensor.data_type(), tensor.data_type()), Some(problem))
                }
                Some((_, other)) => {
                    let metrics = measure(tensor, other);
                    let problem = match metrics {
                        None => Some(format!(
                            "its dimensions are {:?}, expected were {:?}",
                            other.dims(),
                            tensor.dims()
                        )),
                        Some(_) if !metrics::has_numbers(tensor) => {
                            Some("no element that was expected is a number: nothing can be compared".into())
                        }
                        Some(_) => None,
                    };
                    let tolerance = tolerances.between(tensor.data_type(), other.data_type());
                    (metrics.filter(|_| problem.is_none()), tolerance, problem)
                }
            };
            let within = problem.is_none() && metrics.is_some_and(|m| tolerance.allows(&m));
            all.push(OutputComparison {
                case: case.name.clone(),
                output: name.clone(),
                metrics,
                tolerance,
                problem,
                within,
            });
        }
    }
    all
}
