//! The textual syntax of ONNX, as the spec's [Syntax page] has it and `onnx.parser` and `onnx.printer` of
//! onnx 1.23 implement it.
//!
//! [`parse_model`] reads what the reference parser reads, into the same messages, and [`print_model`] prints what
//! the reference printer prints. They differ in what the reference prints and cannot read back, or leaves out:
//!
//! - Names of operators, domains, attributes and subgraphs that are not identifiers, or that would be taken for a
//!   type or a number, are quoted.
//! - Lists of tensors, graphs and types are read; an empty list of strings is `[]`.
//! - Complex and sub-byte tensors are printed: a complex number as two elements, packed types a byte an element
//!   (as `int32_data` has them).
//! - Default values of a function's attributes, its value types and its doc string are printed.
//! - A tensor of more than [`PrintOptions::max_elements`] elements is printed as `{... sha256:0123456789abcdef}`:
//!   the first 8 bytes of the SHA-256 of its elements in little-endian order. Whatever cannot be said in the syntax
//!   (sparse tensors, strings that are not UTF-8, a tensor whose elements do not fill its shape) is `...` too. The
//!   parser refuses `...`: such a text is to be looked at.
//!
//! The syntax has no place for doc strings, metadata, denotations, annotations and devices of graphs, nodes, values
//! and tensors, nor for training information. Elements in `raw_data` come back in the typed fields (`float_data`, ...).
//!
//! [Syntax page]: https://github.com/onnx/onnx/blob/v1.23.2/docs/Syntax.md

mod lexer;
mod parse;
mod print;

pub use print::PrintOptions;

use super::proto::ModelProto;

/// A text that is not a model in ONNX's textual syntax.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct TextError {
    /// The line of the text, from 1.
    pub line: usize,
    /// The character of that line, from 1.
    pub column: usize,
    /// What was expected and what was found.
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

/// Prints `model` with the default [`PrintOptions`], with no newline at the end.
pub fn print_model(model: &ModelProto) -> String {
    print_model_with(model, PrintOptions::default())
}

/// Prints `model`, with no newline at the end.
pub fn print_model_with(model: &ModelProto, options: PrintOptions) -> String {
    print::model(model, options)
}

/// Whether `text` is an identifier of the syntax: what can stand without quotes.
fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
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
fn element_type(name: &str) -> Option<super::proto::tensor_proto::DataType> {
    use super::proto::tensor_proto::DataType;
    let upper = lower_to_upper(name)?;
    DataType::from_str_name(&upper).filter(|t| *t != DataType::Undefined)
}

/// The attribute type called `name`: `AttributeProto.AttributeType` in lower case.
fn attribute_type(name: &str) -> Option<super::proto::attribute_proto::AttributeType> {
    use super::proto::attribute_proto::AttributeType;
    let upper = lower_to_upper(name)?;
    AttributeType::from_str_name(&upper).filter(|t| *t != AttributeType::Undefined)
}

fn lower_to_upper(name: &str) -> Option<String> {
    (!name.contains(|c: char| c.is_ascii_uppercase())).then(|| name.to_ascii_uppercase())
}
