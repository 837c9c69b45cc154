//! Symbolic shapes and element types of every value of a graph.
//!
//! Shapes are inferred from the graph's inputs alone: the shapes that a model states (`value_info`) play no part, so
//! a model from which a tool has stripped them gives the same result, and one in which they are wrong cannot mislead.
//! Sizes are expressions over the symbols of the graph's inputs ([`Dim`]); the integer tensors that models compute
//! shapes with are followed element by element. The shape rules of most operators are those of
//! `rten-shape-inference`; the ones through which elements are followed are our own, with 64-bit arithmetic that has
//! no result rather than a wrong one.
//!
//! Deliberately unknown: operators outside the standard domain, calls of model-local functions, the results of If,
//! Loop and Scan, and sizes that depend on data.

mod atom;
mod compare;
mod dim;
mod division;
mod edited;
mod elementwise;
mod evaluate;
mod expression;
mod fit;
mod infer;
mod inputs;
mod movement;
mod reshaping;
mod rten;
mod rules;
mod slicing;
mod template;
mod tensor;
mod types;
mod values;

use std::{fmt, sync::Arc};

use rustc_hash::FxHashMap;

use tensor::Element;

pub use compare::{Agreement, ShapeDifference, compare};
pub use dim::Dim;
pub use edited::Edited;
pub use evaluate::ConcreteShapes;
pub use infer::{shapes, shapes_at};
pub use inputs::bind_sizes;

use crate::{
    ir::{NodeId, ValueId},
    onnx::DataType,
};

/// The shapes of the values of a graph.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    by_value: Vec<Option<Shape>>,
    data_types: Vec<Option<DataType>>,
    /// The elements of small values, where they are known.
    elements: FxHashMap<ValueId, Arc<[Element]>>,
    symbols: Vec<Arc<str>>,
    notes: Vec<Note>,
}

/// A value's dimensions and element type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The dimensions; none for a scalar.
    pub dims: Arc<[Dim]>,
    /// The element type, if it is known.
    pub data_type: Option<DataType>,
}

/// Something about a node that inference found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The node.
    pub node: NodeId,
    /// How it bears on the graph.
    pub kind: NoteKind,
    /// The finding, with the node's name.
    pub what: String,
}

/// How a [`Note`] bears on the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// There is no rule for the node, or it lacks something: its results are unknown.
    Unsupported,
    /// The node cannot run at any size: operands that don't fit together, or an invalid attribute.
    Invalid,
}

impl Shapes {
    /// Returns the shape of `value`; `None` if not even its number of dimensions is known.
    pub fn of(&self, value: ValueId) -> Option<&Shape> {
        self.by_value.get(value.index())?.as_ref()
    }

    /// Returns the element type of `value`, which may be known where its shape is not.
    pub fn data_type(&self, value: ValueId) -> Option<DataType> {
        self.data_types.get(value.index()).copied().flatten()
    }

    /// Returns the one element of `value`, if it has no more and is the same at all sizes.
    pub fn scalar(&self, value: ValueId) -> Option<f64> {
        self.single(value).and_then(Element::number)
    }

    /// Returns the one element of `value` as a size.
    pub fn size(&self, value: ValueId) -> Option<Dim> {
        self.single(value).and_then(Element::whole).cloned()
    }

    fn single(&self, value: ValueId) -> Option<&Element> {
        match self.elements.get(&value)?.as_ref() {
            [element] => Some(element),
            _ => None,
        }
    }

    /// Returns whether every dimension and the element type of `value` are known.
    pub fn is_known(&self, value: ValueId) -> bool {
        self.of(value).is_some_and(|shape| shape.data_type.is_some() && shape.dims.iter().all(Dim::is_known))
    }

    /// Returns how the shapes of two values relate; [`Agreement::Unknown`] if one of them is not known.
    pub fn compare(&self, a: ValueId, b: ValueId) -> Agreement {
        match (self.of(a), self.of(b)) {
            (Some(a), Some(b)) => compare(a, b),
            _ => Agreement::Unknown,
        }
    }

    /// Returns the symbols of the graph's inputs, in the order in which they first appear. Each stands for a size of at
    /// least 1. A dimension that the model leaves unnamed is called `<input>.<axis>`.
    pub fn symbols(&self) -> &[Arc<str>] {
        &self.symbols
    }

    /// Findings of the inference, in the order of the nodes.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Returns the notes about nodes that cannot run.
    pub fn problems(&self) -> impl Iterator<Item = &Note> {
        self.notes.iter().filter(|note| note.kind == NoteKind::Invalid)
    }
}

/// As in `[B, 320, H, W]`.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[")?;
        for (i, dim) in self.dims.iter().enumerate() {
            write!(f, "{}{dim}", if i > 0 { ", " } else { "" })?;
        }
        write!(f, "]")
    }
}
