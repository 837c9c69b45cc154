//! Activations: which values carry them, and which of them depend on which.

use rustc_hash::FxHashSet;

use crate::ir::{Graph, Node, NodeId, Origin, Use, ValueId};

/// Which values carry activations: data computed from the sample, not from its shape, and not from the timestep or
/// the text alone.
#[derive(Clone, Debug)]
pub struct Flow {
    activation: Vec<bool>,
}

impl Flow {
    /// Follows the samples (graph inputs of rank 4; if there is none, the first input) through the graph.
    pub fn of(graph: &Graph) -> Self {
        let mut activation = vec![false; graph.value_capacity()];
        let inputs: Vec<_> =
            graph.inputs().filter(|io| matches!(graph.value(io.value).origin, Origin::Input(_))).collect();
        let rank = |io: &crate::ir::GraphIo| {
            let tensor = match io.info.r#type.as_ref()?.value.as_ref()? {
                crate::onnx::proto::type_proto::Value::TensorType(tensor) => tensor,
                _ => return None,
            };
            Some(tensor.shape.as_ref()?.dim.len())
        };
        let samples: Vec<ValueId> =
            inputs.iter().filter(|io| rank(io) == Some(4)).map(|io| io.value).collect();
        let samples =
            if samples.is_empty() { inputs.iter().take(1).map(|io| io.value).collect() } else { samples };
        for sample in samples {
            activation[sample.index()] = true;
        }
        for (_, node) in graph.nodes() {
            let carries = !reads_only_shape(node)
                && node.operands().chain(node.captures.iter().copied()).any(|v| activation[v.index()]);
            if carries {
                for value in node.results() {
                    activation[value.index()] = true;
                }
            }
        }
        Self { activation }
    }

    /// Returns whether `value` is an activation.
    pub fn is_activation(&self, value: ValueId) -> bool {
        self.activation.get(value.index()).copied().unwrap_or(false)
    }

    /// Returns the operands of `node` that are activations.
    pub fn operands<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = ValueId> + 'a {
        node.operands().filter(|v| self.is_activation(*v))
    }

    /// Returns whether the elements of `value` are computed from those of `ancestor`, not from its shape alone.
    pub fn depends(&self, graph: &Graph, value: ValueId, ancestor: ValueId) -> bool {
        depends(graph, value, ancestor)
    }
}

/// Returns whether the elements of `value` are computed from those of `ancestor`, not from its shape alone.
pub(super) fn depends(graph: &Graph, value: ValueId, ancestor: ValueId) -> bool {
    // Node ids are in topological order: nothing before the ancestor's producer can lead to it.
    let floor = graph.producer(ancestor);
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if value == ancestor {
            return true;
        }
        if let Some(producer) = graph.producer(value)
            && floor.is_none_or(|floor| producer > floor)
            && !reads_only_shape(graph.node(producer))
            && seen.insert(producer)
        {
            open.extend(graph.node(producer).operands());
        }
    }
    false
}

/// Returns whether `node` looks at the shape of its operand only.
fn reads_only_shape(node: &Node) -> bool {
    node.is("Shape") || node.is("Size")
}

/// Returns the uses of `value` that read its elements.
pub fn data_uses<'g>(graph: &'g Graph, value: ValueId) -> impl Iterator<Item = Use> + 'g {
    graph.uses(value).iter().copied().filter(|used| match used {
        Use::Operand { node, .. } => !reads_only_shape(graph.node(*node)),
        Use::Capture(_) | Use::Output(_) => true,
    })
}
