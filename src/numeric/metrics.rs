//! How close two tensors are.

use serde::{Serialize, Serializer};

use crate::{
    engine::{HostTensor, TensorData},
    onnx::DataType,
};

/// How far a tensor is from the one that it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Metrics {
    /// Largest absolute difference; infinite if one of two elements is not a number, or only one is infinite.
    #[serde(serialize_with = "finite_or_text")]
    pub max_abs: f64,
    /// Largest of each difference divided by the absolute value of the expected element, where that isn't 0.
    #[serde(serialize_with = "finite_or_text")]
    pub max_rel: f64,
    /// Cosine of the angle between the two as vectors; 1 if both are zero.
    #[serde(serialize_with = "finite_or_text")]
    pub cosine: f64,
    /// Peak signal-to-noise ratio in dB; the peak is the expected tensor's range, from its least to its largest
    /// element. Infinite for equal tensors.
    #[serde(serialize_with = "finite_or_text")]
    pub psnr: f64,
    /// Largest absolute value that was expected.
    #[serde(serialize_with = "finite_or_text")]
    pub magnitude: f64,
}

/// Writes a number as JSON, which has no infinity.
fn finite_or_text<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if number.is_finite() { serializer.serialize_f64(*number) } else { serializer.collect_str(number) }
}

/// Measures how far `actual` is from `expected`; `None` if their dimensions differ. Element types may differ. Elements
/// that are the same infinity or both not a number are equal.
pub fn measure(expected: &HostTensor, actual: &HostTensor) -> Option<Metrics> {
    if expected.dims() != actual.dims() {
        return None;
    }
    let (mut max_abs, mut max_rel, mut magnitude) = (0f64, 0f64, 0f64);
    let (mut dot, mut norm_e, mut norm_a, mut squares) = (0f64, 0f64, 0f64, 0f64);
    let (mut least, mut largest) = (f64::INFINITY, f64::NEG_INFINITY);
    let (expected, actual) = (numbers(expected), numbers(actual));
    for (e, a) in expected.iter().copied().zip(actual.iter().copied()) {
        let both = e == a || (e.is_nan() && a.is_nan());
        let difference = if both { 0.0 } else { (e - a).abs() };
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        max_abs = max_abs.max(difference);
        if e != 0.0 && difference > 0.0 {
            let relative = difference / e.abs();
            max_rel = max_rel.max(if relative.is_nan() { f64::INFINITY } else { relative });
        }
        squares += difference * difference;
        if e.is_finite() {
            magnitude = magnitude.max(e.abs());
            (least, largest) = (least.min(e), largest.max(e));
        }
        if e.is_finite() && a.is_finite() {
            (dot, norm_e, norm_a) = (dot + e * a, norm_e + e * e, norm_a + a * a);
        }
    }
    let cosine = match (norm_e == 0.0, norm_a == 0.0) {
        (true, true) => 1.0,
        (false, false) => dot / (norm_e.sqrt() * norm_a.sqrt()),
        _ => 0.0,
    };
    let noise = (squares / expected.len().max(1) as f64).sqrt();
    let psnr = if noise == 0.0 { f64::INFINITY } else { 20.0 * ((largest - least) / noise).log10() };
    Some(Metrics { max_abs, max_rel, cosine, psnr, magnitude })
}

/// Returns whether some element is finite, or there is none.
pub(super) fn has_numbers(tensor: &HostTensor) -> bool {
    let numbers = numbers(tensor);
    numbers.is_empty() || numbers.iter().any(|x| x.is_finite())
}

fn numbers(tensor: &HostTensor) -> Vec<f64> {
    match tensor.data() {
        TensorData::Double(v) => v.clone(),
        TensorData::Int64(v) => v.iter().map(|x| *x as f64).collect(),
        TensorData::Int32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        _ => tensor.to_f32().into_iter().map(f64::from).collect(),
    }
}

/// How large a difference may be: `absolute + relative * magnitude`, where the magnitude is the largest absolute value
/// of the expected tensor. (Relative to single elements, those near zero would always fail.)
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerance {
    /// In the tensor's own unit.
    pub absolute: f64,
    /// A fraction of the expected tensor's magnitude.
    pub relative: f64,
}

impl Tolerance {
    /// Returns the tolerance that rounding in `data_type` explains in a network of many layers: 2e-2 for bfloat16, 2e-3
    /// for float16, 1e-5 for float32 and float64 as fractions, and 1e-8 on top for tensors of zeros; nothing for types
    /// without rounding.
    pub fn of(data_type: DataType) -> Self {
        let relative = match data_type {
            DataType::BFLOAT16 => 2e-2,
            DataType::FLOAT16 => 2e-3,
            DataType::FLOAT | DataType::DOUBLE => 1e-5,
            _ => return Self { absolute: 0.0, relative: 0.0 },
        };
        Self { absolute: 1e-8, relative }
    }

    /// Returns whether a difference is small enough.
    pub fn allows(&self, metrics: &Metrics) -> bool {
        metrics.max_abs <= self.absolute + self.relative * metrics.magnitude
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> HostTensor {
        HostTensor::new([values.len()], values.to_vec()).unwrap()
    }

    /// By hand: differences 0, 1 and 1; root mean square sqrt(2/3); range 4.
    #[test]
    fn numbers_of_a_small_example() {
        let found = measure(&tensor(&[0.0, 2.0, 4.0]), &tensor(&[0.0, 1.0, 5.0])).unwrap();
        assert_eq!((found.max_abs, found.max_rel, found.magnitude), (1.0, 0.5, 4.0));
        assert!((found.cosine - 22.0 / (20f64.sqrt() * 26f64.sqrt())).abs() < 1e-12);
        assert!((found.psnr - 20.0 * (4.0 / (2.0f64 / 3.0).sqrt()).log10()).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_finite_is_equal_only_to_itself() {
        let strange = tensor(&[f32::NAN, f32::INFINITY, 1.0]);
        let same = measure(&strange, &strange).unwrap();
        assert_eq!((same.max_abs, same.cosine, same.psnr), (0.0, 1.0, f64::INFINITY));
        for other in [[0.0, f32::INFINITY, 1.0], [f32::NAN, f32::NEG_INFINITY, 1.0], [f32::NAN, 3.0, 1.0]] {
            let found = measure(&strange, &tensor(&other)).unwrap();
            assert_eq!(found.max_abs, f64::INFINITY);
            assert!(!Tolerance { absolute: 1e30, relative: 1.0 }.allows(&found));
        }
    }

    #[test]
    fn numbers_are_finite() {
        assert!(has_numbers(&tensor(&[f32::NAN, 0.0])) && has_numbers(&tensor(&[])));
        assert!(!has_numbers(&tensor(&[f32::NAN, f32::INFINITY])));
    }

    #[test]
    fn dimensions_must_be_the_same_and_types_need_not() {
        assert_eq!(measure(&tensor(&[1.0]), &tensor(&[1.0, 1.0])), None);
        let whole = HostTensor::new([2], vec![1i64, 2]).unwrap();
        assert_eq!(measure(&whole, &tensor(&[1.0, 2.0])).unwrap().max_abs, 0.0);
        assert_eq!(measure(&tensor(&[0.0]), &tensor(&[0.0])).unwrap().cosine, 1.0);
        assert_eq!(measure(&tensor(&[0.0]), &tensor(&[1.0])).unwrap().cosine, 0.0);
    }

    #[test]
    fn tolerances_scale_with_the_tensor() {
        let large = measure(&tensor(&[1000.0, 0.0]), &tensor(&[1000.0, 0.005])).unwrap();
        let small = measure(&tensor(&[1.0, 0.0]), &tensor(&[1.0, 0.005])).unwrap();
        assert!(
            Tolerance::of(DataType::FLOAT).allows(&large) && !Tolerance::of(DataType::FLOAT).allows(&small)
        );
        assert!(Tolerance::of(DataType::BFLOAT16).allows(&small));
        assert_eq!(Tolerance::of(DataType::INT64), Tolerance { absolute: 0.0, relative: 0.0 });
    }
}
