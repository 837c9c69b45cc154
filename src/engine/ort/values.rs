//! Tensors of ONNX Runtime and ours.

use half::{bf16, f16};
use ort::{
    session::SessionInputValue,
    value::{DynTensor, DynValue, Tensor, TensorElementType, TensorRef, ValueType},
};

use crate::{
    engine::{Dim, HostTensor, TensorData, TensorInfo, UINT8},
    onnx::DataType,
};

/// Returns the elements, lent to ONNX Runtime for a run.
pub(super) fn view(tensor: &HostTensor) -> ort::Result<SessionInputValue<'_>> {
    let dims: Vec<i64> = tensor.dims().iter().map(|d| *d as i64).collect();
    Ok(match tensor.data() {
        TensorData::Float(v) => TensorRef::from_array_view((dims, v.as_slice()))?.into(),
        TensorData::Float16(v) => TensorRef::from_array_view((dims, v.as_slice()))?.into(),
        TensorData::Bfloat16(v) => TensorRef::from_array_view((dims, v.as_slice()))?.into(),
        TensorData::Double(v) => TensorRef::from_array_view((dims, v.as_slice()))?.into(),
        TensorData::Int64(v) => TensorRef::from_array_view((dims, v.as_slice()))?.into(),
        TensorData::Int32(v) => TensorRef::from_array_view((dims, v.as_slice()))?.into(),
        TensorData::Uint8(v) => TensorRef::from_array_view((dims, v.as_slice()))?.into(),
        TensorData::Bool(v) => TensorRef::from_array_view((dims, v.as_slice()))?.into(),
    })
}

/// Returns a copy of the elements that ONNX Runtime owns.
pub(super) fn copied(tensor: &HostTensor) -> ort::Result<DynTensor> {
    let dims: Vec<i64> = tensor.dims().iter().map(|d| *d as i64).collect();
    Ok(match tensor.data() {
        TensorData::Float(v) => Tensor::from_array((dims, v.clone()))?.upcast(),
        TensorData::Float16(v) => Tensor::from_array((dims, v.clone()))?.upcast(),
        TensorData::Bfloat16(v) => Tensor::from_array((dims, v.clone()))?.upcast(),
        TensorData::Double(v) => Tensor::from_array((dims, v.clone()))?.upcast(),
        TensorData::Int64(v) => Tensor::from_array((dims, v.clone()))?.upcast(),
        TensorData::Int32(v) => Tensor::from_array((dims, v.clone()))?.upcast(),
        TensorData::Uint8(v) => Tensor::from_array((dims, v.clone()))?.upcast(),
        TensorData::Bool(v) => Tensor::from_array((dims, v.clone()))?.upcast(),
    })
}

/// Returns ONNX Runtime's name of an element type, of those that host tensors have.
pub(super) fn element_type(data_type: DataType) -> Option<TensorElementType> {
    Some(match data_type {
        DataType::FLOAT => TensorElementType::Float32,
        DataType::FLOAT16 => TensorElementType::Float16,
        DataType::BFLOAT16 => TensorElementType::Bfloat16,
        DataType::DOUBLE => TensorElementType::Float64,
        DataType::INT64 => TensorElementType::Int64,
        DataType::INT32 => TensorElementType::Int32,
        UINT8 => TensorElementType::Uint8,
        DataType::BOOL => TensorElementType::Bool,
        _ => return None,
    })
}

/// Returns a copy of a result, so that a later run can't overwrite it.
pub(super) fn owned(value: &DynValue) -> Result<HostTensor, String> {
    fn copy<T>(value: &DynValue) -> Result<HostTensor, String>
    where
        T: ort::value::PrimitiveTensorElementType + Clone,
        Vec<T>: Into<TensorData>,
    {
        let (shape, elements) = value.try_extract_tensor::<T>().map_err(|e| e.message().to_string())?;
        let dims: Vec<usize> = shape.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
        HostTensor::new(dims, elements.to_vec()).map_err(|e| e.to_string())
    }
    match value.dtype().tensor_type() {
        Some(TensorElementType::Float32) => copy::<f32>(value),
        Some(TensorElementType::Float16) => copy::<f16>(value),
        Some(TensorElementType::Bfloat16) => copy::<bf16>(value),
        Some(TensorElementType::Float64) => copy::<f64>(value),
        Some(TensorElementType::Int64) => copy::<i64>(value),
        Some(TensorElementType::Int32) => copy::<i32>(value),
        Some(TensorElementType::Uint8) => copy::<u8>(value),
        Some(TensorElementType::Bool) => copy::<bool>(value),
        _ => Err(format!("values of type {} cannot be read", value.dtype())),
    }
}

/// Returns ONNX Runtime's description of an input or output.
pub(super) fn tensor_info(name: &str, value: &ValueType) -> Result<TensorInfo, String> {
    let ValueType::Tensor { ty, shape, dimension_symbols } = value else {
        return Err(format!("`{name}` is a {value}, but only tensors can be inputs and outputs"));
    };
    let dims = shape.iter().enumerate().map(|(i, size)| match dimension_symbols.get(i) {
        _ if *size >= 0 => Dim::Fixed(*size),
        Some(symbol) if !symbol.is_empty() => Dim::Named(symbol.clone()),
        _ => Dim::Unknown,
    });
    let data_type = match ty {
        TensorElementType::Float32 => DataType::FLOAT,
        TensorElementType::Float16 => DataType::FLOAT16,
        TensorElementType::Bfloat16 => DataType::BFLOAT16,
        TensorElementType::Float64 => DataType::DOUBLE,
        TensorElementType::Int64 => DataType::INT64,
        TensorElementType::Int32 => DataType::INT32,
        TensorElementType::Uint8 => UINT8,
        TensorElementType::Bool => DataType::BOOL,
        other => return Err(format!("`{name}` is a tensor of {other}, which cannot be fed or read")),
    };
    Ok(TensorInfo { name: name.to_string(), data_type, dims: Some(dims.collect()) })
}
