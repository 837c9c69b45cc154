//! The weights of Linear and Conv2d modules: which initializer each one is, and how it is laid out.
//!
//! A weight belongs to the module of the node that uses it, not to its own name: exporters rename and transpose
//! weights, and give equal ones a single initializer.

mod census;
pub(super) mod operators;

use super::{
    attention::{self, Attentions},
    modules::{Evidence, Modules},
};
use crate::{
    ir::{Graph, InitializerId, Node, NodeId, Origin, ValueId},
    onnx::DataType,
};

/// Every weight that a prune rule can name.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// The weights that can be masked, in the order in which the graph uses them.
    pub editable: Vec<Weight>,
    /// Linear and Conv2d layers whose weights cannot be masked.
    pub blocked: Vec<Blocked>,
    /// Layers whose module is not known, so that a rule may mean them without saying so.
    pub unplaced: Vec<Unplaced>,
}

/// A layer whose module is not known.
#[derive(Clone, Debug)]
pub struct Unplaced {
    /// The innermost module that it lies in as far as its neighbours show.
    pub within: String,
    /// The node that multiplies by the weight.
    pub node: NodeId,
    /// Why it is not placed, as a clause.
    pub reason: String,
}

/// The weight of one Linear or Conv2d module.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// The path of the module that uses it, such as `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`. A
    /// weight shared by two modules appears once for each.
    pub path: String,
    /// The nodes that multiply by it (MatMul, Gemm or Conv), each with the operand that leads to it.
    pub uses: Vec<(NodeId, usize)>,
    /// The initializer that holds it.
    pub initializer: InitializerId,
    /// Element type in the file.
    pub data_type: DataType,
    /// Dimensions in the file.
    pub dims: Vec<i64>,
    /// The order of the dimensions.
    pub layout: MatrixLayout,
    /// The module that the same multiplication serves too, where an optimizer has merged two equal layers into one.
    pub merged_with: Option<String>,
}

/// How a weight lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixLayout {
    /// `[out, in]` for Linear, `[out, in / groups, height, width]` for Conv2d: as torch has it.
    OutputFirst,
    /// `[in, out]`: a Linear that the exporter transposed for MatMul.
    InputFirst,
}

/// A layer whose weight cannot be masked.
#[derive(Clone, Debug)]
pub struct Blocked {
    /// The module's path.
    pub path: String,
    /// The node that uses the weight.
    pub node: NodeId,
    /// Why, as a sentence part: "its weight is quantised (DequantizeLinear)".
    pub reason: String,
}

impl Weight {
    /// Returns the number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().fold(1, |n, d| n.saturating_mul(d.unsigned_abs()))
    }

    /// Returns the number of inputs of the layer (of each group, for a grouped convolution).
    pub fn input_len(&self) -> i64 {
        let axis = match self.layout {
            MatrixLayout::OutputFirst => 1,
            MatrixLayout::InputFirst => 0,
        };
        self.dims.get(axis).copied().unwrap_or(0)
    }
}

/// Finds the weights of all Linear and Conv2d layers.
pub fn weights(graph: &Graph, modules: &Modules) -> Weights {
    around(graph, modules, &attention::structure(graph))
}

/// Finds the weights of all Linear and Conv2d layers of a graph whose attentions these are.
pub(super) fn around(graph: &Graph, modules: &Modules, attentions: &Attentions) -> Weights {
    let matrices = census::Matrices::of(graph);
    let mut found = Finder { graph, modules, matrices: &matrices, weights: Weights::default() };
    for (id, node) in graph.nodes() {
        if operators::is_packed(node) {
            found.block(id, format!("its weight is inside {}", node.describe()));
        } else if let Some((slot, layout)) = weight_operand(node)
            && let Some(operand) = node.input(slot)
            && matrices.is_fixed(operand)
        {
            found.layer(id, slot, operand, layout);
        }
    }
    let elsewhere = matrices.elsewhere(graph, attentions);
    for finding in elsewhere.into_iter().chain(census::unprojected(graph, &matrices, attentions)) {
        match finding.inner.and_then(|name| modules.path_in(&name)) {
            Some(path) => {
                let (node, reason) = (finding.node, finding.reason);
                found.weights.blocked.push(Blocked { path, node, reason });
            }
            None => found.block(finding.node, finding.reason),
        }
    }
    found.refuse_shared_names();
    found.split_merged(attentions);
    found.weights
}

const NOT_TOLD: &str = "nothing tells which module it is";

struct Finder<'a> {
    graph: &'a Graph,
    modules: &'a Modules,
    matrices: &'a census::Matrices,
    weights: Weights,
}

impl Finder<'_> {
    /// Adds the layer of `id`, whose operand `slot` leads to the weight.
    fn layer(&mut self, id: NodeId, slot: usize, operand: ValueId, layout: MatrixLayout) {
        let (initializer, layout) = match trace(self.graph, operand, layout) {
            Ok(found) => found,
            Err(reason) if self.matrices.is_matrix(operand) => return self.block(id, reason),
            Err(_) => return,
        };
        let Some(entry) = self.graph.initializer(initializer) else { return };
        let header = &entry.header;
        let is_conv = self.graph.node(id).op_type.contains("Conv");
        if header.dims.len() != if is_conv { 4 } else { 2 } || header.elements() == 0 {
            return;
        }
        if !header.data_type.is_weight_float() {
            return self.block(id, format!("its weight has type {}", header.data_type.name()));
        }
        if self.graph.is_overridable(entry.value) {
            let name = &header.name;
            return self
                .block(id, format!("its weight `{name}` is an input too, so a caller may replace it"));
        }
        let Some(path) = self.place(id, || NOT_TOLD.to_string()) else { return };
        let known = self.weights.editable.iter_mut().rev();
        match known.into_iter().find(|w| w.initializer == initializer && w.path == path) {
            Some(known) => known.uses.push((id, slot)),
            None => self.weights.editable.push(Weight {
                path,
                uses: vec![(id, slot)],
                initializer,
                data_type: header.data_type,
                dims: header.dims.clone(),
                layout,
                merged_with: None,
            }),
        }
    }

    /// Takes back the places of layers that only a parameter's name shows, where several layers read the parameter: the
    /// name is that of one of them.
    fn refuse_shared_names(&mut self) {
        let named = |id: &NodeId| self.modules.evidence(*id) == Evidence::ParameterName;
        let (kept, shared): (Vec<Weight>, Vec<Weight>) = std::mem::take(&mut self.weights.editable)
            .into_iter()
            .partition(|w| w.uses.iter().filter(|(id, _)| named(id)).count() < 2);
        self.weights.editable = kept;
        for weight in shared {
            let reason = format!(
                "only the name of a parameter tells its module, and the one of `{}` is read by \
                                  {} layers",
                weight.path,
                weight.uses.len()
            );
            for (node, _) in weight.uses {
                let within = String::new();
                self.weights.unplaced.push(Unplaced { within, node, reason: reason.clone() });
            }
        }
    }

    /// Makes a layer that serves as an attention's queries and as its keys, say, two weights: optimizers merge layers
    /// of equal weights that read the same.
    fn split_merged(&mut self, attentions: &Attentions) {
        for attention in &attentions.all {
            let parts = [(&attention.query, "to_q"), (&attention.key, "to_k"), (&attention.value, "to_v")];
            for (operand, name) in parts {
                let [only] = operand.projections[..] else { continue };
                let serves_whole = !census::is_cut(self.graph, operand.value, only.node);
                let served =
                    self.weights.editable.iter().position(|w| w.uses.contains(&(only.node, only.slot)));
                let Some(served) = served.filter(|_| serves_whole) else { continue };
                let own = self.weights.editable[served].clone();
                let Some((module, last)) = own.path.rsplit_once('.') else { continue };
                let other = format!("{module}.{name}");
                let is_part = matches!(last, "to_q" | "to_k" | "to_v");
                if !is_part || last == name || self.modules.named(&other).is_some() {
                    continue;
                }
                let twin = Weight { path: other.clone(), merged_with: Some(own.path.clone()), ..own.clone() };
                self.weights.editable[served].merged_with = Some(other);
                self.weights.editable.insert(served + 1, twin);
            }
        }
    }

    fn block(&mut self, node: NodeId, reason: String) {
        if let Some(path) = self.place(node, || format!("{NOT_TOLD}, and {reason}")) {
            self.weights.blocked.push(Blocked { path, node, reason });
        }
    }

    /// Returns the path of the module of `node`. If only its neighbours show it, it is unplaced for that `reason`.
    fn place(&mut self, node: NodeId, reason: impl FnOnce() -> String) -> Option<String> {
        let path = self.modules.get(self.modules.of_node(node)).path.clone();
        match self.modules.evidence(node) {
            Evidence::Neighbours | Evidence::Residual | Evidence::None => {
                self.weights.unplaced.push(Unplaced { within: path, node, reason: reason() });
                None
            }
            _ => Some(path),
        }
    }
}

/// Returns the operand of `node` that is a weight, if `node` is the multiplication of a Linear or Conv2d layer.
fn weight_operand(node: &Node) -> Option<(usize, MatrixLayout)> {
    let transposed = match node.op_type.as_str() {
        _ if !operators::is_plain(node) && !operators::is_fused(node) => return None,
        "Conv" | "FusedConv" => true,
        _ => node.int("transB").unwrap_or(0) != 0,
    };
    Some((1, if transposed { MatrixLayout::OutputFirst } else { MatrixLayout::InputFirst }))
}

/// Follows a weight operand back through what exporters put between an initializer and its use.
fn trace(
    graph: &Graph,
    mut value: ValueId,
    mut layout: MatrixLayout,
) -> Result<(InitializerId, MatrixLayout), String> {
    loop {
        let node = match graph.value(value).origin {
            Origin::Initializer(id) => return Ok((id, layout)),
            Origin::SparseInitializer => return Err("its weight is a sparse initializer".into()),
            Origin::Input(_) | Origin::Removed => return Err("its weight is an input".into()),
            Origin::Node { node, .. } => graph.node(node),
        };
        let reverses = || node.ints("perm").is_none_or(|perm| perm == [1, 0]);
        if node.is("Identity") || node.is("Cast") {
            // The element type in the file is what counts; a Cast after it changes nothing about the mask.
        } else if node.is("Transpose") && reverses() {
            layout = match layout {
                MatrixLayout::OutputFirst => MatrixLayout::InputFirst,
                MatrixLayout::InputFirst => MatrixLayout::OutputFirst,
            };
        } else if node.is("Constant") {
            return Err(format!("its weight is in a Constant ({})", node.describe()));
        } else if node.op_type == "DequantizeLinear" {
            return Err(format!("its weight is quantised ({})", node.describe()));
        } else {
            return Err(format!(
                "its weight is computed by {}: store the product instead, as constant folding does",
                node.describe()
            ));
        }
        value = node.input(0).ok_or_else(|| format!("{} reads nothing", node.describe()))?;
    }
}
