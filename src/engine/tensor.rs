//! Tensors in host memory: what engines take and give.

use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn, ShapeBuilder};

use super::EngineError;
use crate::onnx::DataType;

/// ONNX's `uint8`.
pub const UINT8: DataType = DataType(2);

/// A dense tensor in host memory: dimensions and elements in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    dims: Vec<usize>,
    data: TensorData,
}

/// The elements of a [`HostTensor`], in row-major order.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each is the ONNX type of the same name")]
pub enum TensorData {
    Float(Vec<f32>),
    Float16(Vec<f16>),
    Bfloat16(Vec<bf16>),
    Double(Vec<f64>),
    Int64(Vec<i64>),
    Int32(Vec<i32>),
    Uint8(Vec<u8>),
    Bool(Vec<bool>),
}

/// Runs `$body` with `$v` bound to the vector inside, whatever its type.
macro_rules! with_elements {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            TensorData::Float($v) => $body,
            TensorData::Float16($v) => $body,
            TensorData::Bfloat16($v) => $body,
            TensorData::Double($v) => $body,
            TensorData::Int64($v) => $body,
            TensorData::Int32($v) => $body,
            TensorData::Uint8($v) => $body,
            TensorData::Bool($v) => $body,
        }
    };
}

macro_rules! from_vec {
    ($($element:ty => $variant:ident),*) => {$(
        impl From<Vec<$element>> for TensorData {
            fn from(elements: Vec<$element>) -> Self {
                Self::$variant(elements)
            }
        }
    )*};
}

from_vec!(f32 => Float, f16 => Float16, bf16 => Bfloat16, f64 => Double, i64 => Int64, i32 => Int32, u8 => Uint8,
    bool => Bool);

impl TensorData {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        with_elements!(self, v => v.len())
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the element type.
    pub fn data_type(&self) -> DataType {
        match self {
            Self::Float(_) => DataType::FLOAT,
            Self::Float16(_) => DataType::FLOAT16,
            Self::Bfloat16(_) => DataType::BFLOAT16,
            Self::Double(_) => DataType::DOUBLE,
            Self::Int64(_) => DataType::INT64,
            Self::Int32(_) => DataType::INT32,
            Self::Uint8(_) => UINT8,
            Self::Bool(_) => DataType::BOOL,
        }
    }
}

impl HostTensor {
    /// Returns a tensor of these dimensions and elements; no dimensions make a scalar.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] if the dimensions need more or fewer elements.
    pub fn new(dims: impl Into<Vec<usize>>, data: impl Into<TensorData>) -> Result<Self, EngineError> {
        let (dims, data) = (dims.into(), data.into());
        match element_count(&dims) {
            Some(n) if n == data.len() => Ok(Self { dims, data }),
            _ => Err(EngineError::tensor(
                format!("a tensor of dimensions {dims:?}"),
                format!("it has {} elements", data.len()),
            )),
        }
    }

    /// Returns a scalar.
    pub fn scalar<T>(value: T) -> Self
    where
        Vec<T>: Into<TensorData>,
    {
        Self { dims: Vec::new(), data: vec![value].into() }
    }

    /// Returns a tensor of one type's little-endian bytes, as `raw_data`, .npy and .safetensors hold them.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] if the dimensions need more or fewer bytes, or host tensors don't have the type.
    pub fn from_le_bytes(data_type: DataType, dims: Vec<usize>, bytes: &[u8]) -> Result<Self, EngineError> {
        fn read<const N: usize, T>(bytes: &[u8], element: fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks::<N>().0.iter().map(|chunk| element(*chunk)).collect()
        }
        let place = || format!("a {} tensor of dimensions {dims:?}", data_type.name());
        let expected = data_type
            .bits()
            .and_then(|bits| element_count(&dims)?.checked_mul(usize::try_from(bits / 8).ok()?))
            .ok_or_else(|| EngineError::tensor(place(), "its size is not known"))?;
        if expected != bytes.len() {
            let what = format!("it takes {expected} bytes, but there are {}", bytes.len());
            return Err(EngineError::tensor(place(), what));
        }
        let data = match data_type {
            DataType::FLOAT => TensorData::Float(read(bytes, f32::from_le_bytes)),
            DataType::FLOAT16 => TensorData::Float16(read(bytes, f16::from_le_bytes)),
            DataType::BFLOAT16 => TensorData::Bfloat16(read(bytes, bf16::from_le_bytes)),
            DataType::DOUBLE => TensorData::Double(read(bytes, f64::from_le_bytes)),
            DataType::INT64 => TensorData::Int64(read(bytes, i64::from_le_bytes)),
            DataType::INT32 => TensorData::Int32(read(bytes, i32::from_le_bytes)),
            UINT8 => TensorData::Uint8(bytes.to_vec()),
            DataType::BOOL => TensorData::Bool(bytes.iter().map(|b| *b != 0).collect()),
            _ => {
                return Err(EngineError::tensor(
                    place(),
                    "only float32, float16, bfloat16, float64, int64, int32, uint8 and bool can be held",
                ));
            }
        };
        Self::new(dims, data)
    }

    /// Returns the elements as little-endian bytes.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match &self.data {
            TensorData::Float(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::Float16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::Bfloat16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::Double(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::Int64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::Int32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::Uint8(v) => v.clone(),
            TensorData::Bool(v) => v.iter().map(|x| u8::from(*x)).collect(),
        }
    }

    /// Returns the dimensions; none for a scalar.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Returns the elements.
    pub fn data(&self) -> &TensorData {
        &self.data
    }

    /// Returns the elements, without the dimensions.
    pub fn into_data(self) -> TensorData {
        self.data
    }

    /// Returns the element type.
    pub fn data_type(&self) -> DataType {
        self.data.data_type()
    }

    /// Returns the elements of a float32 tensor; `None` for another type.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            TensorData::Float(v) => Some(v),
            _ => None,
        }
    }

    /// Returns the elements of a float32 tensor, to be written; `None` for another type.
    pub fn as_f32_mut(&mut self) -> Option<&mut [f32]> {
        match &mut self.data {
            TensorData::Float(v) => Some(v),
            _ => None,
        }
    }

    /// Returns the elements as float32, rounded to nearest; booleans become 0 and 1.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            TensorData::Float(v) => v.clone(),
            TensorData::Float16(v) => v.iter().map(|x| x.to_f32()).collect(),
            TensorData::Bfloat16(v) => v.iter().map(|x| x.to_f32()).collect(),
            TensorData::Double(v) => v.iter().map(|x| *x as f32).collect(),
            TensorData::Int64(v) => v.iter().map(|x| *x as f32).collect(),
            TensorData::Int32(v) => v.iter().map(|x| *x as f32).collect(),
            TensorData::Uint8(v) => v.iter().map(|x| f32::from(*x)).collect(),
            TensorData::Bool(v) => v.iter().map(|x| f32::from(u8::from(*x))).collect(),
        }
    }

    /// Returns the elements as int64; fractions are cut off, floats out of range saturate, NaN is 0 (Rust's `as`).
    pub fn to_i64(&self) -> Vec<i64> {
        match &self.data {
            TensorData::Float(v) => v.iter().map(|x| *x as i64).collect(),
            TensorData::Float16(v) => v.iter().map(|x| x.to_f32() as i64).collect(),
            TensorData::Bfloat16(v) => v.iter().map(|x| x.to_f32() as i64).collect(),
            TensorData::Double(v) => v.iter().map(|x| *x as i64).collect(),
            TensorData::Int64(v) => v.clone(),
            TensorData::Int32(v) => v.iter().map(|x| i64::from(*x)).collect(),
            TensorData::Uint8(v) => v.iter().map(|x| i64::from(*x)).collect(),
            TensorData::Bool(v) => v.iter().map(|x| i64::from(*x)).collect(),
        }
    }

    /// Returns the same tensor in another element type, each element converted on its own: floats to nearest, to
    /// integers as
    /// [`HostTensor::to_i64`] does, to bool as "not zero".
    ///
    /// # Errors
    /// [`EngineError::Tensor`] if an integer does not fit, or host tensors don't have the type.
    pub fn cast(&self, to: DataType) -> Result<Self, EngineError> {
        if to == self.data_type() {
            return Ok(self.clone());
        }
        let out_of_range = |value: i64| {
            let place = format!("a {} tensor of dimensions {:?}", self.data_type().name(), self.dims);
            EngineError::tensor(place, format!("its element {value} does not fit {}", to.name()))
        };
        let data = match to {
            DataType::FLOAT => TensorData::Float(self.to_f32()),
            DataType::FLOAT16 => TensorData::Float16(match &self.data {
                TensorData::Double(v) => v.iter().map(|x| f16::from_f64(*x)).collect(),
                _ => self.to_f32().into_iter().map(f16::from_f32).collect(),
            }),
            DataType::BFLOAT16 => TensorData::Bfloat16(match &self.data {
                TensorData::Double(v) => v.iter().map(|x| bf16::from_f64(*x)).collect(),
                _ => self.to_f32().into_iter().map(bf16::from_f32).collect(),
            }),
            DataType::DOUBLE => TensorData::Double(match &self.data {
                TensorData::Int64(v) => v.iter().map(|x| *x as f64).collect(),
                TensorData::Int32(v) => v.iter().map(|x| f64::from(*x)).collect(),
                _ => self.to_f32().into_iter().map(f64::from).collect(),
            }),
            DataType::INT64 => TensorData::Int64(self.to_i64()),
            DataType::INT32 => {
                let narrow = |x: i64| i32::try_from(x).map_err(|_| out_of_range(x));
                TensorData::Int32(self.to_i64().into_iter().map(narrow).collect::<Result<_, _>>()?)
            }
            UINT8 => {
                let narrow = |x: i64| u8::try_from(x).map_err(|_| out_of_range(x));
                TensorData::Uint8(self.to_i64().into_iter().map(narrow).collect::<Result<_, _>>()?)
            }
            DataType::BOOL => TensorData::Bool(match &self.data {
                TensorData::Int64(v) => v.iter().map(|x| *x != 0).collect(),
                TensorData::Int32(v) => v.iter().map(|x| *x != 0).collect(),
                TensorData::Double(v) => v.iter().map(|x| *x != 0.0).collect(),
                _ => self.to_f32().into_iter().map(|x| x != 0.0).collect(),
            }),
            _ => {
                let what = format!("host tensors cannot be cast to {}", to.name());
                return Err(EngineError::tensor(self.data_type().name(), what));
            }
        };
        Self::new(self.dims.clone(), data)
    }

    /// Returns the elements as a float32 array.
    pub fn to_array(&self) -> ArrayD<f32> {
        // The dimensions always fit the elements, so the fallback is never taken.
        ArrayD::from_shape_vec(IxDyn(&self.dims), self.to_f32()).unwrap_or_default()
    }
}

impl From<ArrayD<f32>> for HostTensor {
    fn from(array: ArrayD<f32>) -> Self {
        let dims = array.shape().to_vec();
        Self { dims, data: TensorData::Float(array.iter().copied().collect()) }
    }
}

/// Returns the number of elements of these dimensions; `None` when it overflows.
fn element_count(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d))
}

/// Returns `tensor`, whose elements are in column-major (Fortran) order, in row-major order.
pub(super) fn from_column_major(tensor: HostTensor) -> HostTensor {
    fn reorder<T: Clone>(dims: &[usize], elements: Vec<T>) -> Vec<T> {
        match ArrayD::from_shape_vec(IxDyn(dims).f(), elements) {
            Ok(array) => array.iter().cloned().collect(),
            Err(_) => Vec::new(),
        }
    }
    let dims = tensor.dims;
    let data = with_elements!(tensor.data, v => reorder(&dims, v).into());
    HostTensor { dims, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_must_fit_the_elements() {
        assert!(HostTensor::new([2, 3], vec![0f32; 6]).is_ok());
        assert!(HostTensor::new([], vec![0f32]).is_ok());
        let error = HostTensor::new([2, 3], vec![0f32; 5]).unwrap_err();
        assert_eq!(error.to_string(), "a tensor of dimensions [2, 3]: it has 5 elements");
        assert!(HostTensor::new([usize::MAX, 2], vec![0f32; 2]).is_err());
    }

    #[test]
    fn bytes_and_back() {
        let all: Vec<HostTensor> = vec![
            HostTensor::new([2], vec![1.5f32, -2.0]).unwrap(),
            HostTensor::new([2], vec![f16::from_f32(1.5), f16::from_f32(-2.0)]).unwrap(),
            HostTensor::new([2], vec![bf16::from_f32(1.5), bf16::from_f32(-2.0)]).unwrap(),
            HostTensor::new([2], vec![1.5f64, -2.0]).unwrap(),
            HostTensor::new([2], vec![1i64 << 40, -2]).unwrap(),
            HostTensor::new([2], vec![1i32, -2]).unwrap(),
            HostTensor::new([2], vec![1u8, 255]).unwrap(),
            HostTensor::new([2], vec![true, false]).unwrap(),
        ];
        for tensor in all {
            let bytes = tensor.to_le_bytes();
            assert_eq!(HostTensor::from_le_bytes(tensor.data_type(), vec![2], &bytes).unwrap(), tensor);
            assert!(HostTensor::from_le_bytes(tensor.data_type(), vec![3], &bytes).is_err());
        }
        assert!(HostTensor::from_le_bytes(DataType(8), vec![0], &[]).is_err(), "strings cannot be held");
    }

    #[test]
    fn casts_that_lose_an_integer_are_errors() {
        let wide = HostTensor::scalar(1i64 << 40);
        assert!(wide.cast(DataType::INT32).unwrap_err().to_string().contains("1099511627776"));
        assert_eq!(HostTensor::scalar(7i64).cast(DataType::INT32).unwrap(), HostTensor::scalar(7i32));
        assert_eq!(HostTensor::scalar(0.1f64).cast(DataType::FLOAT).unwrap(), HostTensor::scalar(0.1f32));
        assert_eq!(HostTensor::scalar(-0.5f32).cast(DataType::BOOL).unwrap(), HostTensor::scalar(true));
    }

    #[test]
    fn column_major_is_put_in_order() {
        let columns = HostTensor::new([2, 3], vec![1i32, 4, 2, 5, 3, 6]).unwrap();
        let rows = HostTensor::new([2, 3], vec![1i32, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(from_column_major(columns), rows);
    }
}
