//! The model and its graph as messages: what was not edited as it came, in its order.

use bytes::Bytes;
use prost::Message as _;
use rustc_hash::FxHashSet;

use super::{
    files::Target,
    message::Message,
    nested::MessageKind,
    shared,
    tensors::{Placement, SharedNew, WeightLayout},
};
use crate::{
    ir::{Graph, GraphIo, InitializerId, Item, NodeId, Origin, ValueId},
    onnx::{
        OnnxError, graph_field, model_field,
        proto::{OperatorSetIdProto, StringStringEntryProto},
        wire::{self, Field},
    },
};

/// A digest that some tools leave in `metadata_props`; it is wrong once anything changed.
const MODEL_HASH: &str = "model_hash";

/// Returns the edited model, and where its weights go.
///
/// # Errors
/// [`OnnxError`] if a message is broken or weights cannot be placed.
pub fn model<'g>(
    graph: &'g Graph,
    target: &'g Target,
    others: &'g SharedNew,
    layout: WeightLayout,
    external: bool,
) -> Result<(Message<'g>, Placement<'g>), OnnxError> {
    let mut placement = Placement::new(graph, target, others, layout, external);
    let mut body = Some(graph_message(graph, &mut placement)?);
    let mut out = Message::new(graph.source());
    let mut written = FxHashSet::default();
    for field in &graph.source().fields {
        match field.number {
            model_field::GRAPH => {
                for (domain, version) in &graph.source().calls.opsets {
                    let set = OperatorSetIdProto { domain: Some(domain.clone()), version: Some(*version) };
                    out.push_field(model_field::OPSET_IMPORT, &set.encode_to_vec().into());
                }
                if let Some(body) = body.take() {
                    out.push_message(model_field::GRAPH, body);
                }
            }
            model_field::FUNCTIONS if graph.source().calls.all => {}
            model_field::METADATA_PROPS => {
                let entry = StringStringEntryProto::decode(field.value()).map_err(|e| {
                    OnnxError::invalid("the model's metadata_props", format!("broken message: {e}"))
                })?;
                match new_value(graph, entry.key()) {
                    Some(value) if written.insert(entry.key().to_string()) => {
                        push_metadata(&mut out, entry.key(), value)
                    }
                    Some(_) => {}
                    None if [MODEL_HASH, shared::KEY].contains(&entry.key()) => {}
                    None => out.push(&field.raw),
                }
            }
            number => {
                match MessageKind::of_model_field(number).map(|kind| placement.nested(&field.value(), kind)) {
                    Some(Ok(Some(changed))) => out.push_field(number, &changed),
                    Some(Err(error)) => return Err(error),
                    Some(Ok(None)) | None => out.push(&field.raw),
                }
            }
        }
    }
    for (key, _) in &graph.metadata {
        if written.insert(key.clone()) {
            push_metadata(&mut out, key, new_value(graph, key).unwrap_or_default());
        }
    }
    if let Some(stated) = placement.sampled.stated()? {
        push_metadata(&mut out, shared::KEY, &stated);
    }
    Ok((out, placement))
}

/// Returns the value that was set last.
fn new_value<'g>(graph: &'g Graph, key: &str) -> Option<&'g str> {
    graph.metadata.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
}

fn push_metadata(out: &mut Message<'_>, key: &str, value: &str) {
    let entry = StringStringEntryProto { key: Some(key.to_string()), value: Some(value.to_string()) };
    out.push_field(model_field::METADATA_PROPS, &entry.encode_to_vec().into());
}

fn graph_message<'g>(graph: &'g Graph, placement: &mut Placement<'g>) -> Result<Message<'g>, OnnxError> {
    let layout = &graph.layout;
    let mut fields = graph.source().graph.fields();
    let end = layout.len();
    // Added items go beside their like, or to the end if there is nothing like them.
    let first = |like: fn(&Item) -> bool| layout.iter().position(like).unwrap_or(end);
    let last = |like: fn(&Item) -> bool| layout.iter().rposition(like).unwrap_or(end);
    let is_node = |item: &Item| matches!(item, Item::Node(_));
    let (first_node, last_node) = (first(is_node), last(is_node));
    let last_input = last(|item| matches!(item, Item::Input));
    let last_output = last(|item| matches!(item, Item::Output));
    let listed_outputs = layout.iter().filter(|item| matches!(item, Item::Output)).count();
    let last_initializer = last(|item| matches!(item, Item::Initializer(_)));
    let last_name = last(|item| matches!(item, Item::Name));

    let mut out = Message::new(graph.source());
    let (mut inputs, mut outputs) = (graph.inputs.iter(), graph.outputs.iter());
    for index in 0..=end {
        if index == first_node {
            push_nodes(&mut out, graph, &graph.first, placement)?;
        }
        if let (Some(item), Some(field)) = (layout.get(index), fields.next()) {
            match item {
                Item::Node(id) => {
                    push_nodes(&mut out, graph, graph.before.get(id).map_or(&[], Vec::as_slice), placement)?;
                    push_node(&mut out, graph, *id, Some(&field), placement)?;
                }
                Item::Initializer(id) => push_initializer(&mut out, graph, *id, Some(&field), placement)?,
                Item::Input => push_io(&mut out, inputs.next(), &field),
                Item::Output => push_io(&mut out, outputs.next(), &field),
                Item::Name if graph.new_name.is_some() => {}
                Item::Name => out.push(&field.raw),
                Item::ValueInfo(value) | Item::Annotation(value) => {
                    push_about(&mut out, graph, *value, &field)?;
                }
                Item::Other => push_other(&mut out, &field, placement)?,
                Item::Forgotten => {}
            }
        }
        if index == last_node {
            push_nodes(&mut out, graph, &graph.last, placement)?;
        }
        if index == last_initializer {
            for id in &graph.added_initializers {
                push_initializer(&mut out, graph, *id, None, placement)?;
            }
        }
        if index == last_input {
            for input in &graph.extra_inputs {
                out.push_field(graph_field::INPUT, &input.raw);
            }
        }
        if index == last_output {
            for output in graph.outputs.iter().skip(listed_outputs) {
                out.push_field(graph_field::OUTPUT, &output.raw);
            }
        }
        if let (true, Some(name)) = (index == last_name, &graph.new_name) {
            out.push_own(&Field::message(graph_field::NAME, name.as_bytes()).raw);
        }
    }
    Ok(out)
}

fn push_nodes(
    out: &mut Message<'_>,
    graph: &Graph,
    ids: &[NodeId],
    placement: &mut Placement<'_>,
) -> Result<(), OnnxError> {
    ids.iter().try_for_each(|id| push_node(out, graph, *id, None, placement))
}

fn push_node(
    out: &mut Message<'_>,
    graph: &Graph,
    id: NodeId,
    original: Option<&Field>,
    placement: &mut Placement<'_>,
) -> Result<(), OnnxError> {
    let Some(node) = graph.get(id) else { return Ok(()) };
    match (placement.nested(&node.raw, MessageKind::Node)?, original) {
        (Some(changed), _) => out.push_field(graph_field::NODE, &changed),
        (None, Some(field)) if is_content_of(&node.raw, field) => out.push(&field.raw),
        (None, _) => out.push_field(graph_field::NODE, &node.raw),
    }
    Ok(())
}

fn push_initializer(
    out: &mut Message<'_>,
    graph: &Graph,
    id: InitializerId,
    original: Option<&Field>,
    placement: &mut Placement<'_>,
) -> Result<(), OnnxError> {
    match graph.initializer(id) {
        Some(initializer) => placement.initializer(out, id, initializer, original),
        None => Ok(()),
    }
}

fn push_io(out: &mut Message<'_>, io: Option<&GraphIo>, original: &Field) {
    match io {
        Some(io) if !is_content_of(&io.raw, original) => out.push_field(original.number, &io.raw),
        _ => out.push(&original.raw),
    }
}

/// Adds a value_info or quantization annotation where its value goes, under the name that the value has now.
fn push_about(
    out: &mut Message<'_>,
    graph: &Graph,
    value: Option<ValueId>,
    field: &Field,
) -> Result<(), OnnxError> {
    let Some(value) = value.map(|id| graph.value(id)) else {
        out.push(&field.raw);
        return Ok(());
    };
    if value.origin == Origin::Removed {
        return Ok(());
    }
    // ValueInfoProto.name and TensorAnnotation.tensor_name are both field 1.
    let content = field.value();
    if wire::split(&content)?.iter().any(|f| f.number == 1 && f.as_str() == Some(value.name.as_str())) {
        out.push(&field.raw);
    } else {
        let renamed = wire::replace_fields(&content, 1, &[Field::message(1, value.name.as_bytes())])?;
        out.push_field(field.number, &renamed);
    }
    Ok(())
}

fn push_other(out: &mut Message<'_>, field: &Field, placement: &mut Placement<'_>) -> Result<(), OnnxError> {
    let changed = match MessageKind::Graph.of_field(field.number) {
        Some(kind) => placement.nested(&field.value(), kind)?,
        None => None,
    };
    match changed {
        Some(changed) => out.push_field(field.number, &changed),
        None => out.push(&field.raw),
    }
    Ok(())
}

/// Returns whether `content` is the very content of `field`, and so nobody changed it.
fn is_content_of(content: &Bytes, field: &Field) -> bool {
    let original = field.value();
    content.as_ptr() == original.as_ptr() && content.len() == original.len()
}
