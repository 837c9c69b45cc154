//! Models with their external data inside, for engines that cannot read it where it lies.

use bytes::Bytes;
use prost::Message;

use crate::onnx::{
    OnnxError, Payload, Source, TensorHeader, graph_field, model_field, proto, wire::message_head,
};

/// Returns whether any initializer's data lies in a file of which `readable` says that the engine cannot read it.
pub(super) fn needs_inlining(source: &Source, readable: impl Fn(&str) -> bool) -> Result<bool, OnnxError> {
    for field in source.graph.fields_of(graph_field::INITIALIZER) {
        if let Payload::External(range) = TensorHeader::parse(field.value())?.payload
            && !readable(&range.location)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the model's bytes with all external initializers' elements in their `raw_data`. It can exceed the 2 GiB that
/// protobuf libraries allow.
pub(super) fn inline(source: &Source) -> Result<Vec<u8>, OnnxError> {
    let mut graph = Vec::new();
    for field in source.graph.fields() {
        if field.number != graph_field::INITIALIZER {
            graph.extend_from_slice(&field.raw);
            continue;
        }
        let header = TensorHeader::parse(field.value())?;
        let Payload::External(range) = &header.payload else {
            graph.extend_from_slice(&field.raw);
            continue;
        };
        let len = header.byte_len().ok_or_else(|| OnnxError::ExternalData {
            tensor: header.name.clone(),
            what: format!("the size of {} is not known", header.data_type.name()),
        })?;
        let file = source.data.locate(&header.name, range, len)?;
        let mut elements = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        file.read_at(range.offset, &mut elements)?;
        let mut tensor = proto::TensorProto::decode(header.raw.clone())
            .map_err(|e| OnnxError::ExternalData { tensor: header.name.clone(), what: e.to_string() })?;
        tensor.external_data.clear();
        tensor.data_location = None;
        tensor.raw_data = Some(Bytes::from(elements));
        graph.extend_from_slice(&message_head(graph_field::INITIALIZER, tensor.encoded_len() as u64));
        graph.extend_from_slice(&tensor.encode_to_vec());
    }
    let mut model = Vec::with_capacity(graph.len());
    for field in &source.fields {
        if field.number == model_field::GRAPH {
            model.extend_from_slice(&message_head(model_field::GRAPH, graph.len() as u64));
            model.append(&mut graph);
        } else {
            model.extend_from_slice(&field.raw);
        }
    }
    Ok(model)
}
