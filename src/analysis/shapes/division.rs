//! Floor division in normal form.

use std::sync::Arc;

use super::{
    atom::Atom,
    dim::{Dim, Term, order},
};

/// Returns `n // d`, rounded down. `None` for a division by zero, or a result that is too large.
pub(super) fn floor_div(n: &Dim, d: &Dim) -> Option<Dim> {
    match d.constant() {
        Some(0) => None,
        Some(c) if c > 0 => floor_by(n, c),
        Some(_) => {
            let minus = Dim::from(-1);
            floor_by(&n.mul(&minus)?, d.mul(&minus)?.constant()?)
        }
        None => match exact(n, d) {
            Some(quotient) => Some(quotient),
            None => {
                let (n, d) = cancel(n, d)?;
                match d.constant() {
                    Some(_) => floor_div(&n, &d),
                    None => Atom::Floor(Arc::new((n, d))).checked(),
                }
            }
        },
    }
}

/// Returns `n / d`, rounded toward zero, as ONNX divides integers.
pub(super) fn truncating_div(n: &Dim, d: &Dim) -> Option<Dim> {
    match (n.constant(), d.constant()) {
        (Some(n), Some(d)) => n.checked_div(d).map(Dim::from),
        _ if n.is_at_least(0) && d.is_at_least(1) => floor_div(n, d),
        _ => exact(n, d).or_else(|| Atom::Truncated(Arc::new((n.clone(), d.clone()))).checked()),
    }
}

/// Returns `n // c` for `c > 0`: what divides evenly comes out, the rest has coefficients in `0..c`.
fn floor_by(n: &Dim, c: i64) -> Option<Dim> {
    let (mut whole, mut rest) = (Vec::new(), Vec::new());
    for term in n.terms().iter() {
        let part = |coefficient| Term { factors: term.factors.clone(), coefficient };
        whole.push(part(term.coefficient.div_euclid(c)));
        rest.push(part(term.coefficient.rem_euclid(c)));
    }
    let (whole, rest) = (Dim::sum(whole)?, Dim::sum(rest)?);
    if rest.constant().is_some() {
        return Some(whole);
    }
    // (g*x + k) // (g*d) = (x + k//g) // d
    let common = rest.terms().iter().filter(|t| !t.factors.is_empty()).fold(c, |g, t| gcd(g, t.coefficient));
    let terms = rest.terms().into_owned().into_iter().map(|t| {
        let coefficient = t.coefficient.div_euclid(common);
        Term { coefficient, ..t }
    });
    let (rest, c) = (Dim::sum(terms.collect())?, c / common);
    // (x//a + k) // c = (x + a*k) // (a*c)
    if let Some((x, a, k)) = inner_floor(&rest) {
        let n = x.add(&Dim::from(a.checked_mul(k)?))?;
        return whole.add(&floor_by(&n, a.checked_mul(c)?)?);
    }
    whole.add(&Atom::Floor(Arc::new((rest, c.into()))).checked()?)
}

/// Returns `x`, `a` and `k` if `dim` is `x//a + k` with constants `a > 0` and `k`.
fn inner_floor(dim: &Dim) -> Option<(Dim, i64, i64)> {
    let terms = dim.terms();
    let (first, k) = match terms.as_ref() {
        [first] => (first, 0),
        [first, last] if last.factors.is_empty() => (first, last.coefficient),
        _ => return None,
    };
    match first.factors.as_slice() {
        [Atom::Floor(pair)] if first.coefficient == 1 => {
            Some((pair.0.clone(), pair.1.constant().filter(|a| *a > 0)?, k))
        }
        _ => None,
    }
}

/// Returns the quotient of two polynomials, if there is no remainder.
pub(super) fn exact(n: &Dim, d: &Dim) -> Option<Dim> {
    let divisor = d.terms();
    let lead = divisor.first()?;
    let mut rest = n.clone();
    let mut quotient = Vec::new();
    // Each round removes the leading term and adds only smaller ones; the cap is for those that never end evenly.
    for _ in 0..32 {
        let step = match rest.terms().first() {
            None => return Dim::sum(quotient),
            Some(first) => Term {
                factors: without(&first.factors, &lead.factors)?,
                coefficient: first
                    .coefficient
                    .checked_rem(lead.coefficient)
                    .filter(|r| *r == 0)
                    .and_then(|_| first.coefficient.checked_div(lead.coefficient))?,
            },
        };
        rest = rest.sub(&Dim::sum(vec![step.clone()])?.mul(d)?)?;
        quotient.push(step);
    }
    None
}

/// Returns `factors` without each of `removed`; `None` if one is not there. Both are in ascending order.
fn without(factors: &[Atom], removed: &[Atom]) -> Option<Vec<Atom>> {
    let mut left = factors.to_vec();
    for atom in removed {
        let at = left.iter().position(|x| x == atom)?;
        left.remove(at);
    }
    Some(left)
}

/// Returns `n` and `d` without the factors that all their terms share.
fn cancel(n: &Dim, d: &Dim) -> Option<(Dim, Dim)> {
    let terms: Vec<Term> = n.terms().iter().chain(d.terms().iter()).cloned().collect();
    let mut shared = terms.iter().map(|t| &t.factors).min_by(|a, b| order(a, b))?.clone();
    shared.retain({
        // An atom counts as often as it occurs in the term that has it least often.
        let mut seen: Vec<Atom> = Vec::new();
        let terms = &terms;
        move |atom| {
            seen.push(atom.clone());
            let wanted = seen.iter().filter(|x| *x == atom).count();
            terms.iter().all(|t| t.factors.iter().filter(|x| *x == atom).count() >= wanted)
        }
    });
    let common = terms.iter().fold(0, |g, t| gcd(g, t.coefficient)).max(1);
    let reduce = |dim: &Dim| -> Option<Dim> {
        let terms = dim.terms();
        let reduced = terms.iter().map(|t| {
            Some(Term { factors: without(&t.factors, &shared)?, coefficient: t.coefficient / common })
        });
        Dim::sum(reduced.collect::<Option<Vec<_>>>()?)
    };
    Some((reduce(n)?, reduce(d)?))
}

fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    i64::try_from(a).unwrap_or(1)
}
