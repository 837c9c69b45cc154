//! Operators that work element by element, and their effect on the elements of small tensors.

use super::{
    dim::Dim,
    division::{exact, floor_div, truncating_div},
    infer::{Call, Failure, Results},
    tensor::{Element, MAX_ELEMENTS, Tensor},
};
use crate::onnx::DataType;

/// Operators that keep the dimensions of their first operand, and whose elements are not followed.
const KEEP_SHAPE: &[&str] = &[
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Bernoulli",
    "BitwiseNot",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "CumSum",
    "DequantizeLinear",
    "Elu",
    "Erf",
    "Exp",
    "EyeLike",
    "Gelu",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Mish",
    "PRelu",
    "QuantizeLinear",
    "RMSNormalization",
    "RandomNormalLike",
    "RandomUniformLike",
    "Reciprocal",
    "Relu",
    "ReverseSequence",
    "RotaryEmbedding",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softmax",
    "Softplus",
    "Softsign",
    "Swish",
    "Tan",
    "Tanh",
    "TensorScatter",
    "ThresholdedRelu",
    "Trilu",
];

/// Returns the results of an elementwise operator; `None` if `call` is another one.
pub(super) fn infer(call: &mut Call<'_>) -> Option<Results> {
    let op = call.node.op_type.as_str();
    let real = call.get(0).and_then(|t| t.data_type).is_some_and(is_real);
    let modulo = call.node.int("fmod").unwrap_or(0) == 0;
    let to = match op {
        "Cast" => call.node.int("to").and_then(|t| i32::try_from(t).ok()).map(DataType),
        "CastLike" => call.get(1).and_then(|t| t.data_type),
        _ => None,
    };
    let results = match op {
        "Identity" => call.operand(0).cloned(),
        "Dropout" => return Some(call.like(0).map(|tensor| vec![tensor; 2])),
        _ if KEEP_SHAPE.contains(&op) => call.like(0),
        "Cast" | "CastLike" => map(call, 1, |x| cast(x.first()?, to?)),
        "Neg" => map(call, 1, |x| subtract(&0.into(), x.first()?)),
        "Abs" => map(call, 1, |x| match x.first()? {
            Element::Whole(dim) if dim.is_at_least(0) => Some(Element::Whole(dim.clone())),
            other => Some(Element::from_number(other.number()?.abs())),
        }),
        "Floor" => map(call, 1, |x| round(x.first()?, f64::floor)),
        "Ceil" => map(call, 1, |x| round(x.first()?, f64::ceil)),
        "Round" => map(call, 1, |x| round(x.first()?, f64::round_ties_even)),
        "Sqrt" => map(call, 1, |x| Some(Element::from_number(x.first()?.number()?.sqrt()))),
        "Not" => map(call, 1, |x| Some(i64::from(x.first()?.number()? == 0.0).into())),
        "Add" => map(call, 2, pair(add)),
        "Sub" => map(call, 2, pair(subtract)),
        "Mul" => map(call, 2, pair(multiply)),
        "Div" if real => map(call, 2, pair(divide_real)),
        "Div" => map(call, 2, pair(divide_whole)),
        "Mod" if modulo && !real => map(call, 2, pair(remainder)),
        "Mod" | "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => map(call, 2, |_| None),
        "Pow" => map(call, 2, pair(|x, y| Some(Element::from_number(x.number()?.powf(y.number()?))))),
        "Equal" => map(call, 2, pair(|x, y| compare(x, y, [false, true, false]))),
        "Less" => map(call, 2, pair(|x, y| compare(x, y, [true, false, false]))),
        "LessOrEqual" => map(call, 2, pair(|x, y| compare(x, y, [true, true, false]))),
        "Greater" => map(call, 2, pair(|x, y| compare(x, y, [false, false, true]))),
        "GreaterOrEqual" => map(call, 2, pair(|x, y| compare(x, y, [false, true, true]))),
        "And" => map(call, 2, pair(|x, y| Some(i64::from(x.number()? != 0.0 && y.number()? != 0.0).into()))),
        "Or" => map(call, 2, pair(|x, y| Some(i64::from(x.number()? != 0.0 || y.number()? != 0.0).into()))),
        "Xor" => {
            map(call, 2, pair(|x, y| Some(i64::from((x.number()? != 0.0) != (y.number()? != 0.0)).into())))
        }
        "Where" => map(call, 3, |x| match x {
            [_, yes, no] if yes == no => Some((*yes).clone()),
            [condition, yes, no] => Some(if condition.number()? != 0.0 { *yes } else { *no }.clone()),
            _ => None,
        }),
        "Sum" => map(call, call.operands.len(), |x| fold(x, add)),
        "Max" => map(call, call.operands.len(), |x| {
            fold(x, |a, b| Some(Element::Whole(a.whole()?.larger(b.whole()?)?)))
        }),
        "Min" => map(call, call.operands.len(), |x| {
            fold(x, |a, b| Some(Element::Whole(a.whole()?.smaller(b.whole()?)?)))
        }),
        "Mean" => map(call, call.operands.len(), |_| None),
        _ => return None,
    };
    Some(results.map(|tensor| vec![tensor]))
}

/// Returns the dimensions that shapes broadcast to, by ONNX's rules.
pub(super) fn broadcast(shapes: &[&[Dim]]) -> Result<Vec<Dim>, Failure> {
    let rank = shapes.iter().map(|dims| dims.len()).max().unwrap_or(0);
    let mut result = vec![Dim::from(1); rank];
    for dims in shapes {
        for (out, dim) in result.iter_mut().skip(rank - dims.len()).zip(*dims) {
            *out = match out.broadcast(dim) {
                Some(dim) => dim,
                None if out.constant().is_some() && dim.constant().is_some() => {
                    let texts: Vec<String> = shapes.iter().map(|dims| text(dims)).collect();
                    return Err(Failure::Invalid(format!("shapes {} do not broadcast", texts.join(" and "))));
                }
                None => return Err(Failure::Unsupported("a broadcast of too many sizes".into())),
            };
        }
    }
    Ok(result)
}

/// Returns dimensions as messages write them.
pub(super) fn text(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// Returns the number of elements, if it is constant and small enough to follow them.
pub(super) fn small_count(dims: &[Dim]) -> Option<usize> {
    dims.iter()
        .try_fold(1usize, |n, dim| n.checked_mul(usize::try_from(dim.constant()?).ok()?))
        .filter(|n| *n <= MAX_ELEMENTS)
}

/// Returns the first `count` operands broadcast together, and `rule` applied to each of their elements if all have any.
fn map(
    call: &mut Call<'_>,
    count: usize,
    rule: impl Fn(&[&Element]) -> Option<Element>,
) -> Result<Tensor, Failure> {
    let shapes: Vec<&[Dim]> = (0..count).map(|i| call.dims(i)).collect::<Result<_, _>>()?;
    let dims = broadcast(&shapes)?;
    let sources: Option<Vec<&[Element]>> =
        (0..count).map(|i| call.get(i).and_then(|t| t.elements.as_deref())).collect();
    let (Some(sources), Some(size)) = (sources, small_count(&dims)) else {
        return Ok(Tensor::shaped(dims));
    };
    let mut known = false;
    let mut elements = Vec::with_capacity(size);
    for index in 0..size {
        let operands: Option<Vec<&Element>> = sources
            .iter()
            .zip(&shapes)
            .map(|(source, shape)| source.get(source_index(index, &dims, shape)?))
            .collect();
        let element = operands.and_then(|operands| rule(&operands));
        known |= element.is_some();
        elements.push(element.unwrap_or_else(|| Element::Whole(call.unknowns.fresh())));
    }
    Ok(if known { Tensor::with_elements(dims, elements) } else { Tensor::shaped(dims) })
}

/// Returns where the element at `index` of a tensor of shape `dims` comes from in an operand of shape `shape` that was
/// broadcast to it.
pub(super) fn source_index(mut index: usize, dims: &[Dim], shape: &[Dim]) -> Option<usize> {
    let (mut source, mut stride) = (0, 1);
    for (axis, dim) in dims.iter().enumerate().rev() {
        let size = usize::try_from(dim.constant()?).ok()?;
        let position = index % size.max(1);
        index /= size.max(1);
        if let Some(at) = (axis + shape.len()).checked_sub(dims.len()) {
            let own = usize::try_from(shape.get(at)?.constant()?).ok()?;
            source += if own == 1 { 0 } else { position * stride };
            stride *= own;
        }
    }
    Some(source)
}

fn pair(rule: impl Fn(&Element, &Element) -> Option<Element>) -> impl Fn(&[&Element]) -> Option<Element> {
    move |x| match x {
        [a, b] => rule(a, b),
        _ => None,
    }
}

fn fold(x: &[&Element], rule: impl Fn(&Element, &Element) -> Option<Element>) -> Option<Element> {
    let (first, rest) = x.split_first()?;
    rest.iter().try_fold((*first).clone(), |sum, next| rule(&sum, next))
}

fn is_real(data_type: DataType) -> bool {
    matches!(data_type, DataType::FLOAT | DataType::DOUBLE | DataType::FLOAT16 | DataType::BFLOAT16)
}

fn cast(x: &Element, to: DataType) -> Option<Element> {
    match (x, to) {
        (_, DataType::BOOL) => match x {
            Element::Whole(dim) if dim.is_at_least(1) => Some(1.into()),
            _ => Some(i64::from(x.number()? != 0.0).into()),
        },
        // Half floats hold integers exactly up to 2048, bfloat16 up to 256.
        (Element::Whole(dim), DataType::FLOAT16 | DataType::BFLOAT16) => {
            dim.constant().filter(|value| value.abs() <= 256).map(Element::from)
        }
        (Element::Real(_), to) if is_real(to) => Some(x.clone()),
        (Element::Real(value), _) => Some(Element::from_number(value.trunc())),
        // An unknown float may have a fraction, which the cast drops.
        (Element::Whole(dim), _) => dim.is_known().then(|| x.clone()),
    }
}

fn round(x: &Element, rule: impl Fn(f64) -> f64) -> Option<Element> {
    match x {
        Element::Whole(dim) => dim.is_known().then(|| x.clone()),
        Element::Real(value) => Some(Element::from_number(rule(*value))),
    }
}

fn add(x: &Element, y: &Element) -> Option<Element> {
    match (x, y) {
        (Element::Whole(x), Element::Whole(y)) => x.add(y).map(Element::Whole),
        _ => Some(Element::from_number(x.number()? + y.number()?)),
    }
}

fn subtract(x: &Element, y: &Element) -> Option<Element> {
    match (x, y) {
        (Element::Whole(x), Element::Whole(y)) => x.sub(y).map(Element::Whole),
        _ => Some(Element::from_number(x.number()? - y.number()?)),
    }
}

fn multiply(x: &Element, y: &Element) -> Option<Element> {
    match (x, y) {
        (Element::Whole(x), Element::Whole(y)) => x.mul(y).map(Element::Whole),
        _ => Some(Element::from_number(x.number()? * y.number()?)),
    }
}

fn divide_real(x: &Element, y: &Element) -> Option<Element> {
    match (x.number(), y.number()) {
        (Some(x), Some(y)) => Some(Element::from_number(x / y)),
        _ => exact(x.whole()?, y.whole()?).map(Element::Whole),
    }
}

fn divide_whole(x: &Element, y: &Element) -> Option<Element> {
    truncating_div(x.whole()?, y.whole()?).map(Element::Whole)
}

/// Returns the integer remainder with the sign of the divisor.
fn remainder(x: &Element, y: &Element) -> Option<Element> {
    let (x, y) = (x.whole()?, y.whole()?);
    if !y.is_at_least(1) {
        return None;
    }
    x.sub(&floor_div(x, y)?.mul(y)?).map(Element::Whole)
}

/// Returns 1 or 0 by whether `x` is less than, equal to or greater than `y`, if that is the same for all inputs.
fn compare(x: &Element, y: &Element, when: [bool; 3]) -> Option<Element> {
    let [less, equal, greater] = when;
    let holds = match (x, y) {
        (Element::Whole(x), Element::Whole(y)) => {
            let (above, below) = (x.sub(y)?, y.sub(x)?);
            if x == y {
                equal
            } else if above.is_at_least(1) {
                greater
            } else if below.is_at_least(1) {
                less
            } else if above.is_at_least(0) && equal == greater {
                greater
            } else if below.is_at_least(0) && equal == less {
                less
            } else {
                return None;
            }
        }
        _ => match x.number()?.partial_cmp(&y.number()?)? {
            std::cmp::Ordering::Less => less,
            std::cmp::Ordering::Equal => equal,
            std::cmp::Ordering::Greater => greater,
        },
    };
    Some(i64::from(holds).into())
}
