//! Tensors that stay where a session computes.
//!
//! A GPU's session run through [`super::Session::run`] copies inputs to the device and results back. A loop that feeds
//! results to the next run keeps them there instead: it allocates [`DeviceTensor`]s and runs sessions from one into
//! another. On the CPU the same code runs with buffers in host memory, which is how it is tested.

use std::fmt;

use super::{EngineError, HostTensor};
use crate::onnx::DataType;

/// A tensor in the memory that a session computes in.
///
/// Its contents are undefined on a GPU until a run has written them.
pub struct DeviceTensor {
    pub(super) value: ort::value::DynTensor,
    pub(super) data_type: DataType,
    pub(super) dims: Vec<usize>,
}

impl DeviceTensor {
    /// Returns the element type.
    pub fn data_type(&self) -> DataType {
        self.data_type
    }

    /// Returns the dimensions; none for a scalar.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Returns where its elements begin, on its device. For telling buffers apart, not for reading.
    pub fn address(&self) -> usize {
        self.value.data_ptr() as usize
    }
}

impl fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} at {:#x}", self.data_type.name(), self.dims, self.address())
    }
}

/// An input of a run on a device.
#[derive(Clone, Copy, Debug)]
pub enum Feed<'a> {
    /// Copied to the device first.
    Host(&'a HostTensor),
    /// Read where it is.
    Device(&'a DeviceTensor),
}

/// A run that may be captured as a CUDA graph and replayed afterwards.
///
/// Runs of one session with the same number replay the first one's kernels on the first one's addresses. So a number
/// stands for one set of tensors: [`Capture::unique`] never gives one out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture(u32);

impl Capture {
    /// Returns a number that no other run of this process has.
    pub fn unique() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns ONNX Runtime's `gpu_graph_id`.
    pub(super) fn id(self) -> u32 {
        self.0
    }
}

/// A session that runs on tensors of its device.
pub trait DeviceSession {
    /// Makes a tensor on the device.
    ///
    /// # Errors
    /// [`EngineError::Run`] if the device has no such memory left, or doesn't know the type.
    fn allocate(&mut self, data_type: DataType, dims: &[usize]) -> Result<DeviceTensor, EngineError>;

    /// Returns whether graphs can read and write tensors of this type on the device. A network takes others from the host.
    fn computes_in(&mut self, data_type: DataType) -> bool;

    /// Runs the model from `inputs` into `outputs`, which are overwritten. Returns when both are free to be used.
    /// `capture` is for sessions that were loaded with CUDA graphs; others don't look at it.
    ///
    /// # Errors
    /// [`EngineError::Run`] if a name is unknown, a type or shape doesn't fit, or the engine fails.
    fn run_into(
        &mut self,
        inputs: &[(&str, Feed<'_>)],
        outputs: &mut [(&str, &mut DeviceTensor)],
        capture: Option<Capture>,
    ) -> Result<(), EngineError>;

    /// Runs the model and copies its outputs, in the model's order, to the host.
    ///
    /// # Errors
    /// As [`DeviceSession::run_into`].
    fn run_to_host(&mut self, inputs: &[(&str, Feed<'_>)]) -> Result<Vec<(String, HostTensor)>, EngineError>;
}
