//! Whether two shapes are the same at all sizes.

use std::{fmt, sync::Arc};

use super::{Shape, atom::Atom, dim::Dim};

/// Divisors to try for [`Agreement::EqualWhenDivisible`]: what a UNet with up to six downsamplers can ask for.
const DIVISORS: [u32; 6] = [2, 4, 8, 16, 32, 64];

/// How two shapes relate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// The same at all sizes.
    Equal,
    /// The same at all sizes at which each of `symbols` is divisible by `by`; proven, not sampled.
    EqualWhenDivisible {
        /// The smallest power of two that suffices.
        by: u32,
        /// The sizes of the graph's inputs that must be divisible.
        symbols: Vec<Arc<str>>,
    },
    /// Not the same, at least at some sizes that are not excluded by divisibility.
    Different(ShapeDifference),
    /// Neither proven equal nor shown to differ: an operator without a rule, or expressions that are too involved.
    Unknown,
}

/// The first thing in which two shapes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShapeDifference {
    /// The number of dimensions.
    Rank,
    /// The size of this dimension.
    Dim(usize),
    /// The element type.
    DataType,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal => write!(f, "equal"),
            Self::EqualWhenDivisible { by, symbols } => {
                let verb = if symbols.len() == 1 { "is" } else { "are" };
                write!(f, "equal when {} {verb} divisible by {by}", symbols.join(" and "))
            }
            Self::Different(ShapeDifference::Rank) => write!(f, "different numbers of dimensions"),
            Self::Different(ShapeDifference::Dim(axis)) => write!(f, "different in dimension {axis}"),
            Self::Different(ShapeDifference::DataType) => write!(f, "different element types"),
            Self::Unknown => write!(f, "not known to be equal"),
        }
    }
}

/// Returns how two shapes of one graph relate.
pub fn compare(a: &Shape, b: &Shape) -> Agreement {
    if a.dims.len() != b.dims.len() {
        return Agreement::Different(ShapeDifference::Rank);
    }
    match (a.data_type, b.data_type) {
        (Some(x), Some(y)) if x != y => return Agreement::Different(ShapeDifference::DataType),
        _ => {}
    }
    let dims = compare_dims(&a.dims, &b.dims);
    match dims {
        Agreement::Different(_) => dims,
        _ if a.data_type.is_none() || b.data_type.is_none() => Agreement::Unknown,
        _ => dims,
    }
}

/// Returns how two lists of dimensions of the same length relate.
pub(super) fn compare_dims(a: &[Dim], b: &[Dim]) -> Agreement {
    let unequal: Vec<(usize, &Dim, &Dim)> =
        a.iter().zip(b).enumerate().filter(|(_, (x, y))| x != y).map(|(i, (x, y))| (i, x, y)).collect();
    if unequal.is_empty() {
        return Agreement::Equal;
    }
    if let Some(agreement) = equal_when_divisible(&unequal) {
        return agreement;
    }
    match unequal.iter().find(|(_, x, y)| differ_somewhere(x, y)) {
        Some((axis, ..)) => Agreement::Different(ShapeDifference::Dim(*axis)),
        None => Agreement::Unknown,
    }
}

fn equal_when_divisible(unequal: &[(usize, &Dim, &Dim)]) -> Option<Agreement> {
    let mut symbols: Vec<Arc<str>> = Vec::new();
    for dim in unequal.iter().flat_map(|(_, x, y)| [x, y]) {
        divided_symbols(dim, &mut symbols);
    }
    if symbols.is_empty() {
        return None;
    }
    let by = DIVISORS.into_iter().find(|by| {
        let multiple = |atom: &Atom| match atom {
            Atom::Symbol(name) if symbols.contains(name) => {
                Dim::from(i64::from(*by)).mul(&atom.clone().into())
            }
            _ => None,
        };
        unequal.iter().all(|(_, x, y)| {
            let (x, y) = (x.substitute(&multiple), y.substitute(&multiple));
            x.is_some() && x == y
        })
    })?;
    Some(Agreement::EqualWhenDivisible { by, symbols })
}

/// Collects the symbols that occur inside a floor division.
fn divided_symbols(dim: &Dim, found: &mut Vec<Arc<str>>) {
    let found = std::cell::RefCell::new(found);
    dim.any(&|atom| {
        if let Atom::Floor(pair) = atom {
            pair.0.any(&|inner| {
                if let Atom::Symbol(name) = inner
                    && !found.borrow().contains(name)
                {
                    found.borrow_mut().push(name.clone());
                }
                false
            });
        }
        false
    });
}

/// Returns whether two expressions have different values at one of a few sizes. Those are powers of two with one factor
/// of their own for each symbol, so what differs does so for a better reason than that a size is odd.
fn differ_somewhere(a: &Dim, b: &Dim) -> bool {
    const FACTORS: [i64; 8] = [1, 3, 5, 7, 11, 13, 17, 19];
    // A broadcast of sizes that don't fit together has no value.
    let uncertain = |atom: &Atom| matches!(atom, Atom::Unknown(_) | Atom::Broadcast(_));
    if a.any(&uncertain) || b.any(&uncertain) {
        return false;
    }
    [64, 128, 832].into_iter().any(|base| {
        let lookup = |name: &str| {
            let factor =
                name.bytes().fold(7usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            FACTORS.get(factor % FACTORS.len()).map(|factor| factor * base)
        };
        match (a.evaluate(&lookup), b.evaluate(&lookup)) {
            (Some(x), Some(y)) => x != y,
            _ => false,
        }
    })
}
