//! Attributes of nodes.

use crate::onnx::proto::{AttributeProto, TensorProto, attribute_proto::AttributeType};

/// An attribute of a node. Tensors in one that was read are not copied.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute(pub(crate) AttributeProto);

impl Attribute {
    /// Returns the attribute's name.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Returns the value, if it is an integer.
    pub fn int(&self) -> Option<i64> {
        self.0.i
    }

    /// Returns the value, if it is a list of integers; an empty one for another type.
    pub fn ints(&self) -> &[i64] {
        &self.0.ints
    }

    /// Returns the value, if it is a float.
    pub fn float(&self) -> Option<f32> {
        self.0.f
    }

    /// Returns the value, if it is a string of UTF-8.
    pub fn string(&self) -> Option<&str> {
        std::str::from_utf8(self.0.s()).ok()
    }

    /// Returns the value, if it is a tensor.
    pub(crate) fn tensor(&self) -> Option<&TensorProto> {
        self.0.t.as_deref()
    }
}

/// Returns an attribute that is an integer.
pub fn int_attribute(name: &str, number: i64) -> Attribute {
    Attribute(AttributeProto { i: Some(number), ..empty(name, AttributeType::Int) })
}

/// Returns an attribute that is a list of integers.
pub fn ints_attribute(name: &str, numbers: Vec<i64>) -> Attribute {
    Attribute(AttributeProto { ints: numbers, ..empty(name, AttributeType::Ints) })
}

/// Returns an attribute that is a text.
pub fn string_attribute(name: &str, text: &'static str) -> Attribute {
    Attribute(AttributeProto { s: Some(text.into()), ..empty(name, AttributeType::String) })
}

/// Returns an attribute that is a float.
pub fn float_attribute(name: &str, number: f32) -> Attribute {
    Attribute(AttributeProto { f: Some(number), ..empty(name, AttributeType::Float) })
}

fn empty(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(kind as i32), ..AttributeProto::default() }
}
