//! The programs, with their arguments from Python.

use std::{ffi::OsString, path::PathBuf};

use ::crdiff::{cli, engine::locate};
use pyo3::prelude::*;

/// Runs `crdiff` with `arguments`, the program's name first. Returns its exit code.
#[pyfunction]
#[pyo3(name = "crdiff")]
fn crdiff_program(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.allow_threads(|| cli::crdiff(arguments))
}

/// As `crdiff`, for `crdiff-compile`.
#[pyfunction]
fn crdiff_compile(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.allow_threads(|| cli::crdiff_compile(arguments))
}

/// Looks for ONNX Runtime in a folder of Python packages before it looks elsewhere.
#[pyfunction]
fn look_for_onnxruntime_in(packages: PathBuf) {
    locate::set_packages(packages);
}

pub fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(crdiff_program, module)?)?;
    module.add_function(wrap_pyfunction!(crdiff_compile, module)?)?;
    module.add_function(wrap_pyfunction!(look_for_onnxruntime_in, module)?)
}
