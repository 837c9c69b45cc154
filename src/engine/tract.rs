//! tract: a third engine in pure Rust, for checking that a graph is portable. CPU only, fixed shapes only.

use std::path::Path;

use bytes::Bytes;
use tract_onnx::prelude::{
    Datum, DatumType, Framework, InferenceFact, InferenceModelExt, IntoRunnable, Tensor, TypedRunnableModel,
    tvec,
};

use super::{
    Dim, Engine, EngineError, EngineKind, HostTensor, Optimization, Session, SessionOptions, Signature,
    TensorData, TensorInfo, UINT8, guarded,
    signature::{for_cpu_engine, match_inputs, match_outputs},
};
use crate::onnx::{self, DataType, Source};

/// The release that this crate is built with.
const VERSION: &str = "0.23";

/// tract. Has no state: models own all they need.
#[derive(Clone, Copy, Debug, Default)]
pub struct TractEngine;

impl Engine for TractEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Tract
    }

    fn version(&self) -> &str {
        VERSION
    }

    fn load(&self, path: &Path, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let model = path.display().to_string();
        let source = onnx::open_with_weights(path)
            .map_err(|source| EngineError::Model { model: model.clone(), source })?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        session(model, &source, folder.to_str(), options)
    }

    fn load_bytes(&self, bytes: Bytes, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let model = "a model in memory".to_string();
        let source = onnx::open_bytes(bytes, ".")
            .map_err(|source| EngineError::Model { model: model.clone(), source })?;
        session(model, &source, None, options)
    }
}

fn session(
    model: String,
    source: &Source,
    folder: Option<&str>,
    options: &SessionOptions,
) -> Result<Box<dyn Session>, EngineError> {
    let failed = |what: String| EngineError::Load { engine: EngineKind::Tract, model: model.clone(), what };
    let mut signature = for_cpu_engine(EngineKind::Tract, &model, source, options)?;
    for info in &mut signature.inputs {
        fix(info, options).map_err(failed)?;
    }
    let runnable =
        guarded(|| build(source, folder, &signature.inputs, options.optimization)).map_err(failed)?;
    Ok(Box::new(TractSession { model, runnable, signature }))
}

/// Gives an input the dimensions that `options` fix it to.
fn fix(info: &mut TensorInfo, options: &SessionOptions) -> Result<(), String> {
    if let Some(dims) = options.fixed_dims.get(&info.name) {
        info.dims = Some(dims.iter().map(|d| Dim::Fixed(*d as i64)).collect());
    }
    let fixed = info.dims.as_ref().is_some_and(|dims| dims.iter().all(|d| matches!(d, Dim::Fixed(_))));
    if fixed {
        Ok(())
    } else {
        Err(format!("tract needs concrete dimensions for every input; {info} has none"))
    }
}

fn build(
    source: &Source,
    folder: Option<&str>,
    inputs: &[TensorInfo],
    optimization: Optimization,
) -> Result<std::sync::Arc<TypedRunnableModel>, String> {
    // The dimensions in value_info and in the outputs' declarations are symbolic: they contradict the fixed ones.
    let onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    let proto = onnx.proto_model_for_read(&mut source.bytes.as_ref()).map_err(reason)?;
    let parsed = onnx.parse(&proto, folder).map_err(reason)?;
    if !parsed.unresolved_inputs.is_empty() {
        return Err(format!("values that nothing makes: {}", parsed.unresolved_inputs.join(", ")));
    }
    let mut graph = parsed.model;
    let order: Vec<String> = inputs.iter().map(|i| i.name.clone()).collect();
    graph.set_input_names(&order).map_err(reason)?;
    for (i, info) in inputs.iter().enumerate() {
        let dims: Vec<usize> = info
            .dims
            .iter()
            .flatten()
            .filter_map(|d| match d {
                Dim::Fixed(n) => usize::try_from(*n).ok(),
                Dim::Named(_) | Dim::Unknown => None,
            })
            .collect();
        let fact = InferenceFact::dt_shape(datum_type(info)?, &dims);
        graph.set_input_fact(i, fact).map_err(reason)?;
    }
    let typed = match optimization {
        Optimization::Disabled => graph.into_typed(),
        _ => graph.into_optimized(),
    };
    typed.and_then(|typed| typed.into_runnable()).map_err(reason)
}

/// Returns an error of tract with its causes, outermost first.
fn reason(error: impl Into<tract_onnx::prelude::TractError>) -> String {
    format!("{:#}", error.into())
}

fn datum_type(info: &TensorInfo) -> Result<DatumType, String> {
    Ok(match info.data_type {
        DataType::FLOAT => f32::datum_type(),
        DataType::FLOAT16 => half::f16::datum_type(),
        DataType::DOUBLE => f64::datum_type(),
        DataType::INT64 => i64::datum_type(),
        DataType::INT32 => i32::datum_type(),
        UINT8 => u8::datum_type(),
        DataType::BOOL => bool::datum_type(),
        other => return Err(format!("tract has no {}, the type of `{}`", other.name(), info.name)),
    })
}

struct TractSession {
    model: String,
    runnable: std::sync::Arc<TypedRunnableModel>,
    signature: Signature,
}

impl Session for TractSession {
    fn kind(&self) -> EngineKind {
        EngineKind::Tract
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
            |what: String| EngineError::Run { engine: EngineKind::Tract, model: self.model.clone(), what };
        let fed = match_inputs(&self.model, &self.signature.inputs, inputs)?;
        let wanted = match_outputs(&self.model, &self.signature.outputs, outputs)?;
        let mut values = tvec!();
        for tensor in fed {
            values.push(tract_tensor(tensor).map_err(failed)?.into());
        }
        let results = guarded(|| self.runnable.run(values).map_err(reason)).map_err(failed)?;
        let mut tensors = Vec::with_capacity(wanted.len());
        for output in wanted {
            let (Some(info), Some(result)) = (self.signature.outputs.get(output), results.get(output)) else {
                return Err(failed("it gave fewer outputs than it was asked for".to_string()));
            };
            let tensor =
                host(result, info.data_type).map_err(|e| failed(format!("output `{}`: {e}", info.name)))?;
            tensors.push((info.name.clone(), tensor));
        }
        Ok(tensors)
    }
}

fn tract_tensor(tensor: &HostTensor) -> Result<Tensor, String> {
    let dims = tensor.dims();
    match tensor.data() {
        TensorData::Float(v) => Tensor::from_shape(dims, v),
        TensorData::Float16(v) => Tensor::from_shape(dims, v),
        TensorData::Double(v) => Tensor::from_shape(dims, v),
        TensorData::Int64(v) => Tensor::from_shape(dims, v),
        TensorData::Int32(v) => Tensor::from_shape(dims, v),
        TensorData::Uint8(v) => Tensor::from_shape(dims, v),
        TensorData::Bool(v) => Tensor::from_shape(dims, v),
        TensorData::Bfloat16(_) => return Err("tract has no bfloat16".to_string()),
    }
    .map_err(reason)
}

/// Returns a result of tract in the type that the model declares.
fn host(tensor: &Tensor, declared: DataType) -> Result<HostTensor, String> {
    fn copy<T: Datum + Copy>(tensor: &Tensor) -> Result<HostTensor, String>
    where
        Vec<T>: Into<TensorData>,
    {
        // Also turns tract's own dimension type into integers.
        let tensor = tensor.cast_to::<T>().map_err(reason)?;
        let array = tensor.to_plain_array_view::<T>().map_err(reason)?;
        HostTensor::new(array.shape(), array.iter().copied().collect::<Vec<_>>()).map_err(|e| e.to_string())
    }
    match declared {
        DataType::FLOAT => copy::<f32>(tensor),
        DataType::FLOAT16 => copy::<half::f16>(tensor),
        DataType::DOUBLE => copy::<f64>(tensor),
        DataType::INT64 => copy::<i64>(tensor),
        DataType::INT32 => copy::<i32>(tensor),
        UINT8 => copy::<u8>(tensor),
        DataType::BOOL => copy::<bool>(tensor),
        other => Err(format!("values of type {} cannot be read", other.name())),
    }
}
