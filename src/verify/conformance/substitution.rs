//! Substitutions by the plan: which value is read in place of which, by all that read it or by some, and which nodes
//! have other attributes.

use rustc_hash::FxHashMap;

use super::{
    classes::Interner,
    per_row::{PerRow, Reading},
    signature::signature,
    templates::Templates,
    value,
};
use crate::{
    ir::{Attribute, Graph, NodeId, ValueId},
    onnx::OnnxError,
    rules::{Edit, Edits},
};

/// Values of the original and what stands in for them, nodes and the attributes that they have then, each with the
/// change of the plan that says so. The default substitutes nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Substitution {
    skips: FxHashMap<ValueId, (ValueId, usize)>,
    /// Operands that are the results of templates.
    operands: FxHashMap<(NodeId, usize), ValueId>,
    /// The results of templates, each with the value that its readers would read without the plan.
    spliced: FxHashMap<ValueId, (ValueId, usize)>,
    attributes: FxHashMap<NodeId, (Box<[Attribute]>, usize)>,
    /// The numbers of the signatures of nodes with other attributes.
    signatures: FxHashMap<NodeId, u32>,
    /// Values with the elements of another, in the form that is proven.
    same: FxHashMap<ValueId, ValueId>,
    readings: FxHashMap<(NodeId, usize), Reading>,
    columns: FxHashMap<ValueId, (ValueId, usize)>,
}

impl Substitution {
    /// Returns the substitution of the dense network, which has only the changes of both.
    ///
    /// # Errors
    /// [`OnnxError`] if a tensor in an attribute cannot be read.
    pub fn of_dense(
        edits: &Edits,
        (rows, templates): (&PerRow, &Templates),
        graph: &Graph,
        interner: &mut Interner,
    ) -> Result<Self, OnnxError> {
        Self::of(edits, (rows, templates), edits.always.changes.len(), graph, interner)
    }

    /// Returns the substitution of the other network.
    ///
    /// # Errors
    /// [`OnnxError`] if a tensor in an attribute cannot be read.
    pub fn of_other(
        edits: &Edits,
        (rows, templates): (&PerRow, &Templates),
        graph: &Graph,
        interner: &mut Interner,
    ) -> Result<Self, OnnxError> {
        Self::of(edits, (rows, templates), usize::MAX, graph, interner)
    }

    /// Returns the substitution of the compiled graph: nothing but the columns of its inputs that have an element for
    /// each row.
    pub fn of_compiled(rows: &PerRow) -> Self {
        Self { columns: rows.columns.clone(), ..Self::default() }
    }

    fn of(
        edits: &Edits,
        (rows, templates): (&PerRow, &Templates),
        changes: usize,
        graph: &Graph,
        interner: &mut Interner,
    ) -> Result<Self, OnnxError> {
        let (same, readings) = (rows.same.clone(), rows.readings.clone());
        let mut all = Self { same, readings, ..Self::default() };
        for ((node, slot), result, change) in
            templates.operands.iter().filter(|(.., change)| *change < changes)
        {
            all.operands.insert((*node, *slot), *result);
            all.spliced.extend(graph.node(*node).input(*slot).map(|value| (*result, (value, *change))));
        }
        for (index, change) in edits.changes().enumerate().take(changes) {
            for edit in &change.edits {
                match edit {
                    // A module and the last one in it have one output. Changes are in the order of the modules, those
                    // around before those inside: the whole module is taken out.
                    Edit::Redirect(redirect) => {
                        all.skips.entry(redirect.from).or_insert((redirect.to, index));
                    }
                    Edit::Attributes(edit) => {
                        let attributes = graph.node(edit.node).attributes_with(&edit.set);
                        let bytes = signature(graph, edit.node, &attributes)?.bytes;
                        all.signatures.insert(edit.node, interner.signature(bytes));
                        all.attributes.insert(edit.node, (attributes, index));
                    }
                    Edit::Transform(_) | Edit::Splice(_) | Edit::Merge(_) => {}
                }
            }
        }
        Ok(all)
    }

    /// Returns the attributes of `node`, if the plan changes them, and the index of the change that says so.
    pub fn attributes(&self, node: NodeId) -> Option<(&[Attribute], usize)> {
        self.attributes.get(&node).map(|(attributes, index)| (&**attributes, *index))
    }

    /// Returns the number of the signature of `node`, if the plan changes it.
    pub fn signature(&self, node: NodeId) -> Option<u32> {
        self.signatures.get(&node).copied()
    }

    /// Returns the replacement of `value`, and the index of the change that asks for it.
    pub fn skip(&self, value: ValueId) -> Option<(ValueId, usize)> {
        self.skips.get(&value).copied()
    }

    /// Returns the value whose readers read the result `value` of a template instead, and the index of the change that
    /// says so.
    pub fn spliced(&self, value: ValueId) -> Option<(ValueId, usize)> {
        self.spliced.get(&value).copied()
    }

    /// Returns what `node` reads as its operand `slot`, where the original reads `value`.
    pub fn operand(&self, node: NodeId, slot: usize, value: ValueId) -> ValueId {
        self.operands.get(&(node, slot)).copied().unwrap_or(value)
    }

    /// Makes operand `slot` of `node` the value `to`, whatever it was.
    pub fn cut(&mut self, node: NodeId, slot: usize, to: ValueId) {
        self.operands.insert((node, slot), to);
    }

    /// Returns the value that readers of `value` read: followed from skip to skip until one stays.
    pub fn read(&self, mut value: ValueId) -> ValueId {
        // No more steps than there are: a skip that leads back to itself ends somewhere on its way.
        for _ in 0..self.skips.len() + self.same.len() {
            match self.skips.get(&value).map(|(next, _)| next).or_else(|| self.same.get(&value)) {
                Some(next) => value = *next,
                None => break,
            }
        }
        value
    }

    /// Returns how operand `slot` of `node` reads an input with an element for each row.
    pub fn reading(&self, node: NodeId, slot: usize) -> Option<Reading> {
        self.readings.get(&(node, slot)).copied()
    }

    /// Returns the value that `value` is a column of, and its number of dimensions.
    pub fn column(&self, value: ValueId) -> Option<(ValueId, usize)> {
        self.columns.get(&value).copied()
    }

    /// Returns the value that readers of `value` read, through Identity nodes.
    pub fn source(&self, graph: &Graph, value: ValueId) -> ValueId {
        let mut value = self.read(value);
        // A skip that leads back through an Identity would go round forever.
        for _ in 0..graph.node_capacity() {
            match (graph.producer(value), value::behind_identity(graph, value)) {
                (Some(identity), Some(operand)) => value = self.read(self.operand(identity, 0, operand)),
                _ => break,
            }
        }
        value
    }
}
