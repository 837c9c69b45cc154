//! The messages of ONNX's schema, as `build.rs` lists them from `proto/onnx.proto`.

use super::wire::WireType;

/// A message type.
#[derive(Debug)]
pub struct Message {
    /// Its name without the package: `TypeProto.Tensor`.
    pub name: &'static str,
    /// Its fields, in the schema's order.
    pub fields: &'static [Field],
}

/// A field of a message type.
#[derive(Debug)]
pub struct Field {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// How one value of it is laid out. Repeated numbers can be packed as well.
    pub wire_type: WireType,
    /// Whether there can be several.
    pub is_repeated: bool,
    /// The type of its values in [`MESSAGES`], if they are messages.
    pub message: Option<usize>,
    /// The group of fields of which only one can be there.
    pub oneof: Option<i32>,
}

/// All message types, by name.
pub static MESSAGES: &[Message] = include!(concat!(env!("OUT_DIR"), "/schema.rs"));

impl Message {
    /// Returns the message type called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        let at = MESSAGES.binary_search_by(|message| message.name.cmp(name)).ok()?;
        MESSAGES.get(at)
    }

    /// Returns the field with this number.
    pub fn field(&self, number: u32) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.number == number)
    }
}
