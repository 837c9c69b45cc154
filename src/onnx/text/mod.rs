//! The textual syntax of ONNX, as the spec's [Syntax page] has it and `onnx.parser` and `onnx.printer` of
//! onnx 1.23 implement it.
//!
//! [`print_model`] prints as the reference printer does, except where that prints what the reference parser cannot read
//! back, or leaves something out:
//!
//! - Names of operators, domains, attributes and subgraphs that are not identifiers, or that would be taken for a
//!   type or a number, are quoted.
//! - An empty list of strings is `[]`.
//! - Complex and sub-byte tensors are printed: a complex number as two elements, packed types a byte an element
//!   (as `int32_data` has them).
//! - Default values of a function's attributes, its value types and its doc string are printed.
//! - A tensor of more than [`PrintOptions::max_elements`] elements is printed as `{... sha256:0123456789abcdef}`:
//!   the first 8 bytes of the SHA-256 of its elements in little-endian order. Whatever cannot be said in the syntax
//!   (sparse tensors, strings that are not UTF-8, a tensor whose elements do not fill its shape) is `...` too:
//!   such a text is to be looked at.
//!
//! The syntax has no place for doc strings, metadata, denotations, annotations and devices of graphs, nodes, values
//! and tensors, nor for training information.
//!
//! [Syntax page]: https://github.com/onnx/onnx/blob/v1.23.2/docs/Syntax.md

mod print;

pub use print::PrintOptions;

use super::proto::{ModelProto, tensor_proto::DataType};

/// Prints `model` with the default [`PrintOptions`], with no newline at the end.
pub fn print_model(model: &ModelProto) -> String {
    print_model_with(model, PrintOptions::default())
}

/// Prints `model`, with no newline at the end.
pub fn print_model_with(model: &ModelProto, options: PrintOptions) -> String {
    print::model(model, options)
}

/// Returns whether `text` is an identifier of the syntax: what can stand without quotes.
fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Returns whether `name` begins a type. Element types have the names of `TensorProto.DataType` in lower case.
fn is_type_name(name: &str) -> bool {
    let is_lower = !name.contains(|c: char| c.is_ascii_uppercase());
    matches!(name, "seq" | "map" | "optional" | "sparse_tensor" | "opaque")
        || is_lower
            && DataType::from_str_name(&name.to_ascii_uppercase()).is_some_and(|t| t != DataType::Undefined)
}

/// Returns whether `name` is a special float: `inf`, `infinity` or `nan` in any case.
fn is_float_name(name: &str) -> bool {
    ["inf", "infinity", "nan"].iter().any(|special| name.eq_ignore_ascii_case(special))
}
