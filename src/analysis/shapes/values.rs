//! Operators that make small integer tensors, with which models compute shapes.

use super::{
    dim::Dim,
    division::floor_div,
    elementwise::small_count,
    infer::{Call, Failure, Results, axis},
    movement::{concat, gather, split},
    reshaping::{expand, flatten, reshape, resize, squeeze, unsqueeze},
    slicing::slice,
    tensor::{Element, MAX_ELEMENTS, Tensor},
};
use crate::ir::Attribute;

/// Returns the results of an operator of this kind; `None` if `call` is another one.
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
        "OneHot" => one_hot(call),
        "Resize" | "Upsample" => resize(call),
        "Split" => return Some(split(call)),
        _ => return None,
    };
    Some(result.map(|tensor| vec![tensor]))
}

pub(super) fn product<'d>(dims: impl IntoIterator<Item = &'d Dim>) -> Option<Dim> {
    dims.into_iter().try_fold(Dim::from(1), |n, dim| n.mul(dim))
}

/// Returns an operand's elements as sizes: what is not provably a size is unknown.
pub(super) fn sizes(call: &mut Call<'_>, index: usize) -> Result<Vec<Dim>, Failure> {
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
    if let Some(tensor) = node.attribute("value").and_then(Attribute::tensor) {
        Ok(Tensor::from_attribute(tensor))
    } else if let Some(value) = node.int("value_int") {
        Ok(scalar(value.into()))
    } else if let Some(value) = node.float("value_float") {
        Ok(scalar(Element::from_number(value.into())))
    } else if let Some(attribute) = node.attribute("value_ints") {
        Ok(Tensor::vector(attribute.ints().iter().map(|value| (*value).into()).collect()))
    } else if let Some(attribute) = node.attribute("value_floats") {
        Ok(Tensor::vector(attribute.0.floats.iter().map(|v| Element::from_number((*v).into())).collect()))
    } else {
        Err(Failure::Unsupported("a constant that is neither a tensor nor a number".into()))
    }
}

fn constant_of_shape(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let dims = sizes(call, 0)?;
    let value = match call.node.attribute("value").and_then(Attribute::tensor) {
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

/// Infers OneHot. `repeat_interleave` of TorchScript repeats by a OneHot vector of sizes.
fn one_hot(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let indices = call.dims(0)?.to_vec();
    let at = axis(call.node.int("axis").unwrap_or(-1), indices.len() + 1)?;
    let known = |index: usize| call.get(index).and_then(|t| t.elements.clone());
    let (hot, depth, values) = (call.operand(0)?.constants(), known(1), known(2));
    let depth = depth.as_deref().and_then(|e| e.first()?.whole().cloned()).filter(|d| d.is_at_least(0));
    let depth = call.unknowns.or_fresh(depth);
    let mut dims = indices.clone();
    dims.insert(at, depth.clone());
    let parts = (small_count(&indices[..at]), small_count(&indices[at..]), small_count(&dims));
    let (Some(hot), Some([off, on]), Some(depth), (Some(outer), Some(inner), Some(_))) =
        (hot, values.as_deref(), depth.constant(), parts)
    else {
        return Ok(Tensor::shaped(dims));
    };
    let mut elements = Vec::new();
    for o in 0..outer {
        for d in 0..depth {
            elements.extend(hot.iter().skip(o * inner).take(inner).map(|index| {
                let counted = if *index < 0 { index + depth } else { *index };
                if counted == d { on.clone() } else { off.clone() }
            }));
        }
    }
    Ok(Tensor::with_elements(dims, elements))
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
