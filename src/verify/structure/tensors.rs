//! How far two tensors differ, element by element, a piece at a time.

use half::{bf16, f16};
use serde::Serialize;

use crate::{
    ir::WeightReader,
    observer::Progress,
    onnx::{DataType, OnnxError},
    verify::constant::PIECE,
};

/// How two tensors of one type and shape differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TensorDifference {
    /// Number of elements.
    pub elements: u64,
    /// How many of them differ in any bit.
    pub differing: u64,
    /// Largest absolute difference; infinite where one is not a number. `None` for types that are no numbers here
    /// (float8, complex, less than a byte).
    pub max_abs: Option<f64>,
    /// Mean absolute difference over all elements.
    pub mean_abs: Option<f64>,
}

/// Compares the `elements` elements of two tensors of type `data_type`. `progress` is told how many bytes were read.
///
/// # Errors
/// [`OnnxError`] if they cannot be read.
pub fn difference(
    data_type: DataType,
    elements: u64,
    a: &WeightReader,
    b: &WeightReader,
    progress: Progress<'_>,
) -> Result<TensorDifference, OnnxError> {
    let bits = data_type.bits().unwrap_or(8);
    let number = number(data_type);
    let mut found = TensorDifference { elements, ..TensorDifference::default() };
    let (mut max, mut sum) = (0f64, 0f64);
    let len = a.len().min(b.len());
    let mut buffers = [vec![0; len.min(PIECE as u64) as usize], vec![0; len.min(PIECE as u64) as usize]];
    for at in (0..len).step_by(PIECE) {
        let piece = (len - at).min(PIECE as u64) as usize;
        let [x, y] = &mut buffers;
        let (x, y) = (&mut x[..piece], &mut y[..piece]);
        a.read_at(at, x)?;
        b.read_at(at, y)?;
        progress.advance(2 * piece as u64)?;
        if x == y {
            continue;
        }
        if bits < 8 {
            found.differing += x.iter().zip(y.iter()).map(|(x, y)| differing_parts(x ^ y, bits)).sum::<u64>();
            continue;
        }
        let size = (bits / 8) as usize;
        for (x, y) in x.chunks_exact(size).zip(y.chunks_exact(size)).filter(|(x, y)| x != y) {
            found.differing += 1;
            if let Some(number) = number {
                let difference = (number(x) - number(y)).abs();
                let difference = if difference.is_nan() { f64::INFINITY } else { difference };
                max = max.max(difference);
                sum += difference;
            }
        }
    }
    if number.is_some() {
        found.max_abs = Some(max);
        found.mean_abs = Some(if elements == 0 { 0.0 } else { sum / elements as f64 });
    }
    Ok(found)
}

/// Returns how many elements of `bits` bits in a byte are not zero.
fn differing_parts(byte: u8, bits: u64) -> u64 {
    let mask = (1u8 << bits) - 1;
    (0..8).step_by(bits as usize).filter(|shift| (byte >> shift) & mask != 0).count() as u64
}

/// Returns the first elements of a small tensor as text: `[1, 2, 3]`; `None` if it has more than eight.
pub fn elements_text(data_type: DataType, reader: &WeightReader) -> Option<String> {
    let number = number(data_type)?;
    let size = (data_type.bits()? / 8) as usize;
    let mut bytes = vec![0; usize::try_from(reader.len()).ok().filter(|len| *len <= 8 * size)?];
    reader.read_at(0, &mut bytes).ok()?;
    let numbers: Vec<String> = bytes.chunks_exact(size).map(|x| number(x).to_string()).collect();
    Some(match numbers.as_slice() {
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    })
}

/// Reads one element of this type from its little-endian bytes.
fn number(data_type: DataType) -> Option<fn(&[u8]) -> f64> {
    fn word(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
    }
    Some(match data_type {
        DataType::FLOAT => |x| f32::from_bits(word(x) as u32).into(),
        DataType::DOUBLE => |x| f64::from_bits(word(x)),
        DataType::FLOAT16 => |x| f16::from_bits(word(x) as u16).into(),
        DataType::BFLOAT16 => |x| bf16::from_bits(word(x) as u16).into(),
        // Unsigned integers and booleans.
        DataType(2 | 4 | 9 | 12 | 13) => |x| word(x) as f64,
        DataType(3) => |x| f64::from(word(x) as i8),
        DataType(5) => |x| f64::from(word(x) as i16),
        DataType::INT32 => |x| f64::from(word(x) as i32),
        DataType::INT64 => |x| word(x) as i64 as f64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn memory(values: &[f32]) -> WeightReader {
        WeightReader::Memory(values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into())
    }

    #[test]
    fn counts_and_sizes_of_differences() {
        let (a, b) = (memory(&[1.0, 2.0, -3.0, 4.0]), memory(&[1.0, 0.0, -3.0, 4.5]));
        let found = difference(DataType::FLOAT, 4, &a, &b, Progress::none()).unwrap();
        let expected =
            TensorDifference { elements: 4, differing: 2, max_abs: Some(2.0), mean_abs: Some(0.625) };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_difference_behind_the_first_piece_is_seen() {
        let mut values = vec![0.5f32; PIECE / 4 + 3];
        let a = memory(&values);
        values[PIECE / 4 + 1] = 0.75;
        let found =
            difference(DataType::FLOAT, values.len() as u64, &a, &memory(&values), Progress::none()).unwrap();
        assert_eq!((found.differing, found.max_abs), (1, Some(0.25)));
    }

    #[test]
    fn what_is_not_a_number_is_infinitely_far_away() {
        let found =
            difference(DataType::FLOAT, 1, &memory(&[f32::NAN]), &memory(&[0.0]), Progress::none()).unwrap();
        assert_eq!((found.differing, found.max_abs), (1, Some(f64::INFINITY)));
    }

    #[test]
    fn elements_of_four_bits_are_counted() {
        let (a, b) = (Bytes::from_static(&[0x12, 0x34]), Bytes::from_static(&[0x13, 0x43]));
        let (a, b) = (WeightReader::Memory(a), WeightReader::Memory(b));
        let found = difference(DataType(22), 4, &a, &b, Progress::none()).unwrap();
        assert_eq!((found.differing, found.max_abs), (3, None));
    }

    #[test]
    fn small_tensors_as_text() {
        assert_eq!(elements_text(DataType::FLOAT, &memory(&[0.5])).as_deref(), Some("0.5"));
        assert_eq!(elements_text(DataType::FLOAT, &memory(&[1.0, -2.0])).as_deref(), Some("[1, -2]"));
        assert_eq!(elements_text(DataType::FLOAT, &memory(&[0.0; 9])), None);
    }
}
