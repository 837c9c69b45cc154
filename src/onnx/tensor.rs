//! Tensors as they lie on disk: name, type, dimensions and where the elements are. Elements are not read here.

use std::ops::RangeInclusive;

use bytes::Bytes;
use prost::Message;

use super::{OnnxError, external::check_location, proto, wire};

/// Field numbers of `TensorProto` that this crate reads or writes.
pub mod field {
    /// `repeated int64 dims`
    pub const DIMS: u32 = 1;
    /// `int32 data_type`
    pub const DATA_TYPE: u32 = 2;
    /// `Segment segment`
    pub const SEGMENT: u32 = 3;
    /// `repeated float float_data`
    pub const FLOAT_DATA: u32 = 4;
    /// `repeated int32 int32_data`
    pub const INT32_DATA: u32 = 5;
    /// `repeated bytes string_data`
    pub const STRING_DATA: u32 = 6;
    /// `repeated int64 int64_data`
    pub const INT64_DATA: u32 = 7;
    /// `string name`
    pub const NAME: u32 = 8;
    /// `bytes raw_data`
    pub const RAW_DATA: u32 = 9;
    /// `repeated double double_data`
    pub const DOUBLE_DATA: u32 = 10;
    /// `repeated uint64 uint64_data`
    pub const UINT64_DATA: u32 = 11;
    /// `repeated StringStringEntryProto external_data`
    pub const EXTERNAL_DATA: u32 = 13;
    /// `DataLocation data_location`
    pub const DATA_LOCATION: u32 = 14;
}

/// `TensorProto.DataLocation.EXTERNAL`
pub(super) const EXTERNAL: u64 = 1;

/// An element type of the ONNX spec (`TensorProto.DataType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataType(pub i32);

#[allow(missing_docs, reason = "the names are the spec's")]
impl DataType {
    pub const FLOAT: Self = Self(1);
    pub const INT32: Self = Self(6);
    pub const INT64: Self = Self(7);
    pub const STRING: Self = Self(8);
    pub const BOOL: Self = Self(9);
    pub const FLOAT16: Self = Self(10);
    pub const DOUBLE: Self = Self(11);
    pub const UINT32: Self = Self(12);
    pub const UINT64: Self = Self(13);
    pub const COMPLEX64: Self = Self(14);
    pub const COMPLEX128: Self = Self(15);
    pub const BFLOAT16: Self = Self(16);
}

impl DataType {
    /// Bits that one element takes in `raw_data`; `None` for strings and types that this crate doesn't know.
    pub fn bits(self) -> Option<u64> {
        use proto::tensor_proto::DataType as D;
        Some(match D::try_from(self.0).ok()? {
            D::Undefined | D::String => return None,
            D::Uint2 | D::Int2 => 2,
            D::Uint4 | D::Int4 | D::Float4e2m1 => 4,
            D::Float6e2m3 | D::Float6e3m2 => return None,
            D::Uint8 | D::Int8 | D::Bool => 8,
            D::Float8e4m3fn | D::Float8e4m3fnuz | D::Float8e5m2 | D::Float8e5m2fnuz | D::Float8e8m0 => 8,
            D::Uint16 | D::Int16 | D::Float16 | D::Bfloat16 => 16,
            D::Float | D::Int32 | D::Uint32 => 32,
            D::Int64 | D::Uint64 | D::Double | D::Complex64 => 64,
            D::Complex128 => 128,
        })
    }

    /// Returns the type's name as numpy and torch users write it: `float32`, `float16`, `bfloat16`, `int64`.
    pub fn name(self) -> String {
        match self {
            Self::FLOAT => "float32".into(),
            Self::DOUBLE => "float64".into(),
            other => proto::tensor_proto::DataType::try_from(other.0)
                .map_or_else(|_| format!("type {}", other.0), |t| t.as_str_name().to_lowercase()),
        }
    }

    /// Returns whether it is one of the float types that diffusion weights come in: float32, float16 or bfloat16.
    pub fn is_weight_float(self) -> bool {
        matches!(self, Self::FLOAT | Self::FLOAT16 | Self::BFLOAT16)
    }
}

/// Where a tensor's elements are.
#[derive(Clone, Debug)]
pub enum Payload {
    /// In `raw_data`: little-endian, a slice of the mapped model file.
    Raw(Bytes),
    /// In one of the typed fields (`float_data`, `int64_data`, ...), or nowhere (an empty tensor).
    Typed,
    /// In another file.
    External(ExternalRange),
}

/// A range of bytes in an external data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalRange {
    /// Path of the file relative to the model's folder, as the model has it.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; the rest of the file if the model doesn't say.
    pub length: Option<u64>,
}

/// A `TensorProto` without its elements.
#[derive(Clone, Debug)]
pub struct TensorHeader {
    /// Name, unique among the values of its graph.
    pub name: String,
    /// Element type.
    pub data_type: DataType,
    /// Dimensions; none for a scalar.
    pub dims: Vec<i64>,
    /// Where the elements are.
    pub payload: Payload,
    /// The whole message as it came.
    pub raw: Bytes,
}

impl TensorHeader {
    /// Reads the header of an encoded `TensorProto`.
    ///
    /// # Errors
    /// [`OnnxError`] if the message is broken, a dimension is negative or external data has no location.
    pub fn parse(raw: Bytes) -> Result<Self, OnnxError> {
        let mut header = proto::TensorProto::default();
        let mut raw_data = None;
        for f in wire::split(&raw)? {
            match f.number {
                field::RAW_DATA => raw_data = Some(f.value()),
                field::FLOAT_DATA
                | field::INT32_DATA
                | field::STRING_DATA
                | field::INT64_DATA
                | field::DOUBLE_DATA
                | field::UINT64_DATA => {}
                _ => header
                    .merge(f.raw)
                    .map_err(|e| OnnxError::invalid("an initializer", format!("broken TensorProto: {e}")))?,
            }
        }
        let name = header.name.take().unwrap_or_default();
        if header.dims.iter().any(|d| *d < 0) {
            return Err(OnnxError::invalid(format!("tensor `{name}`"), "a dimension is negative"));
        }
        let external = header.data_location == Some(proto::tensor_proto::DataLocation::External as i32);
        let payload = match (external, raw_data) {
            (true, _) => Payload::External(external_range(&name, &header.external_data)?),
            (false, Some(bytes)) => Payload::Raw(bytes),
            (false, None) => Payload::Typed,
        };
        let data_type = DataType(header.data_type.unwrap_or_default());
        Ok(Self { name, data_type, dims: header.dims, payload, raw })
    }

    /// Returns the number of elements; saturates rather than overflow.
    pub fn elements(&self) -> u64 {
        self.dims.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64))
    }

    /// Returns the number of bytes that the elements take as `raw_data`; `None` for strings.
    pub fn byte_len(&self) -> Option<u64> {
        Some(self.elements().checked_mul(self.data_type.bits()?)?.div_ceil(8))
    }
}

fn external_range(name: &str, entries: &[proto::StringStringEntryProto]) -> Result<ExternalRange, OnnxError> {
    let get = |key: &str| entries.iter().find(|e| e.key() == key).map(|e| e.value());
    let number = |key: &str| match get(key) {
        None => Ok(None),
        Some(text) => {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| digits).map(Some).ok_or_else(|| OnnxError::ExternalData {
                tensor: name.to_string(),
                what: format!("external_data `{key}` is `{text}`, not a number of bytes"),
            })
        }
    };
    let location = get("location").filter(|l| !l.is_empty()).ok_or_else(|| OnnxError::ExternalData {
        tensor: name.to_string(),
        what: "its data is external, but external_data has no `location`".to_string(),
    })?;
    check_location(location)
        .map_err(|e| OnnxError::ExternalData { tensor: name.to_string(), what: e.to_string() })?;
    Ok(ExternalRange {
        location: location.to_string(),
        offset: number("offset")?.unwrap_or(0),
        // Readers of ONNX take 0 for not stated.
        length: number("length")?.filter(|length| *length > 0),
    })
}

/// Returns the elements of a tensor that keeps them in a typed field (`float_data`, `int64_data`, ...), as the
/// little-endian bytes that `raw_data` would hold.
///
/// # Errors
/// [`OnnxError::Invalid`] if there are more or fewer than the shape needs, or the type has no typed field.
pub fn typed_elements(header: &TensorHeader) -> Result<Bytes, OnnxError> {
    let fail = |what: String| OnnxError::invalid(format!("tensor `{}`", header.name), what);
    let tensor = proto::TensorProto::decode(header.raw.clone()).map_err(|e| fail(e.to_string()))?;
    let entry = |range: RangeInclusive<i32>| {
        let outside = tensor.int32_data.iter().find(|x| !range.contains(x));
        outside.map_or(Ok(&tensor.int32_data), |x| Err(fail(format!("its element {x} is outside its type"))))
    };
    let bytes: Vec<u8> = match (header.data_type, header.data_type.bits()) {
        (DataType::FLOAT | DataType::COMPLEX64, _) => {
            tensor.float_data.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        (DataType::DOUBLE | DataType::COMPLEX128, _) => {
            tensor.double_data.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        (DataType::INT64, _) => tensor.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        (DataType::UINT64, _) => tensor.uint64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        (DataType::UINT32, _) => {
            let narrow =
                |x: &u64| u32::try_from(*x).map_err(|_| fail(format!("its element {x} is outside its type")));
            let elements = tensor.uint64_data.iter().map(narrow).collect::<Result<Vec<_>, _>>()?;
            elements.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        (DataType::BOOL, _) => entry(0..=1)?.iter().map(|x| *x as u8).collect(),
        // Elements of a few bits share a byte.
        (_, Some(2 | 4 | 8)) => entry(-0x80..=0xFF)?.iter().map(|x| *x as u8).collect(),
        (_, Some(16)) => entry(-0x8000..=0xFFFF)?.iter().flat_map(|x| (*x as u16).to_le_bytes()).collect(),
        (_, Some(32)) => tensor.int32_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => return Err(fail(format!("elements of type {} cannot be read", header.data_type.name()))),
    };
    match header.byte_len() {
        Some(len) if len == bytes.len() as u64 => Ok(bytes.into()),
        len => Err(fail(format!("its shape takes {} bytes, but it holds {}", len.unwrap_or(0), bytes.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(entries: &[(&str, &str)]) -> Result<ExternalRange, OnnxError> {
        let entries: Vec<_> = entries
            .iter()
            .map(|(key, value)| proto::StringStringEntryProto {
                key: Some((*key).into()),
                value: Some((*value).into()),
            })
            .collect();
        external_range("w", &entries)
    }

    #[test]
    fn external_data_is_somewhere_in_the_folder() {
        for location in ["w.bin", "a/w.bin", "./w.bin"] {
            assert!(range(&[("location", location)]).is_ok(), "{location}");
        }
        for location in ["", ".", "./", "..", "../w.bin", "a/../../w.bin", "/w.bin"] {
            assert!(range(&[("location", location)]).is_err(), "{location}");
        }
    }

    #[test]
    fn a_length_of_0_is_not_stated() {
        let length = |text: &str| range(&[("location", "w"), ("length", text)]).map(|range| range.length);
        assert_eq!(length("0").ok(), Some(None));
        assert_eq!(length("12").ok(), Some(Some(12)));
        for text in ["+12", "-1", " 12", "12 ", "0x10", "", "99999999999999999999"] {
            assert!(length(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn typed_elements_stay_within_their_type() {
        let elements = |data_type: i32, entries: &[i32]| {
            let tensor = proto::TensorProto {
                dims: vec![2],
                data_type: Some(data_type),
                int32_data: entries.to_vec(),
                ..proto::TensorProto::default()
            };
            typed_elements(&TensorHeader::parse(tensor.encode_to_vec().into()).unwrap())
        };
        assert_eq!(elements(3, &[-1, 127]).unwrap()[..], [255, 127]);
        assert_eq!(elements(22, &[0x21]).unwrap()[..], [0x21]);
        for (data_type, wide) in [(2, 256), (3, -129), (9, 2), (10, 65536), (22, 256)] {
            let entries = if data_type == 22 { vec![wide] } else { vec![wide, 0] };
            assert!(elements(data_type, &entries).is_err(), "type {data_type}");
        }
    }
}
