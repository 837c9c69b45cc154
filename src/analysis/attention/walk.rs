//! Walking from an attention to the layers around it, through what lies between: reshapes, norms, rotary embeddings,
//! scales, biases, masks.

use std::collections::VecDeque;

use rustc_hash::FxHashSet;

use super::Projection;
use crate::{
    analysis::{constants, flow, weights::operators},
    ir::{Graph, Node, NodeId, Use, ValueId},
};

/// Most nodes that one walk visits.
const BUDGET: usize = 512;

/// Operators that a walk passes from or to their first operand alone: the others are shapes, axes or parameters.
const FIRST: [&str; 37] = [
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Cast",
    "Dropout",
    "QuantizeLinear",
    "DequantizeLinear",
    "Slice",
    "Split",
    "Expand",
    "Tile",
    "Pad",
    "Gather",
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "BatchNormalization",
    "LpNormalization",
    "RotaryEmbedding",
    "Clip",
    "Neg",
    "Abs",
    "Sqrt",
    "Pow",
    "Reciprocal",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "ReduceL2",
    "ReduceMax",
    "SplitToSequence",
    "SequenceAt",
];

/// Operators that a walk passes from or to any of their operands.
const ALL: [&str; 7] = ["Mul", "Div", "Add", "Sub", "Sum", "Concat", "Max"];

/// A graph, and which of its values are computed from initializers alone.
pub(super) struct Walk<'g> {
    pub graph: &'g Graph,
    pub fixed: Vec<bool>,
}

impl<'g> Walk<'g> {
    pub fn new(graph: &'g Graph) -> Self {
        Self { graph, fixed: constants::fixed(graph) }
    }

    pub fn is_fixed(&self, value: ValueId) -> bool {
        self.fixed.get(value.index()).copied().unwrap_or(false)
    }

    /// Returns the Linear or Conv layer that `id` multiplies for.
    pub fn layer(&self, id: NodeId) -> Option<Projection> {
        let node = self.graph.node(id);
        let (input, weight) = (node.input(0)?, node.input(1)?);
        (operators::is_layer(node) && self.is_fixed(weight) && !self.is_fixed(input)).then_some(Projection {
            node: id,
            slot: 1,
            input,
        })
    }

    /// Returns the nearest layers that `value` is computed with, in the order of the graph.
    pub fn before(&self, value: ValueId) -> Vec<Projection> {
        let near = self.layers_before(value, passes);
        if near.is_empty() { self.layers_before(value, carries) } else { near }
    }

    fn layers_before(&self, value: ValueId, through: fn(&Node, usize) -> bool) -> Vec<Projection> {
        let mut found = Vec::new();
        self.back(value, through, |id| {
            let layer = self.layer(id);
            found.extend(layer);
            if layer.is_some() { Step::Stop } else { Step::On }
        });
        found.sort_unstable_by_key(|p| p.node);
        found
    }

    /// Returns the nearest node that `value` is computed with and that `wanted` holds for.
    pub fn nearest_before(&self, value: ValueId, wanted: impl Fn(&Node) -> bool) -> Option<NodeId> {
        let mut found = None;
        self.back(value, passes, |id| {
            if wanted(self.graph.node(id)) {
                found = Some(id);
            } else if self.is_residual(self.graph.node(id)) {
                // So looks a mask that earlier attentions read too: scores are computed from it.
                let operands = self.graph.node(id).operands();
                found = operands.filter_map(|v| self.unscaled(v)).find(|id| wanted(self.graph.node(*id)));
            }
            if found.is_some() { Step::End } else { Step::On }
        });
        found
    }

    /// Returns the node that makes `value`, past those that only scale it.
    fn unscaled(&self, mut value: ValueId) -> Option<NodeId> {
        loop {
            let id = self.graph.producer(value)?;
            let node = self.graph.node(id);
            let scales = ["Mul", "Div", "Cast", "Reshape"].iter().any(|op| node.is(op));
            match node.operands().find(|v| !self.is_fixed(*v)).filter(|_| scales) {
                Some(scaled) => value = scaled,
                None => return Some(id),
            }
        }
    }

    fn back(&self, value: ValueId, through: fn(&Node, usize) -> bool, mut visit: impl FnMut(NodeId) -> Step) {
        let mut seen: FxHashSet<NodeId> = FxHashSet::default();
        let mut open = VecDeque::from([value]);
        while let Some(value) = open.pop_front() {
            let Some(id) = self.graph.producer(value) else { continue };
            if seen.len() == BUDGET || !seen.insert(id) {
                continue;
            }
            match visit(id) {
                Step::End => return,
                Step::Stop => continue,
                Step::On => {}
            }
            let node = self.graph.node(id);
            if !self.is_residual(node) {
                let operands = node.inputs.iter().enumerate().filter(|(slot, _)| through(node, *slot));
                open.extend(operands.filter_map(|(_, v)| *v).filter(|v| !self.is_fixed(*v)));
            }
        }
    }

    /// Returns the nearest layers that read `value`, in the order of the graph.
    pub fn after(&self, value: ValueId) -> Vec<Projection> {
        let mut found = Vec::new();
        self.forth(value, |id, slot| {
            let layer = self.layer(id).filter(|_| slot == 0);
            found.extend(layer);
            if layer.is_some() { Step::Stop } else { Step::On }
        });
        found.sort_unstable_by_key(|p| p.node);
        found
    }

    /// Returns the nearest node that `wanted` holds for and that reads `value`, with the operand that leads there.
    pub fn nearest_after(&self, value: ValueId, wanted: impl Fn(&Node) -> bool) -> Option<(NodeId, usize)> {
        let mut found = None;
        self.forth(value, |id, slot| {
            if found.is_none() && wanted(self.graph.node(id)) {
                found = Some((id, slot));
            }
            if found.is_some() { Step::End } else { Step::On }
        });
        found
    }

    fn forth(&self, value: ValueId, mut visit: impl FnMut(NodeId, usize) -> Step) {
        let mut seen: FxHashSet<NodeId> = FxHashSet::default();
        let mut open = VecDeque::from([value]);
        while let Some(value) = open.pop_front() {
            for used in self.graph.uses(value) {
                let Use::Operand { node: id, slot } = *used else { continue };
                if seen.len() == BUDGET || !seen.insert(id) {
                    continue;
                }
                match visit(id, slot) {
                    Step::End => return,
                    Step::Stop => continue,
                    Step::On => {}
                }
                let node = self.graph.node(id);
                if node.is("DynamicQuantizeLinear") {
                    // Its other results are the scale and the zero point.
                    open.extend(node.output(0));
                } else if passes(node, slot) && !self.is_residual(node) {
                    open.extend(node.results());
                }
            }
        }
    }

    /// Returns whether `node` adds a branch to what the branch was computed from: no layer beyond it belongs to the
    /// branch.
    fn is_residual(&self, node: &Node) -> bool {
        let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return false };
        node.is("Add")
            && !self.is_fixed(a)
            && !self.is_fixed(b)
            && (flow::depends(self.graph, a, b) || flow::depends(self.graph, b, a))
    }
}

/// Whether a walk goes on past a node.
enum Step {
    On,
    Stop,
    End,
}

/// Returns whether operand `slot` of `node` is data that goes into the result.
fn passes(node: &Node, slot: usize) -> bool {
    let op = node.op_type.as_str();
    let known = matches!(node.domain.as_str(), "" | "ai.onnx" | "com.microsoft");
    let scatters = matches!(op, "ScatterND" | "ScatterElements") && slot != 1;
    let selects = op == "Where" && slot > 0;
    known && ((slot == 0 && FIRST.contains(&op)) || ALL.contains(&op) || scatters || selects)
}

/// Returns whether `node` computes its result from the elements of its operands, and is not itself a part of an
/// attention: what a walk goes through where no layer is near.
fn carries(node: &Node, _slot: usize) -> bool {
    let standard = matches!(node.domain.as_str(), "" | "ai.onnx");
    standard && !["Shape", "Size", "Softmax", "MatMul", "Einsum", "Attention"].iter().any(|op| node.is(op))
}
