//! The printer of types, tensors and numbers.

use std::{
    fmt::{Display, LowerExp},
    str::FromStr,
};

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use super::Printer;
use crate::onnx::{
    TensorHeader,
    proto::{
        SparseTensorProto, TensorProto, TensorShapeProto, TypeProto,
        tensor_proto::{DataLocation, DataType},
        tensor_shape_proto::dimension::Value as Dim,
        type_proto::Value as Type,
    },
    tensor,
};

impl Printer {
    pub(super) fn r#type(&mut self, r#type: &TypeProto) {
        let inner = |p: &mut Self, inner: &Option<Box<TypeProto>>| {
            if let Some(inner) = inner {
                p.r#type(inner);
            }
        };
        match &r#type.value {
            None => {}
            Some(Type::TensorType(tensor)) => self.tensor_type(tensor.elem_type(), tensor.shape.as_ref()),
            Some(Type::SequenceType(sequence)) => {
                self.put("seq(");
                inner(self, &sequence.elem_type);
                self.put(")");
            }
            Some(Type::MapType(map)) => {
                self.put("map(");
                self.put(type_name(map.key_type()));
                self.put(", ");
                inner(self, &map.value_type);
                self.put(")");
            }
            Some(Type::OptionalType(optional)) => {
                self.put("optional(");
                inner(self, &optional.elem_type);
                self.put(")");
            }
            Some(Type::SparseTensorType(sparse)) => {
                self.put("sparse_tensor(");
                self.tensor_type(sparse.elem_type(), sparse.shape.as_ref());
                self.put(")");
            }
            Some(Type::OpaqueType(opaque)) => {
                self.put("opaque(");
                if !opaque.domain().is_empty() {
                    self.put(opaque.domain());
                    self.put(",");
                }
                self.put(opaque.name());
                self.put(")");
            }
        }
    }

    fn tensor_type(&mut self, elem_type: i32, shape: Option<&TensorShapeProto>) {
        self.put(type_name(elem_type));
        match shape {
            None => self.put("[]"),
            Some(shape) if shape.dim.is_empty() => {}
            Some(shape) => self.list("[", ",", "]", &shape.dim, |p, dim| match &dim.value {
                Some(Dim::DimValue(size)) => p.put(size),
                Some(Dim::DimParam(name)) => p.id(name),
                None => p.put("?"),
            }),
        }
    }

    pub(super) fn initializer(&mut self, tensor: &TensorProto) {
        self.tensor_signature(tensor);
        if tensor.name().is_empty() {
            self.put(" \"\"");
        }
        self.put(" = ");
        self.elements(tensor);
    }

    /// Prints a tensor in an attribute.
    pub(super) fn tensor(&mut self, tensor: &TensorProto) {
        self.tensor_signature(tensor);
        if is_external(tensor) {
            self.put(" = ");
        }
        self.elements(tensor);
    }

    pub(super) fn sparse_initializer(&mut self, sparse: &SparseTensorProto) {
        let (data_type, name) = sparse.values.as_ref().map_or((0, ""), |v| (v.data_type(), v.name()));
        self.put("sparse_tensor(");
        self.put(type_name(data_type));
        self.list("[", ",", "]", &sparse.dims, |p, size| p.put(size));
        self.put(") ");
        self.id(name);
        self.put(" = ...");
    }

    fn tensor_signature(&mut self, tensor: &TensorProto) {
        self.put(type_name(tensor.data_type()));
        if !tensor.dims.is_empty() {
            self.list("[", ",", "]", &tensor.dims, |p, size| p.put(size));
        }
        if !tensor.name().is_empty() {
            self.put(" ");
            self.id(tensor.name());
        }
    }

    fn elements(&mut self, tensor: &TensorProto) {
        if is_external(tensor) {
            return self.entries(&tensor.external_data);
        }
        if element_count(&tensor.dims).is_none_or(|count| count > self.options.max_elements) {
            return self.digest(tensor);
        }
        match &tensor.raw_data {
            Some(raw) => self.raw_elements(tensor, raw),
            None => self.typed_elements(tensor),
        }
    }

    fn typed_elements(&mut self, tensor: &TensorProto) {
        match element_type(tensor) {
            DataType::Undefined => self.digest(tensor),
            DataType::Float | DataType::Complex64 => {
                self.list(" {", ",", "}", &tensor.float_data, |p, x| p.float(*x));
            }
            DataType::Double | DataType::Complex128 => {
                self.list(" {", ",", "}", &tensor.double_data, |p, x| p.float(*x));
            }
            DataType::Int64 => self.list(" {", ",", "}", &tensor.int64_data, |p, x| p.put(x)),
            DataType::Uint32 | DataType::Uint64 => {
                self.list(" {", ",", "}", &tensor.uint64_data, |p, x| p.put(x));
            }
            DataType::String if tensor.string_data.iter().any(|s| std::str::from_utf8(s).is_err()) => {
                self.digest(tensor);
            }
            DataType::String => self.list("{", ", ", "}", &tensor.string_data, |p, s| p.quoted_bytes(s)),
            _ => self.list(" {", ",", "}", &tensor.int32_data, |p, x| p.put(x)),
        }
    }

    /// Prints the elements in `raw_data`, as the typed field would have them.
    fn raw_elements(&mut self, tensor: &TensorProto, raw: &[u8]) {
        let bits = tensor::DataType(tensor.data_type()).bits();
        let expected = element_count(&tensor.dims).zip(bits).map(|(n, bits)| (n as u64 * bits).div_ceil(8));
        if expected != Some(raw.len() as u64) {
            return self.digest(tensor);
        }
        match element_type(tensor) {
            DataType::Float | DataType::Complex64 => {
                self.chunks(raw, |p, x| p.float(f32::from_le_bytes(x)));
            }
            DataType::Double | DataType::Complex128 => {
                self.chunks(raw, |p, x| p.float(f64::from_le_bytes(x)));
            }
            DataType::Int8 => self.chunks(raw, |p, x| p.put(i8::from_le_bytes(x))),
            DataType::Int16 => self.chunks(raw, |p, x| p.put(i16::from_le_bytes(x))),
            DataType::Int32 => self.chunks(raw, |p, x| p.put(i32::from_le_bytes(x))),
            DataType::Int64 => self.chunks(raw, |p, x| p.put(i64::from_le_bytes(x))),
            // The typed field of half-precision floats has their bits.
            DataType::Uint16 | DataType::Float16 | DataType::Bfloat16 => {
                self.chunks(raw, |p, x| p.put(u16::from_le_bytes(x)));
            }
            DataType::Uint32 => self.chunks(raw, |p, x| p.put(u32::from_le_bytes(x))),
            DataType::Uint64 => self.chunks(raw, |p, x| p.put(u64::from_le_bytes(x))),
            _ => self.chunks(raw, |p, x| p.put(u8::from_le_bytes(x))),
        }
    }

    fn chunks<const N: usize>(&mut self, raw: &[u8], print: impl Fn(&mut Self, [u8; N])) {
        let (elements, _) = raw.as_chunks::<N>();
        self.list(" {", ",", "}", elements, |p, element| print(p, *element));
    }

    fn digest(&mut self, tensor: &TensorProto) {
        self.put(" {...");
        if let Some(elements) = little_endian(tensor) {
            self.put(" sha256:");
            for byte in Sha256::digest(&elements).iter().take(8) {
                self.put(format_args!("{byte:02x}"));
            }
        }
        self.put("}");
    }
}

fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32)
}

fn element_type(tensor: &TensorProto) -> DataType {
    DataType::try_from(tensor.data_type()).unwrap_or(DataType::Undefined)
}

fn type_name(elem_type: i32) -> String {
    DataType::try_from(elem_type).unwrap_or(DataType::Undefined).as_str_name().to_ascii_lowercase()
}

fn element_count(dims: &[i64]) -> Option<usize> {
    dims.iter().try_fold(1usize, |count, size| count.checked_mul(usize::try_from(*size).ok()?))
}

/// Returns the elements of a tensor as `raw_data` has them, wherever they are; `None` if they don't make such a tensor.
fn little_endian(tensor: &TensorProto) -> Option<Bytes> {
    match &tensor.raw_data {
        Some(raw) => Some(raw.clone()),
        None => tensor::typed_elements(&TensorHeader::parse(tensor.encode_to_vec().into()).ok()?).ok(),
    }
}

/// A float type: `f32` or `f64`.
pub(super) trait Float: Copy + Display + LowerExp + Into<f64> + FromStr + PartialEq {}

impl Float for f32 {}

impl Float for f64 {}

/// Returns the number as C++'s `std::to_chars` writes it: the fewest digits that read back as the same number, in fixed
/// or scientific notation, whichever is shorter (fixed if both are).
pub(super) fn shortest<T: Float>(value: T) -> String {
    let wide: f64 = value.into();
    let sign = if wide.is_sign_negative() { "-" } else { "" };
    if wide.is_nan() {
        return format!("{sign}nan");
    }
    if wide.is_infinite() {
        return format!("{sign}inf");
    }
    let fewest = format!("{value:e}");
    // Where two such numbers are equally near, Rust takes the larger and C++ the even one, as `{:.*e}` does.
    let places =
        fewest.split_once('e').map_or(0, |(digits, _)| digits.split_once('.').map_or(0, |(_, d)| d.len()));
    let even = format!("{value:.places$e}");
    let even_is_same = even.parse::<T>().is_ok_and(|parsed| parsed == value);
    let nearest = if even_is_same { even } else { fewest };
    let (digits, exponent) = nearest.split_once('e').unwrap_or((&nearest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let (exponent_sign, size) = if exponent < 0 { ('-', -exponent) } else { ('+', exponent) };
    let scientific = format!("{digits}e{exponent_sign}{size:02}");
    let decimals = usize::try_from(places as i32 - exponent).unwrap_or(0);
    // A large whole number is written exactly, though fewer digits would do.
    let fixed = if even_is_same || decimals == 0 { format!("{wide:.decimals$}") } else { format!("{value}") };
    if fixed.len() <= scientific.len() { fixed } else { scientific }
}
