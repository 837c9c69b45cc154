//! Whether a pool is masked as its ratio asks for, decided in one pass over its elements, original and new.
//!
//! A search for the threshold, the k-th smallest magnitude, would have to read the pool before the comparison does.
//! But a compiled graph claims where its threshold lies: from the largest magnitude that it masks up to the smallest
//! that it keeps. Each element must be as it was or what masking makes of it; if then every masked magnitude is below
//! every kept one, the masks are right if the k-th smallest lies there: if fewer than k elements are below the
//! largest masked one, and at least k are below the smallest kept one.
//!
//! This answers yes or don't know, never no: [`super::select`] and an element-wise comparison decide the rest (ties of
//! which some are masked, NaN, a scale that leaves large elements as they were) and say what is wrong.

#[cfg(test)]
mod tests;

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::{
    masks,
    select::{self, Float, INFINITY},
};
use crate::{ir::WeightReader, observer::Progress, onnx::OnnxError, plan::Ties};

/// A weight of a pool.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub original: WeightReader,
    pub float: Float,
    pub form: Form,
}

/// The form that a weight has in the compiled graph.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// New elements.
    Stored(WeightReader),
    /// Operators set elements up to `t` to 0: those of the original (`None`), or a copy of them.
    Computed { t: f32, copy: Option<WeightReader> },
    /// It was in a module that is bypassed, but counts.
    Gone,
}

/// Weights that are ranked together.
#[derive(Clone, Debug)]
pub(super) struct PoolCheck {
    pub members: Vec<Member>,
    /// How many elements are masked, at least.
    pub k: u64,
    pub ties: Ties,
    /// The factor on masked elements.
    pub scale: f32,
}

/// Bytes that one thread looks at before it takes up something else.
const SECTION: u64 = 4 << 20;
/// Bytes read at once: two such buffers stay in a usual second-level cache.
const PIECE: usize = 256 << 10;
/// Elements looked at once. Their number fits into an element of 16 bits.
const BLOCK: usize = 4096;

/// Returns for each pool whether it is certainly masked as it must be. `progress` is told how many bytes were read.
///
/// # Errors
/// [`OnnxError`] if elements cannot be read.
pub(super) fn proven(pools: &[PoolCheck], progress: Progress<'_>) -> Result<Vec<bool>, OnnxError> {
    let tables = Tables::of(pools);
    let mut seen = vec![Seen::default(); pools.len()];
    let there = |member: &Member, pool: &PoolCheck, _: Seen| match member.form {
        Form::Gone => None,
        _ => Some(Judge::of(member, pool.scale, &tables)),
    };
    look(pools, &mut seen, progress, there)?;
    // A weight that is gone has no mask of its own: it is counted by the claims of the others.
    let gone = |member: &Member, _: &PoolCheck, seen: Seen| match member.form {
        Form::Gone => seen.limits().map(|(largest, least_kept)| Judge::Between(largest, least_kept)),
        _ => None,
    };
    look(pools, &mut seen, progress, gone)?;
    Ok(pools.iter().zip(seen).map(|(pool, seen)| seen.is_right(pool)).collect())
}

/// Counts and limits over some elements of a pool. Magnitudes are bits of float32.
#[derive(Clone, Copy, Debug)]
struct Seen {
    masked: u64,
    /// The largest masked magnitude, and how many masked elements have it.
    largest: u32,
    at_largest: u64,
    /// The smallest magnitude that is kept.
    least_kept: u32,
    /// Whether some element is neither kept nor masked.
    wrong: bool,
}

impl Default for Seen {
    fn default() -> Self {
        Self { masked: 0, largest: 0, at_largest: 0, least_kept: u32::MAX, wrong: false }
    }
}

impl Seen {
    fn add(&mut self, other: Self) {
        if other.largest > self.largest {
            (self.largest, self.at_largest) = (other.largest, 0);
        }
        if other.largest == self.largest {
            self.at_largest += other.at_largest;
        }
        self.masked += other.masked;
        self.least_kept = self.least_kept.min(other.least_kept);
        self.wrong |= other.wrong;
    }

    /// Returns the limits of elements that are only counted: `count` says how many are up to a magnitude.
    fn between(largest: u32, least_kept: u32, count: impl Fn(Option<u32>) -> u64) -> Self {
        let masked = count(Some((least_kept.saturating_sub(1)).min(INFINITY)));
        let at_largest = masked - count(largest.checked_sub(1));
        Self { masked, largest, at_largest, ..Self::default() }
    }

    /// Returns the largest masked magnitude and the smallest kept one, if they are a limit between masked and kept
    /// elements.
    fn limits(&self) -> Option<(u32, u32)> {
        let are_limits =
            !self.wrong && self.masked > 0 && self.largest <= INFINITY && self.largest < self.least_kept;
        are_limits.then_some((self.largest, self.least_kept))
    }

    /// Returns whether the k-th smallest magnitude lies between the limits, and no tie is masked that must not be.
    fn is_right(&self, pool: &PoolCheck) -> bool {
        let below_largest = self.masked.saturating_sub(self.at_largest);
        let is_kth = below_largest < pool.k && pool.k <= self.masked;
        self.limits().is_some() && is_kth && (pool.ties == Ties::All || self.masked == pool.k)
    }
}

/// Counts the elements of each pool into `seen`, of those members for which `judge` has a judge.
fn look<'a>(
    pools: &'a [PoolCheck],
    seen: &mut [Seen],
    progress: Progress<'_>,
    judge: impl Fn(&'a Member, &'a PoolCheck, Seen) -> Option<Judge<'a>>,
) -> Result<(), OnnxError> {
    let mut sections = Vec::new();
    for (index, (pool, seen)) in pools.iter().zip(&*seen).enumerate() {
        for member in &pool.members {
            let Some(judge) = judge(member, pool, *seen) else { continue };
            let len = member.original.len();
            let starts = (0..len).step_by(SECTION as usize);
            sections.extend(starts.map(|at| (index, member, judge, at..(at + SECTION).min(len))));
        }
    }
    let buffers = || (vec![0; PIECE], vec![0; PIECE]);
    let found: Vec<(usize, Seen)> = sections
        .into_par_iter()
        .map_init(buffers, |(before, after), (pool, member, judge, range)| {
            let new = match &member.form {
                Form::Stored(elements) | Form::Computed { copy: Some(elements), .. } => Some(elements),
                Form::Computed { copy: None, .. } | Form::Gone => None,
            };
            let mut seen = Seen::default();
            for at in range.clone().step_by(PIECE) {
                let len = (range.end - at).min(PIECE as u64) as usize;
                member.original.read_at(at, &mut before[..len])?;
                progress.advance(len as u64)?;
                let after = match new {
                    Some(new) => {
                        new.read_at(at, &mut after[..len])?;
                        progress.advance(len as u64)?;
                        &after[..len]
                    }
                    None => &before[..len],
                };
                seen.add(judge.piece(&before[..len], after, member.float));
            }
            Ok((pool, seen))
        })
        .collect::<Result<_, OnnxError>>()?;
    for (pool, more) in found {
        seen[pool].add(more);
    }
    Ok(())
}

/// The masked bits of each pattern of a 16-bit type, by the type and the bits of the scale.
struct Tables(FxHashMap<(Float, u32), Vec<u16>>);

impl Tables {
    fn of(pools: &[PoolCheck]) -> Self {
        let mut tables = FxHashMap::default();
        for pool in pools.iter().filter(|pool| pool.scale != 0.0) {
            let stored = pool.members.iter().filter(|member| matches!(member.form, Form::Stored(_)));
            for float in stored.map(|member| member.float).filter(|float| *float != Float::F32) {
                tables.entry((float, pool.scale.to_bits())).or_insert_with(|| {
                    (0..=u16::MAX).map(|bits| masks::replacement(bits, float, pool.scale)).collect()
                });
            }
        }
        Self(tables)
    }
}

/// How masked elements are told from kept ones, which are the original's.
#[derive(Clone, Copy, Debug)]
enum Judge<'a> {
    /// They are +0.
    Zeroed,
    /// They are the original's times this.
    Scaled(f32),
    /// They are what this table has for the original's pattern.
    Mapped(&'a [u16]),
    /// They are those that are not above this magnitude, NaN among them.
    NotAbove(u32),
    /// They are those below the second magnitude; those from the first on count as the largest.
    Between(u32, u32),
}

impl<'a> Judge<'a> {
    fn of(member: &Member, scale: f32, tables: &'a Tables) -> Self {
        match member.form {
            Form::Computed { t, .. } => Self::NotAbove(select::magnitude(t)),
            _ if scale == 0.0 => Self::Zeroed,
            _ => match tables.0.get(&(member.float, scale.to_bits())) {
                Some(table) => Self::Mapped(table),
                None => Self::Scaled(scale),
            },
        }
    }

    fn piece(self, before: &[u8], after: &[u8], float: Float) -> Seen {
        if float == Float::F32 {
            return self.singles(before, after);
        }
        let widen = |bits| select::magnitude(float.widen(bits));
        let limit = |t| masks::last_up_to(t, float);
        match self {
            Self::Zeroed => halves(before, after, |_, new| new == 0, widen),
            Self::Mapped(table) => {
                halves(before, after, |old, new| table.get(usize::from(old)) == Some(&new), widen)
            }
            Self::NotAbove(t) => {
                let (limit, infinity) = (limit(t), limit(INFINITY));
                let not_above = |old| old <= limit || old > infinity;
                halves(before, after, |old, _| not_above(old & (u16::MAX >> 1)), widen)
            }
            Self::Between(largest, least_kept) => {
                let count = |t: Option<u32>| t.map_or(0, |t| halves_up_to(before, limit(t)));
                Seen::between(largest, least_kept, count)
            }
            // Every 16-bit type of a pool with a scale has its table.
            Self::Scaled(_) => Seen { wrong: true, ..Seen::default() },
        }
    }

    fn singles(self, before: &[u8], after: &[u8]) -> Seen {
        let widen = |bits| select::magnitude(f32::from_bits(bits));
        match self {
            Self::Zeroed => singles(before, after, |_, new| new == 0, widen),
            Self::Scaled(scale) => {
                singles(before, after, |old, new| (f32::from_bits(old) * scale).to_bits() == new, widen)
            }
            Self::NotAbove(t) => {
                let not_above = |old| old <= t || old > INFINITY;
                singles(before, after, |old, _| not_above(old & (u32::MAX >> 1)), widen)
            }
            Self::Between(largest, least_kept) => {
                let count = |t: Option<u32>| t.map_or(0, |t| singles_up_to(before, t));
                Seen::between(largest, least_kept, count)
            }
            Self::Mapped(_) => Seen { wrong: true, ..Seen::default() },
        }
    }
}

/// Functions that look at elements of one size. Their inner loops have no branches, so that they become vector code.
macro_rules! lookers {
    ($name:ident, $count:ident, $bits:ty, $signed:ty, $bytes:literal) => {
        fn $count(elements: &[u8], limit: $bits) -> u64 {
            let is_up_to = |bits: &[u8; $bytes]| <$bits>::from_le_bytes(*bits) & (<$bits>::MAX >> 1) <= limit;
            let count =
                |block: &[[u8; $bytes]]| block.iter().map(|x| <$bits>::from(is_up_to(x))).sum::<$bits>();
            elements.as_chunks::<$bytes>().0.chunks(BLOCK).map(|block| u64::from(count(block))).sum()
        }

        fn $name(
            before: &[u8],
            after: &[u8],
            is_masked: impl Fn($bits, $bits) -> bool,
            widen: impl Fn($bits) -> u32,
        ) -> Seen {
            let magnitude = |bits: $bits| (bits & (<$bits>::MAX >> 1)) as $signed;
            let (before, after) = (before.as_chunks::<$bytes>().0, after.as_chunks::<$bytes>().0);
            let mut seen = Seen::default();
            for (before, after) in before.chunks(BLOCK).zip(after.chunks(BLOCK)) {
                let (mut masked, mut wrong): ($bits, $bits) = (0, 0);
                let (mut largest, mut least_kept): ($signed, $signed) = (-1, <$signed>::MAX);
                for (old, new) in before.iter().zip(after) {
                    let (old, new) = (<$bits>::from_le_bytes(*old), <$bits>::from_le_bytes(*new));
                    let is_masked = is_masked(old, new);
                    masked += <$bits>::from(is_masked);
                    wrong |= if is_masked { 0 } else { old ^ new };
                    largest = largest.max(if is_masked { magnitude(old) } else { -1 });
                    least_kept = least_kept.min(if is_masked { <$signed>::MAX } else { magnitude(old) });
                }
                let mut more = Seen {
                    masked: masked.into(),
                    least_kept: widen(least_kept as $bits),
                    wrong: wrong != 0,
                    ..Seen::default()
                };
                if masked > 0 {
                    more.largest = widen(largest as $bits);
                }
                if masked > 0 && more.largest >= seen.largest {
                    let is_largest = |old: &[u8; $bytes]| magnitude(<$bits>::from_le_bytes(*old)) == largest;
                    more.at_largest =
                        before.iter().map(|old| <$bits>::from(is_largest(old))).sum::<$bits>().into();
                }
                seen.add(more);
            }
            seen
        }
    };
}

lookers!(halves, halves_up_to, u16, i16, 2);
lookers!(singles, singles_up_to, u32, i32, 4);
