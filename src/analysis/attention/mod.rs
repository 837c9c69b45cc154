//! Attentions: each Softmax or Attention operator with its query, key, value and output projections, heads, scale and
//! tokens.
//!
//! They are found from data flow alone ([`structure`]), so an exporter that renames nodes, fuses the scale into the
//! product of queries and keys, or drops all scopes makes no difference. Shapes add heads, scale and tokens.

mod einsum;
mod facts;
mod identity;
mod logits;
mod mean;
mod structure;
mod walk;
mod window;

pub use logits::Logits;
pub use structure::{Attentions, structure};
pub use window::{Divided, Windows};

use crate::{
    analysis::{
        modules::{ModuleId, Modules},
        shapes::Dim,
    },
    ir::{NodeId, ValueId},
};

/// An attention.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Its Softmax, or the operator that does all of it (`Attention`, `MultiHeadAttention`).
    pub node: NodeId,
    /// The product of queries and keys; the operator itself where it has it inside.
    pub scores: NodeId,
    /// The product of probabilities and values; the operator itself where it has it inside.
    pub product: NodeId,
    /// The queries, as the attention reads them.
    pub query: Operand,
    /// The keys.
    pub key: Operand,
    /// The values.
    pub value: Operand,
    /// The result: probabilities times values, not yet projected.
    pub attended: ValueId,
    /// The layers that read the result: two where two streams are attended to at once.
    pub out: Vec<Projection>,
    /// Where its keys come from.
    pub attends: Attends,
}

/// The queries, keys or values of an attention.
#[derive(Clone, Debug)]
pub struct Operand {
    /// The value that is read, split into heads or not.
    pub value: ValueId,
    /// The nearest Linear or Conv layers that it is computed with. None if there are none; two for joint streams, or
    /// where a LoRA runs beside a layer.
    pub projections: Vec<Projection>,
}

/// A Linear or Conv layer beside an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// The node that multiplies.
    pub node: NodeId,
    /// The operand of `node` that leads to the weight.
    pub slot: usize,
    /// The layer's input.
    pub input: ValueId,
}

/// Where an attention's keys come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attends {
    /// The same as its queries: self-attention.
    Itself,
    /// Something else: cross-attention.
    Other,
    /// Both the same and something else.
    Both,
}

/// Numbers of an attention that follow from its shapes; `None` where they don't.
#[derive(Clone, Debug, Default)]
pub struct AttentionFacts {
    /// Number of heads.
    pub heads: Option<u64>,
    /// The factor on the products of queries and keys before the Softmax.
    pub scale: Option<f64>,
    /// How many queries there are.
    pub queries: Option<Dim>,
    /// How many keys there are.
    pub keys: Option<Dim>,
}

impl Attention {
    /// Returns all its projections, each once: query, key, value, output.
    pub fn projections(&self) -> Vec<Projection> {
        let mut all: Vec<Projection> = Vec::new();
        let inputs = [&self.query, &self.key, &self.value].into_iter().flat_map(|o| &o.projections);
        for projection in inputs.chain(&self.out) {
            if !all.contains(projection) {
                all.push(*projection);
            }
        }
        all
    }

    /// Returns the module of the attention: the innermost that its query, key and value projections lie in, or, where
    /// they are one layer, that this layer and the output projection lie in.
    pub fn module(&self, modules: &Modules) -> ModuleId {
        let of = |projections: &[Projection]| -> Vec<ModuleId> {
            projections.iter().map(|p| modules.of_node(p.node)).collect()
        };
        let mut inside: Vec<ModuleId> =
            [&self.query, &self.key, &self.value].iter().flat_map(|o| of(&o.projections)).collect();
        inside.dedup();
        if inside.len() < 2 {
            inside.extend(of(&self.out));
        }
        let around = inside.iter().copied().reduce(|a, b| modules.common(a, b));
        match (around, inside.as_slice()) {
            (None, _) => modules.of_node(self.node),
            (Some(only), [first, rest @ ..]) if only == *first && rest.iter().all(|m| m == first) => {
                modules.get(only).parent.unwrap_or(only)
            }
            (Some(around), _) => around,
        }
    }
}
