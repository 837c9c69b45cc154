//! Atoms of symbolic sizes: symbols, and operations that a polynomial cannot express.

use std::{fmt, sync::Arc};

use super::{
    dim::{Dim, MAX_WEIGHT},
    division::{floor_div, truncating_div},
    slicing::{positions, symbolic_length},
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Atom {
    /// A symbol of a graph input.
    Symbol(Arc<str>),
    /// `.0 // .1`, rounded down.
    Floor(Arc<(Dim, Dim)>),
    /// `.0 / .1`, rounded toward zero, where it is not proven that neither is negative.
    Truncated(Arc<(Dim, Dim)>),
    /// The length of the slice `[.1:.2]` of an axis of length `.0`, clamped as ONNX's Slice does with a step of 1.
    Slice(Arc<[Dim; 3]>),
    Max(Arc<(Dim, Dim)>),
    Min(Arc<(Dim, Dim)>),
    /// The result of broadcasting dimensions: all are equal or 1. In ascending order, without repetitions.
    Broadcast(Arc<Vec<Dim>>),
    /// Something that could not be inferred. Equal numbers stand for the same value.
    Unknown(u32),
}

impl Atom {
    /// Returns it as a size, unless it is too large.
    pub(super) fn checked(self) -> Option<Dim> {
        (self.weight() < MAX_WEIGHT).then(|| self.into())
    }

    /// Returns the expressions that it is made of.
    pub(super) fn parts(&self) -> Vec<&Dim> {
        match self {
            Self::Symbol(_) | Self::Unknown(_) => Vec::new(),
            Self::Floor(pair) | Self::Truncated(pair) | Self::Max(pair) | Self::Min(pair) => {
                vec![&pair.0, &pair.1]
            }
            Self::Slice(parts) => parts.iter().collect(),
            Self::Broadcast(members) => members.iter().collect(),
        }
    }

    pub(super) fn weight(&self) -> usize {
        1 + self.parts().iter().map(|part| part.weight()).sum::<usize>()
    }

    pub(super) fn evaluate(&self, lookup: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        match self {
            Self::Symbol(name) => lookup(name),
            Self::Floor(pair) => {
                let (n, d) = (pair.0.evaluate(lookup)?, pair.1.evaluate(lookup)?);
                let quotient = n.checked_div(d)?;
                Some(if n % d != 0 && (n < 0) != (d < 0) { quotient - 1 } else { quotient })
            }
            Self::Truncated(pair) => pair.0.evaluate(lookup)?.checked_div(pair.1.evaluate(lookup)?),
            Self::Slice(parts) => {
                let [size, start, end] = parts.as_ref();
                let [size, start, end] = [size, start, end].map(|part| part.evaluate(lookup));
                Some(positions(size?, start?, end?, 1).count)
            }
            Self::Max(pair) => Some(pair.0.evaluate(lookup)?.max(pair.1.evaluate(lookup)?)),
            Self::Min(pair) => Some(pair.0.evaluate(lookup)?.min(pair.1.evaluate(lookup)?)),
            Self::Broadcast(members) => {
                let mut size = 1;
                for member in members.iter() {
                    let member = member.evaluate(lookup)?;
                    if member != 1 {
                        size = member;
                    }
                }
                Some(size)
            }
            Self::Unknown(_) => None,
        }
    }

    pub(super) fn lower_bound(&self) -> Option<i64> {
        match self {
            Self::Symbol(_) => Some(1),
            Self::Floor(pair) => match (pair.0.lower_bound()?, pair.1.constant()) {
                (n, Some(d)) if d > 0 => Some(n.div_euclid(d)),
                (n, None) if n >= 0 && pair.1.is_at_least(1) => Some(0),
                _ => None,
            },
            Self::Slice(_) => Some(0),
            Self::Truncated(_) => None,
            Self::Max(pair) => pair.0.lower_bound().max(pair.1.lower_bound()),
            Self::Min(pair) => Some(pair.0.lower_bound()?.min(pair.1.lower_bound()?)),
            Self::Broadcast(members) => members.iter().map(Dim::lower_bound).min().flatten(),
            Self::Unknown(_) => None,
        }
    }

    pub(super) fn substitute(&self, replace: &dyn Fn(&Self) -> Option<Dim>) -> Option<Dim> {
        match self {
            Self::Symbol(_) | Self::Unknown(_) => Some(self.clone().into()),
            Self::Floor(pair) => floor_div(&pair.0.substitute(replace)?, &pair.1.substitute(replace)?),
            Self::Truncated(pair) => {
                truncating_div(&pair.0.substitute(replace)?, &pair.1.substitute(replace)?)
            }
            Self::Slice(parts) => {
                let [size, start, end] = parts.as_ref();
                symbolic_length(
                    &size.substitute(replace)?,
                    &start.substitute(replace)?,
                    &end.substitute(replace)?,
                    1,
                )
            }
            Self::Max(pair) => pair.0.substitute(replace)?.larger(&pair.1.substitute(replace)?),
            Self::Min(pair) => pair.0.substitute(replace)?.smaller(&pair.1.substitute(replace)?),
            Self::Broadcast(members) => members
                .iter()
                .try_fold(Dim::from(1), |size, member| size.broadcast(&member.substitute(replace)?)),
        }
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(name) => f.write_str(name),
            Self::Floor(pair) => {
                let part = |f: &mut fmt::Formatter<'_>, part: &Dim| match part.as_atom() {
                    Some(Self::Floor(_)) => write!(f, "({part})"),
                    None if part.constant().is_none() => write!(f, "({part})"),
                    _ => write!(f, "{part}"),
                };
                part(f, &pair.0)?;
                write!(f, "//")?;
                part(f, &pair.1)
            }
            Self::Truncated(pair) => write!(f, "trunc({}, {})", pair.0, pair.1),
            Self::Slice(parts) => {
                let [size, start, end] = parts.as_ref();
                write!(f, "slice({size}, {start}, {end})")
            }
            Self::Max(pair) => write!(f, "max({}, {})", pair.0, pair.1),
            Self::Min(pair) => write!(f, "min({}, {})", pair.0, pair.1),
            Self::Broadcast(members) => {
                write!(f, "broadcast(")?;
                for (i, member) in members.iter().enumerate() {
                    write!(f, "{}{member}", if i > 0 { ", " } else { "" })?;
                }
                write!(f, ")")
            }
            Self::Unknown(_) => write!(f, "?"),
        }
    }
}
