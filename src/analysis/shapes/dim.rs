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

use super::atom::Atom;

/// Largest number of symbols, terms and nested expressions that one size may have.
pub(super) const MAX_WEIGHT: usize = 128;

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
    /// Returns the size called `name`.
    pub fn symbol(name: &str) -> Self {
        Atom::Symbol(name.into()).into()
    }

    /// Returns the size as a number, if it is the same for all inputs.
    pub fn constant(&self) -> Option<i64> {
        match self.0 {
            Repr::Constant(value) => Some(value),
            Repr::Sum(_) => None,
        }
    }

    /// Returns whether nothing in it is unknown.
    pub fn is_known(&self) -> bool {
        !self.any(&|atom| matches!(atom, Atom::Unknown(_)))
    }

    /// Returns the size when each symbol has the value that `lookup` gives. `None` if a symbol has none, if something
    /// in the expression is unknown, or if a number overflows.
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

    /// Returns the terms; one without factors for a constant, none for 0.
    pub(super) fn terms(&self) -> std::borrow::Cow<'_, [Term]> {
        match &self.0 {
            Repr::Constant(0) => (&[][..]).into(),
            Repr::Constant(value) => vec![Term { factors: Vec::new(), coefficient: *value }].into(),
            Repr::Sum(terms) => terms.as_slice().into(),
        }
    }

    /// Returns the sum of `terms`.
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

    pub(in crate::analysis) fn add(&self, other: &Self) -> Option<Self> {
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

    pub(in crate::analysis) fn mul(&self, other: &Self) -> Option<Self> {
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

    /// Returns the larger one.
    pub(super) fn larger(&self, other: &Self) -> Option<Self> {
        match self.known_order(other) {
            Some(true) => Some(self.clone()),
            Some(false) => Some(other.clone()),
            None => Atom::Max(Arc::new(ordered(self, other))).checked(),
        }
    }

    /// Returns the smaller one.
    pub(super) fn smaller(&self, other: &Self) -> Option<Self> {
        match self.known_order(other) {
            Some(true) => Some(other.clone()),
            Some(false) => Some(self.clone()),
            None => Atom::Min(Arc::new(ordered(self, other))).checked(),
        }
    }

    /// Returns whether it is at least (`true`) or at most (`false`) `other` at all sizes; `None` if that depends or is
    /// not known.
    fn known_order(&self, other: &Self) -> Option<bool> {
        if self.sub(other).is_some_and(|d| d.is_at_least(0)) {
            return Some(true);
        }
        other.sub(self).is_some_and(|d| d.is_at_least(0)).then_some(false)
    }

    /// Returns two dimensions broadcast by ONNX's rules, assuming that the model is valid. `None` for two different
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

    /// Returns the atom, if it is nothing but one.
    pub(super) fn as_atom(&self) -> Option<&Atom> {
        match &self.0 {
            Repr::Sum(terms) => match terms.as_slice() {
                [Term { factors, coefficient: 1 }] if factors.len() == 1 => factors.first(),
                _ => None,
            },
            Repr::Constant(_) => None,
        }
    }

    /// Returns whether it is proven to be at least `bound` when every symbol is at least 1.
    pub(super) fn is_at_least(&self, bound: i64) -> bool {
        self.lower_bound().is_some_and(|lower| lower >= bound)
    }

    pub(super) fn lower_bound(&self) -> Option<i64> {
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

    /// Returns the expression with each atom replaced for which `replace` has something, simplified again.
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

    /// Returns the smallest number up to `most` such that this is divisible by `divisor` wherever all symbols are divisible
    /// by that number; `None` if none is proven to be one.
    pub fn divisible_where(&self, divisor: i64, most: i64) -> Option<i64> {
        let is_proven = |number: &i64| {
            let multiple = |atom: &Atom| match atom {
                Atom::Symbol(_) => Self::from(*number).mul(&atom.clone().into()),
                _ => None,
            };
            let divides = |term: &Term| term.coefficient.checked_rem(divisor) == Some(0);
            self.substitute(&multiple).is_some_and(|dim| dim.terms().iter().all(divides))
        };
        (1..=most).find(is_proven)
    }

    /// Returns whether `test` holds of an atom anywhere in it.
    pub(super) fn any(&self, test: &dyn Fn(&Atom) -> bool) -> bool {
        match &self.0 {
            Repr::Constant(_) => false,
            Repr::Sum(terms) => terms
                .iter()
                .flat_map(|term| &term.factors)
                .any(|atom| test(atom) || atom.parts().iter().any(|part| part.any(test))),
        }
    }

    pub(super) fn weight(&self) -> usize {
        match &self.0 {
            Repr::Constant(_) => 1,
            Repr::Sum(terms) => {
                terms.iter().map(|t| 1 + t.factors.iter().map(Atom::weight).sum::<usize>()).sum()
            }
        }
    }
}

/// Compares in graded lexicographic order, which multiplication respects: by degree, then the earlier atom is the
/// larger.
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
                let alone = term.factors.len() == 1 && term.coefficient == 1 && terms.len() == 1;
                match atom {
                    Atom::Floor(_) if !alone => write!(f, "({atom})")?,
                    _ => write!(f, "{atom}")?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::division::floor_div, *};

    fn h() -> Dim {
        Dim::symbol("h")
    }

    fn number(value: i64) -> Dim {
        value.into()
    }

    /// The size after a convolution with kernel 3, stride 2 and padding 1, as the ONNX spec writes it.
    fn halved(size: &Dim) -> Dim {
        floor_div(&size.sub(&number(1)).unwrap(), &number(2)).unwrap().add(&number(1)).unwrap()
    }

    #[test]
    fn the_forms_that_exporters_write_are_one() {
        // torch.export states 2*((h - 1)//2) + 2 where inference builds 2*(1 + (h - 1)//2).
        let half = floor_div(&h().sub(&number(1)).unwrap(), &number(2)).unwrap();
        let stated = half.mul(&number(2)).unwrap().add(&number(2)).unwrap();
        let inferred = number(2).mul(&number(1).add(&half).unwrap()).unwrap();
        assert_eq!(stated, inferred);
        assert_eq!(stated.to_string(), "2*((h + 1)//2)");
        assert_eq!(halved(&halved(&halved(&h()))).to_string(), "(h + 7)//8");
    }

    #[test]
    fn normal_forms_have_the_values_of_what_they_stand_for() {
        let w = Dim::symbol("w");
        let linear = h().mul(&number(6)).unwrap().sub(&w.mul(&number(4)).unwrap()).unwrap();
        for (divisor, offset) in [(2, -7), (4, 3), (-3, 5), (5, 0), (12, 11)] {
            let n = linear.add(&number(offset)).unwrap();
            let once = floor_div(&n, &number(divisor)).unwrap();
            let twice = floor_div(&once.add(&number(offset)).unwrap(), &number(3)).unwrap();
            for (hs, ws) in [(1, 1), (2, 7), (13, 5), (64, 96), (17, 1)] {
                let lookup = |name: &str| Some(if name == "h" { hs } else { ws });
                let floor = |n: f64, d: i64| (n / d as f64).floor();
                let expected = floor((6 * hs - 4 * ws + offset) as f64, divisor);
                assert_eq!(once.evaluate(&lookup), Some(expected as i64), "{once}");
                let expected = floor(expected + offset as f64, 3);
                assert_eq!(twice.evaluate(&lookup), Some(expected as i64), "{twice}");
            }
        }
    }

    #[test]
    fn divisibility_is_that_of_symbols() {
        let deepest = halved(&halved(&halved(&h())));
        for (divisor, number) in [(1, 1), (2, 16), (3, 24), (4, 32)] {
            assert_eq!(deepest.divisible_where(divisor, 64), Some(number));
        }
        assert_eq!(h().divisible_where(3, 64), Some(3));
        assert_eq!(deepest.divisible_where(2, 15), None);
        assert_eq!(h().add(&number(1)).unwrap().divisible_where(2, 64), None);
        assert_eq!(number(6).divisible_where(3, 64), Some(1));
        assert_eq!(number(6).divisible_where(4, 64), None);
    }

    #[test]
    fn quotients_of_products_come_out_even() {
        let (b, w) = (Dim::symbol("b"), Dim::symbol("w"));
        let area = halved(&h()).mul(&halved(&w)).unwrap();
        let total = b.mul(&number(320)).unwrap().mul(&area).unwrap();
        let known = b.mul(&number(32)).unwrap();
        assert_eq!(floor_div(&total, &known).unwrap(), area.mul(&number(10)).unwrap());
        let sum = h().add(&w).unwrap();
        let square = sum.mul(&sum).unwrap();
        assert_eq!(floor_div(&square, &sum).unwrap(), sum);
        // b*7*h // (b*2*w): only what is common goes.
        let n = b.mul(&number(14)).unwrap().mul(&h()).unwrap();
        let d = b.mul(&number(4)).unwrap().mul(&w).unwrap();
        assert_eq!(floor_div(&n, &d).unwrap().to_string(), "(7*h)//(2*w)");
    }

    #[test]
    fn growth_and_overflow_have_no_result() {
        assert_eq!(number(i64::MAX).add(&number(1)), None);
        assert_eq!(number(i64::MIN).mul(&number(-1)), None);
        assert_eq!(floor_div(&number(i64::MIN), &number(-1)), None);
        assert_eq!(floor_div(&h(), &number(0)), None);
        let mut size = h();
        let mut steps = 0;
        while let Some(next) = size.mul(&size).and_then(|s| s.add(&Dim::symbol("w"))) {
            size = next;
            steps += 1;
        }
        assert!((2..8).contains(&steps), "{steps}");
    }

    #[test]
    fn maxima_and_broadcasts_are_decided_where_they_can_be() {
        assert_eq!(h().larger(&number(1)), Some(h()));
        assert_eq!(h().smaller(&h().add(&number(3)).unwrap()), Some(h()));
        assert_eq!(h().smaller(&number(77)).unwrap().to_string(), "min(77, h)");
        assert_eq!(h().broadcast(&number(1)), Some(h()));
        assert_eq!(h().broadcast(&number(4)), Some(number(4)));
        assert_eq!(number(3).broadcast(&number(4)), None);
        let (a, b) = (h().broadcast(&Dim::symbol("w")), Dim::symbol("w").broadcast(&h()));
        assert_eq!(a, b);
    }
}
