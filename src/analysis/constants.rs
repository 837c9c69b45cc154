//! Small constants in the graph: the numbers that a rule of this crate has to look at.

use half::{bf16, f16};

use crate::{
    ir::{Graph, Node, Origin, ValueId},
    onnx::{DataType, TensorHeader},
};

/// Returns the one element of `value`, if it is a constant float scalar (an initializer or a Constant node).
pub fn scalar(graph: &Graph, value: ValueId) -> Option<f64> {
    match graph.value(value).origin {
        Origin::Initializer(id) => element(graph, &graph.initializer(id)?.header),
        Origin::Node { node, .. } => {
            let node = graph.node(node);
            if node.is("Identity") {
                return scalar(graph, node.input(0)?);
            }
            if !node.is("Constant") {
                return None;
            }
            if let Some(f) = node.float("value_float") {
                return Some(f.into());
            }
            let tensor = node.attribute("value")?.tensor()?;
            let raw = prost::Message::encode_to_vec(tensor).into();
            element(graph, &TensorHeader::parse(raw).ok()?)
        }
        _ => None,
    }
}

/// Returns whether `value` is the same in every run: an initializer, a Constant, or computed from such alone through a
/// few nodes.
pub fn is_constant(graph: &Graph, value: ValueId) -> bool {
    const MAX_DEPTH: u32 = 4;
    fn within(graph: &Graph, value: ValueId, depth: u32) -> bool {
        match graph.value(value).origin {
            Origin::Initializer(_) | Origin::SparseInitializer => true,
            Origin::Input(_) | Origin::Removed => false,
            Origin::Node { node, .. } => {
                let node = graph.node(node);
                node.is("Constant") || (depth > 0 && node.operands().all(|v| within(graph, v, depth - 1)))
            }
        }
    }
    within(graph, value, MAX_DEPTH)
}

/// Returns which values are the same in every run as long as no caller overrides an initializer: initializers, and what
/// is computed from them alone.
pub fn fixed(graph: &Graph) -> Vec<bool> {
    let mut fixed = vec![false; graph.value_capacity()];
    for value in graph.value_ids() {
        let stored = matches!(graph.value(value).origin, Origin::Initializer(_) | Origin::SparseInitializer);
        fixed[value.index()] = stored;
    }
    for (_, node) in graph.nodes() {
        let random = node.op_type.starts_with("Random") || node.is("Bernoulli") || node.is("Multinomial");
        let mut read = node.operands().chain(node.captures.iter().copied());
        if !random && read.all(|v| fixed[v.index()]) {
            for value in node.results() {
                fixed[value.index()] = true;
            }
        }
    }
    fixed
}

fn element(graph: &Graph, header: &TensorHeader) -> Option<f64> {
    if header.elements() != 1 {
        return None;
    }
    let reader = graph.weight_reader(header).ok()?;
    let mut bytes = [0u8; 8];
    let len = usize::try_from(reader.len()).ok()?;
    let used = bytes.get_mut(..len)?;
    reader.read_at(0, used).ok()?;
    let word = u64::from_le_bytes(bytes);
    match header.data_type {
        DataType::FLOAT => Some(f32::from_bits(word as u32).into()),
        DataType::DOUBLE => Some(f64::from_bits(word)),
        DataType::FLOAT16 => Some(f16::from_bits(word as u16).into()),
        DataType::BFLOAT16 => Some(bf16::from_bits(word as u16).into()),
        _ => None,
    }
}

/// Returns whether `node` divides or multiplies by a constant scalar.
pub fn scales_by_constant(graph: &Graph, node: &Node) -> bool {
    factor(graph, node).is_some()
}

/// Returns whether `node` divides or multiplies by exactly 1, which changes no value.
pub fn scales_by_one(graph: &Graph, node: &Node) -> bool {
    factor(graph, node) == Some(1.0)
}

fn factor(graph: &Graph, node: &Node) -> Option<f64> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    if node.is("Div") {
        return scalar(graph, b);
    }
    if node.is("Mul") {
        return scalar(graph, b).or_else(|| scalar(graph, a));
    }
    None
}
