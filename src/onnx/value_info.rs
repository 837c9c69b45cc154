//! Names and types of values, as a model states them.

use super::{
    DataType,
    proto::{
        TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_shape_proto::{self, dimension},
        type_proto,
    },
};

/// The name and the type that a model states for a value.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo(pub(crate) ValueInfoProto);

/// A dimension that a model states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// A size.
    Size(i64),
    /// A name, or an expression over names.
    Name(String),
}

impl ValueInfo {
    /// Returns a tensor called `name` with elements of `data_type`, and these dimensions where they are said.
    pub fn tensor(name: &str, data_type: DataType, dims: Option<Vec<Dimension>>) -> Self {
        let shape = dims.map(|dims| stated_shape(dims.into_iter().map(Some)));
        let tensor = type_proto::Tensor { elem_type: Some(data_type.0), shape };
        let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        Self(ValueInfoProto {
            name: Some(name.to_string()),
            r#type: Some(r#type),
            ..ValueInfoProto::default()
        })
    }

    /// Returns the value's name.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Returns the type of the elements; `None` if none is stated, or the value is no tensor.
    pub fn data_type(&self) -> Option<DataType> {
        self.tensor_type()?.elem_type.map(DataType)
    }

    /// Returns the dimensions, those of unknown size as `None`; `None` if not even their number is stated.
    pub fn dims(&self) -> Option<Vec<Option<Dimension>>> {
        let dims = &self.tensor_type()?.shape.as_ref()?.dim;
        Some(dims.iter().map(|dim| dim.value.as_ref().map(stated)).collect())
    }

    fn tensor_type(&self) -> Option<&type_proto::Tensor> {
        match self.0.r#type.as_ref()?.value.as_ref()? {
            type_proto::Value::TensorType(tensor) => Some(tensor),
            _ => None,
        }
    }
}

fn stated(dim: &dimension::Value) -> Dimension {
    match dim {
        dimension::Value::DimValue(size) => Dimension::Size(*size),
        dimension::Value::DimParam(name) => Dimension::Name(name.clone()),
    }
}

/// Returns a shape of these dimensions, of which `None` are of unknown size.
pub(crate) fn stated_shape(dims: impl IntoIterator<Item = Option<Dimension>>) -> TensorShapeProto {
    let dim = |dim| tensor_shape_proto::Dimension {
        value: match dim {
            Some(Dimension::Size(size)) => Some(dimension::Value::DimValue(size)),
            Some(Dimension::Name(name)) => Some(dimension::Value::DimParam(name)),
            None => None,
        },
        ..tensor_shape_proto::Dimension::default()
    };
    TensorShapeProto { dim: dims.into_iter().map(dim).collect() }
}
