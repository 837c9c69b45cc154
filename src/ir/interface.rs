//! Edits of what a graph states about its inputs.

use prost::Message;

use super::{EditError, Editor, Graph, GraphIo, ValueId};
use crate::onnx::{
    Dimension, OnnxError, ValueInfo,
    proto::{TensorShapeProto, ValueInfoProto},
    stated_shape,
    wire::{self, Field},
};

/// `TypeProto type` of `ValueInfoProto`.
const TYPE: u32 = 2;
/// `Tensor tensor_type` of `TypeProto`.
const TENSOR_TYPE: u32 = 1;
/// `TensorShapeProto shape` of `TypeProto.Tensor`.
const SHAPE: u32 = 2;

impl Editor<'_> {
    /// States other dimensions for the graph input `value`, of which `None` are of unknown size; its name, type and
    /// unknown fields stay. Its readers are not changed: the caller sees to it that they can take the shape.
    ///
    /// # Errors
    /// [`EditError::Gone`] if `value` is no graph input; [`EditError::Unsupported`] if it is not a tensor.
    pub fn set_input_shape(&mut self, value: ValueId, dims: Vec<Option<Dimension>>) -> Result<(), EditError> {
        let Graph { inputs, extra_inputs, values, edits, .. } = &mut *self.graph;
        let name = values.get(value.index()).map(|v| v.name.as_str()).unwrap_or_default();
        let io = inputs.iter_mut().chain(extra_inputs).find(|io| io.value == value);
        let io = io.ok_or_else(|| EditError::Gone(format!("graph input `{name}`")))?;
        restate(io, &stated_shape(dims))?;
        *edits += 1;
        Ok(())
    }
}

fn restate(io: &mut GraphIo, shape: &TensorShapeProto) -> Result<(), EditError> {
    let no_tensor = || EditError::Unsupported(format!("graph input `{}` is not a tensor", io.info.name()));
    let only = |message, number| -> Result<Option<Field>, OnnxError> {
        Ok(wire::split(message)?.into_iter().find(|field| field.number == number))
    };
    let kind = only(&io.raw, TYPE)?.ok_or_else(no_tensor)?.value();
    let tensor = only(&kind, TENSOR_TYPE)?.ok_or_else(no_tensor)?.value();
    let tensor = wire::replace_fields(&tensor, SHAPE, &[Field::message(SHAPE, &shape.encode_to_vec())])?;
    let kind = wire::replace_fields(&kind, TENSOR_TYPE, &[Field::message(TENSOR_TYPE, &tensor)])?;
    let raw = wire::replace_fields(&io.raw, TYPE, &[Field::message(TYPE, &kind)])?;
    let info = ValueInfoProto::decode(raw.clone())
        .map_err(|e| OnnxError::invalid("a graph input", format!("broken message: {e}")))?;
    (io.info, io.raw) = (ValueInfo(info), raw);
    Ok(())
}
