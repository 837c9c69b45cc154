//! Arrays as Python gives them: dimensions, and the bytes of float32 elements in C order.

use crdiff::engine::HostTensor;
use pyo3::{prelude::*, pybacked::PyBackedBytes, types::PyBytes};

use crate::failure::Failure;

/// An array from Python.
#[derive(FromPyObject)]
pub struct Array(Vec<usize>, PyBackedBytes);

impl Array {
    /// The array as a tensor.
    pub fn tensor(&self) -> Result<HostTensor, Failure> {
        let values = self.1.chunks_exact(4).map(|bytes| match *bytes {
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            _ => f32::NAN,
        });
        HostTensor::new(self.0.clone(), values.collect::<Vec<f32>>()).map_err(|error| Failure::engine(&error))
    }
}

/// An array for Python.
pub fn to_python(py: Python<'_>, dims: &[usize], values: &[f32]) -> (Vec<usize>, Py<PyBytes>) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    (dims.to_vec(), PyBytes::new(py, &bytes).unbind())
}
