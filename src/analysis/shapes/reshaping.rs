//! Operators that give a tensor other dimensions.

use super::{
    dim::Dim,
    division::floor_div,
    elementwise::{broadcast, small_count, source_index, text},
    infer::{Call, Failure, axis},
    tensor::{Element, Tensor},
    values::{product, sizes},
};

/// Returns `data` with other dimensions and the same elements.
fn with_dims(data: &Tensor, dims: Vec<Dim>) -> Tensor {
    let kept = data.elements.clone().filter(|e| small_count(&dims) == Some(e.len()));
    Tensor { data_type: None, dims: Some(dims.into()), elements: kept }
}

pub(super) fn squeeze(call: &mut Call<'_>) -> Result<Tensor, Failure> {
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

pub(super) fn unsqueeze(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let old = call.dims(0)?;
    let axes = call.numbers(1, "axes")?.ok_or_else(|| Failure::Invalid("it has no `axes`".into()))?;
    let rank = old.len() + axes.len();
    let added = axes.into_iter().map(|a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut old = old.iter().cloned();
    let dims = (0..rank).filter_map(|i| if added.contains(&i) { Some(1.into()) } else { old.next() });
    Ok(with_dims(call.operand(0)?, dims.collect()))
}

pub(super) fn reshape(call: &mut Call<'_>) -> Result<Tensor, Failure> {
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

pub(super) fn flatten(call: &mut Call<'_>) -> Result<Tensor, Failure> {
    let dims = call.dims(0)?;
    let at = match call.node.int("axis").unwrap_or(1) {
        at if at == dims.len() as i64 => dims.len(),
        at => axis(at, dims.len())?,
    };
    let (before, after) = dims.split_at(at.min(dims.len()));
    let new = [before, after].map(|part| call.unknowns.or_fresh(product(part)));
    Ok(with_dims(call.operand(0)?, new.to_vec()))
}

pub(super) fn expand(call: &mut Call<'_>) -> Result<Tensor, Failure> {
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

/// Infers `Resize` (its operands differ before opset 11) and `Upsample`. Sizes come from `sizes`, or as
/// `floor(size * scale)`.
pub(super) fn resize(call: &mut Call<'_>) -> Result<Tensor, Failure> {
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
        if policy == "stretch" {
            sizes(call, index)?
        } else {
            axes.iter().map(|_| call.unknowns.fresh()).collect()
        }
    } else {
        let scales = match given(call, if modern { 2 } else { 1 }) {
            Some(index) => call.operand(index)?.elements.as_deref().map(<[Element]>::to_vec),
            None => {
                let scales = call.node.attribute("scales");
                let missing = || Failure::Invalid("it has neither scales nor sizes".into());
                let scales = scales.ok_or_else(missing)?;
                Some(scales.0.floats.iter().map(|s| Element::from_number((*s).into())).collect())
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
