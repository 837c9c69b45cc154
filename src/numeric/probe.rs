//! Intermediate values of a model, read by making a few of them outputs of a copy.

use std::path::{Path, PathBuf};

use super::{Case, NumericError, run};
use crate::{
    engine::{Engine, HostTensor, Optimization, SessionOptions},
    ir::Graph,
    observer::Observer,
    onnx::{self, DataType, ValueInfo, WeightPolicy, WriteOptions},
};

/// A copy of a model in a folder of its own, so that nothing is written beside the model.
pub struct Probe<'a> {
    folder: tempfile::TempDir,
    copy: PathBuf,
    observer: &'a dyn Observer,
}

impl<'a> Probe<'a> {
    /// Copies the model with its weights into the system's folder for temporary files (TMPDIR).
    ///
    /// # Errors
    /// [`NumericError`] if the model cannot be read, there is no room, or `observer` says stop.
    pub fn new(model: &Path, observer: &'a dyn Observer) -> Result<Self, NumericError> {
        let folder = tempfile::tempdir().map_err(|source| NumericError::Io {
            action: "make a folder for a copy of the model",
            path: std::env::temp_dir(),
            source,
        })?;
        let copy = folder.path().join("model.onnx");
        onnx::write(
            &Graph::load(onnx::open(model)?)?,
            &WriteOptions::new(&copy, WeightPolicy::Copy).observer(observer),
        )?;
        Ok(Self { folder, copy, observer })
    }

    /// Runs the model and returns these of its values, by name and element type, in their order.
    ///
    /// # Errors
    /// [`NumericError`] if the engine fails, or there is no such value.
    pub fn values(
        &self,
        engine: &dyn Engine,
        case: &Case,
        values: &[(String, DataType)],
    ) -> Result<Vec<HostTensor>, NumericError> {
        let mut graph = Graph::load(onnx::open(&self.copy)?)?;
        let missing = |name: &str| NumericError::Inputs {
            place: format!("value `{name}`"),
            what: "it cannot be read from the model".into(),
        };
        for (name, data_type) in values {
            let value = graph.value_named(name).ok_or_else(|| missing(name))?;
            graph.edit().add_output(value, ValueInfo::tensor(name, *data_type, None))?;
        }
        let path = self.folder.path().join("probe.onnx");
        onnx::write(&graph, &WriteOptions::new(&path, WeightPolicy::Share))?;
        // Optimisers would merge values that are outputs here, and rten then refuses the graph.
        let options = SessionOptions { optimization: Optimization::Disabled, ..SessionOptions::default() };
        let outputs = run(engine, &path, std::slice::from_ref(case), &options, self.observer)?;
        let outputs = outputs.into_iter().next().unwrap_or_default();
        let find = |(name, _): &(String, DataType)| {
            let found = outputs.iter().find(|(output, _)| output == name);
            found.map(|(_, tensor)| tensor.clone()).ok_or_else(|| missing(name))
        };
        values.iter().map(find).collect()
    }
}
