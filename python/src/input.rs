//! Models and plans as Python gives them.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use crdiff::{
    ir::Graph,
    onnx::{self, Source},
    plan,
};
use pyo3::{prelude::*, pybacked::PyBackedBytes, types::PyBytes};

use crate::failure::Failure;

/// A model: a file's path, or its content.
#[derive(Clone)]
pub enum Model {
    /// A file.
    File(PathBuf),
    /// Its content. Weights in other files cannot be found from there.
    Content(Bytes),
}

impl<'py> FromPyObject<'py> for Model {
    fn extract_bound(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        if object.is_instance_of::<PyBytes>() {
            return Ok(Self::Content(Bytes::from_owner(object.extract::<PyBackedBytes>()?)));
        }
        Ok(Self::File(object.extract()?))
    }
}

impl Model {
    /// The file, or a name to call the content by.
    pub fn name(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Content(_) => Path::new("model.onnx"),
        }
    }

    /// Opens it.
    pub fn open(&self) -> Result<Source, Failure> {
        let failed = |error| Failure::model(self.name(), &error);
        let Self::Content(content) = self else { return onnx::open(self.name()).map_err(failed) };
        let source = onnx::open_bytes(content.clone(), "").map_err(failed)?;
        let files = onnx::external_files(&source).map_err(failed)?;
        match files.first() {
            None => Ok(source),
            Some(file) => {
                let what = format!(
                    "the model has weights in another file, {}, which cannot be found from its content: give its path",
                    file.display()
                );
                Err(Failure::Other("ModelError", what, None))
            }
        }
    }

    /// Opens it and reads its graph.
    pub fn graph(&self) -> Result<Graph, Failure> {
        Graph::load(self.open()?).map_err(|error| Failure::model(self.name(), &error))
    }
}

/// A plan, parsed.
#[pyclass(frozen, module = "crdiff._crdiff")]
pub struct Plan(pub plan::Plan);

#[pymethods]
impl Plan {
    /// Reads the plan in a file.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        plan::load(path).map(Self).map_err(|error| Failure::Plan(Box::new(error)).into_py(py))
    }

    /// Parses a plan's text.
    #[staticmethod]
    fn parse(py: Python<'_>, name: &str, text: &str) -> PyResult<Self> {
        plan::parse(name, text).map(Self).map_err(|error| Failure::Plan(Box::new(error)).into_py(py))
    }

    /// The file, or the name that it was parsed under.
    #[getter]
    fn name(&self) -> &str {
        self.0.source.name()
    }

    /// Its text.
    #[getter]
    fn text(&self) -> &str {
        self.0.source.text()
    }

    /// A SHA-256 of what it means.
    #[getter]
    fn digest(&self) -> &str {
        &self.0.digest
    }
}
