//! Where the logits of an attention can be multiplied.

use super::Attention;
use crate::{
    analysis::{Analysis, skip::Illegal},
    ir::{NodeId, ValueId},
    onnx::DataType,
};

/// A value that the logits of an attention are proportional to.
#[derive(Clone, Debug)]
pub struct Logits {
    /// The product of queries and keys, before masks are added; of an operator that has it inside, the keys.
    pub value: ValueId,
    /// The operands that are it there.
    pub at: Vec<(NodeId, usize)>,
    /// Its element type.
    pub data_type: DataType,
    /// A value and its axis with one element for each key.
    pub keys: (ValueId, usize),
}

impl Attention {
    /// Returns where the logits are.
    ///
    /// # Errors
    /// [`Illegal`] if they are in no known place.
    pub fn logits(&self, analysis: &Analysis<'_>) -> Result<Logits, Illegal> {
        let (graph, shapes) = (analysis.graph, &analysis.shapes);
        let illegal = |reason: &str| Illegal::at(graph, self.node, reason);
        let node = graph.node(self.node);
        let logits = |value: ValueId, at: Vec<(NodeId, usize)>, keys: (ValueId, usize)| {
            let data_type = shapes.data_type(value).ok_or_else(|| illegal("has logits of no known type"))?;
            Ok(Logits { value, at, data_type, keys })
        };
        if node.is("Softmax") {
            let unknown = || illegal("has logits of no known shape");
            let value = graph.node(self.scores).output(0).ok_or_else(unknown)?;
            let read = node.input(0).ok_or_else(unknown)?;
            let (own, read) = (shapes.of(value).ok_or_else(unknown)?, shapes.of(read).ok_or_else(unknown)?);
            let rank = own.dims.len();
            let axis = node.int("axis").unwrap_or(-1);
            let last = axis == -1 || axis == rank as i64 - 1;
            // Whatever moved the keys to another axis would have to be followed to count them.
            if !last || rank == 0 || own.dims.last() != read.dims.last() {
                return Err(illegal("has its keys on another axis than the product of queries and keys"));
            }
            return logits(value, analysis.readers(value)?, (value, rank - 1));
        }
        // Operands from the fifth on hold keys of earlier calls.
        if !node.is("Attention") || node.inputs.iter().skip(4).any(Option::is_some) {
            return Err(illegal("is no operator whose logits can be multiplied"));
        }
        let rank = shapes.of(self.key.value).map(|shape| shape.dims.len());
        let axis = match rank {
            Some(4) => 2,
            Some(3) => 1,
            _ => return Err(illegal("has keys of no known shape")),
        };
        logits(self.key.value, vec![(self.node, 1)], (self.key.value, axis))
    }
}
