//! The census of weights: every matrix that is multiplied by is the weight of a layer with a path, or is reported as
//! one that is not. Without it a rule could mask some of what it means and pass over the rest without a word.

use rustc_hash::FxHashSet;

use super::operators;
use crate::{
    analysis::{
        attention::{Attentions, Operand},
        constants,
    },
    ir::{Attribute, Graph, Node, NodeId, Origin, ValueId},
    onnx::proto::{AttributeProto, GraphProto, tensor_proto},
};

/// A weight that cannot be masked where it is, and why.
pub(super) struct Finding {
    pub node: NodeId,
    /// The name of the node that multiplies by it, where that one is in a body of `node`.
    pub inner: Option<String>,
    pub reason: String,
}

/// Which values are fixed, and which of them matrices.
pub(super) struct Matrices {
    fixed: Vec<bool>,
    /// Float or quantised matrices, and what is made of them without a multiplication of matrices.
    matrix: Vec<bool>,
}

impl Matrices {
    pub fn of(graph: &Graph) -> Self {
        let fixed = constants::fixed(graph);
        let mut matrix = vec![false; graph.value_capacity()];
        for (_, initializer) in graph.initializers() {
            let header = &initializer.header;
            matrix[initializer.value.index()] = is_matrix(&header.dims, header.data_type.0);
        }
        for (_, node) in graph.nodes() {
            let made = match node.attribute("value").and_then(Attribute::tensor) {
                Some(tensor) if node.is("Constant") => is_matrix(&tensor.dims, tensor.data_type()),
                _ => {
                    let multiplies = operators::is_layer(node) || operators::is_opaque(node);
                    let all_fixed = node.operands().all(|v| fixed[v.index()]);
                    (all_fixed || !multiplies)
                        && !node.is("Shape")
                        && !node.is("Size")
                        && node.operands().any(|v| matrix[v.index()])
                }
            };
            if made {
                for value in node.results() {
                    matrix[value.index()] = true;
                }
            }
        }
        Self { fixed, matrix }
    }

    /// Returns whether `value` is the same in every run.
    pub fn is_fixed(&self, value: ValueId) -> bool {
        self.fixed[value.index()]
    }

    /// Returns whether `value` is a matrix that is stored, or made of one.
    pub fn is_matrix(&self, value: ValueId) -> bool {
        self.matrix[value.index()]
    }

    /// Returns the weights that no layer's operand 1 is.
    pub fn elsewhere(&self, graph: &Graph, attentions: &Attentions) -> Vec<Finding> {
        let products: FxHashSet<NodeId> = attentions.all.iter().flat_map(|a| [a.scores, a.product]).collect();
        let mut found = Vec::new();
        for (id, node) in graph.nodes() {
            found.extend(bodies(graph, id, node));
            if node.results().all(|v| self.fixed[v.index()]) || products.contains(&id) {
                continue;
            }
            let Some(operand) = self.misplaced(node) else { continue };
            let name = &graph.value(operand).name;
            let reason = if operators::is_layer(node) {
                format!("{} reads a weight that is computed at run time (`{name}`)", node.describe())
            } else {
                let called = (node.domain.to_string(), node.op_type.to_string());
                match graph.source().calls.left.get(&called) {
                    Some(why) => format!(
                        "its weight `{name}` goes into {}, a call of a function that is not read through: {why}",
                        node.describe()
                    ),
                    None => format!(
                        "its weight `{name}` goes into {}, which is no operator of a Linear or Conv layer",
                        node.describe()
                    ),
                }
            };
            found.push(Finding { node: id, inner: None, reason });
        }
        found
    }

    /// Returns the operand of `node` that is a weight, unless it is the one that a layer has.
    fn misplaced(&self, node: &Node) -> Option<ValueId> {
        let is_matrix = |v: &ValueId| self.matrix[v.index()];
        if operators::is_layer(node) {
            let weight = node.input(1)?;
            return if self.fixed[weight.index()] {
                None
            } else {
                // `W x` with the operands in this order, or a weight to which something fed by the caller is added.
                let left = node.input(0).filter(|v| self.fixed[v.index()]).filter(is_matrix);
                left.or(Some(weight).filter(is_matrix))
            };
        }
        operators::is_opaque(node).then(|| node.operands().find(is_matrix))?
    }
}

/// Returns whether a tensor of these dimensions and this type can be the weight of a layer.
fn is_matrix(dims: &[i64], data_type: i32) -> bool {
    use tensor_proto::DataType as Type;
    let other = [Type::Int32, Type::Int64, Type::Bool, Type::String, Type::Uint32, Type::Uint64];
    dims.iter().filter(|d| **d > 1).count() >= 2 && !other.iter().any(|t| *t as i32 == data_type)
}

/// Returns whether only a part of what the layer `layer` makes leads to `value`: it is the packed layer of several
/// projections.
pub(super) fn is_cut(graph: &Graph, mut value: ValueId, layer: NodeId) -> bool {
    while let Some(id) = graph.producer(value).filter(|id| *id > layer) {
        let node = graph.node(id);
        if ["Slice", "Split", "Gather"].iter().any(|op| node.is(op)) {
            return true;
        }
        // The branch that leads to the layer is the one that is not fixed: a bias or a scale is.
        let computed = node.operands().find(|v| graph.producer(*v).is_some_and(|p| p >= layer));
        let Some(next) = computed else { return true };
        value = next;
    }
    graph.producer(value) != Some(layer)
}

/// Returns the layers in the bodies of an If, Loop or Scan.
fn bodies(graph: &Graph, id: NodeId, node: &Node) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut open: Vec<&GraphProto> =
        node.attributes.iter().flat_map(|attribute| graphs(&attribute.0)).collect();
    while let Some(body) = open.pop() {
        for inner in &body.node {
            open.extend(inner.attribute.iter().flat_map(graphs));
            let multiplies = ["MatMul", "Gemm", "Conv", "Einsum"].contains(&inner.op_type());
            let stored = |name: &String| {
                let own =
                    body.initializer.iter().any(|t| t.name() == name && is_matrix(&t.dims, t.data_type()));
                let outer = graph.value_named(name).map(|v| graph.value(v).origin);
                own || matches!(outer, Some(Origin::Initializer(_)))
            };
            if multiplies && inner.input.iter().any(stored) {
                found.push(Finding {
                    node: id,
                    inner: Some(inner.name().to_string()),
                    reason: format!("its {} is in a body of {}", inner.op_type(), node.describe()),
                });
            }
        }
    }
    found
}

fn graphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.iter().map(AsRef::as_ref).chain(&attribute.graphs)
}

/// Returns the attentions that lack a projection.
pub(super) fn unprojected(graph: &Graph, matrices: &Matrices, attentions: &Attentions) -> Vec<Finding> {
    let mut found = Vec::new();
    for attention in &attentions.all {
        let bare = |operand: &Operand| operand.projections.is_empty() && !matrices.is_fixed(operand.value);
        let parts = [
            ("query", bare(&attention.query)),
            ("key", bare(&attention.key)),
            ("value", bare(&attention.value)),
            ("output", attention.out.is_empty()),
        ];
        for (part, _) in parts.iter().filter(|(_, missing)| *missing) {
            found.push(Finding {
                node: attention.node,
                inner: None,
                reason: format!(
                    "the attention around {} has no {part} projection that is a Linear or Conv layer with a stored \
                     weight",
                    graph.node(attention.node).describe()
                ),
            });
        }
    }
    found
}
