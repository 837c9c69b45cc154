//! Replacement of masked weights: by zero, or by a multiple of them.

use half::{bf16, f16};

use super::float_bits::Word;
use crate::analysis::magnitude::FloatType;

/// A closure over one tensor's pieces, as [`Transform::start`](crate::ir::Transform::start) returns it.
pub(super) type TransformRun = Box<dyn FnMut(&mut [u8]) -> u64 + Send>;

/// A mask, without what becomes of the masked weights.
pub(super) trait Mask {
    /// Returns a run over elements of type `W`, in which `replace` makes the bits of a masked weight from those it had.
    fn run<W: Word>(&self, replace: impl Fn(W) -> W + Send + 'static) -> TransformRun;
}

/// Returns a run of `mask` over a tensor of this type, in which masked weights are multiplied by `scale`.
pub(super) fn start(mask: &impl Mask, float: FloatType, scale: f32) -> TransformRun {
    match float {
        _ if scale == 0.0 && float.size() == 4 => mask.run(|_: u32| 0),
        _ if scale == 0.0 => mask.run(|_: u16| 0),
        FloatType::F32 => mask.run(move |bits| (f32::from_bits(bits) * scale).to_bits()),
        FloatType::F16 => {
            by_table(mask, move |bits| f16::from_f32(f16::from_bits(bits).to_f32() * scale).to_bits())
        }
        FloatType::Bf16 => {
            by_table(mask, move |bits| bf16::from_f32(bf16::from_bits(bits).to_f32() * scale).to_bits())
        }
    }
}

/// Conversions of 16-bit floats are slow, and there are few magnitudes: makes each once.
fn by_table(mask: &impl Mask, scaled: impl Fn(u16) -> u16) -> TransformRun {
    const SIGN: u16 = 1 << 15;
    let table: Vec<u16> = (0..SIGN).map(scaled).collect();
    mask.run(move |bits: u16| {
        let of_magnitude = table.get(usize::from(bits & !SIGN)).copied().unwrap_or_default();
        of_magnitude ^ (bits & SIGN)
    })
}
