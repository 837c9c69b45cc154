//! `parse`: a model's text as it is printed after it was read, or the parser's error.

use crdiff::onnx::text::print_model;

use crate::{common::onnx_text::parse_model, filetests::case::Case};

pub fn run(case: &Case) -> Result<String, String> {
    match parse_model(case.required("input")?) {
        Ok(model) => Ok(print_model(&model)),
        Err(error) => Ok(format!("error: {error}")),
    }
}
