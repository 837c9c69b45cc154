//! The parser of attributes.

use bytes::Bytes;

use super::{Parsed, Parser};
use crate::common::onnx_text::{attribute_type, is_float_name, lexer::TokenKind};
use crdiff::onnx::proto::{
    AttributeProto, GraphProto, TensorProto, TypeProto, attribute_proto::AttributeType,
};

/// A single value.
enum Value {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(TensorProto),
    Graph(GraphProto),
    Type(TypeProto),
}

impl Value {
    fn attribute_type(&self) -> AttributeType {
        match self {
            Self::Float(_) => AttributeType::Float,
            Self::Int(_) => AttributeType::Int,
            Self::String(_) => AttributeType::String,
            Self::Tensor(_) => AttributeType::Tensor,
            Self::Graph(_) => AttributeType::Graph,
            Self::Type(_) => AttributeType::TypeProto,
        }
    }
}

/// Each type of single values and the type of lists of them.
const LISTS: [(AttributeType, AttributeType); 7] = [
    (AttributeType::Float, AttributeType::Floats),
    (AttributeType::Int, AttributeType::Ints),
    (AttributeType::String, AttributeType::Strings),
    (AttributeType::Tensor, AttributeType::Tensors),
    (AttributeType::Graph, AttributeType::Graphs),
    (AttributeType::SparseTensor, AttributeType::SparseTensors),
    (AttributeType::TypeProto, AttributeType::TypeProtos),
];

fn list_of(single: AttributeType) -> AttributeType {
    LISTS.iter().find(|(one, _)| *one == single).map_or(single, |(_, list)| *list)
}

/// Returns the type of the values in a list of type `list`; a single type stays as it is.
fn element_of(list: AttributeType) -> AttributeType {
    LISTS.iter().find(|(_, many)| *many == list).map_or(list, |(one, _)| *one)
}

fn lower(found: AttributeType) -> String {
    found.as_str_name().to_ascii_lowercase()
}

impl Parser<'_> {
    pub(super) fn attribute(&mut self, attributes: &mut Vec<AttributeProto>) -> Parsed<()> {
        let name = self.name("an attribute's name")?;
        attributes.push(self.attribute_named(name)?);
        Ok(())
    }

    /// Parses the rest of an attribute after its name: `: type`, which may be left out, and `= value`.
    pub(super) fn attribute_named(&mut self, name: String) -> Parsed<AttributeProto> {
        let mut attribute = AttributeProto { name: Some(name), ..AttributeProto::default() };
        if self.matches(':')? {
            let stated = match self.token.kind {
                TokenKind::Name(name) => attribute_type(name),
                _ => None,
            };
            let Some(stated) = stated else {
                return Err(self.expected("an attribute type (float, ints, tensor, graph, ...)"));
            };
            self.advance()?;
            attribute.set_type(stated);
        }
        self.expect('=')?;
        if self.at('[') {
            self.list(&mut attribute)?;
        } else if self.matches('@')? {
            attribute.ref_attr_name = Some(self.name("the name of the function's attribute")?);
        } else {
            let value = self.value(attribute.r#type.map(|_| attribute.r#type()))?;
            attribute.set_type(value.attribute_type());
            match value {
                Value::Float(value) => attribute.f = Some(value),
                Value::Int(value) => attribute.i = Some(value),
                Value::String(value) => attribute.s = Some(value),
                Value::Tensor(value) => attribute.t = Some(Box::new(value)),
                Value::Graph(value) => attribute.g = Some(Box::new(value)),
                Value::Type(value) => attribute.tp = Some(Box::new(value)),
            }
        }
        Ok(attribute)
    }

    /// Parses `[1, 2]`. The first value fixes the type of the list if none was stated.
    fn list(&mut self, attribute: &mut AttributeProto) -> Parsed<()> {
        let start = self.advance()?;
        if self.at(']') {
            let stated = attribute.r#type();
            if stated == AttributeType::Undefined {
                let what = "an empty list needs its type, as in `axes: ints = []`";
                return Err(self.lexer.error(start.at, what));
            }
            if element_of(stated) == stated {
                let what = format!("a value of type {} is not a list", lower(stated));
                return Err(self.lexer.error(start.at, what));
            }
        }
        self.separated(']', |p| {
            let value = p.value(attribute.r#type.map(|_| element_of(attribute.r#type())))?;
            attribute.set_type(list_of(value.attribute_type()));
            match value {
                Value::Float(value) => attribute.floats.push(value),
                Value::Int(value) => attribute.ints.push(value),
                Value::String(value) => attribute.strings.push(value),
                Value::Tensor(value) => attribute.tensors.push(value),
                Value::Graph(value) => attribute.graphs.push(value),
                Value::Type(value) => attribute.type_protos.push(value),
            }
            Ok(())
        })
    }

    /// Parses a value, of type `stated` if there is one. An integer is a float where a float is expected.
    fn value(&mut self, stated: Option<AttributeType>) -> Parsed<Value> {
        let start = self.token.clone();
        let value = match &start.kind {
            _ if self.at_type() => self.tensor_or_type()?,
            TokenKind::Name(name) if !is_float_name(name) => Value::Graph(self.graph()?),
            TokenKind::Number(text) if stated != Some(AttributeType::Float) && is_integer(text) => {
                Value::Int(self.int()?)
            }
            TokenKind::Number(_) | TokenKind::Name(_) => Value::Float(self.float("a float")?),
            TokenKind::Text(_) => {
                let text = self.text()?;
                if self.at('(') { Value::Graph(self.graph_named(text)?) } else { Value::String(text.into()) }
            }
            _ => return Err(self.expected("an attribute's value")),
        };
        let found = value.attribute_type();
        match stated {
            Some(stated) if stated != found => {
                let what =
                    format!("expected a value of type {}, found one of type {}", lower(stated), lower(found));
                Err(self.lexer.error(start.at, what))
            }
            _ => Ok(value),
        }
    }

    /// Parses a type, or a tensor: a type, maybe a name, and elements.
    fn tensor_or_type(&mut self) -> Parsed<Value> {
        let r#type = self.r#type()?;
        let named = matches!(self.token.kind, TokenKind::Name(_) | TokenKind::Text(_));
        if !named && !self.at('=') && !self.at('{') {
            return Ok(Value::Type(r#type));
        }
        let name = if named { self.name("a tensor's name")? } else { String::new() };
        self.matches('=')?;
        let mut tensor = self.tensor_data(Some(&r#type))?;
        tensor.name = Some(name);
        Ok(Value::Tensor(tensor))
    }
}

fn is_integer(number: &str) -> bool {
    number.strip_prefix('-').unwrap_or(number).bytes().all(|b| b.is_ascii_digit())
}
