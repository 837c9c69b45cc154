//! Activations: which values carry them, and which of them depend on which.

use rustc_hash::FxHashSet;

use crate::ir::{Graph, GraphIo, Node, NodeId, Origin, Use, ValueId};

/// Which values carry activations: data computed from the sample (or, in the second flow of a graph, from the text), not
/// from its shape, and not from the timestep alone.
#[derive(Clone, Debug)]
pub struct Flow {
    activation: Vec<bool>,
}

impl Flow {
    /// Follows the samples (graph inputs of rank 4; if there is none, the first video, of rank 5, or the first input)
    /// through the graph.
    pub fn of(graph: &Graph) -> Self {
        let mut samples = of_rank(graph, 4);
        if samples.is_empty() {
            let first = || inputs(graph).map(|io| io.value).next();
            samples.extend(of_rank(graph, 5).first().copied().or_else(first));
        }
        Self::through(graph, samples)
    }

    /// Follows the text (graph inputs of rank 3) through the graph.
    pub fn of_text(graph: &Graph) -> Self {
        Self::through(graph, of_rank(graph, 3))
    }

    fn through(graph: &Graph, sources: Vec<ValueId>) -> Self {
        let mut activation = vec![false; graph.value_capacity()];
        for source in sources {
            activation[source.index()] = true;
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

/// Returns the inputs that a caller must feed.
fn inputs(graph: &Graph) -> impl Iterator<Item = &GraphIo> {
    graph.inputs().filter(|io| matches!(graph.value(io.value).origin, Origin::Input(_)))
}

/// Returns the inputs of this rank that a caller must feed.
fn of_rank(graph: &Graph, rank: usize) -> Vec<ValueId> {
    let has_rank = |io: &&GraphIo| io.info.dims().is_some_and(|dims| dims.len() == rank);
    inputs(graph).filter(has_rank).map(|io| io.value).collect()
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
