//! Renaming what a node's subgraphs read from outside, in the bytes of the node.

use bytes::Bytes;

use super::EditError;
use crate::onnx::wire::{self, Field};

/// `NodeProto.input`
pub(super) const NODE_INPUT: u32 = 1;
/// `NodeProto.output`
pub(super) const NODE_OUTPUT: u32 = 2;
pub(super) const NODE_ATTRIBUTE: u32 = 5;
const ATTRIBUTE_GRAPH: u32 = 6;
const ATTRIBUTE_GRAPHS: u32 = 11;
const GRAPH_NODE: u32 = 1;
const GRAPH_INITIALIZER: u32 = 5;
const GRAPH_INPUT: u32 = 11;
const GRAPH_OUTPUT: u32 = 12;

/// Renames what the bodies of a node read from outside.
pub(super) fn rename_in_bodies(node: &Bytes, old: &str, new: &str) -> Result<Bytes, EditError> {
    map_fields(node, |f| match f.number {
        NODE_ATTRIBUTE => Ok(Some(map_fields(&f.value(), |f| match f.number {
            ATTRIBUTE_GRAPH | ATTRIBUTE_GRAPHS => Ok(Some(rename_in_body(&f.value(), old, new)?)),
            _ => Ok(None),
        })?)),
        _ => Ok(None),
    })
}

fn rename_in_body(body: &Bytes, old: &str, new: &str) -> Result<Bytes, EditError> {
    for f in wire::split(body)?.iter().filter(|f| f.number == GRAPH_OUTPUT) {
        // ValueInfoProto.name is field 1.
        if wire::split(&f.value())?.iter().any(|p| p.number == 1 && p.as_str() == Some(old)) {
            return Err(EditError::Unsupported(format!(
                "a subgraph returns the outer value `{old}` directly"
            )));
        }
    }
    if defines(body, new)? {
        return Err(EditError::Unsupported(format!("a subgraph has a value of its own called `{new}`")));
    }
    map_fields(body, |f| match f.number {
        GRAPH_NODE => {
            let inner = rename_in_bodies(&f.value(), old, new)?;
            Ok(Some(map_fields(&inner, |f| {
                let renames = f.number == NODE_INPUT && f.as_str() == Some(old);
                Ok(renames.then(|| Bytes::copy_from_slice(new.as_bytes())))
            })?))
        }
        _ => Ok(None),
    })
}

/// Returns whether `body` has an input, an initializer or a result called `name`.
fn defines(body: &Bytes, name: &str) -> Result<bool, EditError> {
    for f in wire::split(body)? {
        // Which field of NodeProto, TensorProto or ValueInfoProto has the name.
        let field = match f.number {
            GRAPH_NODE => NODE_OUTPUT,
            GRAPH_INITIALIZER => 8,
            GRAPH_INPUT => 1,
            _ => continue,
        };
        if wire::split(&f.value())?.iter().any(|p| p.number == field && p.as_str() == Some(name)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns `message` with the content of each field that `change` has something for replaced.
fn map_fields(
    message: &Bytes,
    change: impl Fn(&Field) -> Result<Option<Bytes>, EditError>,
) -> Result<Bytes, EditError> {
    let mut out = Vec::with_capacity(message.len());
    for f in wire::split(message)? {
        match change(&f)? {
            Some(content) => out.extend_from_slice(&Field::message(f.number, &content).raw),
            None => out.extend_from_slice(&f.raw),
        }
    }
    Ok(out.into())
}
