//! Operators that pick, join and part tensors, with the elements of small ones.

use super::{
    atom::Atom,
    compare::{Agreement, compare_dims},
    dim::Dim,
    division::floor_div,
    elementwise::{small_count, text},
    infer::{Call, Failure, Results, axis},
    tensor::{Element, MAX_ELEMENTS, Tensor},
    values::sizes,
};

pub(super) fn gather(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let (data, indices) = (call.dims(0)?, call.dims(1)?);
    let axis = axis(call.node.int("axis").unwrap_or(0), data.len())?;
    let (before, after) = (data.get(..axis).unwrap_or_default(), data.get(axis + 1..).unwrap_or_default());
    let dims = [before, indices, after].concat();
    let length = data.get(axis).and_then(Dim::constant);
    let (Some(elements), Some(at), Some(length)) =
        (&call.operand(0)?.elements, call.operand(1)?.constants(), length)
    else {
        return Ok(Tensor::shaped(dims));
    };
    let index = |index: &i64| {
        let fail = || Failure::Invalid(format!("index {index} is out of range for {length} elements"));
        let at = if *index < 0 { index.saturating_add(length) } else { *index };
        (0..length).contains(&at).then_some(at).ok_or_else(fail)
    };
    let at = at.iter().map(index).collect::<Result<Vec<_>, _>>()?;
    Ok(match select(elements, data, axis, &at) {
        Some(elements) => Tensor::with_elements(dims, elements),
        None => Tensor::shaped(dims),
    })
}

/// Returns the elements at the positions `at` of one axis of a tensor of shape `dims`.
pub(super) fn select(elements: &[Element], dims: &[Dim], axis: usize, at: &[i64]) -> Option<Vec<Element>> {
    let outer = small_count(dims.get(..axis)?)?;
    let length = usize::try_from(dims.get(axis)?.constant()?).ok()?;
    let inner = small_count(dims.get(axis + 1..)?)?;
    if outer.checked_mul(at.len())?.checked_mul(inner)? > MAX_ELEMENTS {
        return None;
    }
    let mut result = Vec::with_capacity(outer * at.len() * inner);
    for block in 0..outer {
        for position in at {
            let row = block.checked_mul(length)?.checked_add(usize::try_from(*position).ok()?)?;
            let start = row.checked_mul(inner)?;
            result.extend_from_slice(elements.get(start..start.checked_add(inner)?)?);
        }
    }
    Some(result)
}

pub(super) fn concat(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let first = call.dims(0)?;
    let at = axis(call.node.int("axis").unwrap_or(0), first.len())?;
    let mut dims = first.to_vec();
    let mut total = first.get(at).cloned();
    for index in 1..call.operands.len() {
        let next = call.dims(index)?;
        if next.len() != dims.len() {
            let what = format!("Concat of shapes {} and {}", text(first), text(next));
            return Err(Failure::Invalid(what));
        }
        for (i, (dim, other)) in dims.iter_mut().zip(next).enumerate().filter(|(i, _)| *i != at) {
            match unite(dim, other) {
                Ok(Some(requirement)) => {
                    *dim = requirement.1.clone();
                    call.required.push(requirement);
                }
                Ok(None) => {
                    if dim.constant().is_none() && other.constant().is_some() {
                        *dim = other.clone();
                    }
                }
                Err(()) => call.problems.push(format!(
                    "Concat of shapes {} and {}, which differ in dimension {i}",
                    text(first),
                    text(next)
                )),
            }
        }
        total = total.and_then(|total| total.add(next.get(at)?));
    }
    if let Some(dim) = dims.get_mut(at) {
        *dim = call.unknowns.or_fresh(total);
    }
    let elements = if dims.len() == 1 { concat_elements(call, &dims) } else { None };
    Ok(match elements {
        Some(elements) => Tensor::with_elements(dims, elements),
        None => Tensor::shaped(dims),
    })
}

/// Returns two dimensions that must be equal: an error if they are not, and what it requires if one is a broadcast that
/// the other is part of.
fn unite(a: &Dim, b: &Dim) -> Result<Option<(Atom, Dim)>, ()> {
    for (whole, part) in [(a, b), (b, a)] {
        if let Some(atom @ Atom::Broadcast(members)) = whole.as_atom()
            && members.contains(part)
        {
            return Ok(Some((atom.clone(), part.clone())));
        }
    }
    let symbol = |dim: &Dim| matches!(dim.as_atom(), Some(Atom::Symbol(_)));
    match compare_dims(std::slice::from_ref(a), std::slice::from_ref(b)) {
        Agreement::Different(_) if symbol(a) && b.constant().is_some() => Ok(None),
        Agreement::Different(_) if symbol(b) && a.constant().is_some() => Ok(None),
        Agreement::Different(_) => Err(()),
        _ => Ok(None),
    }
}

/// Returns the elements of vectors, one after the other; unknown where an operand's are, unless all are.
fn concat_elements(call: &mut Call<'_>, dims: &[Dim]) -> Option<Vec<Element>> {
    let total = small_count(dims)?;
    if call.operands.iter().flatten().all(|t| t.elements.is_none()) {
        return None;
    }
    let mut elements = Vec::with_capacity(total);
    for operand in call.operands.iter().flatten() {
        match &operand.elements {
            Some(own) => elements.extend_from_slice(own),
            None => {
                let count = small_count(operand.dims.as_deref()?)?;
                elements.extend((0..count).map(|_| Element::Whole(call.unknowns.fresh())));
            }
        }
    }
    (elements.len() == total).then_some(elements)
}

pub(super) fn split(call: &mut Call<'_>) -> Results {
    let dims = call.dims(0)?;
    let at = axis(call.node.int("axis").unwrap_or(0), dims.len())?;
    let count = call.node.outputs.len();
    let lengths: Vec<Dim> = if call.get(1).is_some() {
        sizes(call, 1)?
    } else if let Some(lengths) = call.node.ints("split") {
        lengths.iter().map(|n| Dim::from(*n)).collect()
    } else {
        // All parts are as long as the first, but for the last one.
        let whole = dims.get(at).cloned().unwrap_or_else(|| 0.into());
        let n = Dim::from(count as i64);
        let part = n.sub(&1.into()).and_then(|less| floor_div(&whole.add(&less)?, &n));
        let last = part.as_ref().and_then(|part| whole.sub(&part.mul(&n.sub(&1.into())?)?));
        let part = call.unknowns.or_fresh(part);
        let last = call.unknowns.or_fresh(last);
        (1..=count).map(|i| if i == count { last.clone() } else { part.clone() }).collect()
    };
    if lengths.len() != count {
        return Err(Failure::Invalid(format!("{} lengths for {count} results", lengths.len())));
    }
    let total = lengths.iter().try_fold(0i64, |sum, n| sum.checked_add(n.constant()?));
    if let (Some(total), Some(size)) = (total, dims.get(at).and_then(Dim::constant))
        && total != size
    {
        return Err(Failure::Invalid(format!("it splits {size} into parts of {total} in all")));
    }
    let elements = call.operand(0)?.elements.as_deref().filter(|_| dims.len() == 1);
    let mut start = Some(0usize);
    let results = lengths.into_iter().map(|length| {
        let end = start.and_then(|s| s.checked_add(usize::try_from(length.constant()?).ok()?));
        let own = elements.and_then(|e| e.get(start?..end?)).map(<[Element]>::to_vec);
        start = end;
        let mut dims = dims.to_vec();
        if let Some(dim) = dims.get_mut(at) {
            *dim = length;
        }
        match own {
            Some(own) => Tensor::with_elements(dims, own),
            None => Tensor::shaped(dims),
        }
    });
    Ok(results.collect())
}
