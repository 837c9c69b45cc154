//! Sizes as expressions in normal form: polynomials with integer coefficients over atoms.
//!
//! An atom is a symbol of a graph input, or something that a polynomial cannot express: a floor division that does
//! not come out even, a maximum, a minimum, a broadcast, an unknown. Sums and products are expanded, floor divisions
//! are split and flattened (`(2*x + y)//2 = x + y//2`, `(x//2 + 1)//2 = (x + 2)//4`), so that two sizes which are
//! equal by those laws are the same expression. Expressions are capped in size: an operation whose result would grow
//! past the cap, or overflow, has no result, and comparing two expressions is never expensive.
//!
//! Symbols stand for sizes of at least 1.

use std::{fmt, sync::Arc};

use super::division::floor_div;

/// Largest number of symbols, terms and nested expressions that one size may have.
const MAX_WEIGHT: usize = 128;

/// The size of one dimension, or an integer element of a small tensor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dim(Repr);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Repr {
    Constant(i64),
    /// At least one term has factors. Terms are in descending order, the constant last.
    Sum(Arc<Vec<Term>>),
}

/// A product of atoms, times a coefficient that is not zero.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Term {
    /// In ascending order, repeated for powers.
    pub factors: Vec<Atom>,
    pub coefficient: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Atom {
    /// A symbol of a graph input.
    Symbol(Arc<str>),
    /// `.0 // .1`, rounded down.
    Floor(Arc<(Dim, Dim)>),
    Max(Arc<(Dim, Dim)>),
    Min(Arc<(Dim, Dim)>),
    /// The result of broadcasting dimensions: all are equal or 1. In ascending order, without repetitions.
    Broadcast(Arc<Vec<Dim>>),
    /// Something that could not be inferred. Equal numbers stand for the same value.
    Unknown(u32),
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        Self(Repr::Constant(value))
    }
}

impl From<Atom> for Dim {
    fn from(atom: Atom) -> Self {
        Self(Repr::Sum(Arc::new(vec![Term { factors: vec![atom], coefficient: 1 }])))
    }
}

impl Dim {
    /// The size called `name`.
    pub fn symbol(name: &str) -> Self {
        Atom::Symbol(name.into()).into()
    }

    /// The size as a number, if it is the same for all inputs.
    pub fn constant(&self) -> Option<i64> {
        match self.0 {
            Repr::Constant(value) => Some(value),
            Repr::Sum(_) => None,
        }
    }

    /// Whether nothing in it is unknown.
    pub fn is_known(&self) -> bool {
        !self.any(&|atom| matches!(atom, Atom::Unknown(_)))
    }

    /// The size when each symbol has the value that `lookup` gives. `None` if a symbol has none, if something in the
    /// expression is unknown, or if a number overflows.
    pub fn evaluate(&self, lookup: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        let mut sum = 0i64;
        for term in self.terms().iter() {
            let product = term
                .factors
                .iter()
                .try_fold(term.coefficient, |product, atom| product.checked_mul(atom.evaluate(lookup)?))?;
            sum = sum.checked_add(product)?;
        }
        Some(sum)
    }

    /// The terms; one without factors for a constant, none for 0.
    pub(super) fn terms(&self) -> std::borrow::Cow<'_, [Term]> {
        match &self.0 {
            Repr::Constant(0) => (&[][..]).into(),
            Repr::Constant(value) => vec![Term { factors: Vec::new(), coefficient: *value }].into(),
            Repr::Sum(terms) => terms.as_slice().into(),
        }
    }

    /// The sum of `terms`.
    pub(super) fn sum(mut terms: Vec<Term>) -> Option<Self> {
        terms.sort_by(|a, b| order(&b.factors, &a.factors));
        let mut merged: Vec<Term> = Vec::with_capacity(terms.len());
        for term in terms {
            match merged.last_mut() {
                Some(last) if last.factors == term.factors => {
                    last.coefficient = last.coefficient.checked_add(term.coefficient)?;
                }
                _ => merged.push(term),
            }
        }
        merged.retain(|term| term.coefficient != 0);
        match merged.as_slice() {
            [] => Some(0.into()),
            [term] if term.factors.is_empty() => Some(term.coefficient.into()),
            _ => {
                let sum = Self(Repr::Sum(Arc::new(merged)));
                (sum.weight() <= MAX_WEIGHT).then_some(sum)
            }
        }
    }

    pub(super) fn add(&self, other: &Self) -> Option<Self> {
        match (&self.0, &other.0) {
            (Repr::Constant(a), Repr::Constant(b)) => a.checked_add(*b).map(Self::from),
            (Repr::Constant(0), _) => Some(other.clone()),
            (_, Repr::Constant(0)) => Some(self.clone()),
            _ => Self::sum(self.terms().iter().chain(other.terms().iter()).cloned().collect()),
        }
    }

    pub(super) fn sub(&self, other: &Self) -> Option<Self> {
        self.add(&other.mul(&Self::from(-1))?)
    }

    pub(super) fn mul(&self, other: &Self) -> Option<Self> {
        match (&self.0, &other.0) {
            (Repr::Constant(a), Repr::Constant(b)) => return a.checked_mul(*b).map(Self::from),
            (Repr::Constant(1), _) => return Some(other.clone()),
            (_, Repr::Constant(1)) => return Some(self.clone()),
            _ => {}
        }
        let (a, b) = (self.terms(), other.terms());
        if a.len() * b.len() > MAX_WEIGHT {
            return None;
        }
        let mut terms = Vec::with_capacity(a.len() * b.len());
        for x in a.iter() {
            for y in b.iter() {
                let mut factors: Vec<Atom> = x.factors.iter().chain(&y.factors).cloned().collect();
                factors.sort();
                terms.push(Term { factors, coefficient: x.coefficient.checked_mul(y.coefficient)? });
            }
        }
        Self::sum(terms)
    }

    /// The larger one.
    pub(super) fn larger(&self, other: &Self) -> Option<Self> {
        match self.known_order(other) {
            Some(true) => Some(self.clone()),
            Some(false) => Some(other.clone()),
            None => Atom::Max(Arc::new(ordered(self, other))).checked(),
        }
    }

    /// The smaller one.
    pub(super) fn smaller(&self, other: &Self) -> Option<Self> {
        match self.known_order(other) {
            Some(true) => Some(other.clone()),
            Some(false) => Some(self.clone()),
            None => Atom::Min(Arc::new(ordered(self, other))).checked(),
        }
    }

    /// Whether it is at least (`true`) or at most (`false`) `other` at all sizes; `None` if that depends or is not
    /// known.
    fn known_order(&self, other: &Self) -> Option<bool> {
        if self.sub(other).is_some_and(|d| d.is_at_least(0)) {
            return Some(true);
        }
        other.sub(self).is_some_and(|d| d.is_at_least(0)).then_some(false)
    }

    /// Two dimensions broadcast by ONNX's rules, assuming that the model is valid. `None` for two different
    /// constants.
    pub(super) fn broadcast(&self, other: &Self) -> Option<Self> {
        match (self.constant(), other.constant()) {
            _ if self == other => Some(self.clone()),
            (Some(1), _) => Some(other.clone()),
            (_, Some(1)) => Some(self.clone()),
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(self.clone()),
            (None, Some(_)) => Some(other.clone()),
            (None, None) => {
                let mut members = [self.broadcast_members(), other.broadcast_members()].concat();
                members.sort();
                members.dedup();
                Atom::Broadcast(Arc::new(members)).checked()
            }
        }
    }

    pub(super) fn broadcast_members(&self) -> Vec<Self> {
        match self.as_atom() {
            Some(Atom::Broadcast(members)) => members.to_vec(),
            _ => vec![self.clone()],
        }
    }

    /// The atom, if it is nothing but one.
    pub(super) fn as_atom(&self) -> Option<&Atom> {
        match &self.0 {
            Repr::Sum(terms) => match terms.as_slice() {
                [Term { factors, coefficient: 1 }] if factors.len() == 1 => factors.first(),
                _ => None,
            },
            Repr::Constant(_) => None,
        }
    }

    /// Whether it is proven to be at least `bound` when every symbol is at least 1.
    pub(super) fn is_at_least(&self, bound: i64) -> bool {
        self.lower_bound().is_some_and(|lower| lower >= bound)
    }

    fn lower_bound(&self) -> Option<i64> {
        self.terms().iter().try_fold(0i64, |sum, term| {
            if term.coefficient < 0 && !term.factors.is_empty() {
                return None;
            }
            let product = term.factors.iter().try_fold(term.coefficient, |product, atom| {
                product.checked_mul(atom.lower_bound().filter(|lower| *lower >= 0)?)
            });
            sum.checked_add(product?)
        })
    }

    /// The expression with each atom replaced for which `replace` has something, simplified again.
    pub(super) fn substitute(&self, replace: &dyn Fn(&Atom) -> Option<Self>) -> Option<Self> {
        let mut sum = Self::from(0);
        for term in self.terms().iter() {
            let mut product = Self::from(term.coefficient);
            for atom in &term.factors {
                let new = replace(atom).map_or_else(|| atom.substitute(replace), Some)?;
                product = product.mul(&new)?;
            }
            sum = sum.add(&product)?;
        }
        Some(sum)
    }

    /// Whether `test` holds of an atom anywhere in it.
    pub(super) fn any(&self, test: &dyn Fn(&Atom) -> bool) -> bool {
        match &self.0 {
            Repr::Constant(_) => false,
            Repr::Sum(terms) => terms
                .iter()
                .flat_map(|term| &term.factors)
                .any(|atom| test(atom) || atom.parts().iter().any(|part| part.any(test))),
        }
    }

    fn weight(&self) -> usize {
        match &self.0 {
            Repr::Constant(_) => 1,
            Repr::Sum(terms) => {
                terms.iter().map(|t| 1 + t.factors.iter().map(Atom::weight).sum::<usize>()).sum()
            }
        }
    }
}

impl Atom {
    /// It as a size, unless it is too large.
    pub(super) fn checked(self) -> Option<Dim> {
        (self.weight() < MAX_WEIGHT).then(|| self.into())
    }

    /// The expressions that it is made of.
    fn parts(&self) -> Vec<&Dim> {
        match self {
            Self::Symbol(_) | Self::Unknown(_) => Vec::new(),
            Self::Floor(pair) | Self::Max(pair) | Self::Min(pair) => vec![&pair.0, &pair.1],
            Self::Broadcast(members) => members.iter().collect(),
        }
    }

    fn weight(&self) -> usize {
        1 + self.parts().iter().map(|part| part.weight()).sum::<usize>()
    }

    fn evaluate(&self, lookup: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        match self {
            Self::Symbol(name) => lookup(name),
            Self::Floor(pair) => {
                let (n, d) = (pair.0.evaluate(lookup)?, pair.1.evaluate(lookup)?);
                let quotient = n.checked_div(d)?;
                Some(if n % d != 0 && (n < 0) != (d < 0) { quotient - 1 } else { quotient })
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

    fn lower_bound(&self) -> Option<i64> {
        match self {
            Self::Symbol(_) => Some(1),
            Self::Floor(pair) => match (pair.0.lower_bound()?, pair.1.constant()) {
                (n, Some(d)) if d > 0 => Some(n.div_euclid(d)),
                (n, None) if n >= 0 && pair.1.is_at_least(1) => Some(0),
                _ => None,
            },
            Self::Max(pair) => pair.0.lower_bound().max(pair.1.lower_bound()),
            Self::Min(pair) => Some(pair.0.lower_bound()?.min(pair.1.lower_bound()?)),
            Self::Broadcast(members) => members.iter().map(Dim::lower_bound).min().flatten(),
            Self::Unknown(_) => None,
        }
    }

    fn substitute(&self, replace: &dyn Fn(&Self) -> Option<Dim>) -> Option<Dim> {
        match self {
            Self::Symbol(_) | Self::Unknown(_) => Some(self.clone().into()),
            Self::Floor(pair) => floor_div(&pair.0.substitute(replace)?, &pair.1.substitute(replace)?),
            Self::Max(pair) => pair.0.substitute(replace)?.larger(&pair.1.substitute(replace)?),
            Self::Min(pair) => pair.0.substitute(replace)?.smaller(&pair.1.substitute(replace)?),
            Self::Broadcast(members) => members.iter().try_fold(Dim::from(1), |size, member| {
                size.broadcast(&member.substitute(replace)?)
            }),
        }
    }
}

/// Graded lexicographic order, which multiplication respects: by degree, then the earlier atom is the larger.
pub(super) fn order(a: &[Atom], b: &[Atom]) -> std::cmp::Ordering {
    a.len().cmp(&b.len()).then_with(|| b.cmp(a))
}

fn ordered(a: &Dim, b: &Dim) -> (Dim, Dim) {
    if a <= b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}

/// As in `2*((H + 1)//2) + 3`, with `//` for floor division.
impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match &self.0 {
            Repr::Constant(value) => return write!(f, "{value}"),
            Repr::Sum(terms) => terms,
        };
        for (i, term) in terms.iter().enumerate() {
            match (i, term.coefficient < 0) {
                (0, true) => write!(f, "-")?,
                (0, false) => {}
                (_, true) => write!(f, " - ")?,
                (_, false) => write!(f, " + ")?,
            }
            let coefficient = term.coefficient.unsigned_abs();
            if term.factors.is_empty() || coefficient != 1 {
                write!(f, "{coefficient}")?;
            }
            for (j, atom) in term.factors.iter().enumerate() {
                if j > 0 || coefficient != 1 {
                    write!(f, "*")?;
                }
                let alone = term.factors.len() == 1 && coefficient == 1 && terms.len() == 1;
                match atom {
                    Atom::Floor(_) if !alone => write!(f, "({atom})")?,
                    _ => write!(f, "{atom}")?,
                }
            }
        }
        Ok(())
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
