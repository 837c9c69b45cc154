//! Thresholds: the k-th smallest magnitude of a pool of weights, exactly, without sorting or holding the weights.
//!
//! With the sign cleared, the bits of floats are in the order of their values, so counting bit patterns is enough.
//! [`MagnitudeHistogram`] counts them in one pass over the weights; a ratio then has its threshold at once
//! (float16, bfloat16) or after one more pass over the weights that share the threshold's upper bits (float32).
//! Types may be mixed in a pool: their magnitudes are compared as the float32 values that they are.

mod histogram;
mod scan;
mod table;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

pub use histogram::{MagnitudeHistogram, Magnitudes, Summary, SummaryBin};

use crate::{
    ir::WeightReader,
    observer::Stopped,
    onnx::{DataType, OnnxError},
};

/// One tensor of a pool.
#[derive(Clone, Debug)]
pub struct PoolTensor {
    /// Its elements.
    pub reader: WeightReader,
    /// Their type: float32, float16 or bfloat16.
    pub data_type: DataType,
}

/// The threshold of a pool: weights with `|w| <= t` are masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Number of weights in the pool.
    pub n: u64,
    /// Which magnitude `t` is: the k-th smallest, counted from 1.
    pub k: u64,
    /// The k-th smallest magnitude.
    pub t: Magnitude,
    /// How many weights have a magnitude below `t`; less than `k`.
    pub below: u64,
    /// How many weights have exactly the magnitude `t`; `below + at` is `k` or more.
    pub at: u64,
}

/// Which of the weights whose magnitude is exactly the threshold are masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TieMask {
    /// All, as CR-Diff does: more than `k` can be masked then.
    All,
    /// This many of the tensor's, in the order of the file.
    First(u64),
}

/// Why magnitudes could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MagnitudeError {
    /// The weights could not be read.
    #[error(transparent)]
    Read(#[from] OnnxError),
    /// The weights have a type that cannot be pruned.
    #[error("weights of type {0} cannot be pruned, only float32, float16 and bfloat16")]
    Type(String),
    /// A ratio outside its range.
    #[error("a ratio of {0} is not possible: it must be at least 0 and less than 1")]
    Ratio(f64),
    /// A rank outside the pool.
    #[error("there is no {k}-th smallest of {n} weights")]
    Rank {
        /// The rank that was asked for, counted from 1.
        k: u64,
        /// Number of weights in the pool.
        n: u64,
    },
    /// A threshold that is not a magnitude.
    #[error("a threshold of {0} is not possible: it must be a number that is not negative")]
    Threshold(f64),
    /// The observer said stop.
    #[error("stopped")]
    Stopped,
}

impl From<Stopped> for MagnitudeError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// The magnitude of a weight, ordered by value. NaN is above infinity, as in `torch.sort`, and all NaNs are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Magnitude(u32);

impl Magnitude {
    /// Returns the magnitude of `value`.
    pub fn of(value: f32) -> Self {
        Self(if value.is_nan() { NAN } else { value.abs().to_bits() })
    }

    /// Returns the magnitude that `threshold` is among weights of `data_type`. It is rounded to that type, as torch
    /// does when it compares a tensor with a Python number.
    ///
    /// # Errors
    /// [`MagnitudeError::Threshold`] if it is negative or NaN; [`MagnitudeError::Type`].
    pub fn given(threshold: f64, data_type: DataType) -> Result<Self, MagnitudeError> {
        if threshold.is_nan() || threshold < 0.0 {
            return Err(MagnitudeError::Threshold(threshold));
        }
        // Torch goes from double to half by way of float, too.
        let single = threshold as f32;
        Ok(Self::of(match FloatType::try_from(data_type)? {
            FloatType::F32 => single,
            FloatType::F16 => f16::from_f32(single).to_f32(),
            FloatType::Bf16 => bf16::from_f32(single).to_f32(),
        }))
    }

    /// Returns its value.
    pub fn value(self) -> f32 {
        f32::from_bits(self.0)
    }

    /// Returns whether it is that of a weight that is not a number.
    pub fn is_nan(self) -> bool {
        self.0 == NAN
    }

    /// Returns its bits as an element of `data_type`, in the lower 16 or all 32; `None` if that type does not have the
    /// value.
    pub fn bits(self, data_type: DataType) -> Option<u32> {
        let float = FloatType::try_from(data_type).ok()?;
        if self.is_nan() {
            return Some(match float {
                FloatType::F32 => NAN,
                FloatType::F16 => f16::NAN.to_bits().into(),
                FloatType::Bf16 => bf16::NAN.to_bits().into(),
            });
        }
        self.exact_bits(float)
    }

    /// Returns the bits of the greatest magnitude of the type that is not above it; those of infinity for NaN.
    pub(crate) fn floor_bits(self, float: FloatType) -> u32 {
        let value = self.0.min(INFINITY);
        match float {
            FloatType::F32 => value,
            FloatType::Bf16 => value >> 16,
            FloatType::F16 => {
                let nearest = f16::from_f32(f32::from_bits(value));
                let above = nearest.to_f32().to_bits() > value;
                u32::from(nearest.to_bits()) - u32::from(above)
            }
        }
    }

    /// Returns the bits of the same magnitude in the type, if there is one; none for NaN.
    pub(crate) fn exact_bits(self, float: FloatType) -> Option<u32> {
        let bits = self.floor_bits(float);
        (float.single_bits(bits) == self.0).then_some(bits)
    }
}

const INFINITY: u32 = 0x7f80_0000;
const NAN: u32 = 0x7fc0_0000;

/// A float type that weights come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatType {
    F32,
    F16,
    Bf16,
}

impl TryFrom<DataType> for FloatType {
    type Error = MagnitudeError;

    fn try_from(data_type: DataType) -> Result<Self, MagnitudeError> {
        match data_type {
            DataType::FLOAT => Ok(Self::F32),
            DataType::FLOAT16 => Ok(Self::F16),
            DataType::BFLOAT16 => Ok(Self::Bf16),
            other => Err(MagnitudeError::Type(other.name())),
        }
    }
}

impl FloatType {
    /// Returns the bytes of one element.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Returns the elements in `bytes` as float32, which holds those of each type.
    pub(crate) fn singles(self, bytes: &[u8]) -> Vec<f32> {
        let halves = || bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
        match self {
            Self::F32 => bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Self::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
            Self::Bf16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        }
    }

    /// Returns the float32 bits of the magnitude that has these bits in this type.
    pub(crate) fn single_bits(self, bits: u32) -> u32 {
        match self {
            Self::F32 => bits,
            Self::F16 => f16::from_bits(bits as u16).to_f32().to_bits(),
            Self::Bf16 => bits << 16,
        }
    }
}
