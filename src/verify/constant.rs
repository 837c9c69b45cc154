//! Tensors that a graph holds: what Constant nodes make, headers of decoded tensors, and digests of elements.

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use super::hash::{Hash, Hasher};
use crate::{
    ir::{Graph, Node},
    observer::Progress,
    onnx::{DataType, OnnxError, Payload, TensorHeader, proto::TensorProto},
};

/// How many bytes of a tensor are in memory at once; a multiple of every element's size.
pub const PIECE: usize = 1 << 20;

/// Text, whose elements have no fixed size.
pub const STRING: DataType = DataType(8);

/// Returns whether `node` is a Constant node whose value is taken for a constant here (all but sparse ones).
pub fn is_constant(node: &Node) -> bool {
    node.is("Constant") && node.attribute("sparse_value").is_none()
}

/// Returns the tensor `name` that `node` makes, if it is such a node. Its elements are not copied where they are raw
/// data.
///
/// # Errors
/// [`OnnxError`] if it has no value, or a broken one.
pub fn of_node(node: &Node, name: &str) -> Result<Option<TensorHeader>, OnnxError> {
    if !is_constant(node) {
        return Ok(None);
    }
    let Some(attribute) = node.attributes.iter().find(|a| a.name().starts_with("value")) else {
        return Err(OnnxError::invalid(node.describe(), "it has no value"));
    };
    let tensor = |data_type: DataType, dims: Vec<i64>, bytes: Vec<u8>| TensorProto {
        dims,
        data_type: Some(data_type.0),
        raw_data: Some(Bytes::from(bytes)),
        ..TensorProto::default()
    };
    let strings = |dims: Vec<i64>, string_data: Vec<Bytes>| TensorProto {
        dims,
        data_type: Some(STRING.0),
        string_data,
        ..TensorProto::default()
    };
    let count = |n: usize| vec![n as i64];
    let floats = |list: &[f32]| list.iter().flat_map(|x| x.to_le_bytes()).collect();
    let ints = |list: &[i64]| list.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut proto = match attribute.name() {
        "value_float" => tensor(DataType::FLOAT, Vec::new(), floats(&[attribute.0.f()])),
        "value_floats" => {
            tensor(DataType::FLOAT, count(attribute.0.floats.len()), floats(&attribute.0.floats))
        }
        "value_int" => tensor(DataType::INT64, Vec::new(), ints(&[attribute.0.i()])),
        "value_ints" => tensor(DataType::INT64, count(attribute.0.ints.len()), ints(&attribute.0.ints)),
        "value_string" => strings(Vec::new(), attribute.0.s.iter().cloned().collect()),
        "value_strings" => strings(count(attribute.0.strings.len()), attribute.0.strings.clone()),
        _ => attribute
            .0
            .t
            .as_deref()
            .cloned()
            .ok_or_else(|| OnnxError::invalid(node.describe(), "its value is no tensor"))?,
    };
    proto.name = Some(name.to_string());
    header(&proto).map(Some)
}

/// Returns the header of a decoded tensor. Its elements are not copied where they are raw data.
///
/// # Errors
/// [`OnnxError`] if it is broken.
pub fn header(tensor: &TensorProto) -> Result<TensorHeader, OnnxError> {
    let data_type = DataType(tensor.data_type.unwrap_or_default());
    let (name, dims) = (tensor.name().to_string(), tensor.dims.clone());
    match &tensor.raw_data {
        _ if data_type.bits().is_none() => {
            let raw = tensor.encode_to_vec().into();
            Ok(TensorHeader { name, data_type, dims, payload: Payload::Typed, raw })
        }
        Some(bytes) if tensor.external_data.is_empty() => {
            let payload = Payload::Raw(bytes.clone());
            Ok(TensorHeader { name, data_type, dims, payload, raw: Bytes::new() })
        }
        _ => TensorHeader::parse(tensor.encode_to_vec().into()),
    }
}

/// Returns the elements of a tensor of a type without a fixed size, as the model writes them.
///
/// # Errors
/// [`OnnxError`] if they are broken.
pub fn written(header: &TensorHeader) -> Result<TensorProto, OnnxError> {
    let tensor = TensorProto::decode(header.raw.clone())
        .map_err(|e| OnnxError::invalid(format!("tensor `{}`", header.name), e.to_string()))?;
    Ok(TensorProto { name: None, doc_string: None, metadata_props: Vec::new(), ..tensor })
}

/// Returns the SHA-256 of a tensor's elements, read in pieces. `progress` is told how many bytes each has.
///
/// # Errors
/// [`OnnxError`] if they cannot be read.
pub fn content(graph: &Graph, header: &TensorHeader, progress: Progress<'_>) -> Result<Hash, OnnxError> {
    if header.data_type == STRING {
        let hasher = Hasher::new("strings");
        let strings = written(header)?.string_data;
        return Ok(strings.iter().fold(hasher, |hasher, text| hasher.bytes(text)).finish());
    }
    if header.data_type.bits().is_none() {
        return Ok(Hasher::new("written").bytes(&written(header)?.encode_to_vec()).finish());
    }
    if header.elements() == 0 && matches!(header.payload, Payload::Typed) {
        return Ok(Sha256::new().finalize().into());
    }
    let reader = graph.weight_reader(header)?;
    let mut sha = Sha256::new();
    let mut buffer = vec![0; reader.len().min(PIECE as u64) as usize];
    for at in (0..reader.len()).step_by(PIECE) {
        let piece = &mut buffer[..(reader.len() - at).min(PIECE as u64) as usize];
        reader.read_at(at, piece)?;
        sha.update(&*piece);
        progress.advance(piece.len() as u64)?;
    }
    Ok(sha.finalize().into())
}
