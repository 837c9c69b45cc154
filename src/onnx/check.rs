//! Refuses files that two readers may read differently: a field or a key that is there twice, elements in two places,
//! an attribute of two types, a tensor whose elements don't fit its shape. Readers of protobuf and of ONNX disagree on
//! which of them counts, so there is no right one.

use bytes::Bytes;
use prost::encoding::decode_varint;

use super::{
    DataType, OnnxError,
    schema::{Field, MESSAGES, Message},
    tensor::{EXTERNAL, field},
    wire::{self, Part, WireType},
};

/// A field that ONNX's schema doesn't have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unknown {
    /// The message type that it is in.
    pub message: &'static str,
    /// Its number.
    pub number: u32,
    /// Its value, encoded.
    pub value: Bytes,
}

/// Messages in messages; protobuf's own readers stop here too.
const DEEPEST: usize = 100;

/// Checks `bytes`, a message of the type called `message`, and everything in it. Returns the fields that the schema
/// doesn't have, in their order.
///
/// # Errors
/// [`OnnxError`] that names the place.
pub fn check(message: &str, bytes: &Bytes) -> Result<Vec<Unknown>, OnnxError> {
    let message =
        Message::named(message).ok_or_else(|| OnnxError::invalid(message, "no such message type"))?;
    let mut checker = Checker { whole: bytes, unknown: Vec::new(), path: Vec::new() };
    checker.message(message, bytes)?;
    Ok(checker.unknown)
}

struct Checker<'a> {
    whole: &'a Bytes,
    unknown: Vec<Unknown>,
    /// Fields on the way to the message that is looked at, each with its index among those of its name.
    path: Vec<(&'static str, u32)>,
}

/// Something that must be there only once in a message: the number of its field, and its key.
type Keyed<'a> = (u32, Key<'a>);

/// The parts of a key; those that it lacks are empty.
type Key<'a> = [&'a [u8]; 3];

impl<'a> Checker<'a> {
    fn message(&mut self, message: &'static Message, bytes: &'a [u8]) -> Result<(), OnnxError> {
        if self.path.len() > DEEPEST {
            return Err(self.fail("messages are nested too deeply".into()));
        }
        let (mut fields, mut oneofs) = (0u64, 0u32);
        let mut keyed: Vec<Keyed<'a>> = Vec::new();
        let (mut last, mut index) = ("", 0);
        for part in wire::parts(bytes) {
            let part = part.map_err(|e| self.fail(e.to_string()))?;
            let Some(field) = message.field(part.number) else {
                let value = self.whole.slice_ref(part.value);
                self.unknown.push(Unknown { message: message.name, number: part.number, value });
                continue;
            };
            let packed = field.is_repeated && field.wire_type != WireType::LengthDelimited;
            if part.wire_type != field.wire_type && !(packed && part.wire_type == WireType::LengthDelimited) {
                return Err(self.fail(format!("`{}` is not encoded as its type is", field.name)));
            }
            let bit = 1 << (field.number % 64);
            if !field.is_repeated && fields & bit != 0 {
                return Err(
                    self.fail(format!("`{}` is there twice: readers disagree on which counts", field.name))
                );
            }
            fields |= bit;
            if let Some(oneof) = field.oneof {
                let bit = 1 << (oneof % 32);
                if oneofs & bit != 0 {
                    return Err(
                        self.fail(format!("`{}` is one value too many: only one can count", field.name))
                    );
                }
                oneofs |= bit;
            }
            if let Some(inner) = field.message.and_then(|at| MESSAGES.get(at)) {
                keyed.extend(key(field, inner, part.value)?.map(|key| (field.number, key)));
                index = if last == field.name { index + 1 } else { 0 };
                last = field.name;
                self.path.push((field.name, index));
                self.message(inner, part.value)?;
                self.path.pop();
            }
        }
        self.once(message, keyed)?;
        match message.name {
            "AttributeProto" => self.attribute(bytes),
            "TensorProto" => self.tensor(bytes),
            "FunctionProto" => self.function(bytes),
            _ => Ok(()),
        }
    }

    fn fail(&self, what: String) -> OnnxError {
        let mut place = String::from("the model");
        for (name, index) in &self.path {
            place.push_str(&format!(", {name} {index}"));
        }
        OnnxError::invalid(place, what)
    }

    /// Refuses keys that are there twice.
    fn once(&self, message: &Message, mut keyed: Vec<Keyed<'_>>) -> Result<(), OnnxError> {
        keyed.sort_unstable();
        for pair in keyed.windows(2) {
            let [(number, key), other] = pair else { continue };
            if (number, key) == (&other.0, &other.1) {
                let name = message.field(*number).map_or("", |field| field.name);
                let key = key.iter().filter(|part| !part.is_empty());
                let key = key.map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join(".");
                return Err(self
                    .fail(format!("`{name}` has the key `{key}` twice: readers disagree on which counts")));
            }
        }
        Ok(())
    }

    fn attribute(&self, bytes: &[u8]) -> Result<(), OnnxError> {
        /// Fields of `AttributeProto` with a value, each with the `type` that it belongs to.
        const VALUES: [(u32, u64); 14] = [
            (2, 1),
            (3, 2),
            (4, 3),
            (5, 4),
            (6, 5),
            (7, 6),
            (8, 7),
            (9, 8),
            (10, 9),
            (11, 10),
            (22, 11),
            (23, 12),
            (14, 13),
            (15, 14),
        ];
        const TYPE: u32 = 20;
        let (mut stated, mut found) = (0, 0);
        for part in wire::parts(bytes) {
            let part = part?;
            if part.number == TYPE {
                stated = number(part.value)?;
            } else if let Some((_, kind)) = VALUES.iter().find(|(number, _)| *number == part.number) {
                if found != 0 && found != *kind {
                    return Err(self.fail("the attribute has values of two types".into()));
                }
                found = *kind;
            }
        }
        if stated != 0 && found != 0 && stated != found {
            return Err(self.fail("the attribute's value is not of the type that it states".into()));
        }
        Ok(())
    }

    fn tensor(&self, bytes: &[u8]) -> Result<(), OnnxError> {
        let mut data_type = DataType(0);
        let (mut elements, mut external) = (1u64, false);
        let (mut places, mut entries) = (Vec::new(), false);
        for part in wire::parts(bytes) {
            let part = part?;
            match part.number {
                field::DIMS => {
                    for dim in numbers(part)? {
                        let dim = u64::try_from(dim.cast_signed())
                            .map_err(|_| self.fail("a dimension is negative".into()))?;
                        elements = elements.saturating_mul(dim);
                    }
                }
                field::DATA_TYPE => data_type = DataType(number(part.value)? as i32),
                field::DATA_LOCATION => external = number(part.value)? == EXTERNAL,
                field::EXTERNAL_DATA => entries = true,
                field::SEGMENT => return Err(self.fail("tensors in segments are not supported".into())),
                field::RAW_DATA => places.push((part.number, part.value.len() as u64)),
                field::FLOAT_DATA
                | field::INT32_DATA
                | field::STRING_DATA
                | field::INT64_DATA
                | field::DOUBLE_DATA
                | field::UINT64_DATA => {
                    let broken = "its elements end in the middle of one, or one has more than 64 bits";
                    let count = count(part).ok_or_else(|| self.fail(broken.into()))?;
                    match places.last_mut() {
                        Some((number, known)) if *number == part.number => *known += count,
                        _ if count > 0 => places.push((part.number, count)),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        if external != entries {
            return Err(self.fail(match external {
                true => "its data is external, but external_data does not say where".into(),
                false => "external_data is there, but data_location does not say that it counts".into(),
            }));
        }
        let more = external || places.len() > 1;
        match places.first() {
            Some((_, count)) if more && (*count > 0 || places.len() > 1) => {
                Err(self
                    .fail("the tensor has elements in two places: readers disagree on which count".into()))
            }
            Some((place, count)) if !external => self.fits(data_type, elements, *place, *count),
            None if !external => self.fits(data_type, elements, field::RAW_DATA, 0),
            _ => Ok(()),
        }
    }

    /// Checks that `count` entries of the field `place` are `elements` elements.
    fn fits(&self, data_type: DataType, elements: u64, place: u32, count: u64) -> Result<(), OnnxError> {
        let name = data_type.name();
        if place != field::RAW_DATA && place != typed_field(data_type) {
            return Err(self.fail(format!("elements of type {name} are in a field for another type")));
        }
        let bytes = data_type.bits().and_then(|bits| elements.checked_mul(bits)).map(|bits| bits.div_ceil(8));
        let (unit, wanted) = match (place, bytes) {
            (field::STRING_DATA, _) => ("strings", Some(elements)),
            (field::RAW_DATA, bytes) => ("bytes", bytes),
            (_, Some(bytes)) => match data_type.bits() {
                // Complex numbers are two entries each, elements of a few bits share one.
                Some(bits) if bits < 8 || bits > 32 && place == field::FLOAT_DATA => {
                    ("entries", Some(if bits < 8 { bytes } else { bytes / 4 }))
                }
                Some(128) => ("entries", Some(bytes / 8)),
                _ => ("entries", Some(elements)),
            },
            (_, None) => return Ok(()),
        };
        match wanted {
            Some(wanted) if wanted != count => Err(self.fail(format!(
                "a tensor of {elements} elements of type {name} takes {wanted} {unit}, but it has {count}"
            ))),
            None if place == field::RAW_DATA && data_type == DataType::STRING && elements > 0 => {
                Err(self.fail(format!("a tensor of {elements} strings has {count} bytes instead")))
            }
            _ => Ok(()),
        }
    }

    fn function(&self, bytes: &[u8]) -> Result<(), OnnxError> {
        match function_key(bytes)? {
            [b"" | b"ai.onnx", name, _] => Err(self.fail(format!(
                "the function `{}` gives an operator of ONNX itself another meaning",
                String::from_utf8_lossy(name)
            ))),
            _ => Ok(()),
        }
    }
}

/// Returns the key of a value of `field`, of type `inner`, which no two values may share.
fn key<'a>(field: &Field, inner: &Message, value: &'a [u8]) -> Result<Option<Key<'a>>, OnnxError> {
    let first = || Ok::<_, OnnxError>([text(value, 1)?, b"", b""]);
    Ok(match inner.name {
        "StringStringEntryProto" | "AttributeProto" | "TensorAnnotation" => Some(first()?),
        "ValueInfoProto" if field.name == "input" => Some(first()?),
        "OperatorSetIdProto" => Some(first()?.map(|part| if part == b"ai.onnx" { b"" } else { part })),
        "FunctionProto" => Some(function_key(value)?),
        _ => None,
    })
}

/// Returns domain, name and overload of a function.
fn function_key(function: &[u8]) -> Result<Key<'_>, OnnxError> {
    Ok([text(function, 10)?, text(function, 1)?, text(function, 13)?])
}

/// Returns the text of the field `number` of a message; empty if it is not there.
fn text(message: &[u8], number: u32) -> Result<&[u8], OnnxError> {
    let mut found: &[u8] = b"";
    for part in wire::parts(message) {
        let part = part?;
        if part.number == number && part.wire_type == WireType::LengthDelimited {
            found = part.value;
        }
    }
    Ok(found)
}

fn number(mut value: &[u8]) -> Result<u64, OnnxError> {
    decode_varint(&mut value).map_err(|_| OnnxError::wire("a broken varint", 0))
}

/// Returns the numbers of a repeated field, packed or not.
fn numbers(part: Part<'_>) -> Result<Vec<u64>, OnnxError> {
    let mut rest = part.value;
    let mut numbers = Vec::new();
    while !rest.is_empty() {
        numbers.push(decode_varint(&mut rest).map_err(|_| OnnxError::wire("a broken varint", 0))?);
    }
    Ok(numbers)
}

/// Returns how many entries of a tensor's field are in `part`; none if the bytes are not those of whole entries.
fn count(part: Part<'_>) -> Option<u64> {
    let packed = part.wire_type == WireType::LengthDelimited;
    let of_size = |size: usize| part.value.len().is_multiple_of(size).then_some(part.value.len() / size);
    let count = match part.number {
        field::FLOAT_DATA if packed => of_size(4)?,
        field::DOUBLE_DATA if packed => of_size(8)?,
        _ if packed && part.number != field::STRING_DATA => {
            let (mut rest, mut count) = (part.value, 0);
            while !rest.is_empty() {
                decode_varint(&mut rest).ok()?;
                count += 1;
            }
            count
        }
        _ => 1,
    };
    Some(count as u64)
}

/// Returns the field that holds elements of this type one by one.
fn typed_field(data_type: DataType) -> u32 {
    match data_type {
        DataType::FLOAT | DataType::COMPLEX64 => field::FLOAT_DATA,
        DataType::DOUBLE | DataType::COMPLEX128 => field::DOUBLE_DATA,
        DataType::INT64 => field::INT64_DATA,
        DataType::UINT32 | DataType::UINT64 => field::UINT64_DATA,
        DataType::STRING => field::STRING_DATA,
        _ => field::INT32_DATA,
    }
}

#[cfg(test)]
mod tests;
