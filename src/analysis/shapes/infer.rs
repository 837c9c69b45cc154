//! Inference over a whole graph, node by node in topological order.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::{
    Note, NoteKind, Shape, Shapes,
    atom::Atom,
    dim::Dim,
    elementwise, inputs, rules,
    tensor::{Tensor, Unknowns},
    types, values,
};
use crate::ir::{Graph, Node, Origin, ValueId};

/// Operator set assumed for a model that imports none.
pub(super) const DEFAULT_OPSET: i64 = 17;

/// Why a rule has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// An operand is not known well enough; the reason was noted where it arose.
    #[error("an operand is unknown")]
    Upstream,
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Invalid(String),
}

pub(super) type Results = Result<Vec<Tensor>, Failure>;

/// A node with what is known of its operands.
pub(super) struct Call<'a> {
    pub node: &'a Node,
    pub operands: Vec<Option<&'a Tensor>>,
    pub opset: i64,
    pub unknowns: &'a mut Unknowns,
    /// Found on the way, without hindering the result.
    pub problems: Vec<String>,
    /// Broadcasts whose result must be the second size, or the model runs at no size.
    pub required: Vec<(Atom, Dim)>,
}

impl<'a> Call<'a> {
    /// Returns an operand that may be left out.
    pub fn get(&self, index: usize) -> Option<&'a Tensor> {
        self.operands.get(index).copied().flatten()
    }

    /// Returns an operand that must be there.
    pub fn operand(&self, index: usize) -> Result<&'a Tensor, Failure> {
        self.get(index).ok_or_else(|| Failure::Invalid(format!("operand {index} is missing")))
    }

    /// Returns the dimensions of an operand.
    pub fn dims(&self, index: usize) -> Result<&'a [Dim], Failure> {
        self.operand(index)?.dims.as_deref().ok_or(Failure::Upstream)
    }

    /// Returns a tensor with the dimensions of an operand.
    pub fn like(&self, index: usize) -> Result<Tensor, Failure> {
        let dims = self.operand(index)?.dims.clone().ok_or(Failure::Upstream)?;
        Ok(Tensor { dims: Some(dims), ..Tensor::default() })
    }

    /// Integers that are an operand in newer operator sets and were an attribute before. `None` if there is neither.
    pub fn numbers(&self, index: usize, attribute: &str) -> Result<Option<Vec<i64>>, Failure> {
        match self.get(index) {
            Some(operand) => operand.constants().map(Some).ok_or(Failure::Upstream),
            None => Ok(self.node.ints(attribute).map(<[i64]>::to_vec)),
        }
    }
}

/// Returns `axis`, counted from the end if negative, as an index below `rank`.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, Failure> {
    let signed = rank as i64;
    let resolved = if axis < 0 { axis.checked_add(signed) } else { Some(axis) };
    resolved
        .filter(|axis| (0..signed).contains(axis))
        .map(|axis| axis as usize)
        .ok_or_else(|| Failure::Invalid(format!("axis {axis} is out of range for {rank} dimensions")))
}

/// Infers the shapes and element types of all values of `graph`.
///
/// This never fails: what cannot be inferred is unknown, and [`Shapes::notes`] says why. Weights are not read; only
/// integer tensors of at most 1024 elements, and floats of at most 8, are.
pub fn shapes(graph: &Graph) -> Shapes {
    shapes_at(graph, &[])
}

/// Does the same as [`shapes`] where symbols of the inputs have these sizes. [`Shapes::problems`] then has the nodes whose
/// operands do not fit at them, too.
pub fn shapes_at(graph: &Graph, sizes: &[(String, i64)]) -> Shapes {
    let mut tensors: Vec<Tensor> = vec![Tensor::default(); graph.value_capacity()];
    let (mut stated, symbols) = inputs::input_tensors(graph);
    inputs::bind(&mut stated, sizes);
    let overridable: FxHashSet<_> = graph.inputs().map(|io| io.value).collect();
    for (_, initializer) in graph.initializers().filter(|(_, i)| !overridable.contains(&i.value)) {
        if let Some(slot) = tensors.get_mut(initializer.value.index()) {
            *slot = Tensor::from_initializer(graph, initializer);
        }
    }
    for (io, tensor) in graph.inputs().zip(stated) {
        if let Some(slot) = tensors.get_mut(io.value.index()) {
            *slot = tensor;
        }
    }
    let opset = graph.opset("").unwrap_or(DEFAULT_OPSET);
    let mut unknowns = Unknowns::default();
    let mut notes = Vec::new();
    let mut required = Vec::new();
    for (id, node) in graph.nodes() {
        let operands = node.inputs.iter().map(|v| v.and_then(|v| tensors.get(v.index()))).collect();
        let mut call = Call {
            node,
            operands,
            opset,
            unknowns: &mut unknowns,
            problems: Vec::new(),
            required: Vec::new(),
        };
        let data_types = types::results(&call);
        let results = infer(&mut call);
        required.append(&mut call.required);
        let mut note = |kind, what: &str| {
            notes.push(Note { node: id, kind, what: format!("{}: {what}", node.describe()) });
        };
        for problem in std::mem::take(&mut call.problems) {
            note(NoteKind::Invalid, &problem);
        }
        let results = results.unwrap_or_else(|failure| {
            match &failure {
                Failure::Upstream => {}
                Failure::Unsupported(what) => note(NoteKind::Unsupported, what),
                Failure::Invalid(what) => note(NoteKind::Invalid, what),
            }
            Vec::new()
        });
        let results: Vec<Tensor> = results.into_iter().map(|result| result.sharing(&call.operands)).collect();
        let mut results = results.into_iter();
        for (slot, value) in node.outputs.iter().enumerate() {
            let result = results.next().unwrap_or_default();
            let data_type = data_types.get(slot).copied().flatten();
            if let Some(place) = value.and_then(|v| tensors.get_mut(v.index())) {
                *place = result.typed(data_type);
            }
        }
    }
    finish(graph, tensors, symbols, notes, &required)
}

fn finish(
    graph: &Graph,
    tensors: Vec<Tensor>,
    symbols: Vec<Arc<str>>,
    notes: Vec<Note>,
    required: &[(Atom, Dim)],
) -> Shapes {
    let mut shapes = Shapes { symbols, notes, ..Shapes::default() };
    let replace =
        |atom: &Atom| required.iter().find(|(broadcast, _)| broadcast == atom).map(|(_, d)| d.clone());
    let is_removed = |id| graph.value(id).origin == Origin::Removed;
    for (id, tensor) in graph.value_ids().zip(&tensors) {
        if let Some(elements) = tensor.elements.as_ref().filter(|_| !is_removed(id)) {
            shapes.elements.insert(id, Arc::clone(elements));
        }
        shapes.data_types.push(tensor.data_type.filter(|_| !is_removed(id)));
    }
    // In the memory of `tensors`.
    let shape = |(index, tensor): (usize, Tensor)| {
        let dims = tensor.dims.filter(|_| !is_removed(ValueId::new(index)))?;
        let new = |dim: &Dim| dim.substitute(&replace).unwrap_or_else(|| dim.clone());
        let dims = if required.is_empty() { dims } else { dims.iter().map(new).collect() };
        Some(Shape { dims, data_type: tensor.data_type })
    };
    shapes.by_value = tensors.into_iter().enumerate().map(shape).collect();
    shapes
}

pub(super) fn infer(call: &mut Call<'_>) -> Results {
    let node = call.node;
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return Err(Failure::Unsupported(format!("no shape rule for operators of domain `{}`", node.domain)));
    }
    if let Some(results) = values::infer(call) {
        return results;
    }
    if let Some(results) = elementwise::infer(call) {
        return results;
    }
    rules::infer(call).unwrap_or_else(|| {
        Err(Failure::Unsupported(format!("no shape rule for operator `{}`", node.op_type)))
    })
}
