//! Shapes of a graph some of whose nodes read something of another size.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    Agreement, Dim, Shapes,
    compare::compare_dims,
    fit::Fit,
    infer::{self, Call},
    template::{operands, placed},
    tensor::{Tensor, Unknowns},
    types,
};
use crate::ir::{Attribute, Graph, Node, NodeId, Template, ValueId};

/// The values of a graph whose shapes are others than before, as far as nodes were visited.
///
/// The graph was one that runs, so that what is taken for granted about it (that sizes which are broadcast fit) is not
/// of the edited one: each node that reads something of another size is proven to run.
#[derive(Debug)]
pub struct Edited<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
    tensors: FxHashMap<ValueId, Tensor>,
    /// Operands that are results of templates.
    operands: FxHashMap<(NodeId, usize), Tensor>,
    /// The values that are read in place of others.
    skips: FxHashMap<ValueId, ValueId>,
    unknowns: Unknowns,
    divisible: Divisible,
    /// How lists of dimensions relate that were compared: a network has few sizes, and reads each of them at many nodes.
    compared: FxHashMap<Vec<(Dim, Dim)>, Agreement>,
}

/// Sizes at which all is as it is proven to be.
#[derive(Clone, Debug, Default)]
struct Divisible {
    by: u32,
    symbols: Vec<Arc<str>>,
}

impl<'a> Edited<'a> {
    /// Returns the shapes of `graph` as they are.
    pub fn new(graph: &'a Graph, shapes: &'a Shapes) -> Self {
        Self {
            graph,
            shapes,
            tensors: FxHashMap::default(),
            operands: FxHashMap::default(),
            skips: FxHashMap::default(),
            unknowns: Unknowns::apart(),
            divisible: Divisible::default(),
            compared: FxHashMap::default(),
        }
    }

    /// Makes everything that reads `from` read `to`.
    pub fn redirect(&mut self, from: ValueId, to: ValueId) {
        self.skips.entry(from).or_insert(to);
    }

    /// Returns the sizes at which the proofs hold, if not all: "only where H and W are divisible by 16".
    pub fn note(&self) -> Option<String> {
        let Divisible { by, symbols } = &self.divisible;
        let verb = if symbols.len() == 1 { "is" } else { "are" };
        (*by > 0).then(|| format!("only where {} {verb} divisible by {by}", symbols.join(" and ")))
    }

    /// Returns whether the shape of `value` is another one than before.
    pub fn is_changed(&self, value: ValueId) -> bool {
        self.tensors.contains_key(&value)
    }

    /// Returns the values that have another shape than before, in the order of the graph.
    pub fn reshaped(&self) -> Vec<ValueId> {
        let is_other = |(value, tensor): (&ValueId, &Tensor)| {
            let before = self.shapes.of(*value).map(|shape| &shape.dims);
            (tensor.dims.as_ref() != before).then_some(*value)
        };
        let mut values: Vec<ValueId> = self.tensors.iter().filter_map(is_other).collect();
        values.sort_unstable();
        values
    }

    /// Returns whether operand `slot` of node `id` is the result of a template.
    pub fn is_spliced(&self, id: NodeId, slot: usize) -> bool {
        self.operands.contains_key(&(id, slot))
    }

    /// Returns whether node `id` reads something of another shape than before.
    pub fn reads_changed(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let is_other = |(slot, value): (usize, &Option<ValueId>)| {
            self.operands.contains_key(&(id, slot))
                || value.is_some_and(|value| self.is_read_otherwise(value))
        };
        node.inputs.iter().enumerate().any(is_other)
            || node.captures.iter().any(|value| self.is_read_otherwise(*value))
    }

    /// Returns whether what reads `value` reads something of another shape than before.
    fn is_read_otherwise(&self, value: ValueId) -> bool {
        let read = self.read(value);
        self.is_changed(read) || read != value && self.shapes.of(read) != self.shapes.of(value)
    }

    /// Returns the dimensions of operand `slot` of node `id`.
    pub fn operand(&self, id: NodeId, slot: usize) -> Option<Vec<Dim>> {
        self.reading(id, slot)?.dims.map(|dims| dims.to_vec())
    }

    /// Returns whether two lists of dimensions are the same, at least at sizes that are divisible by a power of two.
    pub fn agree(&mut self, a: &[Dim], b: &[Dim]) -> bool {
        if a.len() != b.len() {
            return false;
        }
        let unequal: Vec<(Dim, Dim)> =
            a.iter().zip(b).filter(|(a, b)| a != b).map(|(a, b)| (a.clone(), b.clone())).collect();
        if unequal.is_empty() {
            return true;
        }
        let agreement = self.compared.entry(unequal).or_insert_with_key(|unequal| {
            let (a, b): (Vec<Dim>, Vec<Dim>) = unequal.iter().cloned().unzip();
            compare_dims(&a, &b)
        });
        match agreement {
            Agreement::Equal => true,
            Agreement::EqualWhenDivisible { by, symbols } => {
                self.divisible.by = self.divisible.by.max(*by);
                for symbol in symbols {
                    if !self.divisible.symbols.contains(symbol) {
                        self.divisible.symbols.push(Arc::clone(symbol));
                    }
                }
                true
            }
            Agreement::Different(_) | Agreement::Unknown => false,
        }
    }

    /// Makes the operands `at` something of the shape that they had, if `template` reads nothing of another one; returns
    /// whether it does not.
    pub fn keep(&mut self, at: &[(NodeId, usize)], template: &Template) -> bool {
        if template.values().any(|value| self.is_read_otherwise(value)) {
            return false;
        }
        for (id, slot) in at {
            if let Some(value) =
                self.graph.node(*id).input(*slot).filter(|value| self.is_read_otherwise(*value))
            {
                self.operands.insert((*id, *slot), self.shapes.tensor(value));
            }
        }
        true
    }

    /// Makes the operands `at` the result of `template`.
    ///
    /// # Errors
    /// Why its nodes are not proven to run.
    pub fn splice(&mut self, at: &[(NodeId, usize)], template: &Template) -> Result<(), String> {
        let mut results: Vec<Tensor> = Vec::with_capacity(template.nodes.len());
        for node in &template.nodes {
            let operands = operands(node, &results, |value| self.tensor(self.read(value)));
            let result = self.infer(&placed(node), &operands)?.into_iter().next();
            results.push(result.unwrap_or_default());
        }
        let result = results.pop().filter(|result| result.dims.is_some());
        let result = result.ok_or("the shape of what is put before it is not known")?;
        self.operands.extend(at.iter().map(|operand| (*operand, result.clone())));
        Ok(())
    }

    /// Visits node `id`, after all that it reads. It may have other attributes than in the graph.
    ///
    /// # Errors
    /// Why it is not proven to run.
    pub fn visit(&mut self, id: NodeId, attributes: Option<&[Attribute]>) -> Result<(), String> {
        let graph = self.graph;
        let node = graph.node(id);
        if node.captures.iter().any(|value| self.is_read_otherwise(*value)) {
            return Err("reads it from inside of its body".into());
        }
        let operands: Vec<Option<Tensor>> =
            (0..node.inputs.len()).map(|slot| self.reading(id, slot)).collect();
        let results = match attributes {
            None => self.infer(node, &operands)?,
            Some(set) => {
                let mut node = node.clone();
                node.attributes = node.attributes_with(set);
                self.infer(&node, &operands)?
            }
        };
        for (value, result) in node.outputs.iter().zip(results) {
            if let Some(value) = value
                && !self.is_as_before(*value, &result)
            {
                self.tensors.insert(*value, result);
            }
        }
        Ok(())
    }

    /// Returns the dimensions that the result of node `id` would have; `None` if it is not proven to run.
    pub fn preview(&mut self, id: NodeId) -> Option<Vec<Dim>> {
        let node = self.graph.node(id);
        let operands: Vec<Option<Tensor>> =
            (0..node.inputs.len()).map(|slot| self.reading(id, slot)).collect();
        self.infer(node, &operands).ok()?.into_iter().next()?.dims.map(|dims| dims.to_vec())
    }

    fn is_as_before(&mut self, value: ValueId, tensor: &Tensor) -> bool {
        let before = self.shapes.tensor(value);
        let (Some(a), Some(b)) = (&tensor.dims, &before.dims) else { return false };
        if !self.agree(a, b) {
            return false;
        }
        match (tensor.wholes(), before.wholes()) {
            (Some(a), Some(b)) => self.agree(&a, &b),
            (None, None) => true,
            _ => tensor.elements == before.elements,
        }
    }

    fn read(&self, mut value: ValueId) -> ValueId {
        for _ in 0..=self.skips.len() {
            match self.skips.get(&value) {
                Some(skip) => value = *skip,
                None => break,
            }
        }
        value
    }

    fn reading(&self, id: NodeId, slot: usize) -> Option<Tensor> {
        if let Some(tensor) = self.operands.get(&(id, slot)) {
            return Some(tensor.clone());
        }
        Some(self.tensor(self.read(self.graph.node(id).input(slot)?)))
    }

    fn tensor(&self, value: ValueId) -> Tensor {
        self.tensors.get(&value).cloned().unwrap_or_else(|| self.shapes.tensor(value))
    }

    fn infer(&mut self, node: &Node, operands: &[Option<Tensor>]) -> Result<Vec<Tensor>, String> {
        let mut call = Call {
            node,
            operands: operands.iter().map(Option::as_ref).collect(),
            opset: self.graph.opset("").unwrap_or(infer::DEFAULT_OPSET),
            unknowns: &mut self.unknowns,
            problems: Vec::new(),
            required: Vec::new(),
        };
        let data_types = types::results(&call);
        let results = infer::infer(&mut call).map_err(|failure| failure.to_string())?;
        if let Some(problem) = call.problems.first() {
            return Err(problem.clone());
        }
        Fit { node, operands, results: &results }.check(&mut |a, b| self.agree(a, b))?;
        Ok(results
            .into_iter()
            .enumerate()
            .map(|(slot, result)| result.typed(data_types.get(slot).copied().flatten()))
            .collect())
    }
}
