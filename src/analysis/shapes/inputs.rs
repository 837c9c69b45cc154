//! The symbols of a graph's inputs, and what they are in a diffusion UNet.

use std::{collections::BTreeSet, sync::Arc};

use super::{dim::Dim, tensor::Tensor};
use crate::{
    ir::{Graph, GraphIo},
    onnx::{DataType, Dimension},
};

/// Returns the name of a dimension: the model's own (`dim_param`), or `<input>.<axis>`.
fn symbol_name(named: &BTreeSet<String>, input: &str, axis: usize) -> String {
    let mut name = format!("{input}.{axis}");
    while named.contains(&name) {
        name.push('\'');
    }
    name
}

/// Returns the graph's inputs as the model states them, and their symbols in order of appearance.
pub(super) fn input_tensors(graph: &Graph) -> (Vec<Tensor>, Vec<Arc<str>>) {
    let named: BTreeSet<String> =
        graph.inputs().flat_map(|io| sizes(io).into_iter().flatten()).filter_map(Result::err).collect();
    let mut symbols: Vec<Arc<str>> = Vec::new();
    let mut tensors = Vec::new();
    for io in graph.inputs() {
        let dims = sizes(io).map(|sizes| {
            let dims = sizes.into_iter().enumerate().map(|(axis, size)| {
                let name = match size {
                    Ok(Some(size)) => return Dim::from(size),
                    Ok(None) => symbol_name(&named, io.info.name(), axis),
                    Err(name) => name,
                };
                if !symbols.iter().any(|s| **s == *name) {
                    symbols.push(name.as_str().into());
                }
                Dim::symbol(&name)
            });
            dims.collect()
        });
        tensors.push(Tensor { data_type: element_type(io), dims, elements: None });
    }
    (tensors, symbols)
}

/// Returns for each dimension its size, `Ok(None)` if the model says nothing, or its name.
fn sizes(io: &GraphIo) -> Option<Vec<Result<Option<i64>, String>>> {
    let size = |dim| match dim {
        Some(Dimension::Size(size)) if size >= 0 => Ok(Some(size)),
        Some(Dimension::Name(name)) if !name.is_empty() => Err(name),
        _ => Ok(None),
    };
    Some(io.info.dims()?.into_iter().map(size).collect())
}

fn element_type(io: &GraphIo) -> Option<DataType> {
    io.info.data_type().filter(|data_type| data_type.0 != 0)
}

/// Gives symbols these sizes.
pub(super) fn bind(tensors: &mut [Tensor], sizes: &[(String, i64)]) {
    let bound = |dim: &Dim| {
        let name = dim.as_atom().map(ToString::to_string)?;
        sizes.iter().find(|(symbol, _)| *symbol == name).map(|(_, size)| Dim::from(*size))
    };
    for dims in tensors.iter_mut().filter_map(|tensor| tensor.dims.as_mut()).filter(|_| !sizes.is_empty()) {
        *dims = dims.iter().map(|dim| bound(dim).unwrap_or_else(|| dim.clone())).collect();
    }
}

/// Returns values for the symbols of a UNet's inputs, for [`Shapes::evaluate`](super::Shapes::evaluate) and
/// [`shapes_at`](super::shapes_at).
///
/// The latents are the input called `sample`, or else the first one with four dimensions: `[batch, channels, height,
/// width]`, in latent (not image) pixels. The first dimension of the other inputs is the batch and, if there are three,
/// the second is the `sequence` of text tokens. Names don't matter, and a size that the model fixes stays as it is.
/// Symbols that this doesn't reach (such as those of ControlNet residuals) get no value.
pub fn bind_sizes(graph: &Graph, batch: i64, height: i64, width: i64, sequence: i64) -> Vec<(String, i64)> {
    let (tensors, _) = input_tensors(graph);
    let inputs: Vec<_> = graph.inputs().map(|io| io.info.name()).zip(&tensors).collect();
    let sample = inputs
        .iter()
        .position(|(name, _)| *name == "sample")
        .or_else(|| inputs.iter().position(|(_, t)| t.rank() == Some(4)));
    let mut bindings: Vec<(String, i64)> = Vec::new();
    let mut bind = |tensor: &Tensor, axis: usize, size: i64| {
        let name = tensor.dims.as_ref().and_then(|dims| dims.get(axis)).filter(|d| d.constant().is_none());
        if let Some(name) = name.map(Dim::to_string)
            && !bindings.iter().any(|(bound, _)| *bound == name)
        {
            bindings.push((name, size));
        }
    };
    if let Some((_, tensor)) = sample.and_then(|at| inputs.get(at)) {
        for (axis, size) in [(0, batch), (2, height), (3, width)] {
            bind(tensor, axis, size);
        }
    }
    for (_, (_, tensor)) in inputs.iter().enumerate().filter(|(index, _)| Some(*index) != sample) {
        bind(tensor, 0, batch);
        if tensor.rank() == Some(3) {
            bind(tensor, 1, sequence);
        }
    }
    bindings
}
