//! Factors on sizes as ratios of whole numbers: sizes are integers, in graphs and in proofs.

use crate::analysis::resize::NewSize;

/// A ratio of two whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ratio {
    numerator: i64,
    denominator: i64,
}

impl Ratio {
    /// Returns `number` to four decimals.
    pub fn of(number: f64) -> Self {
        const DENOMINATOR: i64 = 10_000;
        let numerator = (number * DENOMINATOR as f64).round() as i64;
        let (mut a, mut b) = (numerator.unsigned_abs(), DENOMINATOR.unsigned_abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let divisor = i64::try_from(a.max(1)).unwrap_or(1);
        Self { numerator: numerator / divisor, denominator: DENOMINATOR / divisor }
    }

    /// Returns whether it is larger than 1.
    pub fn is_above_one(self) -> bool {
        self.numerator > self.denominator
    }

    /// Returns a size divided by it, rounded up.
    pub fn divided_rounded_up(self) -> NewSize {
        let Self { numerator, denominator } = self;
        NewSize::Part { multiply: denominator, add: numerator.saturating_sub(1), divide: numerator }
    }

    /// Returns a size multiplied by `factor` and divided by it, to the nearest integer.
    pub fn divided_after(self, factor: i64) -> NewSize {
        let Self { numerator, denominator } = self;
        let multiply = denominator.saturating_mul(factor).saturating_mul(2);
        NewSize::Part { multiply, add: numerator, divide: numerator.saturating_mul(2) }
    }
}
