//! Operators that make, move or reshape small integer tensors: what models compute shapes with.

use super::{
    compare::{Agreement, compare_dims},
    dim::{Atom, Dim},
    division::floor_div,
    elementwise::{broadcast, small_count, source_index, text},
    infer::{Call, Failure, Results, axis},
    tensor::{Element, MAX_ELEMENTS, Tensor},
};

/// The results of an operator of this kind; `None` if `call` is another one.
pub(super) fn infer(call: &mut Call<'_>) -> Option<Results> {
    let result = match call.node.op_type.as_str() {
        "Constant" => constant(call),
        "ConstantOfShape" => constant_of_shape(call),
        "Shape" => shape(call),
        "Size" => size(call),
        "Gather" => gather(call),
        "Slice" => slice(call),
        "Concat" => concat(call),
        "Squeeze" => squeeze(call),
        "Unsqueeze" => unsqueeze(call),
        "Reshape" => reshape(call),
        "Flatten" => flatten(call),
        "Expand" => expand(call),
        "Range" => range(call),
        "Resize" | "Upsample" => resize(call),
        "Split" => return Some(split(call)),
        _ => return None,
    };
    Some(result.map(|tensor| vec![tensor]))
}

fn product<'d>(dims: impl IntoIterator<Item = &'d Dim>) -> Option<Dim> {
    dims.into_iter().try_fold(Dim::from(1), |n, dim| n.mul(dim))
}

/// An operand's elements as sizes: what is not provably a size is unknown.
fn sizes(call: &mut Call<'_>, index: usize) -> Result<Vec<Dim>, Failure> {
    let operand = call.operand(index)?;
    let Some(elements) = &operand.elements else {
        // The length of the operand still says how many dimensions there are.
        let length = operand.dims.as_deref().and_then(|dims| match dims {
            [length] => length.constant().and_then(|n| usize::try_from(n).ok()),
            _ => None,
        });
        let length = length.filter(|n| *n <= MAX_ELEMENTS).ok_or(Failure::Upstream)?;
        return Ok((0..length).map(|_| call.unknowns.fresh()).collect());
    };
    let size = |element: &Element| element.whole().filter(|dim| dim.is_at_least(0)).cloned();
    Ok(elements.iter().map(|element| call.unknowns.or_fresh(size(element))).collect())
}

fn constant(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let node = call.node;
    let scalar = |element| Tensor::with_elements(Vec::new(), vec![element]);
    if let Some(tensor) = node.attribute("value").and_then(|a| a.t.as_ref()) {
        Ok(Tensor::from_attribute(tensor))
    } else if let Some(value) = node.int("value_int") {
        Ok(scalar(value.into()))
    } else if let Some(value) = node.float("value_float") {
        Ok(scalar(Element::from_number(value.into())))
    } else if let Some(attribute) = node.attribute("value_ints") {
        Ok(Tensor::vector(attribute.ints.iter().map(|value| (*value).into()).collect()))
    } else if let Some(attribute) = node.attribute("value_floats") {
        Ok(Tensor::vector(attribute.floats.iter().map(|v| Element::from_number((*v).into())).collect()))
    } else {
        Err(Failure::Unsupported("a constant that is neither a tensor nor a number".into()))
    }
}

fn constant_of_shape(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let dims = sizes(call, 0)?;
    let value = match call.node.attribute("value").and_then(|a| a.t.as_ref()) {
        Some(tensor) => Tensor::from_attribute(tensor).elements.and_then(|e| e.first().cloned()),
        None => Some(0.into()),
    };
    Ok(match (value, small_count(&dims)) {
        (Some(value), Some(count)) => Tensor::with_elements(dims, vec![value; count]),
        _ => Tensor::shaped(dims),
    })
}

fn shape(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let dims = call.dims(0)?;
    let rank = dims.len() as i64;
    let bound = |name: &str, default: i64| {
        let at = call.node.int(name).unwrap_or(default);
        (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize
    };
    let (start, end) = (bound("start", 0), bound("end", rank));
    let part = dims.get(start..end.max(start)).unwrap_or_default();
    Ok(Tensor::vector(part.iter().cloned().map(Element::Whole).collect()))
}

fn size(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let count = product(call.dims(0)?);
    let count = call.unknowns.or_fresh(count);
    Ok(Tensor::with_elements(Vec::new(), vec![Element::Whole(count)]))
}

fn gather(call: &mut Call<'_>) -> Result<Tensor, Failure> {
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
    let (Some(outer), Some(inner), Some(_)) = (small_count(before), small_count(after), small_count(&dims))
    else {
        return Ok(Tensor::shaped(dims));
    };
    let mut result = Vec::new();
    for block in 0..outer {
        for index in &at {
            let index = if *index < 0 { index.saturating_add(length) } else { *index };
            let fail = || Failure::Invalid(format!("index {index} is out of range for {length} elements"));
            let index = usize::try_from(index).ok().filter(|i| (*i as i64) < length).ok_or_else(fail)?;
            let start = (block * length as usize + index) * inner;
            result.extend_from_slice(elements.get(start..start + inner).unwrap_or_default());
        }
    }
    Ok(Tensor::with_elements(dims, result))
}

fn slice(call: &mut Call<'_>) -> Result<Tensor, Failure> {
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
    let mut elements = call.operand(0)?.elements.as_ref().filter(|_| data.len() == 1).map(|e| e.to_vec());
    for (i, at) in axes.iter().enumerate() {
        let at = axis(*at, data.len())?;
        let step = steps.as_ref().map_or(Some(1), |steps| steps.get(i).copied());
        let start = starts.as_ref().and_then(|s| s.get(i));
        let end = ends.as_ref().and_then(|e| e.get(i));
        let Some(dim) = dims.get_mut(at) else { continue };
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
            *dim = taken.len().into();
            elements = elements
                .filter(|_| taken.count <= MAX_ELEMENTS as i64)
                .and_then(|e| taken.iter().map(|p| e.get(usize::try_from(p).ok()?).cloned()).collect());
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

/// What a slice takes of an axis.
struct Positions {
    first: i64,
    step: i64,
    count: i64,
}

impl Positions {
    fn len(&self) -> i64 {
        self.count
    }

    fn iter(&self) -> impl Iterator<Item = i64> + '_ {
        (0..self.count).map(|i| self.first.saturating_add(self.step.saturating_mul(i)))
    }
}

/// The ONNX Slice clamping rules, for constant sizes.
fn positions(size: i64, start: i64, end: i64, step: i64) -> Positions {
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

/// The length of a slice of a symbolic axis, or with symbolic bounds.
fn symbolic_length(size: &Dim, start: &Dim, end: &Dim, step: i64) -> Option<Dim> {
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
            _ if at.is_at_least(0) => at.smaller(size),
            _ => size.add(at).filter(|from_end| from_end.is_at_least(0) && !at.is_at_least(0)).filter(|_| {
                // Only a bound that is negative at all sizes counts from the end.
                Dim::from(-1).sub(at).is_some_and(|d| d.is_at_least(0))
            }),
        }
    };
    let span = clamp(end)?.sub(&clamp(start)?)?;
    let span = if span.is_at_least(0) { span } else { span.larger(&0.into())? };
    floor_div(&span.add(&Dim::from(step.checked_sub(1)?))?, &step.into())
}

fn concat(call: &mut Call<'_>) -> Result<Tensor, Failure> {
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

/// Two dimensions that must be equal: an error if they are not, and what it requires if one is a broadcast that the
/// other is part of.
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

/// The elements of vectors, one after the other; unknown where an operand's are, unless all are.
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

/// `data` with other dimensions and the same elements.
fn with_dims(data: &Tensor, dims: Vec<Dim>) -> Tensor {
    let kept = data.elements.clone().filter(|e| small_count(&dims) == Some(e.len()));
    Tensor { data_type: None, dims: Some(dims), elements: kept }
}

fn squeeze(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let dims = call.dims(0)?;
    let removed = match call.numbers(1, "axes")? {
        Some(axes) => axes.into_iter().map(|a| axis(a, dims.len())).collect::<Result<Vec<_>, _>>()?,
        None if dims.iter().all(|d| d.constant().is_some()) => {
            (0..dims.len()).filter(|i| dims.get(*i).and_then(Dim::constant) == Some(1)).collect()
        }
        None => return Err(Failure::Unsupported("Squeeze of whichever dimensions turn out to be 1".into())),
    };
    let left = dims.iter().enumerate().filter(|(i, _)| !removed.contains(i)).map(|(_, d)| d.clone());
    Ok(with_dims(call.operand(0)?, left.collect()))
}

fn unsqueeze(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let old = call.dims(0)?;
    let axes = call.numbers(1, "axes")?.ok_or_else(|| Failure::Invalid("it has no `axes`".into()))?;
    let rank = old.len() + axes.len();
    let added = axes.into_iter().map(|a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut old = old.iter().cloned();
    let dims = (0..rank).filter_map(|i| if added.contains(&i) { Some(1.into()) } else { old.next() });
    Ok(with_dims(call.operand(0)?, dims.collect()))
}

fn reshape(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let data = call.operand(0)?;
    let old = data.dims.as_deref();
    let wanted = match (call.get(1), call.node.ints("shape")) {
        (None, Some(shape)) => Some(shape.iter().map(|size| Dim::from(*size)).collect()),
        _ => call.operand(1)?.wholes(),
    };
    let Some(wanted) = wanted else {
        let dims = sizes(call, 1)?;
        return Ok(Tensor::shaped(dims));
    };
    let copy_zeros = call.node.int("allowzero").unwrap_or(0) == 0;
    let mut dims = Vec::with_capacity(wanted.len());
    let mut inferred = None;
    for (i, size) in wanted.into_iter().enumerate() {
        let known = match size.constant() {
            Some(-1) => {
                inferred = Some(i);
                Some(1.into())
            }
            Some(0) if copy_zeros => match old {
                Some(old) => Some(old.get(i).cloned().ok_or_else(|| {
                    Failure::Invalid(format!("it copies dimension {i} of shape {}", text(old)))
                })?),
                None => None,
            },
            _ => Some(size).filter(|size| size.is_at_least(0)),
        };
        dims.push(call.unknowns.or_fresh(known));
    }
    if let Some(i) = inferred {
        let rest = old.and_then(product).zip(product(&dims));
        let rest = rest.and_then(|(total, others)| floor_div(&total, &others));
        if let Some(dim) = dims.get_mut(i) {
            *dim = call.unknowns.or_fresh(rest);
        }
    }
    if let Some((old, new)) = old.and_then(product).zip(product(&dims))
        && let (Some(old), Some(new)) = (old.constant(), new.constant())
        && old != new
    {
        return Err(Failure::Invalid(format!("{old} elements do not fit into shape {}", text(&dims))));
    }
    Ok(with_dims(data, dims))
}

fn flatten(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let dims = call.dims(0)?;
    let at = match call.node.int("axis").unwrap_or(1) {
        at if at == dims.len() as i64 => dims.len(),
        at => axis(at, dims.len())?,
    };
    let (before, after) = dims.split_at(at.min(dims.len()));
    let new = [before, after].map(|part| call.unknowns.or_fresh(product(part)));
    Ok(with_dims(call.operand(0)?, new.to_vec()))
}

fn expand(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let old = call.dims(0)?;
    let target = sizes(call, 1)?;
    let dims = broadcast(&[old, &target])?;
    if let (Some(source), Some(count)) = (&call.operand(0)?.elements, small_count(&dims)) {
        let elements =
            (0..count).map(|i| source_index(i, &dims, old).and_then(|at| source.get(at)).cloned()).collect();
        if let Some(elements) = elements {
            return Ok(Tensor::with_elements(dims, elements));
        }
    }
    Ok(Tensor::shaped(dims))
}

fn range(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let scalar = |index: usize| -> Result<Option<Element>, Failure> {
        Ok(call.operand(index)?.elements.as_ref().and_then(|e| e.first().cloned()))
    };
    let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?);
    let numbers = (&start, &limit, &delta);
    if let (Some(start), Some(limit), Some(delta)) = numbers
        && let (Some(start), Some(limit), Some(delta)) = (start.number(), limit.number(), delta.number())
    {
        if delta == 0.0 {
            return Err(Failure::Invalid("a step of 0".into()));
        }
        let count = ((limit - start) / delta).ceil().max(0.0);
        if count <= MAX_ELEMENTS as f64 {
            let element = |i| Element::from_number(start + delta * f64::from(i));
            return Ok(Tensor::vector((0..count as u32).map(element).collect()));
        }
        return Ok(Tensor::shaped(vec![(count as i64).into()]));
    }
    let whole = |element: Option<Element>| element.and_then(|e| e.whole().cloned());
    let count = || -> Option<Dim> {
        let (start, limit, delta) = (whole(start)?, whole(limit)?, whole(delta)?.constant()?);
        let span = limit.sub(&start)?;
        let span = if span.is_at_least(0) { span } else { span.larger(&0.into())? };
        (delta > 0).then(|| floor_div(&span.add(&(delta - 1).into())?, &delta.into())).flatten()
    };
    let count = count();
    Ok(Tensor::shaped(vec![call.unknowns.or_fresh(count)]))
}

/// `Resize` (its operands differ before opset 11) and `Upsample`. Sizes come from `sizes`, or as
/// `floor(size * scale)`.
fn resize(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let data = call.dims(0)?;
    let modern = call.node.op_type == "Resize" && call.opset >= 11;
    let given = |call: &Call<'_>, index: usize| {
        let operand = call.get(index).filter(|_| modern || index == 1);
        // An empty vector stands for an operand that is left out.
        operand.is_some_and(|t| t.dims.as_deref().and_then(small_count) != Some(0)).then_some(index)
    };
    let axes: Vec<usize> = match call.node.ints("axes") {
        Some(axes) => axes.iter().map(|a| axis(*a, data.len())).collect::<Result<_, _>>()?,
        None => (0..data.len()).collect(),
    };
    let mut dims = data.to_vec();
    let policy = call.node.string("keep_aspect_ratio_policy").unwrap_or("stretch");
    let new: Vec<Dim> = if let Some(index) = given(call, 3).filter(|_| modern) {
        if policy == "stretch" { sizes(call, index)? } else { axes.iter().map(|_| call.unknowns.fresh()).collect() }
    } else {
        let scales = match given(call, if modern { 2 } else { 1 }) {
            Some(index) => call.operand(index)?.elements.as_deref().map(<[Element]>::to_vec),
            None => {
                let scales = call.node.attribute("scales");
                let missing = || Failure::Invalid("it has neither scales nor sizes".into());
                let scales = scales.ok_or_else(missing)?;
                Some(scales.floats.iter().map(|s| Element::from_number((*s).into())).collect())
            }
        };
        let scale = |i: usize| scales.as_ref().and_then(|s| s.get(i));
        let scaled = axes.iter().enumerate().map(|(i, at)| scaled(data.get(*at)?, scale(i)?));
        scaled.map(|size| call.unknowns.or_fresh(size)).collect()
    };
    if new.len() != axes.len() {
        return Err(Failure::Invalid(format!("{} sizes for {} dimensions", new.len(), axes.len())));
    }
    for (at, size) in axes.into_iter().zip(new) {
        if let Some(dim) = dims.get_mut(at) {
            *dim = size;
        }
    }
    Ok(Tensor::shaped(dims))
}

fn scaled(size: &Dim, scale: &Element) -> Option<Dim> {
    if let Element::Whole(scale) = scale {
        return size.mul(scale);
    }
    // Scales are binary fractions such as 0.5; others are rounded in ways that no exact rule follows.
    const DENOMINATOR: i64 = 64;
    let numerator = scale.number()? * DENOMINATOR as f64;
    if numerator.fract() != 0.0 || !(0.0..1e9).contains(&numerator) {
        return None;
    }
    floor_div(&size.mul(&Dim::from(numerator as i64))?, &DENOMINATOR.into())
}

fn split(call: &mut Call<'_>) -> Results {
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
