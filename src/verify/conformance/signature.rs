//! Signatures of nodes: all that two of them must have in common to compute the same from the same operands: operator,
//! domain, attributes with the bodies in them, which operands and results are there, and every other field but names,
//! doc strings and metadata.

use std::cell::RefCell;

use crate::{
    ir::{Attribute, Graph, Node, NodeId, ValueId},
    onnx::{self, OnnxError, wire},
    verify::{
        canonical::{Canonical, any_random, domain, is_random},
        hash::Hasher,
    },
};

/// The signature of a node, and what it reads.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    /// Equal for nodes that agree.
    pub bytes: Vec<u8>,
    /// The operands, without those left out at the end, and then the values that bodies refer to, in the order in
    /// which they do.
    pub reads: Vec<Option<ValueId>>,
    /// Whether two nodes like this one, with the same operands, may compute different things.
    pub is_random: bool,
}

/// Fields of `NodeProto` that the signature takes apart, or that say nothing about what a node computes: input, output,
/// name, op_type, attribute, doc_string, domain, metadata_props.
const TAKEN_APART: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 9];

/// Returns the signature of node `id`, if it has these attributes.
///
/// # Errors
/// [`OnnxError`] if a tensor in an attribute cannot be read.
pub(super) fn signature(graph: &Graph, id: NodeId, attributes: &[Attribute]) -> Result<Signature, OnnxError> {
    let node = graph.node(id);
    // An optional operand that is left out at the end is the same as none; in the middle it is one of its own.
    let operands = node.inputs.len() - node.inputs.iter().rev().take_while(|v| v.is_none()).count();
    let operands = node.inputs.get(..operands).unwrap_or_default();
    let mut bytes = Vec::new();
    let mut add = |part: &[u8]| {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    };
    add(node.op_type.as_bytes());
    add(domain(&node.domain).as_bytes());
    for values in [operands, &node.outputs] {
        add(&values.iter().map(|value| u8::from(value.is_some())).collect::<Vec<_>>());
    }
    for part in wire::parts(&node.raw) {
        let part = part?;
        if !TAKEN_APART.contains(&part.number) {
            add(&part.number.to_le_bytes());
            add(part.value);
        }
    }
    if !graph.source().unknown.is_empty() {
        for unknown in onnx::check("NodeProto", &node.raw)? {
            add(unknown.message.as_bytes());
            add(&unknown.number.to_le_bytes());
            add(&unknown.value);
        }
    }
    // Names that no body defines, by where they are first met.
    let free: RefCell<Vec<String>> = RefCell::default();
    let outer = |name: &str| {
        let mut free = free.borrow_mut();
        let index = free.iter().position(|known| known == name).unwrap_or(free.len());
        if index == free.len() {
            free.push(name.to_string());
        }
        Some(Hasher::new("outer").number(index as u64).finish())
    };
    if !attributes.is_empty() {
        add(&Canonical::exact(graph).attributes(attributes, &outer)?);
    }
    let mut reads = operands.to_vec();
    reads.extend(free.into_inner().iter().map(|name| graph.value_named(name)));
    let is_random =
        is_random(&node.op_type, &node.domain) || any_random(attributes.iter().map(|attribute| &attribute.0));
    Ok(Signature { bytes, reads, is_random })
}

/// Returns whether a node has no field but those, so that its operator, attributes and operands say all of it.
pub(super) fn is_plain(node: &Node) -> bool {
    wire::parts(&node.raw).all(|part| part.is_ok_and(|part| TAKEN_APART.contains(&part.number)))
}
