//! Branches whose residual Adds stand after the module: attentions and feed-forward networks.

use std::collections::BTreeSet;

use rustc_hash::FxHashSet;

use super::Redirect;
use crate::{
    analysis::{Analysis, constants, flow::data_uses, modules::ModuleId},
    ir::{Node, NodeId, Use, ValueId},
};

/// Most nodes that may stand between a branch and its residual Adds.
const BUDGET: usize = 256;

/// Operators that turn zeros as operand 0 into zeros, whatever their other operands.
const FIRST: [&str; 18] = [
    "Identity",
    "Cast",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Dropout",
    "Slice",
    "Split",
    "Expand",
    "Neg",
    "Abs",
    "Sqrt",
    "ReduceMean",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "Div",
];

impl Analysis<'_> {
    /// Returns the redirects of the Adds after `module` that add its output to what the module was computed from: each
    /// takes the Add to its other operand. Between the output and the Adds may stand what yields zeros for zeros, such
    /// as gates, norms without a bias, and cuts of joined streams. `None` if the output goes anywhere else.
    pub(super) fn skips_around(&self, module: ModuleId, output: ValueId) -> Option<Vec<Redirect>> {
        // With the branch at 0, these values are 0, and those some constants.
        let mut zeros = FxHashSet::from_iter([output]);
        let mut constants: FxHashSet<ValueId> = FxHashSet::default();
        let mut redirects = Vec::new();
        let mut open: BTreeSet<NodeId> = BTreeSet::new();
        self.add_readers(output, &mut open)?;
        for _ in 0..BUDGET {
            // Node ids are in topological order: all operands of the first are known.
            let Some(id) = open.pop_first() else { return Some(redirects).filter(|found| !found.is_empty()) };
            let node = self.graph.node(id);
            let (is_zero, is_constant) =
                (|v: &ValueId| zeros.contains(v), |v: &ValueId| constants.contains(v));
            if let Some((a, b)) = self.addends(node) {
                let (branch, skip) = if zeros.contains(&a) { (a, b) } else { (b, a) };
                let known = is_zero(&skip) || is_constant(&skip) || !is_zero(&branch);
                if known || self.is_inside(skip, module) || !self.is_skip_of(skip, branch) {
                    return None;
                }
                redirects.push(Redirect { from: node.output(0)?, to: skip });
                continue;
            }
            let into = if self.yields_zeros(node, is_zero, is_constant) {
                &mut zeros
            } else if self.yields_constants(node, is_zero, is_constant) {
                &mut constants
            } else {
                return None;
            };
            for result in node.results() {
                into.insert(result);
                self.add_readers(result, &mut open)?;
            }
        }
        None
    }

    /// Adds the nodes that read the elements of `value`. `None` if an output or a body does.
    fn add_readers(&self, value: ValueId, open: &mut BTreeSet<NodeId>) -> Option<()> {
        for used in data_uses(self.graph, value) {
            let Use::Operand { node, .. } = used else { return None };
            open.insert(node);
        }
        Some(())
    }

    fn yields_zeros(
        &self,
        node: &Node,
        is_zero: impl Fn(&ValueId) -> bool,
        is_constant: impl Fn(&ValueId) -> bool,
    ) -> bool {
        let first = node.input(0).is_some_and(|v| is_zero(&v));
        if node.is("Mul") {
            return node.operands().any(|v| is_zero(&v));
        }
        let positive = || node.input(1).and_then(|v| self.shapes.scalar(v)).is_some_and(|power| power > 0.0);
        let others_fit =
            || node.operands().skip(1).all(|v| !is_zero(&v) && (node.is("Div") || !is_constant(&v)));
        let known = FIRST.iter().any(|op| node.is(op)) || (node.is("Pow") && positive());
        first && known && others_fit()
    }

    /// Returns whether `node` computes from zeros and constants what is neither 0 nor infinite: the size of a vector,
    /// with an epsilon added to it.
    fn yields_constants(
        &self,
        node: &Node,
        is_zero: impl Fn(&ValueId) -> bool,
        is_constant: impl Fn(&ValueId) -> bool,
    ) -> bool {
        let stored = |v: &ValueId| constants::is_constant(self.graph, *v);
        let lifted = |v: &ValueId| self.shapes.scalar(*v).is_some_and(|epsilon| epsilon > 0.0);
        let mut operands = node.operands();
        match node.op_type.as_str() {
            "Add" => operands.any(|v| lifted(&v)) && node.operands().all(|v| is_zero(&v) || lifted(&v)),
            "Sqrt" | "Reciprocal" | "Cast" | "Reshape" | "Expand" => {
                operands.next().is_some_and(|v| is_constant(&v))
            }
            "Div" => operands.all(|v| is_constant(&v) || stored(&v)),
            "Pow" => node.input(0).is_some_and(|v| is_constant(&v)) && operands.skip(1).all(|v| stored(&v)),
            _ => false,
        }
    }
}
