//! Slice: of tensors, of their elements, and the lengths that result.

use std::sync::Arc;

use super::{
    atom::Atom,
    dim::Dim,
    division::floor_div,
    infer::{Call, Failure, axis},
    movement::select,
    tensor::{MAX_ELEMENTS, Tensor},
};

pub(super) fn slice(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let data = call.dims(0)?;
    let bounds = |call: &Call<'_>, index: usize, name: &str| match call.get(index) {
        Some(operand) => Ok(operand.wholes()),
        None => match call.node.ints(name) {
            Some(values) => Ok(Some(values.iter().map(|v| Dim::from(*v)).collect())),
            None => Err(Failure::Invalid(format!("it has no `{name}`"))),
        },
    };
    let (starts, ends) = (bounds(call, 1, "starts")?, bounds(call, 2, "ends")?);
    let axes = match call.numbers(3, "axes")? {
        Some(axes) => axes,
        None => (0..starts.as_ref().map_or(data.len(), Vec::len) as i64).collect(),
    };
    let steps = call.numbers(4, "steps")?;
    let mut dims = data.to_vec();
    let mut elements = call.operand(0)?.elements.as_ref().map(|e| e.to_vec());
    for (i, at) in axes.iter().enumerate() {
        let axis = axis(*at, data.len())?;
        let step = steps.as_ref().map_or(Some(1), |steps| steps.get(i).copied());
        let start = starts.as_ref().and_then(|s| s.get(i));
        let end = ends.as_ref().and_then(|e| e.get(i));
        let Some(dim) = dims.get_mut(axis) else { continue };
        let (Some(start), Some(end), Some(step)) = (start, end, step) else {
            *dim = call.unknowns.fresh();
            elements = None;
            continue;
        };
        if step == 0 {
            return Err(Failure::Invalid("a step of 0".into()));
        }
        let constants = (dim.constant(), start.constant(), end.constant());
        if let (Some(size), Some(start), Some(end)) = constants {
            let taken = positions(size, start, end, step);
            let at: Option<Vec<i64>> =
                (taken.count <= MAX_ELEMENTS as i64 && elements.is_some()).then(|| taken.iter().collect());
            elements = at.zip(elements).and_then(|(at, e)| select(&e, &dims, axis, &at));
            if let Some(dim) = dims.get_mut(axis) {
                *dim = taken.count.into();
            }
        } else {
            let length = symbolic_length(dim, start, end, step);
            *dim = call.unknowns.or_fresh(length);
            elements = None;
        }
    }
    Ok(match elements {
        Some(elements) => Tensor::with_elements(dims, elements),
        None => Tensor::shaped(dims),
    })
}

/// The part of an axis that a slice takes.
pub(super) struct Positions {
    first: i64,
    step: i64,
    pub count: i64,
}

impl Positions {
    fn iter(&self) -> impl Iterator<Item = i64> + '_ {
        (0..self.count).map(|i| self.first.saturating_add(self.step.saturating_mul(i)))
    }
}

/// Applies the ONNX Slice clamping rules, for constant sizes.
pub(super) fn positions(size: i64, start: i64, end: i64, step: i64) -> Positions {
    // A convolution of something too small for its kernel has a negative size.
    let size = size.max(0);
    let from_end = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
    let (start, end) = (from_end(start), from_end(end));
    let (first, span) = if step > 0 {
        let (start, end) = (start.clamp(0, size), end.clamp(0, size));
        (start, end - start)
    } else {
        let (start, end) = (start.clamp(0, (size - 1).max(0)), end.clamp(-1, (size - 1).max(0)));
        (start, start - end)
    };
    let stride = i64::try_from(step.unsigned_abs()).unwrap_or(i64::MAX);
    let count = if size == 0 || span <= 0 { 0 } else { (span - 1) / stride + 1 };
    Positions { first, step, count }
}

/// Returns the length of a slice of a symbolic axis, or with symbolic bounds.
pub(super) fn symbolic_length(size: &Dim, start: &Dim, end: &Dim, step: i64) -> Option<Dim> {
    if step < 0 {
        // Exporters write a reversal as [-1:INT_MIN:-1].
        let all = start.constant() == Some(-1) && end.constant().is_some_and(|e| e <= i64::from(i32::MIN));
        return (all && step == -1).then(|| size.clone());
    }
    let clamp = |at: &Dim| -> Option<Dim> {
        match at.constant() {
            Some(at) if at >= i64::from(i32::MAX) => Some(size.clone()),
            Some(at) if at <= i64::from(i32::MIN) => Some(0.into()),
            Some(at) if at < 0 => size.add(&at.into())?.larger(&0.into()),
            _ => at.is_at_least(0).then(|| at.smaller(size)).flatten(),
        }
    };
    let span = match (clamp(start), clamp(end)) {
        (Some(start), Some(end)) => end.sub(&start)?,
        _ => Atom::Slice(Arc::new([size.clone(), start.clone(), end.clone()])).checked()?,
    };
    let span = if span.is_at_least(0) { span } else { span.larger(&0.into())? };
    floor_div(&span.add(&Dim::from(step.checked_sub(1)?))?, &step.into())
}
