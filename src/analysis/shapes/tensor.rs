//! Symbolic tensors: the type, the dimensions and, of a small value, the elements, as far as they are known.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::{atom::Atom, dim::Dim};
use crate::{
    ir::{Graph, Initializer, NewData, TemplateTensor},
    onnx::{DataType, Payload, TensorHeader, proto::TensorProto, tensor::typed_elements},
};

/// Most elements of an integer tensor that are followed: enough for any shape vector or index list.
pub(super) const MAX_ELEMENTS: usize = 1024;
/// Most elements of a float tensor that are read: enough for the scales of a Resize.
const MAX_FLOATS: u64 = 8;

/// The known part of a value.
#[derive(Clone, Debug, Default)]
pub(super) struct Tensor {
    pub data_type: Option<DataType>,
    /// `None` if not even the number of dimensions is known.
    pub dims: Option<Arc<[Dim]>>,
    /// In row-major order. Only where all dimensions are constant and there are few elements.
    pub elements: Option<Arc<[Element]>>,
}

/// One element.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Element {
    /// An integer, or a float that is one. Booleans are 0 and 1.
    Whole(Dim),
    /// Any other float.
    Real(f64),
}

/// A source of values that stand for unknown ones.
#[derive(Debug, Default)]
pub(super) struct Unknowns(u32);

impl Unknowns {
    /// Makes others than inference over a graph does.
    pub fn apart() -> Self {
        Self(u32::MAX / 2)
    }

    pub fn fresh(&mut self) -> Dim {
        self.0 = self.0.saturating_add(1);
        Atom::Unknown(self.0).into()
    }

    /// Returns `dim`, or an unknown where there is none.
    pub fn or_fresh(&mut self, dim: Option<Dim>) -> Dim {
        dim.unwrap_or_else(|| self.fresh())
    }
}

impl Element {
    pub fn whole(&self) -> Option<&Dim> {
        match self {
            Self::Whole(dim) => Some(dim),
            Self::Real(_) => None,
        }
    }

    /// Returns its value as a float, if it is the same for all inputs.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Whole(dim) => dim.constant().map(|value| value as f64),
            Self::Real(value) => Some(*value),
        }
    }

    pub fn from_number(value: f64) -> Self {
        // Beyond 2^53 floats skip integers.
        if value.fract() == 0.0 && value.abs() < 9e15 {
            Self::Whole((value as i64).into())
        } else {
            Self::Real(value)
        }
    }
}

impl From<i64> for Element {
    fn from(value: i64) -> Self {
        Self::Whole(value.into())
    }
}

impl Tensor {
    /// Returns a tensor with these dimensions and nothing known of its elements.
    pub fn shaped(dims: Vec<Dim>) -> Self {
        Self { data_type: None, dims: Some(dims.into()), elements: None }
    }

    /// Returns a vector of these elements.
    pub fn vector(elements: Vec<Element>) -> Self {
        Self::with_elements(vec![(elements.len() as i64).into()], elements)
    }

    /// Returns a tensor with these dimensions and elements; too many elements are dropped.
    pub fn with_elements(dims: Vec<Dim>, elements: Vec<Element>) -> Self {
        let elements = (elements.len() <= MAX_ELEMENTS).then(|| elements.into());
        Self { data_type: None, dims: Some(dims.into()), elements }
    }

    pub fn typed(self, data_type: Option<DataType>) -> Self {
        Self { data_type, ..self }
    }

    /// Takes the dimensions of an operand that has the same: most results have, and large graphs have many.
    pub fn sharing(mut self, operands: &[Option<&Self>]) -> Self {
        let same = operands.iter().flatten().find(|operand| operand.dims == self.dims);
        self.dims = same.map_or(self.dims, |operand| operand.dims.clone());
        self
    }

    pub fn rank(&self) -> Option<usize> {
        self.dims.as_deref().map(<[_]>::len)
    }

    /// Returns the elements as integers.
    pub fn wholes(&self) -> Option<Vec<Dim>> {
        self.elements.as_ref()?.iter().map(|e| e.whole().cloned()).collect()
    }

    /// Returns the elements as numbers, if they are the same for all inputs.
    pub fn constants(&self) -> Option<Vec<i64>> {
        self.elements.as_ref()?.iter().map(|e| e.whole()?.constant()).collect()
    }

    /// Returns an initializer, with its elements if they are small.
    pub fn from_initializer(graph: &Graph, initializer: &Initializer) -> Self {
        let header = &initializer.header;
        let mut tensor = Self::from_header(header.data_type, &header.dims);
        if worth_reading(header.data_type, &header.dims) {
            let bytes = match &initializer.new_data {
                Some(NewData::Bytes(bytes)) => Some(bytes.clone()),
                Some(NewData::Masked(_) | NewData::Computed(_)) => None,
                None => small_bytes(graph, header),
            };
            tensor.elements = bytes.and_then(|bytes| decode(header.data_type, &header.dims, &bytes));
        }
        tensor
    }

    /// Returns the tensor of a template, with its elements if they are small.
    pub fn from_template(tensor: &TemplateTensor) -> Self {
        let TemplateTensor { data_type, dims, bytes } = tensor;
        let elements = worth_reading(*data_type, dims).then(|| decode(*data_type, dims, bytes));
        Self { elements: elements.flatten(), ..Self::from_header(*data_type, dims) }
    }

    /// Returns the tensor of an attribute, with its elements if they are small.
    pub fn from_attribute(proto: &TensorProto) -> Self {
        let data_type = DataType(proto.data_type());
        let mut tensor = Self::from_header(data_type, &proto.dims);
        let external = !proto.external_data.is_empty();
        if worth_reading(data_type, &proto.dims) && !external {
            let few = |n: usize| n <= MAX_ELEMENTS;
            let bytes = match &proto.raw_data {
                Some(bytes) => Some(bytes.clone()),
                None if few(proto.int64_data.len().max(proto.int32_data.len()))
                    && few(proto.float_data.len().max(proto.double_data.len())) =>
                {
                    let header = TensorHeader {
                        name: proto.name().to_string(),
                        data_type,
                        dims: proto.dims.clone(),
                        payload: Payload::Typed,
                        raw: proto.encode_to_vec().into(),
                    };
                    typed_elements(&header).ok()
                }
                None => None,
            };
            tensor.elements = bytes.and_then(|bytes| decode(data_type, &proto.dims, &bytes));
        }
        tensor
    }

    fn from_header(data_type: DataType, dims: &[i64]) -> Self {
        Self {
            data_type: Some(data_type).filter(|t| t.0 != 0),
            dims: dims.iter().all(|d| *d >= 0).then(|| dims.iter().map(|d| Dim::from(*d)).collect()),
            elements: None,
        }
    }
}

fn is_integer(data_type: DataType) -> bool {
    matches!(data_type, DataType::INT64 | DataType::INT32 | DataType::BOOL)
}

fn worth_reading(data_type: DataType, dims: &[i64]) -> bool {
    let count = dims.iter().fold(1u64, |n, d| n.saturating_mul((*d).max(0) as u64));
    match data_type {
        DataType::FLOAT | DataType::DOUBLE | DataType::FLOAT16 | DataType::BFLOAT16 => count <= MAX_FLOATS,
        other => is_integer(other) && count <= MAX_ELEMENTS as u64,
    }
}

/// Returns the bytes of a small initializer. A float that lies in another file is not worth opening that file.
fn small_bytes(graph: &Graph, header: &TensorHeader) -> Option<Bytes> {
    if let (Payload::Raw(bytes), Some(len)) = (&header.payload, header.byte_len()) {
        return (bytes.len() as u64 == len).then(|| bytes.clone());
    }
    if matches!(header.payload, Payload::External(_)) && !is_integer(header.data_type) {
        return None;
    }
    let reader = graph.weight_reader(header).ok()?;
    let mut bytes = vec![0; usize::try_from(reader.len()).ok()?];
    reader.read_at(0, &mut bytes).ok()?;
    Some(bytes.into())
}

/// Decodes little-endian elements; `None` unless there are as many as the dimensions say.
fn decode(data_type: DataType, dims: &[i64], bytes: &[u8]) -> Option<Arc<[Element]>> {
    let width = usize::try_from(data_type.bits()? / 8).ok()?;
    let count = dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))?;
    if bytes.len() != count.checked_mul(width)? {
        return None;
    }
    bytes.chunks_exact(width).map(|chunk| element(data_type, chunk)).collect()
}

fn element(data_type: DataType, bytes: &[u8]) -> Option<Element> {
    Some(match data_type {
        DataType::INT64 => i64::from_le_bytes(bytes.try_into().ok()?).into(),
        DataType::INT32 => i64::from(i32::from_le_bytes(bytes.try_into().ok()?)).into(),
        DataType::BOOL => i64::from(*bytes.first()? != 0).into(),
        DataType::FLOAT => Element::from_number(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        DataType::DOUBLE => Element::from_number(f64::from_le_bytes(bytes.try_into().ok()?)),
        DataType::FLOAT16 => Element::from_number(half::f16::from_le_bytes(bytes.try_into().ok()?).into()),
        DataType::BFLOAT16 => Element::from_number(half::bf16::from_le_bytes(bytes.try_into().ok()?).into()),
        _ => return None,
    })
}
