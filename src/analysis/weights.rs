//! The weights of Linear and Conv2d modules: which initializer each one is, and how it is laid out.

use super::modules::ModuleId;
use crate::{
    ir::{InitializerId, NodeId},
    onnx::DataType,
};

/// The weight of one Linear or Conv2d module.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The module that uses it. A weight shared by two modules appears once for each.
    pub module: ModuleId,
    /// The module's path, such as `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`.
    pub path: String,
    /// The node that multiplies by it (MatMul, Gemm or Conv).
    pub node: NodeId,
    /// Which of that node's operands leads to it.
    pub slot: usize,
    /// The initializer that holds it, reached through Identity, Transpose or Cast nodes or directly.
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
