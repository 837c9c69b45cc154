//! Models from their text: a parser of ONNX's textual syntax.
//!
//! [`parse_model`] reads what the reference parser reads, into the same messages, and what `crdiff::onnx::text` prints
//! beyond that: lists of tensors, graphs and types. `...`, which stands for what was left out, is refused. Elements are
//! in the typed fields (`float_data`, ...).

mod lexer;
mod parse;

use crdiff::onnx::proto::{ModelProto, attribute_proto::AttributeType, tensor_proto::DataType};

/// A text that is not a model in ONNX's textual syntax.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct TextError {
    /// The line of the text, from 1.
    pub line: usize,
    /// The character of that line, from 1.
    pub column: usize,
    /// The expected and the found token.
    pub what: String,
}

/// Reads a model from its text.
///
/// # Errors
/// [`TextError`] for a text that does not follow the syntax, a number that does not fit its type, subgraphs or types
/// nested deeper than a protobuf reader would follow, or contents that the printer left out.
pub fn parse_model(text: &str) -> Result<ModelProto, TextError> {
    parse::model(text)
}

/// Whether `name` begins a type.
fn is_type_name(name: &str) -> bool {
    matches!(name, "seq" | "map" | "optional" | "sparse_tensor" | "opaque") || element_type(name).is_some()
}

/// Whether `name` is a special float: `inf`, `infinity` or `nan` in any case.
fn is_float_name(name: &str) -> bool {
    ["inf", "infinity", "nan"].iter().any(|special| name.eq_ignore_ascii_case(special))
}

/// The element type called `name`. The syntax has the names of `TensorProto.DataType` in lower case.
fn element_type(name: &str) -> Option<DataType> {
    DataType::from_str_name(&lower_to_upper(name)?).filter(|t| *t != DataType::Undefined)
}

/// The attribute type called `name`: `AttributeProto.AttributeType` in lower case.
fn attribute_type(name: &str) -> Option<AttributeType> {
    AttributeType::from_str_name(&lower_to_upper(name)?).filter(|t| *t != AttributeType::Undefined)
}

fn lower_to_upper(name: &str) -> Option<String> {
    (!name.contains(|c: char| c.is_ascii_uppercase())).then(|| name.to_ascii_uppercase())
}
