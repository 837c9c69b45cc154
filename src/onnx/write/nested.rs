//! Tensors wherever they are in a model: attributes, subgraphs, functions, sparse tensors, training graphs.

use bytes::Bytes;

use crate::onnx::{
    OnnxError, Source, TensorHeader, model_field, tensor,
    wire::{self, Field, WireType},
};

/// How deep messages may be nested; protobuf decoders stop at 100 too.
const DEPTH: usize = 100;

/// A message type that can hold tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Training,
    Graph,
    Function,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
}

impl MessageKind {
    /// Returns the type of a field of `ModelProto`.
    pub fn of_model_field(number: u32) -> Option<Self> {
        match number {
            model_field::GRAPH => Some(Self::Graph),
            20 => Some(Self::Training),
            model_field::FUNCTIONS => Some(Self::Function),
            _ => None,
        }
    }

    /// Returns the type of a field of this message (field numbers of `onnx.proto`).
    pub fn of_field(self, number: u32) -> Option<Self> {
        Some(match (self, number) {
            (Self::Training, 1 | 2) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Function, 11) | (Self::Node, 5) => Self::Attribute,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::SparseTensor,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::SparseTensor, 1 | 2) => Self::Tensor,
            _ => return None,
        })
    }
}

/// Returns `message` with each external tensor in it that `edit` returns bytes for replaced by those; `None` if it
/// replaces none.
///
/// # Errors
/// [`OnnxError`] for a broken message, messages nested too deep, and whatever `edit` fails with.
pub fn edit_external_tensors(
    message: &Bytes,
    kind: MessageKind,
    edit: &mut dyn FnMut(TensorHeader) -> Result<Option<Bytes>, OnnxError>,
) -> Result<Option<Bytes>, OnnxError> {
    edit_at(message, message, kind, edit, 0)
}

/// As [`edit_external_tensors`], for `message` in `whole`. Most messages hold no tensor, and take no memory.
fn edit_at(
    whole: &Bytes,
    message: &[u8],
    kind: MessageKind,
    edit: &mut dyn FnMut(TensorHeader) -> Result<Option<Bytes>, OnnxError>,
    depth: usize,
) -> Result<Option<Bytes>, OnnxError> {
    if depth > DEPTH {
        return Err(OnnxError::invalid("the model", "its subgraphs are nested too deep"));
    }
    if kind == MessageKind::Tensor {
        for part in wire::parts(message) {
            let part = part?;
            if part.number == tensor::field::DATA_LOCATION && part.as_varint() == Some(1) {
                return edit(TensorHeader::parse(whole.slice_ref(message))?);
            }
        }
        return Ok(None);
    }
    let mut out: Option<Vec<u8>> = None;
    let mut kept = 0;
    for part in wire::parts(message) {
        let part = part?;
        let inner = kind.of_field(part.number).filter(|_| part.wire_type == WireType::LengthDelimited);
        let changed = match inner {
            Some(inner) => edit_at(whole, part.value, inner, edit, depth + 1)?,
            None => None,
        };
        match (changed, &mut out) {
            (Some(content), out) => {
                let out = out.get_or_insert_with(|| message[..kept].to_vec());
                out.extend_from_slice(&Field::message(part.number, &content).raw);
            }
            (None, Some(out)) => out.extend_from_slice(part.raw),
            (None, None) => {}
        }
        kept += part.raw.len();
    }
    Ok(out.map(Bytes::from))
}

/// Returns every tensor of the model whose elements are in another file.
///
/// # Errors
/// [`OnnxError`] for a broken message.
pub fn external_tensors(source: &Source) -> Result<Vec<TensorHeader>, OnnxError> {
    let mut found = Vec::new();
    for field in source.fields.iter().filter(|f| f.wire_type == WireType::LengthDelimited) {
        if let Some(kind) = MessageKind::of_model_field(field.number) {
            edit_external_tensors(&field.value(), kind, &mut |header| {
                found.push(header);
                Ok(None)
            })?;
        }
    }
    Ok(found)
}
