//! N:M patterns: of each M weights that lie next to each other along the inputs, the N largest stay.

use super::{
    MaskError,
    float_bits::Word,
    replace::{self, Mask, TransformRun},
};
use crate::{
    analysis::{
        magnitude::{FloatType, Magnitude},
        weights::{MatrixLayout, Weight},
    },
    ir::Transform,
};

/// How many groups are handled at once, so that the comparisons run in vector instructions.
const TILE: usize = 64;

/// A mask that keeps the `keep` weights of largest magnitude in each group of `of` inputs, and masks the others; of
/// equal ones the earlier input stays, and NaN counts as the largest. Groups run along the inputs of one output; in a
/// Conv2d along the input channels at one place of the kernel, as in NVIDIA's ASP (apex.contrib.sparsity).
#[derive(Clone, Debug, PartialEq)]
pub struct PatternMask {
    float: FloatType,
    keep: usize,
    of: usize,
    /// Distance between neighbouring inputs, in elements.
    stride: usize,
    scale: f32,
}

impl PatternMask {
    /// Returns the mask of `weight` with the pattern `keep:of` (2:4 is what sparse tensor cores run). Masked weights
    /// are multiplied by `scale`.
    ///
    /// # Errors
    /// [`MaskError`] if the type cannot be masked, `keep` is not in `1..of`, or the inputs are not a multiple of `of`.
    pub fn new(weight: &Weight, keep: usize, of: usize, scale: f32) -> Result<Self, MaskError> {
        let name = || weight.path.clone();
        let float = FloatType::try_from(weight.data_type)
            .map_err(|source| MaskError::Type { weight: name(), source })?;
        if keep == 0 || keep >= of || of > usize::from(u16::MAX) {
            return Err(MaskError::Pattern { keep, of });
        }
        let dims = || MaskError::Dims { weight: name(), dims: weight.dims.clone() };
        let (input, inner) = match (weight.layout, weight.dims.as_slice()) {
            (MatrixLayout::InputFirst, [input, output]) => (*input, std::slice::from_ref(output)),
            (MatrixLayout::OutputFirst, [_, input, kernel @ ..]) => (*input, kernel),
            _ => return Err(dims()),
        };
        if !usize::try_from(input).map_err(|_| dims())?.is_multiple_of(of) {
            return Err(MaskError::Groups { weight: name(), input, keep, of });
        }
        let stride = inner
            .iter()
            .try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?.max(1)))
            .filter(|stride| stride.checked_mul(of).and_then(|n| n.checked_mul(float.size())).is_some())
            .ok_or_else(dims)?;
        Ok(Self { float, keep, of, stride, scale })
    }
}

impl Transform for PatternMask {
    fn granularity(&self) -> usize {
        self.of * self.stride * self.float.size()
    }

    fn start(&self) -> TransformRun {
        replace::start(self, self.float, self.scale)
    }
}

impl Mask for PatternMask {
    fn run<W: Word>(&self, replace: impl Fn(W) -> W + Send + 'static) -> TransformRun {
        let &Self { keep, of, stride, .. } = self;
        let nan = W::truncate(Magnitude::of(f32::INFINITY).floor_bits(self.float) + 1);
        let mut magnitudes = vec![[W::default(); TILE]; of];
        Box::new(move |piece| {
            let groups = piece.len() / (of * stride * W::SIZE) * stride;
            let mut masked = 0;
            for tile in (0..groups).step_by(TILE) {
                let tile_groups = TILE.min(groups - tile);
                let starts: [usize; TILE] = std::array::from_fn(|i| {
                    let group = tile + i.min(tile_groups - 1);
                    (group / stride * stride * of + group % stride) * W::SIZE
                });
                for (input, magnitudes) in magnitudes.iter_mut().enumerate() {
                    for (magnitude, start) in magnitudes.iter_mut().zip(starts) {
                        *magnitude = W::read(&piece[start + input * stride * W::SIZE..]).magnitude().min(nan);
                    }
                }
                for input in 0..of {
                    let ranks = ranks(&magnitudes, input);
                    for (rank, start) in ranks.into_iter().zip(starts).take(tile_groups) {
                        if rank.count() >= keep as u64 {
                            let element = &mut piece[start + input * stride * W::SIZE..];
                            replace(W::read(element)).write(element);
                            masked += 1;
                        }
                    }
                }
            }
            masked
        })
    }
}

/// Counts, for each group of a tile, how many of its magnitudes come before that of `input`: the larger ones, and the
/// equal ones of earlier inputs.
fn ranks<W: Word>(magnitudes: &[[W; TILE]], input: usize) -> [W; TILE] {
    let mut ranks = [W::default(); TILE];
    let Some(own) = magnitudes.get(input) else { return ranks };
    for (other, magnitudes) in magnitudes.iter().enumerate() {
        for ((rank, own), magnitude) in ranks.iter_mut().zip(own).zip(magnitudes) {
            *rank = rank.plus(magnitude > own || (magnitude == own && other < input));
        }
    }
    ranks
}
