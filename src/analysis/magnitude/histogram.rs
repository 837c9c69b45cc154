//! The histogram of a pool's magnitudes, and the thresholds in it.

use std::sync::{Arc, Mutex};

use rustc_hash::FxHashMap;

use super::{
    FloatType, INFINITY, Magnitude, MagnitudeError, NAN, PoolTensor, Threshold, TieMask,
    scan::scan,
    table::{BINS, Counts, LOW, Table, Tables, add},
};
use crate::{lock::lock, observer::Observer};

/// The magnitudes of a pool of weights, counted in one pass. A pool is the weights of a group of modules, or of one
/// tensor: then pass a slice of one.
#[derive(Clone, Debug)]
pub struct MagnitudeHistogram {
    tensors: Vec<PoolTensor>,
    len: u64,
    counts: Counts,
    /// All types together, by the upper half of the float32 magnitude.
    coarse: Vec<u64>,
    /// By the upper half, counts by the lower half: those that were asked for.
    fine: Arc<Mutex<FxHashMap<usize, Arc<Vec<u64>>>>>,
}

/// How many of those a histogram keeps, of half a megabyte each.
const KEPT: usize = 64;

/// Number of magnitudes of one pool or several, by the upper half of their float32 bits: what is left of
/// [`MagnitudeHistogram`]s that need not be kept.
#[derive(Clone, Debug, Default)]
pub struct Magnitudes(Vec<u64>);

/// The magnitudes of a pool on a logarithmic scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Number of weights that are 0, or float32 below 2^-133.
    pub zeros: u64,
    /// Number of weights that are infinite or NaN.
    pub not_finite: u64,
    /// The others, each bin next to the one before; empty if there are none.
    pub bins: Vec<SummaryBin>,
}

/// The number of weights with `from <= |w| < to`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SummaryBin {
    /// Least magnitude in it.
    pub from: f32,
    /// Least magnitude above it.
    pub to: f32,
    /// How many there are.
    pub count: u64,
}

impl MagnitudeHistogram {
    /// Counts the magnitudes of `tensors`, reading each byte once. A tensor that is there twice counts twice.
    ///
    /// # Errors
    /// [`MagnitudeError::Read`], [`MagnitudeError::Type`], [`MagnitudeError::Stopped`].
    pub fn read(tensors: &[PoolTensor], observer: &dyn Observer) -> Result<Self, MagnitudeError> {
        let all: Vec<&PoolTensor> = tensors.iter().collect();
        let mut counts = Counts::default();
        for tables in scan(&all, observer, Tables::default, Tables::add)? {
            tables.add_to(&mut counts);
        }
        let mut coarse = vec![0; BINS];
        for (bits, count) in singles(&counts) {
            coarse[bits as usize >> 16] += count;
        }
        add(&mut coarse, counts.single.clone());
        Ok(Self { tensors: tensors.to_vec(), len: coarse.iter().sum(), counts, coarse, fine: Arc::default() })
    }

    /// Returns the number of weights in the pool.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether the pool has no weights.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the threshold that masks the fraction `ratio` of the pool, 0 <= ratio < 1: the k-th smallest magnitude,
    /// k = floor(n * ratio) in double precision (CR-Diff, arXiv 2604.05524). `None` if k is 0: nothing is masked.
    ///
    /// # Errors
    /// [`MagnitudeError::Ratio`], and those of [`kth`](Self::kth).
    pub fn threshold(
        &self,
        ratio: f64,
        observer: &dyn Observer,
    ) -> Result<Option<Threshold>, MagnitudeError> {
        if !(0.0..1.0).contains(&ratio) {
            return Err(MagnitudeError::Ratio(ratio));
        }
        match (self.len as f64 * ratio).floor() as u64 {
            0 => Ok(None),
            k => self.kth(k, observer).map(Some),
        }
    }

    /// Returns the k-th smallest magnitude, counted from 1. Reads the pool's float32 tensors once more, unless none of
    /// them comes near it or the same upper bits were asked for before.
    ///
    /// # Errors
    /// [`MagnitudeError::Rank`], [`MagnitudeError::Read`], [`MagnitudeError::Stopped`].
    pub fn kth(&self, k: u64, observer: &dyn Observer) -> Result<Threshold, MagnitudeError> {
        let n = self.len;
        if k == 0 || k > n {
            return Err(MagnitudeError::Rank { k, n });
        }
        const INFINITE: usize = INFINITY as usize >> 16;
        let mut below = 0;
        for (upper, in_bucket) in self.coarse.iter().enumerate().take(INFINITE + 1) {
            // The bucket of infinity also has NaNs, and so have those after it.
            if below + in_bucket < k && upper < INFINITE {
                below += in_bucket;
                continue;
            }
            for (lower, at) in self.fine(upper, observer)?.iter().copied().enumerate() {
                let bits = (upper << 16 | lower) as u32;
                if bits > INFINITY {
                    break;
                }
                if below + at >= k {
                    return Ok(Threshold { n, k, t: Magnitude(bits), below, at });
                }
                below += at;
            }
        }
        Ok(Threshold { n, k, t: Magnitude(NAN), below, at: n - below })
    }

    /// Returns, for each tensor of the pool, which of its weights with the magnitude `threshold.t` are masked if
    /// exactly `threshold.k` of the pool are: the first ones in the order of the tensors and of the elements in the
    /// file. Reads nothing if all are; else the tensors up to the last masked one.
    ///
    /// # Errors
    /// [`MagnitudeError::Read`], [`MagnitudeError::Stopped`].
    pub fn ties(
        &self,
        threshold: &Threshold,
        observer: &dyn Observer,
    ) -> Result<Vec<TieMask>, MagnitudeError> {
        let mut left = threshold.k.saturating_sub(threshold.below);
        if left == threshold.at {
            return Ok(vec![TieMask::All; self.tensors.len()]);
        }
        let mut ties = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            let here = if left == 0 { 0 } else { count_equal(tensor, threshold.t, observer)? };
            ties.push(TieMask::First(here.min(left)));
            left -= here.min(left);
        }
        Ok(ties)
    }

    /// Returns the magnitudes in at most `bins` bins of equal width on a (piecewise linear) logarithmic scale, from the
    /// smallest to the greatest that occur. Counts are exact.
    pub fn summary(&self, bins: usize) -> Summary {
        summary(&self.coarse, bins)
    }

    /// Counts by the lower half, of the magnitudes with this upper half.
    fn fine(&self, upper: usize, observer: &dyn Observer) -> Result<Arc<Vec<u64>>, MagnitudeError> {
        let kept = || lock(&self.fine);
        if let Some(known) = kept().get(&upper) {
            return Ok(Arc::clone(known));
        }
        let fine = Arc::new(self.count_fine(upper, observer)?);
        let mut kept = kept();
        if kept.len() < KEPT {
            kept.insert(upper, Arc::clone(&fine));
        }
        Ok(fine)
    }

    fn count_fine(&self, upper: usize, observer: &dyn Observer) -> Result<Vec<u64>, MagnitudeError> {
        let mut fine = vec![0; LOW];
        for (bits, count) in singles(&self.counts).filter(|(bits, _)| *bits as usize >> 16 == upper) {
            fine[bits as usize % LOW] += count;
        }
        if self.counts.single.get(upper).is_some_and(|count| *count > 0) {
            let singles: Vec<&PoolTensor> = self
                .tensors
                .iter()
                .filter(|t| matches!(FloatType::try_from(t.data_type), Ok(FloatType::F32)))
                .collect();
            let count = |table: &mut Table, _, bytes: &[u8]| table.add_lower(upper as u32, bytes);
            for table in scan(&singles, observer, || Table::new(LOW), count)? {
                add(&mut fine, table.finish());
            }
        }
        Ok(fine)
    }
}

impl Magnitudes {
    /// Adds the magnitudes of another pool.
    pub fn add(&mut self, pool: &MagnitudeHistogram) {
        self.0.resize(BINS, 0);
        add(&mut self.0, pool.coarse.clone());
    }

    /// Returns the magnitudes in at most `bins` bins; see [`MagnitudeHistogram::summary`].
    pub fn summary(&self, bins: usize) -> Summary {
        summary(&self.0, bins)
    }
}

fn summary(coarse: &[u64], bins: usize) -> Summary {
    const INFINITE: usize = INFINITY as usize >> 16;
    let (finite, rest) = coarse.split_at(INFINITE.min(coarse.len()));
    let mut summary = Summary {
        zeros: finite.first().copied().unwrap_or(0),
        not_finite: rest.iter().sum(),
        bins: Vec::new(),
    };
    let used = |count: &u64| *count > 0;
    let Some(first) = finite.iter().skip(1).position(used).map(|first| first + 1) else { return summary };
    let last = finite.iter().rposition(used).unwrap_or(first);
    // A power of two, so that octaves (128 buckets) are divided or joined evenly.
    let mut width = 1;
    while last / width - first / width + 1 > bins.max(1) {
        width *= 2;
    }
    let edge = |bucket: usize| f32::from_bits((bucket as u32) << 16);
    for bin in first / width..=last / width {
        let (from, to) = ((bin * width).max(1), ((bin + 1) * width).min(INFINITE));
        let count = finite[from..to].iter().sum();
        summary.bins.push(SummaryBin { from: edge(from), to: edge(to), count });
    }
    summary
}

/// Returns the counts of 16-bit types, with their magnitudes as float32 bits.
fn singles(counts: &Counts) -> impl Iterator<Item = (u32, u64)> {
    let of = |float: FloatType, counts: &[u64]| {
        let counts: Vec<(u32, u64)> = (0..)
            .zip(counts)
            .filter(|(_, count)| **count > 0)
            .map(|(bits, count)| (float.single_bits(bits), *count))
            .collect();
        counts
    };
    of(FloatType::F16, &counts.half).into_iter().chain(of(FloatType::Bf16, &counts.bfloat))
}

/// Returns how many elements of `tensor` have the magnitude `t`.
fn count_equal(tensor: &PoolTensor, t: Magnitude, observer: &dyn Observer) -> Result<u64, MagnitudeError> {
    let float = FloatType::try_from(tensor.data_type)?;
    let Some(bits) = t.exact_bits(float) else { return Ok(0) };
    let count = |count: &mut u64, _, bytes: &[u8]| {
        *count += match float {
            FloatType::F32 => {
                let equal = |w: &&[u8; 4]| u32::from_le_bytes(**w) << 1 == bits << 1;
                bytes.as_chunks::<4>().0.iter().filter(equal).count()
            }
            FloatType::F16 | FloatType::Bf16 => {
                let equal = |w: &&[u8; 2]| u16::from_le_bytes(**w) << 1 == (bits as u16) << 1;
                bytes.as_chunks::<2>().0.iter().filter(equal).count()
            }
        } as u64;
    };
    Ok(scan(&[tensor], observer, || 0, count)?.into_iter().sum())
}
