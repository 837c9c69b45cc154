//! Operators whose results depend on the dimensions of their operands alone, by the rules of
//! `rten-shape-inference`. Contracted dimensions that differ, which those rules leave unchecked, are reported here.

use rten_shape_inference::{ReductionOp, ops};

use super::{
    dim::Dim,
    elementwise::text,
    infer::{Call, Failure, Results, axis},
    rten::{Operand, apply},
    tensor::{Element, Tensor},
};

/// Most operands of an Einsum: the rule's expressions grow with their number.
const MAX_EINSUM_OPERANDS: usize = 16;

/// Returns the results of an operator of this kind; `None` if `call` is another one.
pub(super) fn infer(call: &mut Call<'_>) -> Option<Results> {
    Some(match call.node.op_type.as_str() {
        "Conv" | "ConvInteger" => window(call, Window::Conv),
        "AveragePool" | "MaxPool" | "LpPool" => window(call, Window::Pool),
        "ConvTranspose" => conv_transpose(call),
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => by_dims(call, &ops::GlobalPool),
        "MatMul" | "MatMulInteger" => matmul(call),
        "Gemm" => gemm(call),
        "Einsum" => einsum(call),
        "Attention" => attention(call),
        "Transpose" => transpose(call),
        "DepthToSpace" => depth_to_space(call),
        "Pad" => pad(call),
        "Tile" => tile(call),
        "TopK" => top_k(call),
        "DynamicQuantizeLinear" => by_dims(call, &ops::DynamicQuantizeLinear),
        "GatherElements" => by_dims(call, &ops::GatherElements),
        "GatherND" => gather_nd(call),
        "LayerNormalization" => layer_normalization(call),
        "BatchNormalization" => batch_normalization(call),
        "ArgMax" | "ArgMin" => arg_reduce(call),
        op if op.starts_with("Reduce") => reduce(call),
        _ => return None,
    })
}

fn tensors(results: Vec<Option<Vec<Dim>>>) -> Vec<Tensor> {
    results.into_iter().map(|dims| dims.map_or_else(Tensor::default, Tensor::shaped)).collect()
}

/// Applies a rule to the dimensions of all operands.
fn by_dims(call: &mut Call<'_>, rule: &dyn rten_shape_inference::InferShapes) -> Results {
    call.dims(0)?;
    let operands: Vec<Operand<'_>> = call.operands.iter().map(|t| Operand::dims(*t)).collect();
    apply(call, rule, &operands).map(tensors)
}

fn positive(call: &Call<'_>, name: &str) -> Result<Option<Vec<usize>>, Failure> {
    let number = |value: &i64| {
        let fits = i32::try_from(*value).ok().filter(|v| *v >= 0).map(|v| v as usize);
        fits.ok_or_else(|| Failure::Invalid(format!("`{name}` cannot be {value}")))
    };
    call.node.ints(name).map(|values| values.iter().map(number).collect()).transpose()
}

/// Reports two constant sizes that should be equal.
fn expect_equal(call: &mut Call<'_>, a: Option<&Dim>, b: Option<&Dim>, what: &str) {
    if let (Some(x), Some(y)) = (a.and_then(Dim::constant), b.and_then(Dim::constant))
        && x != y
    {
        call.problems.push(format!("{what}: {x} and {y}"));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Window {
    Conv,
    Pool,
}

/// The attributes of a sliding window, for each spatial dimension.
struct Geometry {
    same: bool,
    pads: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
}

fn geometry(call: &Call<'_>, spatial: usize) -> Result<Geometry, Failure> {
    let auto = call.node.string("auto_pad").unwrap_or("NOTSET");
    let list = |name: &str, count: usize, default: usize| -> Result<Vec<usize>, Failure> {
        let values = positive(call, name)?.unwrap_or_else(|| vec![default; count]);
        let fits = values.len() == count;
        fits.then_some(values).ok_or_else(|| Failure::Invalid(format!("`{name}` needs {count} numbers")))
    };
    Ok(Geometry {
        same: auto.starts_with("SAME"),
        pads: if auto == "NOTSET" { list("pads", 2 * spatial, 0)? } else { vec![0; 2 * spatial] },
        strides: list("strides", spatial, 1)?,
        dilations: list("dilations", spatial, 1)?,
    })
}

impl Geometry {
    /// Returns the padding at the start and at the end of one dimension.
    fn padding(&self, dim: usize) -> [usize; 2] {
        let half = self.pads.len() / 2;
        [dim, half + dim].map(|i| self.pads.get(i).copied().unwrap_or(0))
    }
}

/// Infers convolution and pooling, one spatial dimension at a time: the rules know two at most.
fn window(call: &mut Call<'_>, kind: Window) -> Results {
    let data = call.dims(0)?;
    let spatial = data.len().saturating_sub(2);
    let geometry = geometry(call, spatial)?;
    let (mut dims, kernel) = match kind {
        Window::Conv => {
            let weight = call.dims(1)?;
            if weight.len() != data.len() || data.len() < 3 {
                let what = format!("a convolution of {} with weights {}", text(data), text(weight));
                return Err(Failure::Invalid(what));
            }
            let groups = call.node.int("group").unwrap_or(1);
            let channels = weight.get(1).and_then(|c| c.mul(&groups.into()));
            expect_equal(
                call,
                data.get(1),
                channels.as_ref(),
                "channels of the operand and of the weights differ",
            );
            let out = [data.first(), weight.first()].into_iter().flatten().cloned();
            (out.collect::<Vec<_>>(), weight.get(2..).unwrap_or_default().to_vec())
        }
        Window::Pool => {
            let kernel = positive(call, "kernel_shape")?.filter(|k| k.len() == spatial);
            let kernel = kernel.ok_or_else(|| Failure::Invalid("`kernel_shape` does not fit".into()))?;
            let out = data.get(..2).unwrap_or_default().to_vec();
            (out, kernel.iter().map(|k| Dim::from(*k as i64)).collect())
        }
    };
    let one = Dim::from(1);
    for (i, (size, kernel)) in data.iter().skip(2).zip(&kernel).enumerate() {
        let pads = geometry.padding(i);
        let padding = if geometry.same { ops::Padding::Same } else { ops::Padding::Fixed(&pads) };
        let stride = geometry.strides.get(i..=i).unwrap_or(&[1]);
        let dilation = geometry.dilations.get(i..=i).unwrap_or(&[1]);
        let line = [one.clone(), one.clone(), size.clone()];
        let weights = [one.clone(), one.clone(), kernel.clone()];
        let result = match kind {
            Window::Conv => {
                let rule = ops::Conv { dilations: dilation, padding, strides: stride };
                apply(call, &rule, &[Operand::Dims(&line), Operand::Dims(&weights)])?
            }
            Window::Pool => {
                let kernel_size = [kernel.constant().and_then(|k| usize::try_from(k).ok()).unwrap_or(1)];
                let ceil_mode = call.node.int("ceil_mode").unwrap_or(0) != 0;
                let kernel_size = &kernel_size;
                let rule =
                    ops::Pool { dilations: dilation, kernel_size, padding, strides: stride, ceil_mode };
                apply(call, &rule, &[Operand::Dims(&line)])?
            }
        };
        let size = result.into_iter().next().flatten().and_then(|dims| dims.into_iter().nth(2));
        dims.push(call.unknowns.or_fresh(size));
    }
    Ok(vec![Tensor::shaped(dims); call.node.outputs.len()])
}

fn conv_transpose(call: &mut Call<'_>) -> Results {
    let spatial = call.dims(0)?.len().saturating_sub(2);
    if call.node.attribute("output_shape").is_some() {
        return Err(Failure::Unsupported("ConvTranspose with `output_shape`".into()));
    }
    let geometry = geometry(call, spatial)?;
    let output_padding = positive(call, "output_padding")?;
    let groups = call.node.int("group").unwrap_or(1);
    let rule = ops::ConvTranspose {
        groups: usize::try_from(groups)
            .map_err(|_| Failure::Invalid(format!("`group` cannot be {groups}")))?,
        padding: if geometry.same { ops::Padding::Same } else { ops::Padding::Fixed(&geometry.pads) },
        strides: &geometry.strides,
        dilations: &geometry.dilations,
        output_padding: output_padding.as_deref(),
    };
    by_dims(call, &rule)
}

fn matmul(call: &mut Call<'_>) -> Results {
    let (a, b) = (call.dims(0)?, call.dims(1)?);
    if a.is_empty() || b.is_empty() {
        return Err(Failure::Invalid("MatMul of a scalar".into()));
    }
    // A vector is a row on the left and a column on the right, and its dimension goes again.
    let one = [Dim::from(1)];
    let left = if a.len() == 1 { [&one, a].concat() } else { a.to_vec() };
    let right = if b.len() == 1 { [b, &one].concat() } else { b.to_vec() };
    expect_equal(call, left.last(), right.iter().nth_back(1), "inner dimensions differ");
    let mut results = apply(call, &ops::MatMul, &[Operand::Dims(&left), Operand::Dims(&right)])?;
    if let Some(Some(dims)) = results.first_mut() {
        if b.len() == 1 {
            dims.pop();
        }
        if a.len() == 1 && !dims.is_empty() {
            dims.remove(dims.len().saturating_sub(if b.len() == 1 { 1 } else { 2 }));
        }
    }
    Ok(tensors(results))
}

fn gemm(call: &mut Call<'_>) -> Results {
    let flag = |name: &str| call.node.int(name).unwrap_or(0) != 0;
    let (transpose_a, transpose_b) = (flag("transA"), flag("transB"));
    let (a, b) = (call.dims(0)?, call.dims(1)?);
    let (k_of_a, k_of_b) = (a.get(usize::from(!transpose_a)), b.get(usize::from(transpose_b)));
    expect_equal(call, k_of_a, k_of_b, "inner dimensions differ");
    by_dims(call, &ops::Gemm { transpose_a, transpose_b })
}

fn einsum(call: &mut Call<'_>) -> Results {
    let equation = call.node.string("equation").unwrap_or_default();
    if call.operands.len() > MAX_EINSUM_OPERANDS {
        return Err(Failure::Unsupported(format!("Einsum of more than {MAX_EINSUM_OPERANDS} operands")));
    }
    by_dims(call, &ops::Einsum { equation })
}

fn attention(call: &mut Call<'_>) -> Results {
    let heads = |name: &str| call.node.int(name).and_then(|n| u32::try_from(n).ok());
    by_dims(call, &ops::Attention { q_num_heads: heads("q_num_heads"), kv_num_heads: heads("kv_num_heads") })
}

fn transpose(call: &mut Call<'_>) -> Results {
    let perm = positive(call, "perm")?;
    let rank = call.dims(0)?.len();
    if perm.as_ref().is_some_and(|perm| perm.len() != rank) {
        return Err(Failure::Invalid(format!("`perm` does not fit {rank} dimensions")));
    }
    let mut results = by_dims(call, &ops::Transpose { perm: perm.as_deref() })?;
    let source = call.operand(0)?;
    let axes = perm.unwrap_or_else(|| (0..rank).rev().collect());
    if let (Some(result), Some(old), Some(elements)) = (results.first_mut(), &source.dims, &source.elements) {
        result.elements = transposed(elements, old, &axes);
    }
    Ok(results)
}

/// Returns the elements of a tensor of shape `dims` with axis `axes[i]` as axis `i`.
fn transposed(elements: &[Element], dims: &[Dim], axes: &[usize]) -> Option<std::sync::Arc<[Element]>> {
    let mut stride = elements.len();
    let mut strides = Vec::with_capacity(dims.len());
    for dim in dims {
        stride = stride.checked_div(usize::try_from(dim.constant()?).ok()?)?;
        strides.push(stride);
    }
    let element = |mut index: usize| {
        let mut source = 0;
        for axis in axes.iter().rev() {
            let size = usize::try_from(dims.get(*axis)?.constant()?).ok()?;
            source += index.checked_rem(size)? * strides.get(*axis)?;
            index /= size;
        }
        elements.get(source).cloned()
    };
    (0..elements.len()).map(element).collect()
}

fn depth_to_space(call: &mut Call<'_>) -> Results {
    let size = call.node.int("blocksize").and_then(|n| u32::try_from(n).ok());
    let block_size =
        size.filter(|n| *n > 0).ok_or_else(|| Failure::Invalid("no valid `blocksize`".into()))?;
    by_dims(call, &ops::DepthToSpace { block_size })
}

/// Infers Pad, whose `pads` is an attribute before opset 11, an operand since.
fn pad(call: &mut Call<'_>) -> Results {
    let data = call.dims(0)?;
    let pads: Vec<Dim> = match call.node.ints("pads") {
        Some(pads) => pads.iter().map(|p| Dim::from(*p)).collect(),
        None => match call.operand(1)?.wholes() {
            Some(pads) => pads,
            None => return Ok(vec![Tensor::shaped(data.iter().map(|_| call.unknowns.fresh()).collect())]),
        },
    };
    let axes = call.get(3).map(|t| t.wholes().ok_or(Failure::Upstream)).transpose()?;
    let axes = axes.as_deref().map_or(Operand::Missing, Operand::Vector);
    let operands = [Operand::Dims(data), Operand::Vector(&pads), Operand::Missing, axes];
    apply(call, &ops::Pad, &operands).map(tensors)
}

fn tile(call: &mut Call<'_>) -> Results {
    let data = call.dims(0)?;
    let repeats = call.operand(1)?.wholes();
    let repeats = repeats.as_deref().map_or(Operand::Dims(&[]), Operand::Vector);
    apply(call, &ops::Tile, &[Operand::Dims(data), repeats]).map(tensors)
}

fn top_k(call: &mut Call<'_>) -> Results {
    let data = call.dims(0)?;
    let axis = axis(call.node.int("axis").unwrap_or(-1), data.len())?;
    let count = match (call.get(1), call.node.int("k")) {
        (None, Some(k)) => Some(vec![Dim::from(k)]),
        _ => call.operand(1)?.wholes(),
    };
    let count = count.as_deref().map_or(Operand::Dims(&[]), Operand::Vector);
    let rule = ops::TopK { axis: i32::try_from(axis).ok() };
    apply(call, &rule, &[Operand::Dims(data), count]).map(tensors)
}

fn gather_nd(call: &mut Call<'_>) -> Results {
    let batch_dims = call.node.int("batch_dims").unwrap_or(0);
    let batch_dims = usize::try_from(batch_dims)
        .ok()
        .filter(|n| *n <= i32::MAX as usize)
        .ok_or_else(|| Failure::Invalid(format!("`batch_dims` cannot be {batch_dims}")))?;
    by_dims(call, &ops::GatherND { batch_dims })
}

/// Infers LayerNormalization, whose second and third result have the reduced dimensions as 1.
fn layer_normalization(call: &mut Call<'_>) -> Results {
    let dims = call.dims(0)?;
    let first = axis(call.node.int("axis").unwrap_or(-1), dims.len())?;
    let statistics = dims.iter().enumerate().map(|(i, d)| if i < first { d.clone() } else { 1.into() });
    let statistics = Tensor::shaped(statistics.collect());
    Ok(vec![call.like(0)?, statistics.clone(), statistics])
}

fn batch_normalization(call: &mut Call<'_>) -> Results {
    let dims = call.dims(0)?;
    let channels = dims.get(1).map_or_else(Vec::new, |c| vec![c.clone()]);
    let statistics = Tensor::shaped(channels);
    Ok(vec![call.like(0)?, statistics.clone(), statistics])
}

fn arg_reduce(call: &mut Call<'_>) -> Results {
    let keep_dims = call.node.int("keepdims").unwrap_or(1) != 0;
    let data = call.dims(0)?;
    let at = axis(call.node.int("axis").unwrap_or(0), data.len())?;
    reduced(call, data, &[at], keep_dims)
}

fn reduce(call: &mut Call<'_>) -> Results {
    let keep_dims = call.node.int("keepdims").unwrap_or(1) != 0;
    let data = call.dims(0)?;
    let axes = call.numbers(1, "axes")?.unwrap_or_default();
    let keep_all = axes.is_empty() && call.node.int("noop_with_empty_axes").unwrap_or(0) != 0;
    if keep_all {
        return Ok(vec![call.operand(0)?.clone()]);
    }
    let axes = match axes.as_slice() {
        [] => (0..data.len()).collect(),
        axes => axes.iter().map(|a| axis(*a, data.len())).collect::<Result<Vec<_>, _>>()?,
    };
    let mut results = reduced(call, data, &axes, keep_dims)?;
    if let (Some(result), true, Some(element)) = (results.first_mut(), data.len() <= 1, total(call)) {
        result.elements = Some([element].into());
    }
    Ok(results)
}

fn reduced(call: &mut Call<'_>, data: &[Dim], axes: &[usize], keep_dims: bool) -> Results {
    let axes: Vec<i32> = axes.iter().filter_map(|a| i32::try_from(*a).ok()).collect();
    apply(call, &ReductionOp { axes: Some(&axes), keep_dims }, &[Operand::Dims(data)]).map(tensors)
}

/// Returns all elements of a vector as one, for the reductions that models compute shapes with.
fn total(call: &Call<'_>) -> Option<Element> {
    let wholes = call.get(0)?.wholes()?;
    let (first, rest) = wholes.split_first()?;
    let rule = match call.node.op_type.as_str() {
        "ReduceProd" => Dim::mul,
        "ReduceSum" => Dim::add,
        "ReduceMax" => Dim::larger,
        "ReduceMin" => Dim::smaller,
        _ => return None,
    };
    rest.iter().try_fold(first.clone(), |sum, next| rule(&sum, next)).map(Element::Whole)
}
