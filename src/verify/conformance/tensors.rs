//! Comparison of the elements of two tensors, read in pieces: weights are never mapped and never held.

use std::os::unix::fs::MetadataExt;

use super::{
    masks::{Expected, apply_operators},
    value::Tensor,
};
use crate::{
    ir::WeightReader,
    observer::Progress,
    onnx::{DataType, OnnxError},
};

const PIECE: u64 = 1 << 20;

/// The result of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Comparison {
    /// Both are the same range of the same file.
    Shared,
    /// All elements are as they must be.
    Equal,
    /// Some are not.
    Unequal(Unequal),
}

/// The first element that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unequal {
    /// Its index in the order of the file.
    pub element: u64,
    /// The expected element.
    pub expected: String,
    /// The element that is there.
    pub found: String,
    /// How many are wrong in all.
    pub count: u64,
}

/// Compares `compiled` with what `expected` makes of `original`, or with `original` itself. Type and dimensions are
/// the same already. `progress` is told how many bytes were read.
///
/// # Errors
/// [`OnnxError`] if the elements cannot be read.
pub(super) fn compare(
    original: &Tensor,
    compiled: &Tensor,
    expected: Option<Expected>,
    progress: Progress<'_>,
) -> Result<Comparison, OnnxError> {
    let as_it_is = expected.is_none() && original.mask == compiled.mask;
    if as_it_is && is_same_range(&original.elements, &compiled.elements)? {
        return Ok(Comparison::Shared);
    }
    let granularity = expected.map_or(8, |e| e.granularity()).max(1);
    let piece_len = (PIECE / granularity as u64).max(1).saturating_mul(granularity as u64);
    let len = original.elements.len();
    if compiled.elements.len() != len {
        let text = |tensor: &Tensor| format!("{} bytes", tensor.elements.len());
        let (expected, found) = (text(original), text(compiled));
        return Ok(Comparison::Unequal(Unequal { element: 0, expected, found, count: 1 }));
    }
    let mut run = expected.map(Expected::start);
    let mut want = vec![0; len.min(piece_len) as usize];
    let mut have = want.clone();
    let mut unequal: Option<Unequal> = None;
    let size = element_size(original.data_type);
    for at in (0..len).step_by(usize::try_from(piece_len).unwrap_or(usize::MAX)) {
        let want = &mut want[..(len - at).min(piece_len) as usize];
        let have = &mut have[..want.len()];
        original.elements.read_at(at, want)?;
        compiled.elements.read_at(at, have)?;
        progress.advance(2 * want.len() as u64)?;
        if !as_it_is {
            for (tensor, piece) in [(original, &mut *want), (compiled, &mut *have)] {
                if let Some(mask) = tensor.mask {
                    apply_operators(piece, mask);
                }
            }
        }
        if let Some(run) = &mut run {
            run.apply(want);
        }
        if want == have {
            continue;
        }
        for (index, (want, have)) in want.chunks(size).zip(have.chunks(size)).enumerate() {
            if want != have {
                let first = unequal.get_or_insert_with(|| Unequal {
                    element: at / size as u64 + index as u64,
                    expected: element_text(original.data_type, want),
                    found: element_text(original.data_type, have),
                    count: 0,
                });
                first.count += 1;
            }
        }
    }
    Ok(unequal.map_or(Comparison::Equal, Comparison::Unequal))
}

/// Returns whether both are the same bytes of the same file.
///
/// # Errors
/// [`OnnxError`] if the system does not tell.
pub(super) fn is_same_range(a: &WeightReader, b: &WeightReader) -> Result<bool, OnnxError> {
    let (
        WeightReader::File { file: a, offset: a_offset, len: a_len },
        WeightReader::File { file: b, offset: b_offset, len: b_len },
    ) = (a, b)
    else {
        return Ok(false);
    };
    if (a_offset, a_len) != (b_offset, b_len) {
        return Ok(false);
    }
    let identity = |file: &crate::onnx::DataFile| {
        let meta = file.file().metadata().map_err(|e| OnnxError::io("identify", &file.path, e))?;
        Ok::<_, OnnxError>((meta.dev(), meta.ino()))
    };
    Ok(identity(a)? == identity(b)?)
}

/// Returns the bytes of one element; 1 where several share a byte.
fn element_size(data_type: DataType) -> usize {
    (data_type.bits().unwrap_or(8) / 8).max(1) as usize
}

/// Returns an element for people: the shortest decimal that is exactly this float, or else its bytes.
fn element_text(data_type: DataType, bytes: &[u8]) -> String {
    match (data_type, bytes) {
        (DataType::FLOAT, [a, b, c, d]) => format!("{:?}", f32::from_le_bytes([*a, *b, *c, *d])),
        (DataType::FLOAT16, [a, b]) => format!("{:?}", half::f16::from_le_bytes([*a, *b])),
        (DataType::BFLOAT16, [a, b]) => format!("{:?}", half::bf16::from_le_bytes([*a, *b])),
        (DataType::INT32, [a, b, c, d]) => i32::from_le_bytes([*a, *b, *c, *d]).to_string(),
        (DataType::INT64, bytes) => match bytes.first_chunk() {
            Some(bytes) => i64::from_le_bytes(*bytes).to_string(),
            None => format!("{bytes:02x?}"),
        },
        (DataType::DOUBLE, bytes) => match bytes.first_chunk() {
            Some(bytes) => format!("{:?}", f64::from_le_bytes(*bytes)),
            None => format!("{bytes:02x?}"),
        },
        _ => format!("{bytes:02x?}"),
    }
}
