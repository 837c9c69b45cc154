//! ONNX Runtime, with a watch on all that runs on device memory.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use crdiff::{
    engine::{
        Capture, DeviceSession, DeviceTensor, Engine, EngineError, EngineKind, Feed, HostTensor, OrtEngine,
        Placement, Session, SessionOptions, TensorInfo,
    },
    onnx::DataType,
};

/// A witness of runs.
pub trait Watch: Send + Sync + 'static {
    /// Hears of a run into device memory, of a network or else of a graph of the loop's own, before it is.
    fn run_into(
        &self,
        session: &dyn Session,
        is_network: bool,
        inputs: &[(&str, Feed<'_>)],
        outputs: &[(&str, &mut DeviceTensor)],
    );

    /// Hears of a run whose outputs go to the host.
    fn run_to_host(&self) {}
}

/// The engine, and who watches it.
pub struct WatchedEngine<W>(pub OrtEngine, pub Arc<W>);

struct WatchedSession<W> {
    session: Box<dyn Session>,
    /// Whether it was loaded from a file, which the loop's own graphs are not.
    is_network: bool,
    watch: Arc<W>,
}

impl<W: Watch> WatchedEngine<W> {
    fn watched(&self, session: Box<dyn Session>, is_network: bool) -> Box<dyn Session> {
        Box::new(WatchedSession { session, is_network, watch: Arc::clone(&self.1) })
    }
}

impl<W: Watch> Engine for WatchedEngine<W> {
    fn kind(&self) -> EngineKind {
        self.0.kind()
    }

    fn version(&self) -> &str {
        self.0.version()
    }

    fn load(&self, path: &Path, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        Ok(self.watched(self.0.load(path, options)?, true))
    }

    fn load_bytes(&self, model: Bytes, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        Ok(self.watched(self.0.load_bytes(model, options)?, false))
    }
}

impl<W: Watch> Session for WatchedSession<W> {
    fn kind(&self) -> EngineKind {
        self.session.kind()
    }

    fn inputs(&self) -> &[TensorInfo] {
        self.session.inputs()
    }

    fn outputs(&self) -> &[TensorInfo] {
        self.session.outputs()
    }

    fn run(
        &mut self,
        inputs: &[(&str, &HostTensor)],
        outputs: Option<&[&str]>,
    ) -> Result<Vec<(String, HostTensor)>, EngineError> {
        self.session.run(inputs, outputs)
    }

    fn placement(&self) -> &[Placement] {
        self.session.placement()
    }

    fn device(&mut self) -> Option<&mut dyn DeviceSession> {
        Some(self)
    }
}

impl<W: Watch> DeviceSession for WatchedSession<W> {
    fn allocate(&mut self, data_type: DataType, dims: &[usize]) -> Result<DeviceTensor, EngineError> {
        self.session.device().unwrap().allocate(data_type, dims)
    }

    fn computes_in(&mut self, data_type: DataType) -> bool {
        self.session.device().unwrap().computes_in(data_type)
    }

    fn run_into(
        &mut self,
        inputs: &[(&str, Feed<'_>)],
        outputs: &mut [(&str, &mut DeviceTensor)],
        capture: Option<Capture>,
    ) -> Result<(), EngineError> {
        self.watch.run_into(&*self.session, self.is_network, inputs, outputs);
        self.session.device().unwrap().run_into(inputs, outputs, capture)
    }

    fn run_to_host(&mut self, inputs: &[(&str, Feed<'_>)]) -> Result<Vec<(String, HostTensor)>, EngineError> {
        self.watch.run_to_host();
        self.session.device().unwrap().run_to_host(inputs)
    }
}
