//! Errors of the library as Python's exceptions, whose classes are in `crdiff/_errors.py`.

use std::path::Path;

use crdiff::{
    compile::CompileError,
    diffusion::PipelineError,
    engine::EngineError,
    onnx::OnnxError,
    plan::{PlanError, Problem},
    plan_cache::PlanCacheError,
    search::{SearchError, space::SpaceError},
    verify::conformance::VerifyError,
};
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use pyo3::{
    exceptions::{PyKeyboardInterrupt, PyValueError},
    prelude::*,
    types::PyDict,
};

/// Why a call failed.
#[derive(Debug)]
pub enum Failure {
    /// The plan is wrong, or does not fit the model.
    Plan(Box<PlanError>),
    /// Anything else: the class of the exception, what is wrong, and the file that it is about.
    Other(&'static str, String, Option<String>),
    /// An argument is wrong.
    Value(String),
    /// The caller said stop. Whoever stopped the work has an exception of its own.
    Stopped,
}

impl Failure {
    /// An error about a model.
    pub fn model(path: &Path, error: &OnnxError) -> Self {
        if matches!(error, OnnxError::Stopped) {
            return Self::Stopped;
        }
        let (path, message) = (path.display().to_string(), error.to_string());
        let message = if message.contains(&path) { message } else { format!("{path}: {message}") };
        Self::Other("ModelError", message, Some(path))
    }

    /// An error without a file.
    pub fn other(message: impl ToString) -> Self {
        Self::Other("Error", message.to_string(), None)
    }

    /// A compilation's error; `path` is the model's.
    pub fn compile(path: &Path, error: CompileError) -> Self {
        match error {
            CompileError::Plan(error) => Self::Plan(error),
            CompileError::Onnx(error) => Self::model(path, &error),
            CompileError::Stopped => Self::Stopped,
            other => Self::other(other),
        }
    }

    /// An engine's error.
    pub fn engine(error: &EngineError) -> Self {
        Self::Other("EngineError", error.to_string(), None)
    }

    /// A pipeline's error.
    pub fn pipeline(error: PipelineError) -> Self {
        match error {
            PipelineError::Stopped => Self::Stopped,
            PipelineError::Engine(error) => Self::engine(&error),
            PipelineError::Request(what) => Self::value(what),
            PipelineError::Sampler(error) => Self::value(error),
            PipelineError::File { path, what } => {
                let path = path.display().to_string();
                Self::Other("ModelError", format!("{path}: {what}"), Some(path))
            }
            PipelineError::Graph { model, what } => {
                Self::Other("ModelError", format!("{model}: {what}"), Some(model))
            }
            other => Self::other(other),
        }
    }

    /// A space's error. Its text is what `crdiff` prints into a file.
    pub fn space(error: &SpaceError) -> Self {
        Self::Other("SpaceError", rendered(error), None)
    }

    /// A search's error.
    pub fn search(error: SearchError) -> Self {
        match error {
            SearchError::Stopped => Self::Stopped,
            SearchError::Space(error) => Self::space(&error),
            SearchError::Pipeline(error) => Self::pipeline(error),
            SearchError::Engine(error) => Self::engine(&error),
            SearchError::Values(what) => Self::value(what),
            SearchError::Onnx(error) => Self::Other("ModelError", error.to_string(), None),
            other => Self::other(other),
        }
    }

    /// An argument that is wrong.
    pub fn value(message: impl ToString) -> Self {
        Self::Value(message.to_string())
    }

    /// The exception.
    pub fn into_py(self, py: Python<'_>) -> PyErr {
        let raised = match &self {
            Self::Plan(error) => plan_error(py, error),
            Self::Other(class, message, path) => {
                let fields = PyDict::new(py);
                fields.set_item("path", path).and_then(|()| exception(py, class, message, &fields))
            }
            Self::Value(message) => return PyValueError::new_err(message.clone()),
            Self::Stopped => return PyKeyboardInterrupt::new_err(()),
        };
        raised.unwrap_or_else(|error| error)
    }
}

impl From<Box<PlanError>> for Failure {
    fn from(error: Box<PlanError>) -> Self {
        Self::Plan(error)
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Plan(error) => Self::Plan(error),
            VerifyError::Stopped => Self::Stopped,
            other => Self::Other("ModelError", other.to_string(), None),
        }
    }
}

impl From<PlanCacheError> for Failure {
    fn from(error: PlanCacheError) -> Self {
        match error {
            PlanCacheError::Compile(CompileError::Plan(error)) => Self::Plan(error),
            PlanCacheError::Compile(CompileError::Stopped) => Self::Stopped,
            PlanCacheError::Compile(CompileError::Onnx(error)) => {
                Self::Other("ModelError", error.to_string(), None)
            }
            other => Self::other(other),
        }
    }
}

fn exception(py: Python<'_>, class: &str, message: &str, fields: &Bound<'_, PyDict>) -> PyResult<PyErr> {
    let class = py.import("crdiff._errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call((message,), Some(fields))?))
}

/// A diagnostic as `crdiff` prints it into a file.
fn rendered(error: &(impl Diagnostic + std::fmt::Display)) -> String {
    let mut text = String::new();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(80);
    match handler.render_report(&mut text, error) {
        Ok(()) => text.trim_end().to_string(),
        Err(_) => error.to_string(),
    }
}

/// A plan's error, with the place of its first problem and a list of all. Its text is what `crdiff` prints into a file.
fn plan_error(py: Python<'_>, error: &PlanError) -> PyResult<PyErr> {
    let problems = error.problems().map(|problem| described(py, error, problem));
    let problems = problems.collect::<PyResult<Vec<_>>>()?;
    let is_legality = |p: &Problem| matches!(p, Problem::IllegalBypass { .. } | Problem::NotEditable { .. });
    let class = if error.problems().all(is_legality) { "NotLegal" } else { "PlanError" };
    let fields = PyDict::new(py);
    fields.set_item("path", error.plan_source().name())?;
    fields.set_item("problems", problems)?;
    exception(py, class, &rendered(error), &fields)
}

/// A problem as a dictionary: `code`, `message`, `line`, `column`, `help`.
fn described<'py>(py: Python<'py>, error: &PlanError, problem: &Problem) -> PyResult<Bound<'py, PyDict>> {
    let text = |said: Option<Box<dyn std::fmt::Display + '_>>| said.map(|said| said.to_string());
    let at = problem.labels().into_iter().flatten().map(|label| label.offset()).min();
    let before = at.and_then(|at| error.plan_source().text().get(..at));
    let described = PyDict::new(py);
    described.set_item("code", text(problem.code()))?;
    described.set_item("message", problem.to_string())?;
    described.set_item("line", before.map(|before| 1 + before.matches('\n').count()))?;
    let column = before.map(|before| 1 + before.rsplit('\n').next().unwrap_or_default().chars().count());
    described.set_item("column", column)?;
    described.set_item("help", text(problem.help()))?;
    Ok(described)
}
