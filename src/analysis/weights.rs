//! The weights of Linear and Conv2d modules: which initializer each one is, and how it is laid out.
//!
//! A weight belongs to the module of the node that uses it, not to its own name: exporters rename and transpose
//! weights, and give equal ones a single initializer.

use super::modules::Modules;
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
}

/// The weight of one Linear or Conv2d module.
#[derive(Clone, Debug)]
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
    /// What the dimensions are.
    pub layout: Layout,
}

/// How a weight lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
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
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().fold(1, |n, d| n.saturating_mul(d.unsigned_abs()))
    }

    /// Number of inputs of the layer (of each group, for a grouped convolution).
    pub fn input_len(&self) -> i64 {
        let axis = match self.layout {
            Layout::OutputFirst => 1,
            Layout::InputFirst => 0,
        };
        self.dims.get(axis).copied().unwrap_or(0)
    }
}

/// Operators of ONNX Runtime and of quantisers that hold weights in forms that cannot be masked here.
const PACKED: [&str; 11] = [
    "MatMulInteger",
    "ConvInteger",
    "QLinearMatMul",
    "QLinearConv",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "FusedConv",
    "NhwcConv",
    "FusedMatMul",
    "FusedGemm",
];

/// Finds the weights of all Linear and Conv2d layers.
pub fn weights(graph: &Graph, modules: &Modules) -> Weights {
    let mut weights = Weights::default();
    for (id, node) in graph.nodes() {
        let path = || modules.get(modules.of_node(id)).path.clone();
        if PACKED.contains(&node.op_type.as_str()) {
            let reason = format!("its weight is inside {}", node.describe());
            weights.blocked.push(Blocked { path: path(), node: id, reason });
            continue;
        }
        let Some((slot, layout)) = weight_operand(node) else { continue };
        let Some(operand) = node.input(slot) else { continue };
        match trace(graph, operand, layout) {
            Traced::Weight(initializer, layout) => {
                let Some(entry) = graph.initializer(initializer) else { continue };
                let header = &entry.header;
                let rank_fits = if node.is("Conv") { header.dims.len() == 4 } else { header.dims.len() == 2 };
                if !rank_fits {
                    continue;
                }
                if !header.data_type.is_weight_float() {
                    let reason = format!("its weight has type {}", header.data_type.name());
                    weights.blocked.push(Blocked { path: path(), node: id, reason });
                    continue;
                }
                let path = path();
                let known = weights
                    .editable
                    .iter_mut()
                    .rev()
                    .find(|w| w.initializer == initializer && w.path == path);
                match known {
                    Some(known) => known.uses.push((id, slot)),
                    None => weights.editable.push(Weight {
                        path,
                        uses: vec![(id, slot)],
                        initializer,
                        data_type: header.data_type,
                        dims: header.dims.clone(),
                        layout,
                    }),
                }
            }
            Traced::Blocked(reason) => weights.blocked.push(Blocked { path: path(), node: id, reason }),
            Traced::Computed => {}
        }
    }
    weights
}

/// The operand of `node` that is a weight, if `node` is the multiplication of a Linear or Conv2d layer.
fn weight_operand(node: &Node) -> Option<(usize, Layout)> {
    if node.is("Conv") {
        return Some((1, Layout::OutputFirst));
    }
    if node.is("MatMul") {
        return Some((1, Layout::InputFirst));
    }
    if node.is("Gemm") {
        let transposed = node.int("transB").unwrap_or(0) != 0;
        return Some((1, if transposed { Layout::OutputFirst } else { Layout::InputFirst }));
    }
    None
}

enum Traced {
    Weight(InitializerId, Layout),
    Blocked(String),
    Computed,
}

/// Follows a weight operand back through what exporters put between an initializer and its use.
fn trace(graph: &Graph, mut value: ValueId, mut layout: Layout) -> Traced {
    loop {
        match graph.value(value).origin {
            Origin::Initializer(id) => return Traced::Weight(id, layout),
            Origin::SparseInitializer => return Traced::Blocked("its weight is a sparse initializer".into()),
            Origin::Input(_) | Origin::Removed => return Traced::Computed,
            Origin::Node { node, .. } => {
                let producer = graph.node(node);
                let reverses = || producer.ints("perm").is_none_or(|perm| perm == [1, 0]);
                if producer.is("Identity") || producer.is("Cast") {
                    // The element type in the file is what counts; a Cast after it changes nothing about the mask.
                } else if producer.is("Transpose") && reverses() {
                    layout = match layout {
                        Layout::OutputFirst => Layout::InputFirst,
                        Layout::InputFirst => Layout::OutputFirst,
                    };
                } else if producer.is("Constant") {
                    return Traced::Blocked(format!("its weight is in a Constant ({})", producer.describe()));
                } else if producer.op_type == "DequantizeLinear" {
                    return Traced::Blocked(format!("its weight is quantised ({})", producer.describe()));
                } else {
                    return Traced::Computed;
                }
                match producer.input(0) {
                    Some(next) => value = next,
                    None => return Traced::Computed,
                }
            }
        }
    }
}
