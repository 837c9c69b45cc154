//! rten: an engine in pure Rust that is always there. CPU only.
//!
//! rten computes in float32 and int32: float16 and float64 weights, inputs and outputs are converted, int64 values
//! must fit int32. This module gives every output in the type that the model declares.

use std::{
    path::{Component, Path},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use rten::{Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView, ValueView};
use rten_tensor::{AsView, Layout};

use super::{
    Engine, EngineError, EngineKind, HostTensor, MemoryMode, Optimization, Session, SessionOptions,
    Signature, TensorData, TensorInfo, guarded,
    inline::{inline, needs_inlining},
    signature::{for_cpu_engine, match_inputs, match_outputs},
};
use crate::onnx::{self, DataType, OnnxError, Source, graph_field, proto::NodeProto};

/// The release that this crate is built with.
const VERSION: &str = "0.27";

/// rten. Has no state: models own all they need.
#[derive(Clone, Copy, Debug, Default)]
pub struct RtenEngine;

impl Engine for RtenEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Rten
    }

    fn version(&self) -> &str {
        VERSION
    }

    fn load(&self, path: &Path, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let model = path.display().to_string();
        let broken = |source: OnnxError| EngineError::Model { model: model.clone(), source };
        let source = onnx::open_with_weights(path).map_err(broken)?;
        // rten opens files by their extension, and reads external data only from files with these names. It follows a link
        // before it looks for data beside the model.
        let is_found = |location: &str| is_readable(location) && !path.is_symlink();
        let as_file = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
            && !needs_inlining(&source, is_found).map_err(broken)?;
        let loader = |load: ModelOptions| match as_file {
            true => load.load_file(path).map_err(|e| e.to_string()),
            false => inline(&source)
                .map_err(|e| e.to_string())
                .and_then(|b| load.load(b).map_err(|e| e.to_string())),
        };
        session(model.clone(), &source, options, loader)
    }

    fn load_bytes(&self, bytes: Bytes, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let model = "a model in memory".to_string();
        let source = onnx::open_bytes(bytes.clone(), ".")
            .map_err(|source| EngineError::Model { model: model.clone(), source })?;
        let loader = |load: ModelOptions| load.load(bytes.into()).map_err(|e| e.to_string());
        session(model, &source, options, loader)
    }
}

/// Returns whether rten reads external data at this location.
fn is_readable(location: &str) -> bool {
    let path = Path::new(location);
    let mut components = path.components();
    let is_name = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    is_name && (extension.starts_with("data") || extension.starts_with("onnx_data"))
}

fn session(
    model: String,
    source: &Source,
    options: &SessionOptions,
    load: impl FnOnce(ModelOptions) -> Result<Model, String>,
) -> Result<Box<dyn Session>, EngineError> {
    let failed = |what: String| EngineError::Load { engine: EngineKind::Rten, model: model.clone(), what };
    let signature = for_cpu_engine(EngineKind::Rten, &model, source, options)?;
    if let Some(node) = cubic_resize(source) {
        return Err(failed(format!(
            "node `{node}` is a cubic Resize, which rten computes as a linear one; ONNX Runtime has both"
        )));
    }
    let mut load_options = ModelOptions::with_all_ops();
    load_options.enable_optimization(options.optimization != Optimization::Disabled);
    load_options.prepack_weights(options.memory == MemoryMode::Fast);
    let loaded = guarded(|| load(load_options)).map_err(failed)?;
    let node = |info: &TensorInfo| loaded.node_id(&info.name).map_err(|e| failed(e.to_string()));
    let input_ids = signature.inputs.iter().map(node).collect::<Result<_, _>>()?;
    let output_ids = signature.outputs.iter().map(node).collect::<Result<_, _>>()?;
    let threads = options.intra_threads.map(|n| Arc::new(ThreadPool::with_num_threads(n.get())));
    Ok(Box::new(RtenSession { model, loaded, signature, input_ids, output_ids, threads }))
}

/// Returns the name of a cubic Resize, if there is one.
fn cubic_resize(source: &Source) -> Option<String> {
    const CUBIC: &[u8] = b"cubic";
    let nodes = source.graph.fields_of(graph_field::NODE);
    let named = nodes.map(|field| field.value()).filter(|node| node.windows(CUBIC.len()).any(|w| w == CUBIC));
    let is_cubic = |node: &NodeProto| {
        node.op_type() == "Resize"
            && node.attribute.iter().any(|attribute| attribute.name() == "mode" && attribute.s() == CUBIC)
    };
    let mut decoded = named.filter_map(|node| NodeProto::decode(node).ok());
    decoded.find(is_cubic).map(|node| node.name().to_owned())
}

struct RtenSession {
    model: String,
    loaded: Model,
    signature: Signature,
    input_ids: Vec<NodeId>,
    output_ids: Vec<NodeId>,
    threads: Option<Arc<ThreadPool>>,
}

impl Session for RtenSession {
    fn kind(&self) -> EngineKind {
        EngineKind::Rten
    }

    fn inputs(&self) -> &[TensorInfo] {
        &self.signature.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.signature.outputs
    }

    fn run(
        &mut self,
        inputs: &[(&str, &HostTensor)],
        outputs: Option<&[&str]>,
    ) -> Result<Vec<(String, HostTensor)>, EngineError> {
        let failed =
            |what: String| EngineError::Run { engine: EngineKind::Rten, model: self.model.clone(), what };
        let fed = match_inputs(&self.model, &self.signature.inputs, inputs)?;
        let wanted = match_outputs(&self.model, &self.signature.outputs, outputs)?;
        let mut values = Vec::with_capacity(fed.len());
        for ((id, info), tensor) in self.input_ids.iter().zip(&self.signature.inputs).zip(fed) {
            let value = value(tensor).map_err(|e| failed(format!("input `{}`: {e}", info.name)))?;
            values.push((*id, value));
        }
        // rten wants each output once.
        let mut distinct = wanted.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let ids: Vec<NodeId> = distinct.iter().filter_map(|i| self.output_ids.get(*i)).copied().collect();
        let mut options = RunOptions::default();
        options.thread_pool = self.threads.clone();
        let results = guarded(|| self.loaded.run(values, &ids, Some(options)).map_err(|e| e.to_string()))
            .map_err(failed)?;
        let mut tensors = Vec::with_capacity(wanted.len());
        for output in wanted {
            let result = distinct.binary_search(&output).ok().and_then(|at| results.get(at));
            let (Some(info), Some(result)) = (self.signature.outputs.get(output), result) else {
                return Err(failed("it gave fewer outputs than it was asked for".to_string()));
            };
            let tensor =
                host(result, info.data_type).map_err(|e| failed(format!("output `{}`: {e}", info.name)))?;
            tensors.push((info.name.clone(), tensor));
        }
        Ok(tensors)
    }
}

/// Returns a tensor in a type that rten computes in.
fn value(tensor: &HostTensor) -> Result<ValueOrView<'_>, String> {
    let dims = tensor.dims();
    let view = match tensor.data() {
        TensorData::Float(v) => ValueView::from_shape(dims, v).map_err(|e| e.to_string())?,
        TensorData::Int32(v) => ValueView::from_shape(dims, v).map_err(|e| e.to_string())?,
        TensorData::Uint8(v) => ValueView::from_shape(dims, v).map_err(|e| e.to_string())?,
        TensorData::Float16(_) | TensorData::Bfloat16(_) | TensorData::Double(_) => {
            return Ok(Value::from_shape(dims, tensor.to_f32()).map_err(|e| e.to_string())?.into());
        }
        TensorData::Int64(_) | TensorData::Bool(_) => {
            let narrow = tensor.cast(DataType::INT32).map_err(|e| e.to_string())?;
            let TensorData::Int32(elements) = narrow.into_data() else {
                return Err("it is no integer".to_string());
            };
            return Ok(Value::from_shape(dims, elements).map_err(|e| e.to_string())?.into());
        }
    };
    Ok(view.into())
}

/// Returns a result of rten in the type that the model declares.
fn host(value: &Value, declared: DataType) -> Result<HostTensor, String> {
    let dims: Vec<usize> = value.shape().to_vec();
    let tensor = match value {
        Value::FloatTensor(t) => HostTensor::new(dims, t.to_vec()),
        Value::Int32Tensor(t) => HostTensor::new(dims, t.to_vec()),
        Value::UInt8Tensor(t) => HostTensor::new(dims, t.to_vec()),
        other => return Err(format!("values of type {} cannot be read", other.dtype())),
    };
    tensor.and_then(|t| t.cast(declared)).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_data_that_rten_refuses() {
        for location in ["unet.onnx.data", "unet.onnx_data", "weights.data1"] {
            assert!(is_readable(location), "{location}");
        }
        for location in ["unet.onnx", "data/unet.onnx_data", "./unet.data", "weights.pb", ""] {
            assert!(!is_readable(location), "{location}");
        }
    }
}
