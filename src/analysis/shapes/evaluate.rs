//! Shapes at concrete sizes.

use rustc_hash::FxHashMap;

use super::Shapes;
use crate::ir::ValueId;

/// The shapes of the values of a graph for inputs of given sizes.
#[derive(Clone, Debug, Default)]
pub struct ConcreteShapes {
    by_value: Vec<Option<Box<[i64]>>>,
}

impl ConcreteShapes {
    /// Returns the dimensions of `value`; `None` where they are not known.
    pub fn of(&self, value: ValueId) -> Option<&[i64]> {
        self.by_value.get(value.index())?.as_deref()
    }

    /// Returns the number of elements of `value`; `None` where its dimensions are not known, or it has more than 2^64.
    pub fn elements(&self, value: ValueId) -> Option<u64> {
        self.of(value)?.iter().try_fold(1u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?))
    }
}

impl Shapes {
    /// Returns the shapes when the symbols have the values of `bindings`. A shape is unknown if it contains a symbol
    /// that is not bound, or a size that comes out negative.
    pub fn evaluate(&self, bindings: &[(&str, i64)]) -> ConcreteShapes {
        let bindings: FxHashMap<&str, i64> = bindings.iter().copied().collect();
        let lookup = |name: &str| bindings.get(name).copied();
        let concrete = |value: &Option<super::Shape>| -> Option<Box<[i64]>> {
            let dims = value.as_ref()?.dims.iter();
            dims.map(|dim| dim.evaluate(&lookup).filter(|size| *size >= 0)).collect()
        };
        ConcreteShapes { by_value: self.by_value.iter().map(concrete).collect() }
    }
}
