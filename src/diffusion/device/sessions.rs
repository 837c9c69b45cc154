//! Sessions of the step graphs, made when they are first needed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use super::graphs::StepGraph;
use crate::{
    diffusion::PipelineError,
    engine::{
        CpuFallback, DeviceSession, DeviceTensor, Engine, EngineError, Feed, HostTensor, Provider, Session,
        SessionOptions,
    },
};

/// Sessions that were made for earlier runs.
#[derive(Default)]
pub struct StepSessions(BTreeMap<StepGraph, Box<dyn Session>>);

/// The sessions of step graphs, where the networks run.
pub struct StepGraphs<'a> {
    engine: &'a dyn Engine,
    options: SessionOptions,
    sessions: &'a mut StepSessions,
}

impl<'a> StepGraphs<'a> {
    /// Makes step graphs beside networks that were loaded with `options`.
    pub fn new(engine: &'a dyn Engine, options: &SessionOptions, sessions: &'a mut StepSessions) -> Self {
        let providers: Vec<_> = options.providers.iter().take(1).map(Provider::for_small_graphs).collect();
        // The tensors are on the device: a node that ran elsewhere would move them.
        let cpu_fallback = match options.runs_on_a_device() {
            true => CpuFallback::Refuse,
            false => CpuFallback::Allow,
        };
        let options = SessionOptions {
            intra_threads: Some(NonZeroUsize::MIN),
            providers,
            cpu_fallback,
            engine_cache: options.engine_cache.clone(),
            ..SessionOptions::default()
        };
        Self { engine, options, sessions }
    }

    fn session(&mut self, graph: &StepGraph) -> Result<&mut dyn DeviceSession, EngineError> {
        if !self.sessions.0.contains_key(graph) {
            let session = self.engine.load_bytes(graph.model(), &self.options)?;
            self.sessions.0.insert(graph.clone(), session);
        }
        let session = self.sessions.0.get_mut(graph).and_then(|session| session.device());
        session.ok_or_else(|| EngineError::Run {
            engine: self.engine.kind(),
            model: "a step graph".to_string(),
            what: "this engine has no device memory".to_string(),
        })
    }

    /// Runs a graph.
    ///
    /// # Errors
    /// [`PipelineError::Engine`].
    pub fn run(
        &mut self,
        graph: &StepGraph,
        inputs: &[(&str, Feed<'_>)],
        outputs: &mut [(&str, &mut DeviceTensor)],
    ) -> Result<(), PipelineError> {
        Ok(self.session(graph)?.run_into(inputs, outputs, None)?)
    }

    /// Copies a tensor to the device.
    ///
    /// # Errors
    /// [`PipelineError::Engine`].
    pub fn upload(&mut self, tensor: &HostTensor, to: &mut DeviceTensor) -> Result<(), PipelineError> {
        let graph = StepGraph::Copy(tensor.data_type(), tensor.dims().len());
        self.run(&graph, &[("in", Feed::Host(tensor))], &mut [("out", to)])
    }

    /// Copies a tensor from the device.
    ///
    /// # Errors
    /// [`PipelineError::Engine`].
    pub fn download(&mut self, tensor: &DeviceTensor) -> Result<HostTensor, PipelineError> {
        let graph = StepGraph::Copy(tensor.data_type(), tensor.dims().len());
        let session = self.session(&graph)?;
        let outputs = session.run_to_host(&[("in", Feed::Device(tensor))])?;
        let output = outputs.into_iter().next().map(|(_, tensor)| tensor);
        output.ok_or_else(|| PipelineError::Request("a copy from the device gave nothing".to_string()))
    }
}
