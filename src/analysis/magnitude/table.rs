//! Counts of bit patterns, from which histograms are made.

use super::FloatType;

/// Number of magnitudes of a 16-bit float, and of values of the upper half of a float32 magnitude.
pub(super) const BINS: usize = 1 << 15;

/// Number of values of the lower half of a float32.
pub(super) const LOW: usize = 1 << 16;

/// Counts of values up to `bins`. Neighbouring weights are counted in different lanes: a counter that has just been
/// written takes several cycles to be read again, and equal weights often come one after the other.
pub(super) struct Table {
    lanes: [Vec<u32>; 4],
    /// Upper bound of any counter in `lanes`.
    pending: u64,
    total: Vec<u64>,
}

impl Table {
    pub(super) fn new(bins: usize) -> Self {
        Self { lanes: std::array::from_fn(|_| vec![0; bins]), pending: 0, total: vec![0; bins] }
    }

    /// Returns the counts.
    pub(super) fn finish(mut self) -> Vec<u64> {
        self.flush();
        self.total
    }

    /// Counts the magnitudes of 16-bit elements.
    pub(super) fn add_halves(&mut self, bytes: &[u8]) {
        let [a, b, c, d] = self.room_for(bytes.len() / 2);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let four = u64::from_le_bytes(*word);
            a[four as usize % BINS] += 1;
            b[(four >> 16) as usize % BINS] += 1;
            c[(four >> 32) as usize % BINS] += 1;
            d[(four >> 48) as usize % BINS] += 1;
        }
        for word in rest.as_chunks::<2>().0 {
            a[u16::from_le_bytes(*word) as usize % BINS] += 1;
        }
    }

    /// Counts the upper halves of the magnitudes of float32 elements.
    pub(super) fn add_upper(&mut self, bytes: &[u8]) {
        let [a, b, c, d] = self.room_for(bytes.len() / 4);
        let (words, rest) = bytes.as_chunks::<16>();
        for word in words {
            let four = u128::from_le_bytes(*word);
            let (two, next_two) = (four as u64, (four >> 64) as u64);
            a[(two >> 16) as usize % BINS] += 1;
            b[(two >> 48) as usize % BINS] += 1;
            c[(next_two >> 16) as usize % BINS] += 1;
            d[(next_two >> 48) as usize % BINS] += 1;
        }
        for word in rest.as_chunks::<4>().0 {
            a[(u32::from_le_bytes(*word) >> 16) as usize % BINS] += 1;
        }
    }

    /// Counts the lower halves of those float32 elements whose magnitude has `upper` as its upper half.
    pub(super) fn add_lower(&mut self, upper: u32, bytes: &[u8]) {
        let [a, ..] = self.room_for(bytes.len() / 4);
        let differs = |word: &[u8; 4]| (u32::from_le_bytes(*word) << 1) ^ (upper << 17);
        let mut count = |words: &[[u8; 4]]| {
            for word in words.iter().filter(|word| differs(word) < 1 << 17) {
                a[u32::from_le_bytes(*word) as usize % LOW] += 1;
            }
        };
        // Few match: eight at a time are dismissed with vector instructions.
        let (blocks, rest) = bytes.as_chunks::<4>().0.as_chunks::<8>();
        for block in blocks {
            if block.iter().fold(false, |any, word| any | (differs(word) < 1 << 17)) {
                count(block);
            }
        }
        count(rest);
    }

    fn room_for(&mut self, elements: usize) -> &mut [Vec<u32>; 4] {
        if self.pending + elements as u64 > u64::from(u32::MAX) {
            self.flush();
        }
        self.pending += elements as u64;
        &mut self.lanes
    }

    fn flush(&mut self) {
        for lane in &mut self.lanes {
            for (total, count) in self.total.iter_mut().zip(lane) {
                *total += u64::from(std::mem::take(count));
            }
        }
        self.pending = 0;
    }
}

/// Magnitude counts of each type; empty for types that were not met.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// By the upper half of the magnitude.
    pub single: Vec<u64>,
    /// By magnitude.
    pub half: Vec<u64>,
    /// By magnitude, which is the upper half of the float32 that equals it.
    pub bfloat: Vec<u64>,
}

/// The counts of one thread.
#[derive(Default)]
pub(super) struct Tables {
    single: Option<Table>,
    half: Option<Table>,
    bfloat: Option<Table>,
}

impl Tables {
    pub(super) fn add(&mut self, float: FloatType, bytes: &[u8]) {
        match float {
            FloatType::F32 => self.single.get_or_insert_with(|| Table::new(BINS)).add_upper(bytes),
            FloatType::F16 => self.half.get_or_insert_with(|| Table::new(BINS)).add_halves(bytes),
            FloatType::Bf16 => self.bfloat.get_or_insert_with(|| Table::new(BINS)).add_halves(bytes),
        }
    }

    pub(super) fn add_to(self, counts: &mut Counts) {
        for (table, counts) in [
            (self.single, &mut counts.single),
            (self.half, &mut counts.half),
            (self.bfloat, &mut counts.bfloat),
        ] {
            if let Some(table) = table {
                add(counts, table.finish());
            }
        }
    }
}

/// Adds `more` to `counts`, which may still be empty.
pub(super) fn add(counts: &mut Vec<u64>, more: Vec<u64>) {
    if counts.is_empty() {
        *counts = more;
    } else {
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
    }
}
