//! `config.pbtxt`: a message `inference.ModelConfig` of Triton's `model_config.proto`, as text.

use std::fmt::Write;

use super::{Devices, Serving, accelerator::Parameters};
use crate::{
    analysis::shapes::{self, Shapes},
    engine::{Dim, Signature, TensorInfo},
    ir::Graph,
    onnx::DataType,
};

/// The configuration of a model.
#[derive(Clone, Debug)]
pub(super) struct Config {
    name: String,
    backend: &'static str,
    /// The most rows of a batch; 0 if the first dimension is like any other.
    max_batch: u32,
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
    serving: Option<Serving>,
    pub(super) accelerator: Option<Parameters>,
    /// The model's declarations.
    pub(super) signature: Signature,
}

/// An input or output as requests see it.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) data_type: &'static str,
    /// Without the batch, where there is one; -1 for any size.
    pub(super) dims: Vec<i64>,
    pub(super) optional: bool,
}

/// Returns the name of a type in Triton; `None` for those that its onnxruntime backend doesn't take.
pub(super) fn type_name(data_type: DataType) -> Option<&'static str> {
    use crate::onnx::proto::tensor_proto::DataType as D;
    Some(match D::try_from(data_type.0).ok()? {
        D::Bool => "TYPE_BOOL",
        D::Uint8 => "TYPE_UINT8",
        D::Uint16 => "TYPE_UINT16",
        D::Uint32 => "TYPE_UINT32",
        D::Uint64 => "TYPE_UINT64",
        D::Int8 => "TYPE_INT8",
        D::Int16 => "TYPE_INT16",
        D::Int32 => "TYPE_INT32",
        D::Int64 => "TYPE_INT64",
        D::Float16 => "TYPE_FP16",
        D::Float => "TYPE_FP32",
        D::Double => "TYPE_FP64",
        D::String => "TYPE_STRING",
        _ => return None,
    })
}

impl Config {
    /// Returns the configuration of a graph that serves up to `max_batch` rows.
    ///
    /// # Errors
    /// Which input or output Triton doesn't take.
    pub(super) fn of(name: &str, graph: &Graph, max_batch: u32, serving: &Serving) -> Result<Self, String> {
        let signature = crate::deploy::signature(graph).map_err(|e| e.to_string())?;
        let shapes = shapes::shapes(graph);
        let ports = |infos: &[TensorInfo]| -> Result<Vec<Port>, String> {
            infos.iter().map(|info| port(info, graph, &shapes, max_batch)).collect()
        };
        let (inputs, outputs) = (ports(&signature.inputs)?, ports(&signature.outputs)?);
        let (name, serving) = (name.to_string(), Some(serving.clone()));
        let backend = "onnxruntime";
        Ok(Self { name, backend, max_batch, inputs, outputs, serving, accelerator: None, signature })
    }

    /// Returns the configuration of a model in Python that runs on the CPU and calls others.
    pub(super) fn of_python(name: &str, inputs: Vec<Port>, outputs: Vec<Port>) -> Self {
        Self {
            name: name.to_string(),
            backend: "python",
            max_batch: 0,
            inputs,
            outputs,
            serving: None,
            accelerator: None,
            signature: Signature::default(),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "name: {}\nbackend: {}\nmax_batch_size: {}\n",
            quoted(&self.name),
            quoted(self.backend),
            self.max_batch
        );
        for (key, ports) in [("input", &self.inputs), ("output", &self.outputs)] {
            for port in ports {
                let _ = write!(text, "{key} {{\n{}}}\n", port.text(self.max_batch > 0));
            }
        }
        let serving = self.serving.as_ref();
        if self.max_batch > 0 {
            match serving.and_then(|serving| serving.queue_delay) {
                Some(delay) => {
                    let _ = writeln!(text, "dynamic_batching {{ max_queue_delay_microseconds: {delay} }}");
                }
                None => text.push_str("dynamic_batching { }\n"),
            }
        }
        let instances = serving.map_or(1, |serving| serving.instances);
        let kind = match serving.map(|serving| &serving.devices) {
            None | Some(Devices::Cpu) => " kind: KIND_CPU".to_string(),
            Some(Devices::Any) => String::new(),
            Some(Devices::Gpus(gpus)) => {
                let gpus: Vec<String> = gpus.iter().map(u32::to_string).collect();
                format!(" kind: KIND_GPU gpus: [ {} ]", gpus.join(", "))
            }
        };
        let _ = writeln!(text, "instance_group {{ count: {instances}{kind} }}");
        if let Some((accelerator, parameters)) = &self.accelerator {
            text.push_str("optimization { execution_accelerators { gpu_execution_accelerator {\n");
            let _ = writeln!(text, "  name: {}", quoted(accelerator));
            for (key, value) in parameters {
                let (key, value) = (quoted(key), quoted(value));
                let _ = writeln!(text, "  parameters {{ key: {key} value: {value} }}");
            }
            text.push_str("} } }\n");
        }
        text
    }
}

impl Port {
    /// Prints the port. Without dimensions it is fed as `[1]`. Behind a batch the backend is told to take that away
    /// again; without a batch Triton refuses an empty shape, and the backend makes a scalar of it by itself.
    fn text(&self, batched: bool) -> String {
        let dims: Vec<String> = self.dims.iter().map(i64::to_string).collect();
        let (dims, reshape) = match (dims.is_empty(), batched) {
            (false, _) => (dims.join(", "), ""),
            (true, true) => ("1".to_string(), "  reshape { shape: [ ] }\n"),
            (true, false) => ("1".to_string(), ""),
        };
        let optional = if self.optional { "  optional: true\n" } else { "" };
        format!(
            "  name: {}\n  data_type: {}\n  dims: [ {dims} ]\n{reshape}{optional}",
            quoted(&self.name),
            self.data_type
        )
    }
}

fn port(info: &TensorInfo, graph: &Graph, shapes: &Shapes, max_batch: u32) -> Result<Port, String> {
    let data_type = type_name(info.data_type)
        .ok_or_else(|| format!("{info}: Triton's onnxruntime backend takes no {}", info.data_type.name()))?;
    let inferred = graph.value_named(&info.name).and_then(|value| shapes.of(value));
    let rank = info.dims.as_ref().map(Vec::len).or_else(|| inferred.map(|shape| shape.dims.len()));
    let rank = rank.ok_or_else(|| format!("{info}: nothing says how many dimensions it has"))?;
    let size = |axis: usize| {
        let stated = match info.dims.as_ref().and_then(|dims| dims.get(axis)) {
            Some(Dim::Fixed(size)) => Some(*size),
            _ => None,
        };
        let inferred = || inferred.and_then(|shape| shape.dims.get(axis)?.constant());
        stated.or_else(inferred).unwrap_or(-1)
    };
    let dims: Vec<i64> = (usize::from(max_batch > 0)..rank).map(size).collect();
    match dims.iter().find(|size| **size == 0) {
        Some(_) => Err(format!("{info}: Triton takes no empty tensors")),
        None => Ok(Port { name: info.name.clone(), data_type, dims, optional: false }),
    }
}

/// Returns a string of protobuf's text format.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\{:03o}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
