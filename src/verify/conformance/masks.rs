//! Masks that the plan asks for, by definition: thresholds selected again, and the elements that masked tensors must
//! have.

use std::ops::Range;

use half::{bf16, f16};
use rustc_hash::FxHashMap;

use super::{
    select::{self, Float, INFINITY, Member},
    value::OperatorMask,
};
use crate::{
    analysis::weights::{MatrixLayout, Weight},
    ir::{Graph, NodeId, WeightReader},
    observer::Progress,
    onnx::OnnxError,
    rules::{Mask, Pool, Ties, WeightEdit},
};

/// Operands of the original that are masked weights, each with the index of its mask.
pub(super) type MaskedOperands = FxHashMap<(NodeId, usize), usize>;

/// Returns the masked operands of the original, each with the index of its mask in the list that comes with them: the
/// index of the edit and that of the weight in it. Pools of which a ratio masks not one element are left out.
pub(super) fn masked_operands<'a>(
    edits: impl Iterator<Item = &'a WeightEdit>,
) -> (MaskedOperands, Vec<(usize, usize)>) {
    let mut operands = FxHashMap::default();
    let mut masks = Vec::new();
    for (index, edit) in edits.enumerate() {
        for pool in pools(edit) {
            let weights = edit.weights.get(pool.clone()).unwrap_or_default();
            let masks_any = match edit.mask {
                Mask::Ratio { ratio, .. } => {
                    rank(weights.iter().map(Weight::elements).sum(), ratio.value.get()) > 0
                }
                _ => true,
            };
            for (weight_index, weight) in pool.zip(weights) {
                if masks_any {
                    operands.extend(weight.uses.iter().map(|used| (*used, masks.len())));
                }
                masks.push((index, weight_index));
            }
        }
    }
    (operands, masks)
}

/// The elements that a masked tensor must hold, given the original's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Expected {
    masked: Masked,
    /// Bits of the float32 that masked elements are multiplied by.
    scale: u32,
    float: Float,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Masked {
    /// Magnitudes up to `t`; of those equal to it only the first `ties`, if that says how many.
    UpTo { t: u32, ties: Option<u64> },
    /// All but the `keep` largest of each `of` elements that lie `stride` apart.
    Pattern { keep: usize, of: usize, stride: usize },
}

/// Returns the weights of a rule whose masks depend on each other, as ranges of them.
pub(super) fn pools(prune: &WeightEdit) -> Vec<Range<usize>> {
    let all = 0..prune.weights.len();
    match prune.mask {
        Mask::Ratio { pool: Pool::Group, .. } => vec![all],
        _ => all.map(|weight| weight..weight + 1).collect(),
    }
}

/// Returns the number that masked elements of a rule's weights are multiplied by. `factor` makes it from the rule's
/// scale.
pub(super) fn scale(prune: &WeightEdit, factor: &dyn Fn(f64) -> f64) -> f32 {
    factor(prune.scale) as f32
}

/// Returns how many elements of a pool of `n` a ratio masks, at least.
pub(super) fn rank(n: u64, ratio: f64) -> u64 {
    (n as f64 * ratio).floor() as u64
}

/// Returns how the elements of a weight lie.
///
/// # Errors
/// [`OnnxError`] if they are no floats.
pub(super) fn float_of(weight: &Weight) -> Result<Float, OnnxError> {
    let fail = || OnnxError::invalid(format!("the weight of `{}`", weight.path), "it is not a float");
    Float::of(weight.data_type).ok_or_else(fail)
}

/// Returns the original elements of a weight.
///
/// # Errors
/// [`OnnxError`] if they cannot be read.
pub(super) fn elements_of(graph: &Graph, weight: &Weight) -> Result<WeightReader, OnnxError> {
    let missing = || OnnxError::invalid(format!("the weight of `{}`", weight.path), "it is gone");
    graph.weight_reader(&graph.initializer(weight.initializer).ok_or_else(missing)?.header)
}

/// Returns the masks of a pool of a rule's weights, in their order; `None` for a weight that stays as it is.
/// `elements_of` gives the elements that are masked.
///
/// # Errors
/// [`OnnxError`] if the weights cannot be read.
pub(super) fn expected(
    prune: &WeightEdit,
    pool: Range<usize>,
    factor: &dyn Fn(f64) -> f64,
    elements_of: impl Fn(&Weight) -> Result<WeightReader, OnnxError>,
    progress: Progress<'_>,
) -> Result<Vec<Option<Expected>>, OnnxError> {
    let scale = scale(prune, factor).to_bits();
    let weights = prune.weights.get(pool).unwrap_or_default();
    let masked: Vec<Option<Masked>> = match prune.mask {
        Mask::Threshold { threshold } => weights
            .iter()
            .map(|weight| {
                let t = given(threshold.value, float_of(weight)?);
                Ok(Some(Masked::UpTo { t, ties: None }))
            })
            .collect::<Result<_, OnnxError>>()?,
        Mask::Pattern { pattern } => {
            let (keep, of) = (pattern.value.keep().into(), pattern.value.of().into());
            let masked = |weight| Some(Masked::Pattern { keep, of, stride: input_stride(weight) });
            weights.iter().map(masked).collect()
        }
        Mask::Ratio { ratio, ties, .. } => {
            let members = weights
                .iter()
                .map(|weight| Ok(Member { elements: elements_of(weight)?, float: float_of(weight)? }))
                .collect::<Result<Vec<_>, OnnxError>>()?;
            ratio_masks(&members, ratio.value.get(), ties, progress)?
        }
    };
    let all = masked.into_iter().zip(weights).map(|(masked, weight)| {
        let float = float_of(weight)?;
        Ok(masked.map(|masked| Expected { masked, scale, float }))
    });
    all.collect()
}

fn ratio_masks(
    members: &[Member],
    ratio: f64,
    ties: Ties,
    progress: Progress<'_>,
) -> Result<Vec<Option<Masked>>, OnnxError> {
    let n: u64 = members.iter().map(|m| m.elements.len() / m.float.size() as u64).sum();
    let k = rank(n, ratio);
    let nothing = || vec![None; members.len()];
    if k == 0 {
        return Ok(nothing());
    }
    let Some(selected) = select::select(members, k, progress)? else { return Ok(nothing()) };
    let mut left = k - selected.below;
    members
        .iter()
        .map(|member| {
            let ties = match ties {
                Ties::All => None,
                Ties::Exact if left == 0 => Some(0),
                Ties::Exact => {
                    let here = select::count_equal(member, selected.t, progress)?.min(left);
                    left -= here;
                    Some(here)
                }
            };
            Ok(Some(Masked::UpTo { t: selected.t, ties }))
        })
        .collect()
}

/// Returns a threshold that a plan states, rounded to the weight's type as torch rounds a number that it compares with.
fn given(threshold: f64, float: Float) -> u32 {
    let single = threshold as f32;
    select::magnitude(match float {
        Float::F32 => single,
        Float::F16 => f16::from_f32(single).to_f32(),
        Float::Bf16 => bf16::from_f32(single).to_f32(),
    })
}

/// Returns how far apart, in elements, the weights of neighbouring inputs lie.
fn input_stride(weight: &Weight) -> usize {
    let inner = match weight.layout {
        MatrixLayout::InputFirst => weight.dims.get(1..),
        MatrixLayout::OutputFirst => weight.dims.get(2..),
    };
    let elements: u64 = inner.unwrap_or_default().iter().map(|d| d.unsigned_abs()).product();
    usize::try_from(elements.max(1)).unwrap_or(usize::MAX)
}

impl Expected {
    /// Returns how many bytes must be seen together.
    pub fn granularity(&self) -> usize {
        let elements = match self.masked {
            Masked::UpTo { .. } => 1,
            Masked::Pattern { of, stride, .. } => of.saturating_mul(stride),
        };
        elements.saturating_mul(self.float.size())
    }

    /// Returns the threshold, where there is one for all elements.
    pub fn threshold(&self) -> Option<f32> {
        match self.masked {
            Masked::UpTo { t, .. } => Some(f32::from_bits(t)),
            Masked::Pattern { .. } => None,
        }
    }

    /// Returns something that makes the expected elements from the original's, piece after piece.
    pub fn start(self) -> TransformRun {
        let ties = match self.masked {
            Masked::UpTo { ties, .. } => ties,
            Masked::Pattern { .. } => None,
        };
        TransformRun { expected: self, ties }
    }
}

/// One run of [`Expected`] over a tensor.
#[derive(Debug)]
pub(super) struct TransformRun {
    expected: Expected,
    ties: Option<u64>,
}

impl TransformRun {
    /// Makes the next piece, of a whole multiple of the granularity, what it must be.
    pub fn apply(&mut self, piece: &mut [u8]) {
        let Expected { masked, scale, float } = self.expected;
        let scale = f32::from_bits(scale);
        match (masked, float) {
            (Masked::UpTo { t, .. }, Float::F32) if self.ties.is_none() => {
                let limit = t.min(INFINITY);
                for element in piece.chunks_exact_mut(4) {
                    let bits = u32::from_le_bytes([element[0], element[1], element[2], element[3]]);
                    if bits & (u32::MAX >> 1) <= limit {
                        replace(element, float, scale);
                    }
                }
            }
            (Masked::UpTo { t, .. }, Float::F16 | Float::Bf16) if self.ties.is_none() => {
                let limit = last_up_to(t.min(INFINITY), float);
                for element in piece.chunks_exact_mut(2) {
                    if u16::from_le_bytes([element[0], element[1]]) & 0x7FFF <= limit {
                        replace(element, float, scale);
                    }
                }
            }
            (Masked::UpTo { t, .. }, _) => {
                for element in piece.chunks_exact_mut(float.size()) {
                    let magnitude = magnitude(element, float);
                    let is_tie = magnitude == t && magnitude <= INFINITY;
                    let masked = match self.ties {
                        Some(left) if is_tie => {
                            self.ties = Some(left.saturating_sub(1));
                            left > 0
                        }
                        _ => magnitude < t && magnitude <= INFINITY,
                    };
                    if masked {
                        replace(element, float, scale);
                    }
                }
            }
            (Masked::Pattern { keep, of, stride }, _) => pattern(piece, float, scale, (keep, of, stride)),
        }
    }
}

fn pattern(piece: &mut [u8], float: Float, scale: f32, (keep, of, stride): (usize, usize, usize)) {
    let size = float.size();
    let mut magnitudes = vec![0; of];
    for block in piece.chunks_exact_mut(of * stride * size) {
        for offset in 0..stride {
            let at = |input: usize| (input * stride + offset) * size;
            for (input, magnitude_of) in magnitudes.iter_mut().enumerate() {
                *magnitude_of = magnitude(&block[at(input)..at(input) + size], float);
            }
            for input in 0..of {
                let own = magnitudes[input];
                let before =
                    |other: &usize| magnitudes[*other] > own || magnitudes[*other] == own && *other < input;
                if (0..of).filter(before).count() >= keep {
                    replace(&mut block[at(input)..at(input) + size], float, scale);
                }
            }
        }
    }
}

/// Applies a mask made by operators.
pub(super) fn apply_operators(piece: &mut [u8], OperatorMask { t, keeps_nan, float }: OperatorMask) {
    for element in piece.chunks_exact_mut(float.size()) {
        let value = f32::from_bits(magnitude(element, float));
        if value <= t || value.is_nan() && !keeps_nan {
            element.fill(0);
        }
    }
}

/// Returns the largest pattern of a 16-bit magnitude that is no larger than the finite or infinite magnitude `t`.
pub(super) fn last_up_to(t: u32, float: Float) -> u16 {
    let (mut low, mut high) = (0u16, 0x7FFF);
    while low < high {
        let middle = high - (high - low) / 2;
        if select::magnitude(float.widen(middle)) <= t { low = middle } else { high = middle - 1 }
    }
    low
}

fn magnitude(element: &[u8], float: Float) -> u32 {
    match *element {
        [a, b, c, d] => select::magnitude(f32::from_le_bytes([a, b, c, d])),
        [a, b] => select::magnitude(float.widen(u16::from_le_bytes([a, b]))),
        _ => INFINITY,
    }
}

/// Makes `w * scale` in float32, rounded to the nearest even of the weight's type; +0 for a scale of 0.
fn replace(element: &mut [u8], float: Float, scale: f32) {
    if scale == 0.0 {
        element.fill(0);
        return;
    }
    match *element {
        [a, b, c, d] => {
            element.copy_from_slice(&(f32::from_le_bytes([a, b, c, d]) * scale).to_le_bytes());
        }
        [a, b] => {
            let bits = replacement(u16::from_le_bytes([a, b]), float, scale);
            element.copy_from_slice(&bits.to_le_bytes());
        }
        _ => {}
    }
}

/// Returns the pattern of a masked element of a 16-bit type.
pub(super) fn replacement(bits: u16, float: Float, scale: f32) -> u16 {
    let scaled = float.widen(bits) * scale;
    match float {
        Float::F16 => f16::from_f32(scaled).to_bits(),
        Float::F32 | Float::Bf16 => bf16::from_f32(scaled).to_bits(),
    }
}
