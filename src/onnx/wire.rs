//! Splitting a protobuf message into its fields without decoding it, and putting fields together again.

use bytes::Bytes;
use prost::encoding::{decode_varint, encode_varint};

use super::OnnxError;

/// How the value of a field is laid out. Protobuf's groups are not here: ONNX has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireType {
    /// A number of one to ten bytes.
    Varint,
    /// Eight bytes.
    SixtyFourBit,
    /// A length, and so many bytes.
    LengthDelimited,
    /// Four bytes.
    ThirtyTwoBit,
}

impl WireType {
    /// Returns the number of a field's key: the lowest three bits are those of the wire type.
    pub(crate) fn key(self, number: u32) -> u64 {
        let low = match self {
            Self::Varint => 0,
            Self::SixtyFourBit => 1,
            Self::LengthDelimited => 2,
            Self::ThirtyTwoBit => 5,
        };
        (u64::from(number) << 3) | low
    }
}

/// One field of a message: its number and the exact bytes that it occupies.
#[derive(Clone, Debug)]
pub struct Field {
    /// The field's number in the schema.
    pub number: u32,
    /// How its value is laid out.
    pub wire_type: WireType,
    /// Key and value, as they stand in the message.
    pub raw: Bytes,
    /// Where the value (for a length-delimited field: its content) begins in `raw`, after two varints at most.
    value_at: u8,
}

impl Field {
    /// Returns a length-delimited field with this content.
    pub fn message(number: u32, content: &[u8]) -> Self {
        let mut raw = Vec::with_capacity(content.len() + 12);
        encode_varint(WireType::LengthDelimited.key(number), &mut raw);
        encode_varint(content.len() as u64, &mut raw);
        let value_at = raw.len();
        raw.extend_from_slice(content);
        Self { number, wire_type: WireType::LengthDelimited, raw: raw.into(), value_at: value_at as u8 }
    }

    /// Returns a varint field with this value.
    pub fn varint(number: u32, value: u64) -> Self {
        let mut raw = Vec::with_capacity(12);
        encode_varint(WireType::Varint.key(number), &mut raw);
        let value_at = raw.len();
        encode_varint(value, &mut raw);
        Self { number, wire_type: WireType::Varint, raw: raw.into(), value_at: value_at as u8 }
    }

    /// Returns the value: the content of a length-delimited field, the encoded number of any other.
    pub fn value(&self) -> Bytes {
        self.raw.slice(usize::from(self.value_at)..)
    }

    /// Returns the value of a varint field; `None` for another wire type.
    pub fn as_varint(&self) -> Option<u64> {
        match self.wire_type {
            WireType::Varint => decode_varint(&mut &self.raw[usize::from(self.value_at)..]).ok(),
            _ => None,
        }
    }

    /// Returns the content of a length-delimited field as text; `None` for another wire type or invalid UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self.wire_type {
            WireType::LengthDelimited => std::str::from_utf8(&self.raw[usize::from(self.value_at)..]).ok(),
            _ => None,
        }
    }
}

/// Splits `message` into its fields, in order. The fields share the buffer of `message`.
///
/// # Errors
/// [`OnnxError::Wire`] where a key, a length or a value does not fit.
pub fn split(message: &Bytes) -> Result<Vec<Field>, OnnxError> {
    fields(message).collect()
}

/// Returns the fields of `message`, in order, up to the first that does not fit. They share its buffer.
pub fn fields(message: &Bytes) -> impl Iterator<Item = Result<Field, OnnxError>> + '_ {
    parts(message).map(|part| {
        let Part { number, wire_type, value, raw } = part?;
        let value_at = (raw.len() - value.len()) as u8;
        Ok(Field { number, wire_type, raw: message.slice_ref(raw), value_at })
    })
}

/// One field of a message, without a share of its buffer.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The field's number in the schema.
    pub number: u32,
    /// How its value is laid out.
    pub wire_type: WireType,
    /// The content of a length-delimited field, the encoded number of any other.
    pub value: &'a [u8],
    /// Key and value, as they stand in the message.
    pub raw: &'a [u8],
}

impl Part<'_> {
    /// Returns the value of a varint field; `None` for another wire type.
    pub fn as_varint(&self) -> Option<u64> {
        match self.wire_type {
            WireType::Varint => varint(&mut &*self.value),
            _ => None,
        }
    }
}

/// Returns the fields of `message`, in order, up to the first that does not fit.
pub fn parts(message: &[u8]) -> impl Iterator<Item = Result<Part<'_>, OnnxError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= message.len() {
            return None;
        }
        let field = next_field(message, at).map(|(number, wire_type, value_at, end)| {
            let part = Part { number, wire_type, value: &message[value_at..end], raw: &message[at..end] };
            at = end;
            part
        });
        if field.is_err() {
            at = message.len();
        }
        Some(field)
    })
}

/// Returns key and length of a length-delimited field, without its content.
pub fn message_head(number: u32, content_len: u64) -> Vec<u8> {
    let mut head = Vec::with_capacity(12);
    encode_varint(WireType::LengthDelimited.key(number), &mut head);
    encode_varint(content_len, &mut head);
    head
}

/// Returns `message` with every occurrence of the repeated field `number` replaced by `fields`, which go where the
/// first occurrence stood (at the end if there was none). Every other byte stays as it is.
///
/// # Errors
/// [`OnnxError::Wire`] if `message` cannot be split.
pub fn replace_fields(message: &Bytes, number: u32, fields: &[Field]) -> Result<Bytes, OnnxError> {
    let mut out = Vec::with_capacity(message.len() + 64);
    let mut placed = false;
    let place = |out: &mut Vec<u8>| {
        for field in fields {
            out.extend_from_slice(&field.raw);
        }
    };
    for field in split(message)? {
        if field.number != number {
            out.extend_from_slice(&field.raw);
        } else if !placed {
            place(&mut out);
            placed = true;
        }
    }
    if !placed {
        place(&mut out);
    }
    Ok(out.into())
}

/// Takes a varint off the front of `rest`. Nearly all are one byte: keys, and lengths of names.
#[inline]
fn varint(rest: &mut &[u8]) -> Option<u64> {
    match *rest {
        [byte @ ..0x80, tail @ ..] => {
            *rest = tail;
            Some(u64::from(*byte))
        }
        _ => decode_varint(rest).ok(),
    }
}

/// Returns number, wire type, start of the value and end of the field that begins at `at`.
fn next_field(message: &[u8], at: usize) -> Result<(u32, WireType, usize, usize), OnnxError> {
    let mut rest = &message[at..];
    let key = varint(&mut rest).ok_or_else(|| OnnxError::wire("a broken field key", at))?;
    let number = u32::try_from(key >> 3)
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| OnnxError::wire("a field number out of range", at))?;
    let wire_type = match key & 7 {
        0 => WireType::Varint,
        1 => WireType::SixtyFourBit,
        2 => WireType::LengthDelimited,
        3 | 4 => return Err(OnnxError::wire("a protobuf group, which ONNX does not use", at)),
        5 => WireType::ThirtyTwoBit,
        _ => return Err(OnnxError::wire("an unknown wire type", at)),
    };
    let mut value_at = message.len() - rest.len();
    let length = match wire_type {
        WireType::Varint => {
            let before = rest.len();
            varint(&mut rest).ok_or_else(|| OnnxError::wire("a broken varint", value_at))?;
            (before - rest.len()) as u64
        }
        WireType::ThirtyTwoBit => 4,
        WireType::SixtyFourBit => 8,
        WireType::LengthDelimited => {
            let length = varint(&mut rest).ok_or_else(|| OnnxError::wire("a broken length", value_at))?;
            value_at = message.len() - rest.len();
            length
        }
    };
    let end = usize::try_from(length)
        .ok()
        .and_then(|length| value_at.checked_add(length))
        .filter(|end| *end <= message.len())
        .ok_or_else(|| OnnxError::wire(format!("field {number} runs past the end of its message"), at))?;
    Ok((number, wire_type, value_at, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_fields_join_to_the_same_bytes() {
        let mut message = Vec::new();
        message.extend_from_slice(&Field::varint(1, 300).raw);
        message.extend_from_slice(&Field::message(7, b"hello").raw);
        message.extend_from_slice(&Field::message(999, b"").raw);
        let message = Bytes::from(message);
        let fields = split(&message).unwrap();
        assert_eq!(fields.iter().map(|f| f.number).collect::<Vec<_>>(), [1, 7, 999]);
        assert_eq!(fields[0].as_varint(), Some(300));
        assert_eq!(fields[1].as_str(), Some("hello"));
        let joined: Vec<u8> = fields.iter().flat_map(|f| f.raw.to_vec()).collect();
        assert_eq!(joined, message);
    }

    #[test]
    fn a_length_past_the_end_is_an_error() {
        let message = Bytes::from_static(&[0x0a, 0x05, b'a']);
        assert!(matches!(split(&message), Err(OnnxError::Wire { .. })));
    }

    #[test]
    fn replaced_fields_go_where_the_first_one_stood() {
        let mut message = Vec::new();
        for field in [Field::message(1, b"a"), Field::message(3, b"n"), Field::message(1, b"b")] {
            message.extend_from_slice(&field.raw);
        }
        let out = replace_fields(&message.into(), 1, &[Field::message(1, b"z")]).unwrap();
        let fields = split(&out).unwrap();
        assert_eq!(
            fields.iter().map(|f| (f.number, f.as_str().unwrap())).collect::<Vec<_>>(),
            [(1, "z"), (3, "n")]
        );
    }
}
