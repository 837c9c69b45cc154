//! The k-th smallest magnitude of a pool by radix selection on bit patterns, written apart from
//! [`crate::analysis::magnitude`] so that a defect there cannot hide itself.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::{
    ir::WeightReader,
    observer::Progress,
    onnx::{DataType, OnnxError},
};

/// Bits of infinity; larger magnitudes are NaN.
pub(super) const INFINITY: u32 = 0x7F80_0000;
/// The magnitude that all NaN count as.
const NAN: u32 = INFINITY + 1;
/// Lower bits of a float32 magnitude, which the second round looks at.
const LOW: u32 = 15;
const PIECE: u64 = 2 << 20;

/// How floats lie in a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    /// Returns the float type; `None` for a type that is no weight's.
    pub fn of(data_type: DataType) -> Option<Self> {
        match data_type {
            DataType::FLOAT => Some(Self::F32),
            DataType::FLOAT16 => Some(Self::F16),
            DataType::BFLOAT16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Returns the bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Returns the float32 with the value of a 16-bit pattern.
    pub fn widen(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(bits).to_f32(),
            Self::F32 | Self::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }
}

/// Bits of the magnitude of `value`, which are in the order of the values.
pub(super) fn magnitude(value: f32) -> u32 {
    (value.to_bits() & (u32::MAX >> 1)).min(NAN)
}

/// A tensor of a pool.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub elements: WeightReader,
    pub float: Float,
}

/// The k-th smallest magnitude, and how many are smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Selected {
    pub t: u32,
    pub below: u64,
}

/// Selects the `k`-th smallest magnitude, counted from 1, of all elements of `pool`; `None` if there are fewer.
/// `progress` is told how many bytes were read.
///
/// # Errors
/// [`OnnxError`] if the elements cannot be read.
pub(super) fn select(pool: &[Member], k: u64, progress: Progress<'_>) -> Result<Option<Selected>, OnnxError> {
    let (singles, halves): (Vec<_>, Vec<_>) = pool.iter().partition(|m| m.float == Float::F32);
    // There are few 16-bit patterns: each is counted, and stands for its float32.
    let mut few: Vec<(u32, u64)> = Vec::new();
    for float in [Float::F16, Float::Bf16] {
        let members: Vec<&Member> = halves.iter().copied().filter(|m| m.float == float).collect();
        if members.is_empty() {
            continue;
        }
        let counts = count(&members, 1 << 15, progress, &|piece, counts| {
            for bytes in piece.chunks_exact(2) {
                let bits = u16::from_le_bytes([bytes[0], bytes[1]]) & 0x7FFF;
                counts[usize::from(bits)] += 1;
            }
        })?;
        few.extend((0u16..).zip(counts).map(|(bits, n)| (magnitude(float.widen(bits)), n)));
    }
    let mut high = count(&singles, 1 << (32 - LOW), progress, &|piece, counts| {
        for bytes in piece.chunks_exact(4) {
            counts[(single(bytes) >> LOW) as usize] += 1;
        }
    })?;
    for (magnitude, n) in &few {
        high[(magnitude >> LOW) as usize] += n;
    }
    let Some((bucket, before)) = place(&high, k) else { return Ok(None) };
    let bucket = bucket as u32;
    let mut low = count(&singles, 1 << LOW, progress, &|piece, counts| {
        for bytes in piece.chunks_exact(4) {
            let magnitude = single(bytes);
            if magnitude >> LOW == bucket {
                counts[(magnitude & ((1 << LOW) - 1)) as usize] += 1;
            }
        }
    })?;
    for (magnitude, n) in few.iter().filter(|(magnitude, _)| magnitude >> LOW == bucket) {
        low[(magnitude & ((1 << LOW) - 1)) as usize] += n;
    }
    Ok(place(&low, k - before)
        .map(|(index, more)| Selected { t: bucket << LOW | index as u32, below: before + more }))
}

/// Returns how many elements of `member` have exactly the magnitude `t`.
///
/// # Errors
/// [`OnnxError`] if they cannot be read.
pub(super) fn count_equal(member: &Member, t: u32, progress: Progress<'_>) -> Result<u64, OnnxError> {
    let float = member.float;
    let counts = count(&[member], 1, progress, &|piece, counts| {
        let equal = |bytes: &[u8]| match float {
            Float::F32 => single(bytes) == t,
            _ => magnitude(float.widen(u16::from_le_bytes([bytes[0], bytes[1]]))) == t,
        };
        counts[0] += piece.chunks_exact(float.size()).filter(|bytes| equal(bytes)).count() as u64;
    })?;
    Ok(counts[0])
}

fn single(bytes: &[u8]) -> u32 {
    magnitude(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Returns the place in `counts` where the `k`-th lies, and how many are before that place.
fn place(counts: &[u64], k: u64) -> Option<(usize, u64)> {
    let mut before = 0;
    for (index, n) in counts.iter().enumerate() {
        if before + n >= k {
            return Some((index, before));
        }
        before += n;
    }
    None
}

/// Runs `tally` over all elements of `members` on all threads and adds up what it counted in `len` counters.
fn count(
    members: &[&Member],
    len: usize,
    progress: Progress<'_>,
    tally: &(dyn Fn(&[u8], &mut [u64]) + Sync),
) -> Result<Vec<u64>, OnnxError> {
    let pieces: Vec<(&Member, u64)> = members
        .iter()
        .flat_map(|m| (0..m.elements.len()).step_by(PIECE as usize).map(move |at| (*m, at)))
        .collect();
    let share = pieces.len().div_ceil(rayon::current_num_threads()).max(1);
    pieces
        .par_chunks(share)
        .map(|pieces| {
            let mut counts = vec![0u64; len];
            let mut buffer = vec![0; PIECE as usize];
            for (member, at) in pieces {
                let piece = &mut buffer[..(member.elements.len() - at).min(PIECE) as usize];
                member.elements.read_at(*at, piece)?;
                progress.advance(piece.len() as u64)?;
                tally(piece, &mut counts);
            }
            Ok(counts)
        })
        .try_reduce(
            || vec![0; len],
            |mut a, b| {
                for (a, b) in a.iter_mut().zip(b) {
                    *a += b;
                }
                Ok(a)
            },
        )
}
