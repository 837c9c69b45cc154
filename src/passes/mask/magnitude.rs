//! Masking the weights that are not above a threshold.

use super::{
    MaskError,
    float_bits::Word,
    replace::{self, Mask, TransformRun},
};
use crate::{
    analysis::magnitude::{FloatType, Magnitude, TieMask},
    ir::Transform,
    onnx::DataType,
};

/// The mask of the weights with `|w| <= t`; NaN stays. Weights that are 0 already count as masked.
#[derive(Clone, Debug, PartialEq)]
pub struct MagnitudeMask {
    float: FloatType,
    t: Magnitude,
    ties: TieMask,
    scale: f32,
}

impl MagnitudeMask {
    /// Returns the mask of elements of type `data_type` with the threshold `t`, which may be of another type:
    /// magnitudes are compared by value. Masked weights are multiplied by `scale`. `weight` names the weight in errors.
    ///
    /// # Errors
    /// [`MaskError::Type`].
    pub fn new(
        weight: &str,
        data_type: DataType,
        t: Magnitude,
        ties: TieMask,
        scale: f32,
    ) -> Result<Self, MaskError> {
        let float = FloatType::try_from(data_type)
            .map_err(|source| MaskError::Type { weight: weight.to_string(), source })?;
        Ok(Self { float, t, ties, scale })
    }
}

impl Transform for MagnitudeMask {
    fn granularity(&self) -> usize {
        self.float.size()
    }

    fn threshold(&self) -> Option<f32> {
        // An engine's comparison drops NaN where this mask keeps it; with a threshold of NaN nothing would be kept.
        let plain = self.ties == TieMask::All && self.scale == 0.0 && !self.t.is_nan();
        (plain && self.t.exact_bits(self.float).is_some()).then_some(self.t.value())
    }

    fn start(&self) -> TransformRun {
        replace::start(self, self.float, self.scale)
    }
}

impl Mask for MagnitudeMask {
    fn run<W: Word>(&self, replace: impl Fn(W) -> W + Send + 'static) -> TransformRun {
        let limit = W::truncate(self.t.floor_bits(self.float));
        let after_limit = W::truncate(self.t.floor_bits(self.float) + 1);
        // No element equals a threshold that the type doesn't have: all up to the limit are below it.
        let quota = match (self.ties, self.t.exact_bits(self.float)) {
            (TieMask::First(quota), Some(_)) => Some(quota),
            _ => None,
        };
        let Some(mut left) = quota else {
            return Box::new(move |piece| mask_below(piece, after_limit, &replace));
        };
        Box::new(move |piece| {
            let (with_ties, rest) = piece.split_at_mut(end_of_ties(piece, limit, &mut left));
            mask_below(with_ties, after_limit, &replace) + mask_below(rest, limit, &replace)
        })
    }
}

/// Masks the elements with magnitudes below `end` and counts them.
fn mask_below<W: Word>(piece: &mut [u8], end: W, replace: &impl Fn(W) -> W) -> u64 {
    let mut masked = 0;
    // Small counters let more elements be handled at once.
    for block in piece.chunks_mut(W::SIZE << 14) {
        let mut in_block = W::default();
        for element in block.chunks_exact_mut(W::SIZE) {
            let word = W::read(element);
            let drop = word.magnitude() < end;
            in_block = in_block.plus(drop);
            // Also computed for those that stay: a branch on something so random would be mispredicted.
            let replaced = replace(word);
            if drop { replaced } else { word }.write(element);
        }
        masked += in_block.count();
    }
    masked
}

/// Returns where the last of the first `left` elements with the magnitude `tie` ends, or the end of the piece; takes
/// those before it from `left`.
fn end_of_ties<W: Word>(piece: &[u8], tie: W, left: &mut u64) -> usize {
    if *left == 0 {
        return 0;
    }
    let is_tie = |element: &[u8]| W::read(element).magnitude() == tie;
    let here = piece.chunks_exact(W::SIZE).filter(|element| is_tie(element)).count() as u64;
    if here <= *left {
        *left -= here;
        return piece.len();
    }
    let last = piece.chunks_exact(W::SIZE).enumerate().filter(|(_, element)| is_tie(element));
    let end = last.skip(*left as usize - 1).map(|(index, _)| (index + 1) * W::SIZE).next();
    *left = 0;
    end.unwrap_or(piece.len())
}
