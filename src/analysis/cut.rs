//! Cuts: places at which a network falls into a deep part and a shallow one, which reads the other's result at one
//! operand alone. DeepCache keeps that result for some steps.

use super::{
    Analysis,
    modules::ModuleId,
    shapes::Dim,
    skip::{Illegal, SkipConcat},
};
use crate::{
    ir::{NodeId, ValueId},
    onnx::{DataType, Dimension, ValueInfo},
};

/// A cut: an operand of a Concat at which a skip connection ends, the one that comes from below.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// The module that the Concat is the input of.
    pub module: ModuleId,
    /// The Concat.
    pub node: NodeId,
    /// The operand.
    pub slot: usize,
    /// The value that it reads in the graph as it came.
    pub value: ValueId,
    /// The type of its elements.
    pub data_type: DataType,
    /// Its dimensions.
    pub dims: Vec<Dim>,
}

impl Cut {
    /// Returns what a graph with an input or output `name` for the value says of it: sizes, and expressions over the
    /// dimensions of the graph's inputs where they are not always the same.
    pub fn stated(&self, name: &str) -> ValueInfo {
        let dim = |dim: &Dim| match dim.constant() {
            Some(size) => Dimension::Size(size),
            None => Dimension::Name(dim.to_string()),
        };
        ValueInfo::tensor(name, self.data_type, Some(self.dims.iter().map(dim).collect()))
    }
}

impl Analysis<'_> {
    /// Decides where a cut at `module` is.
    ///
    /// # Errors
    /// [`Illegal`] if no skip connection ends at its input, or the value there has no known shape, or something else
    /// needs the deep part too.
    pub fn cut(&self, module: ModuleId) -> Result<Cut, Illegal> {
        let concat = self.backbone_concat(module)?;
        let (slot, value) = concat.backbone;
        let unknown = || Illegal::at(self.graph, concat.node, "joins values of no known size or type");
        let shape = self.shapes.of(value).filter(|_| self.shapes.is_known(value)).ok_or_else(unknown)?;
        let data_type = shape.data_type.ok_or_else(unknown)?;
        let dims = self.simplest(&concat, &shape.dims);
        let cut = Cut { module, node: concat.node, slot, value, data_type, dims };
        let near = self.near_side(&cut);
        match self.graph.producer(value).filter(|node| !near.get(node.index()).copied().unwrap_or(true)) {
            Some(_) => Ok(cut),
            None => Err(Illegal::new("other parts of the network read what is below it too")),
        }
    }

    /// Returns `dims` of what comes from below, but those that must be the skip connection's for the Concat to run as that
    /// has them, where it has them simpler: a latent's height, where they are twice the half of it.
    fn simplest(&self, concat: &SkipConcat, dims: &[Dim]) -> Vec<Dim> {
        let skip = self.shapes.of(concat.skip.1).filter(|_| self.shapes.is_known(concat.skip.1));
        let rank = dims.len() as i64;
        let axis =
            self.graph.node(concat.node).int("axis").map(|axis| if axis < 0 { axis + rank } else { axis });
        let (Some(skip), Some(axis)) = (skip.filter(|skip| skip.dims.len() == dims.len()), axis) else {
            return dims.to_vec();
        };
        let simpler = |(at, (own, other)): (i64, (&Dim, &Dim))| {
            let is_simpler = other.constant().is_some() || other.to_string().len() < own.to_string().len();
            let takes = at != axis && own.constant().is_none() && is_simpler;
            if takes { other.clone() } else { own.clone() }
        };
        (0..).zip(dims.iter().zip(skip.dims.iter())).map(simpler).collect()
    }

    /// Returns all cuts, in the order of the modules.
    pub fn cuts(&self) -> Vec<Cut> {
        self.skip_concats().into_iter().filter_map(|(module, _)| self.cut(module).ok()).collect()
    }

    /// Returns for each node whether the outputs need it although the cut's value is given.
    pub fn near_side(&self, cut: &Cut) -> Vec<bool> {
        let mut near = vec![false; self.graph.node_capacity()];
        let mut open: Vec<ValueId> = self.graph.outputs().iter().map(|io| io.value).collect();
        while let Some(value) = open.pop() {
            let Some(id) = self.graph.producer(value) else { continue };
            if std::mem::replace(&mut near[id.index()], true) {
                continue;
            }
            let node = self.graph.node(id);
            let is_cut = |slot: usize| (id, slot) == (cut.node, cut.slot);
            let operands = node.inputs.iter().enumerate().filter(|(slot, _)| !is_cut(*slot));
            open.extend(operands.filter_map(|(_, value)| *value).chain(node.captures.iter().copied()));
        }
        near
    }
}
