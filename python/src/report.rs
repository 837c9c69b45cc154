//! Findings of a command, in their three forms.

use pyo3::prelude::*;

use crate::{failure::Failure, work::work};

/// Makes a page when it is asked for.
pub type MakePage = Box<dyn Fn() -> Result<String, Failure> + Send + Sync>;

/// A result: as JSON, as text, and as a page where the command line has one.
#[pyclass(frozen, module = "crdiff._crdiff")]
pub struct Report {
    json: String,
    text: String,
    holds: bool,
    page: Option<MakePage>,
}

impl Report {
    /// `text` is as for a terminal; a file gets no colours.
    pub fn new(json: String, text: &str, holds: bool, page: Option<MakePage>) -> Self {
        Self { json, text: anstream::adapter::strip_str(text).to_string(), holds, page }
    }
}

#[pymethods]
impl Report {
    /// The result as the command line's `--json` prints it.
    #[getter]
    fn json(&self) -> &str {
        &self.json
    }

    /// The result as the command line prints it into a file.
    #[getter]
    fn text(&self) -> &str {
        &self.text
    }

    /// Whether what was asked holds.
    #[getter]
    fn holds(&self) -> bool {
        self.holds
    }

    /// The page that the command line's `--html` writes, if it has one. The models are read once more.
    fn html(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let Some(page) = &self.page else { return Ok(None) };
        work(py, None, |_| page()).map(Some)
    }
}
