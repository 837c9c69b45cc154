//! A protobuf message as a tree of field occurrences, whose nodes can be changed, dropped, doubled and exchanged.

use prost::encoding::{WireType, decode_varint, encode_key, encode_varint};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

/// One occurrence of a field.
#[derive(Clone, Debug)]
pub struct Entry {
    pub field: FieldDescriptor,
    pub wire_type: WireType,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub enum Value {
    Message(Vec<Entry>),
    /// The bytes after the key, without a length.
    Plain(Vec<u8>),
}

/// Reads a message.
pub fn parse(message: &MessageDescriptor, mut bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let key = decode_varint(&mut bytes).unwrap();
        let wire_type = WireType::try_from(key & 7).unwrap();
        let len = match wire_type {
            WireType::LengthDelimited => decode_varint(&mut bytes).unwrap() as usize,
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            _ => {
                let mut rest = bytes;
                decode_varint(&mut rest).unwrap();
                bytes.len() - rest.len()
            }
        };
        let (value, rest) = bytes.split_at(len);
        bytes = rest;
        let field = message.get_field((key >> 3) as u32).expect("a field of the schema");
        let value = match field.kind() {
            Kind::Message(inner) => Value::Message(parse(&inner, value)),
            _ => Value::Plain(value.to_vec()),
        };
        entries.push(Entry { field, wire_type, value });
    }
    entries
}

/// Writes a message.
pub fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        encode_key(entry.field.number(), entry.wire_type, &mut out);
        let value = match &entry.value {
            Value::Message(entries) => &encode(entries),
            Value::Plain(bytes) => bytes,
        };
        if entry.wire_type == WireType::LengthDelimited {
            encode_varint(value.len() as u64, &mut out);
        }
        out.extend(value);
    }
    out
}

/// The way to an entry: its place among those of each message from the outermost on.
pub type Path = Vec<usize>;

/// The ways to all entries of `entries` and of the messages in them, with the fields on the way.
pub fn paths(entries: &[Entry], prefix: &mut Path, found: &mut Vec<Path>) {
    for (at, entry) in entries.iter().enumerate() {
        prefix.push(at);
        found.push(prefix.clone());
        if let Value::Message(inner) = &entry.value {
            paths(inner, prefix, found);
        }
        prefix.pop();
    }
}

/// The entries of the message that the entry at `path` is in.
pub fn around<'t>(entries: &'t mut Vec<Entry>, path: &[usize]) -> &'t mut Vec<Entry> {
    let mut entries = entries;
    for at in &path[..path.len() - 1] {
        entries = match &mut entries[*at].value {
            Value::Message(inner) => inner,
            Value::Plain(_) => unreachable!("only messages have entries"),
        };
    }
    entries
}

/// The entry at `path`.
pub fn get<'t>(entries: &'t [Entry], path: &[usize]) -> &'t Entry {
    let (last, way) = path.split_last().unwrap();
    let mut entries = entries;
    for at in way {
        entries = match &entries[*at].value {
            Value::Message(inner) => inner,
            Value::Plain(_) => unreachable!("only messages have entries"),
        };
    }
    &entries[*last]
}
