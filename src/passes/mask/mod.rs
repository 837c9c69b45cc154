//! Masks: [`Transform`](crate::ir::Transform)s that decide element by element what stays of a weight.
//!
//! A masked weight becomes `w * scale`, computed in float32 and rounded to the nearest (ties to even), as torch
//! does for `half * python float`. With a scale of 0 it becomes +0.0, also where torch's `w * mask` gives -0.0, and
//! where that gives NaN for an infinite weight.

mod float_bits;
mod magnitude;
mod pattern;
mod replace;
#[cfg(test)]
mod tests;

pub use magnitude::MagnitudeMask;
pub use pattern::PatternMask;

use crate::analysis::magnitude::MagnitudeError;

/// Why a weight cannot be masked as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// The weight has a type that cannot be masked.
    #[error("{weight}: {source}")]
    Type {
        /// The module path of the weight.
        weight: String,
        /// The fault of its type.
        source: MagnitudeError,
    },
    /// A pattern that makes no sense.
    #[error("the pattern {keep}:{of} is not possible: it must keep at least 1 and fewer than all")]
    Pattern {
        /// How many of each group are kept.
        keep: usize,
        /// Size of the groups.
        of: usize,
    },
    /// The weight cannot be divided into the groups of a pattern.
    #[error(
        "{weight}: its {input} inputs cannot be divided into groups of {of}, as the pattern {keep}:{of} needs"
    )]
    Groups {
        /// The module path of the weight.
        weight: String,
        /// Number of its inputs.
        input: i64,
        /// How many of each group are kept.
        keep: usize,
        /// Size of the groups.
        of: usize,
    },
    /// The weight's dimensions are not those of a Linear or Conv2d.
    #[error("{weight}: dimensions {dims:?} are not those of a Linear or Conv2d weight")]
    Dims {
        /// The module path of the weight.
        weight: String,
        /// Its dimensions.
        dims: Vec<i64>,
    },
}
