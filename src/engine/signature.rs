//! Signatures of models: declared inputs and outputs, and the check of tensors before an engine sees them.

use std::{collections::BTreeMap, fmt};

use prost::Message;

use super::{EngineError, EngineKind, HostTensor, ProviderKind, SessionOptions};
use crate::onnx::{DataType, OnnxError, Source, TensorHeader, graph_field, proto};

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub data_type: DataType,
    /// Its dimensions; `None` if the model doesn't even say how many.
    pub dims: Option<Vec<Dim>>,
}

/// One dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this many.
    Fixed(i64),
    /// Any size; equal names have equal sizes (`dim_param`).
    Named(String),
    /// Any size.
    Unknown,
}

impl TensorInfo {
    /// Returns the size of the dimension at `at`, if it is always the same.
    pub fn fixed_dim(&self, at: usize) -> Option<usize> {
        match self.dims.as_ref()?.get(at)? {
            Dim::Fixed(size) => usize::try_from(*size).ok(),
            Dim::Named(_) | Dim::Unknown => None,
        }
    }
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.name, self.data_type.name())?;
        let Some(dims) = &self.dims else { return Ok(()) };
        f.write_str("[")?;
        for (i, dim) in dims.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            match dim {
                Dim::Fixed(n) => write!(f, "{n}")?,
                Dim::Named(name) => f.write_str(name)?,
                Dim::Unknown => f.write_str("?")?,
            }
        }
        f.write_str("]")
    }
}

/// The inputs and outputs that a model file declares, without the inputs that are initializers' defaults.
#[derive(Clone, Debug, Default)]
pub struct Signature {
    /// The inputs that must be fed.
    pub inputs: Vec<TensorInfo>,
    /// The outputs.
    pub outputs: Vec<TensorInfo>,
}

impl Signature {
    /// Reads the declarations of a model file.
    ///
    /// # Errors
    /// [`OnnxError`] if a declaration is broken or an input or output is not a tensor.
    pub fn of(source: &Source) -> Result<Self, OnnxError> {
        let (mut inputs, mut outputs, mut defaults) = (Vec::new(), Vec::new(), Vec::new());
        for field in source.graph.fields() {
            match field.number {
                graph_field::INPUT => inputs.push(tensor_info(field.value())?),
                graph_field::OUTPUT => outputs.push(tensor_info(field.value())?),
                graph_field::INITIALIZER => defaults.push(TensorHeader::parse(field.value())?.name),
                _ => {}
            }
        }
        defaults.sort_unstable();
        inputs.retain(|i| defaults.binary_search(&i.name).is_err());
        Ok(Self { inputs, outputs })
    }
}

/// Returns the declarations of a model that an engine without providers and settings of its own is to run.
///
/// # Errors
/// [`EngineError::Provider`] and [`EngineError::Load`] if `options` have things that only ONNX Runtime has;
/// [`EngineError::Model`] if a declaration is broken; [`EngineError::Signature`] if dimensions are fixed that the model
/// doesn't have.
pub(super) fn for_cpu_engine(
    engine: EngineKind,
    model: &str,
    source: &Source,
    options: &SessionOptions,
) -> Result<Signature, EngineError> {
    let model = model.to_string();
    if let Some(provider) = options.providers.iter().find(|p| p.kind != ProviderKind::Cpu) {
        let what = format!("{engine} runs on the CPU only; use ort");
        return Err(EngineError::Provider { engine, model, provider: provider.kind, what });
    }
    if let Some(key) = options.config.keys().next() {
        let what = format!("`{key}` is a setting of ONNX Runtime; {engine} has no such settings");
        return Err(EngineError::Load { engine, model, what });
    }
    let signature =
        Signature::of(source).map_err(|source| EngineError::Model { model: model.clone(), source })?;
    named_dims(&model, &signature.inputs, &options.fixed_dims)?;
    Ok(signature)
}

/// Reads the declaration of one input or output, a `ValueInfoProto`.
pub(crate) fn tensor_info(message: bytes::Bytes) -> Result<TensorInfo, OnnxError> {
    use proto::{tensor_shape_proto::dimension, type_proto};
    let info = proto::ValueInfoProto::decode(message)
        .map_err(|e| OnnxError::invalid("an input or output", format!("broken ValueInfoProto: {e}")))?;
    let name = info.name().to_string();
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.and_then(|t| t.value) else {
        return Err(OnnxError::invalid(format!("value `{name}`"), "only tensors can be inputs and outputs"));
    };
    let data_type = DataType(tensor.elem_type());
    let dims = tensor.shape.map(|shape| {
        let dim = |d: proto::tensor_shape_proto::Dimension| match d.value {
            Some(dimension::Value::DimValue(n)) if n >= 0 => Dim::Fixed(n),
            Some(dimension::Value::DimParam(name)) if !name.is_empty() => Dim::Named(name),
            _ => Dim::Unknown,
        };
        shape.dim.into_iter().map(dim).collect()
    });
    Ok(TensorInfo { name, data_type, dims })
}

/// Returns the inputs in the order of `declared`.
///
/// # Errors
/// [`EngineError::Signature`] if one is missing, unknown, fed twice, or not of the declared type, rank or fixed size.
pub(super) fn match_inputs<'a>(
    model: &str,
    declared: &[TensorInfo],
    fed: &[(&str, &'a HostTensor)],
) -> Result<Vec<&'a HostTensor>, EngineError> {
    let fail = |what: String| EngineError::Signature { model: model.to_string(), what };
    let listed = || declared.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for (i, (name, _)) in fed.iter().enumerate() {
        if !declared.iter().any(|d| d.name == *name) {
            return Err(fail(format!("it has no input `{name}`; its inputs are {}", listed())));
        }
        if fed.iter().take(i).any(|(earlier, _)| earlier == name) {
            return Err(fail(format!("input `{name}` is fed twice")));
        }
    }
    let one = |info: &TensorInfo| {
        let (_, tensor) = fed
            .iter()
            .find(|(name, _)| *name == info.name)
            .ok_or_else(|| fail(format!("input `{}` is not fed; its inputs are {}", info.name, listed())))?;
        if fits(info, tensor) {
            return Ok(*tensor);
        }
        let fed = format!("{} {:?}", tensor.data_type().name(), tensor.dims());
        Err(fail(format!("input `{}` is fed {fed}, but it takes {info}", info.name)))
    };
    declared.iter().map(one).collect()
}

fn fits(info: &TensorInfo, tensor: &HostTensor) -> bool {
    let dims = match &info.dims {
        None => true,
        Some(dims) => {
            dims.len() == tensor.dims().len()
                && dims.iter().zip(tensor.dims()).all(|(dim, size)| match dim {
                    Dim::Fixed(n) => usize::try_from(*n) == Ok(*size),
                    Dim::Named(_) | Dim::Unknown => true,
                })
        }
    };
    dims && info.data_type == tensor.data_type()
}

/// Returns the positions in `declared` of the outputs asked for; all of them for `None`.
///
/// # Errors
/// [`EngineError::Signature`] if the model has no such output.
pub(super) fn match_outputs(
    model: &str,
    declared: &[TensorInfo],
    asked: Option<&[&str]>,
) -> Result<Vec<usize>, EngineError> {
    let Some(asked) = asked else { return Ok((0..declared.len()).collect()) };
    let one = |name: &&str| {
        declared.iter().position(|d| d.name == *name).ok_or_else(|| {
            let listed = declared.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let what = format!("it has no output `{name}`; its outputs are {listed}");
            EngineError::Signature { model: model.to_string(), what }
        })
    };
    asked.iter().map(one).collect()
}

/// Returns the sizes that `fixed` gives to named dimensions, by name, in the order of the inputs.
///
/// # Errors
/// [`EngineError::Signature`] if an input is unknown, has another number of dimensions or another fixed size, or one
/// name would have two sizes.
pub(super) fn named_dims(
    model: &str,
    declared: &[TensorInfo],
    fixed: &BTreeMap<String, Vec<usize>>,
) -> Result<Vec<(String, i64)>, EngineError> {
    let fail = |what: String| EngineError::Signature { model: model.to_string(), what };
    let mut sizes: Vec<(String, i64)> = Vec::new();
    for (input, dims) in fixed {
        let info = declared
            .iter()
            .find(|d| d.name == *input)
            .ok_or_else(|| fail(format!("it has no input `{input}` whose dimensions could be fixed")))?;
        let Some(declared) = &info.dims else { continue };
        let mismatch = || fail(format!("input {info} cannot be fixed to {dims:?}"));
        if declared.len() != dims.len() {
            return Err(mismatch());
        }
        for (dim, size) in declared.iter().zip(dims) {
            let size = i64::try_from(*size).map_err(|_| mismatch())?;
            match dim {
                Dim::Fixed(n) if *n != size => return Err(mismatch()),
                Dim::Named(name) => match sizes.iter().find(|(known, _)| known == name) {
                    Some((_, known)) if *known != size => {
                        return Err(fail(format!("dimension `{name}` cannot be both {known} and {size}")));
                    }
                    Some(_) => {}
                    None => sizes.push((name.clone(), size)),
                },
                Dim::Fixed(_) | Dim::Unknown => {}
            }
        }
    }
    Ok(sizes)
}
