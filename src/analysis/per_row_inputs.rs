//! Inputs of one element that a graph spreads over the batch by itself: each row can as well have its own.
//!
//! A server that joins requests into one batch gives each input a row a request. A UNet exported with a scalar
//! `timestep` has one for all rows, and so has a fused graph with its `poa_weight`. Where the graph spreads such a
//! scalar over the batch, it can be given one value a row, and the spreading is taken out: everything behind it computes
//! row by row already, since torch's network did.
//!
//! Two ways of spreading are known, the ones that exporters and this crate write: `Expand` to `[batch]`, after any
//! number of `Cast`, `Identity`, `Unsqueeze`, `Squeeze`, `Reshape` and `Flatten`; and arithmetic with a tensor that has
//! the batch first. A scalar that is read in any other way stays one.

use rustc_hash::FxHashMap;

use super::shapes::{Dim, Shapes};
use crate::{
    ir::{Graph, GraphIo, Node, NodeId, Origin, Use, ValueId},
    onnx::Dimension,
};

/// The inputs of one element that a graph spreads over the batch, and how it does so.
#[derive(Clone, Debug)]
pub struct PerRowInputs {
    /// The inputs.
    pub inputs: Vec<ValueId>,
    /// The dimension of the batch, as the model states it.
    pub stated: Option<Dimension>,
    batch: Dim,
    readings: FxHashMap<(NodeId, usize), Reading>,
}

/// How a node reads a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It makes another scalar of it.
    Recomputed(ValueId),
    /// It gives it other dimensions, still of one element.
    Reshaped(ValueId),
    /// It spreads it over the batch.
    Spread(ValueId),
    /// It computes with it and a tensor of this many dimensions, the batch first.
    Elementwise(usize),
}

impl PerRowInputs {
    /// Finds them. Every other input has the batch first.
    ///
    /// # Errors
    /// Why some input cannot have a row for each row of the batch, as a sentence.
    pub fn of(graph: &Graph, shapes: &Shapes) -> Result<Self, String> {
        let is_fed = |io: &&GraphIo| matches!(graph.value(io.value).origin, Origin::Input(_));
        let inputs: Vec<&GraphIo> = graph.inputs().filter(is_fed).collect();
        let (batch, stated) = batch(&inputs, shapes)?;
        let mut found = Self { inputs: Vec::new(), stated, batch, readings: FxHashMap::default() };
        for io in inputs {
            let refuse = |why: String| format!("input `{}`: {why}", io.info.name());
            let dims = shapes.of(io.value).map(|shape| &*shape.dims);
            let dims =
                dims.ok_or_else(|| refuse("the model doesn't say how many dimensions it has".into()))?;
            match dims.first().map(Dim::constant) {
                Some(None) => continue,
                Some(Some(size)) if size != 1 || dims.len() > 1 => {
                    return Err(refuse(format!("its first dimension is fixed to {size}")));
                }
                _ => {}
            }
            found.follow(graph, io.value, shapes).map_err(refuse)?;
            found.inputs.push(io.value);
        }
        Ok(found)
    }

    /// Returns how operand `slot` of `node` reads a scalar; `None` if it reads none.
    pub fn reading(&self, node: NodeId, slot: usize) -> Option<Reading> {
        self.readings.get(&(node, slot)).copied()
    }

    fn follow(&mut self, graph: &Graph, value: ValueId, shapes: &Shapes) -> Result<(), String> {
        for used in graph.uses(value) {
            let (node, slot) = match *used {
                Use::Operand { node, slot } => (node, slot),
                Use::Capture(node) => {
                    let node = graph.node(node).describe();
                    return Err(format!("{node} reads it inside of a subgraph"));
                }
                Use::Output(_) => return Err("it is an output too".into()),
            };
            let refuse =
                || format!("{} reads it as one value for the whole batch", graph.node(node).describe());
            let reading = self.decide(graph.node(node), value, slot, shapes).ok_or_else(refuse)?;
            self.readings.insert((node, slot), reading);
            if let Reading::Recomputed(output) | Reading::Reshaped(output) = reading {
                self.follow(graph, output, shapes)?;
            }
        }
        Ok(())
    }

    fn decide(&self, node: &Node, value: ValueId, slot: usize, shapes: &Shapes) -> Option<Reading> {
        let output = node.output(0)?;
        let dims = |value: ValueId| shapes.of(value).map(|shape| &*shape.dims);
        let is_one = |value: ValueId| dims(value).is_some_and(|d| d.iter().all(|d| d.constant() == Some(1)));
        let is = |types: &[&str]| types.iter().any(|op_type| node.is(op_type));
        if slot == 0 && is(&["Cast", "Identity"]) {
            return Some(Reading::Recomputed(output));
        }
        if slot == 0 && is(&["Unsqueeze", "Squeeze", "Reshape", "Flatten"]) && is_one(output) {
            return Some(Reading::Reshaped(output));
        }
        if slot == 0 && is(&["Expand"]) && dims(output).is_some_and(|d| *d == [self.batch.clone()]) {
            return Some(Reading::Spread(output));
        }
        if !is(&["Mul", "Add", "Sub", "Div"]) {
            return None;
        }
        let other = node.input(1 - slot.min(1)).filter(|other| *other != value).and_then(dims)?;
        (other.first() == Some(&self.batch) && dims(output) == Some(other))
            .then_some(Reading::Elementwise(other.len()))
    }
}

/// Returns the first dimension of the latents, or else of the first input that is no scalar, as shapes have it and as
/// the model states it.
fn batch(inputs: &[&GraphIo], shapes: &Shapes) -> Result<(Dim, Option<Dimension>), String> {
    let dims = |io: &GraphIo| shapes.of(io.value).map(|shape| &*shape.dims);
    let has = |rank: usize| inputs.iter().find(move |io| dims(io).is_some_and(|dims| dims.len() >= rank));
    let sample = inputs.iter().find(|io| io.info.name() == "sample");
    let leading = sample.or_else(|| has(4)).or_else(|| has(1)).ok_or("no input has a batch")?;
    let name = leading.info.name();
    let dim = dims(leading).and_then(|dims| dims.first());
    let dim = dim.ok_or_else(|| format!("input `{name}`: its dimensions are not known"))?;
    if let Some(size) = dim.constant() {
        return Err(format!("input `{name}`: its batch is fixed to {size}; export it with a dynamic batch"));
    }
    let stated = leading.info.dims().and_then(|dims| dims.into_iter().next());
    Ok((dim.clone(), stated.flatten()))
}
