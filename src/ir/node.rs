//! A node: its typed view and its bytes.

use bytes::Bytes;

use super::{Attribute, Symbol, ValueId};
use crate::onnx::wire;

/// `NodeProto.overload`
const OVERLOAD: u32 = 8;
/// `NodeProto.metadata_props`
const METADATA: u32 = 9;

/// A node (`NodeProto`) of the top-level graph. Graphs of a million must fit into memory: no list has room to spare, and
/// what is seldom looked for is found in the bytes.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node's name; may be empty.
    pub name: Box<str>,
    /// The operator, such as `MatMul`.
    pub op_type: Symbol,
    /// The operator's domain; empty for the ONNX standard.
    pub domain: Symbol,
    /// Operands; `None` where an optional one is left out.
    pub inputs: Box<[Option<ValueId>]>,
    /// Results; `None` where an optional one is left out.
    pub outputs: Box<[Option<ValueId>]>,
    /// Attributes as they came.
    pub attributes: Box<[Attribute]>,
    /// Values of this graph that the node's subgraphs (bodies of If, Loop, Scan) refer to by name.
    pub captures: Box<[ValueId]>,
    /// The encoded `NodeProto`, kept in step with `inputs` and `outputs` by the editor.
    pub(crate) raw: Bytes,
}

impl Node {
    /// Returns whether this is the standard ONNX operator `op_type`.
    pub fn is(&self, op_type: &str) -> bool {
        self.op_type == op_type && matches!(self.domain.as_str(), "" | "ai.onnx")
    }

    /// Returns the operand at `index`, if there is one.
    pub fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    /// Returns the result at `index`, if there is one.
    pub fn output(&self, index: usize) -> Option<ValueId> {
        self.outputs.get(index).copied().flatten()
    }

    /// Returns the operands that are there, in order.
    pub fn operands(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.inputs.iter().copied().flatten()
    }

    /// Returns the results that are there, in order.
    pub fn results(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.outputs.iter().copied().flatten()
    }

    /// Returns the attribute called `name`.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|a| a.name() == name)
    }

    /// Returns its attributes with those of `set`, each in place of the one of its name.
    pub(crate) fn attributes_with(&self, set: &[Attribute]) -> Box<[Attribute]> {
        let stays = |known: &&Attribute| !set.iter().any(|set| set.name() == known.name());
        self.attributes.iter().filter(stays).chain(set).cloned().collect()
    }

    /// Returns an integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).and_then(Attribute::int)
    }

    /// Returns a list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(Attribute::ints)
    }

    /// Returns a float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        self.attribute(name).and_then(Attribute::float)
    }

    /// Returns a string attribute, if it is UTF-8.
    pub fn string(&self, name: &str) -> Option<&str> {
        self.attribute(name).and_then(Attribute::string)
    }

    /// Returns the value of the entry `key` of `metadata_props`, where the dynamo exporter says where the node comes from.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        // StringStringEntryProto has the key in field 1, the value in field 2.
        let entry = contents(&self.raw, METADATA).find(|entry| contents(entry, 1).eq([key.as_bytes()]))?;
        contents(entry, 2).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Returns which of several functions of one name it calls; empty for all else.
    pub fn overload(&self) -> &str {
        let overload = contents(&self.raw, OVERLOAD).last();
        overload.and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
    }

    /// Returns the node as messages name it: `MatMul node \`/down_blocks.0/.../MatMul\``.
    pub fn describe(&self) -> String {
        if self.name.is_empty() {
            format!("unnamed {} node", self.op_type)
        } else {
            format!("{} node `{}`", self.op_type, self.name)
        }
    }
}

/// Returns the contents of the fields of `message` with this number.
fn contents(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    wire::parts(message).flatten().filter(move |part| part.number == number).map(|part| part.value)
}
