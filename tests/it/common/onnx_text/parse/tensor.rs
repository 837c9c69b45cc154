//! The parser of types and tensors.

use super::{Parsed, Parser};
use crate::common::onnx_text::{element_type, lexer::TokenKind};
use crdiff::onnx::proto::{
    TensorProto, TensorShapeProto, TypeProto,
    tensor_proto::{DataLocation, DataType},
    tensor_shape_proto::{Dimension, dimension::Value as Dim},
    type_proto::{self, Value as Type},
};

impl Parser<'_> {
    pub(super) fn r#type(&mut self) -> Parsed<TypeProto> {
        self.nested(|p| {
            let value = match p.token.kind {
                TokenKind::Name("seq") => {
                    p.advance()?;
                    let elem_type = Some(Box::new(p.parenthesized(Self::r#type)?));
                    Type::SequenceType(Box::new(type_proto::Sequence { elem_type }))
                }
                TokenKind::Name("optional") => {
                    p.advance()?;
                    let elem_type = Some(Box::new(p.parenthesized(Self::r#type)?));
                    Type::OptionalType(Box::new(type_proto::Optional { elem_type }))
                }
                TokenKind::Name("map") => {
                    p.advance()?;
                    p.parenthesized(|p| {
                        let key_type = Some(p.element_type()? as i32);
                        p.expect(',')?;
                        let value_type = Some(Box::new(p.r#type()?));
                        Ok(Type::MapType(Box::new(type_proto::Map { key_type, value_type })))
                    })?
                }
                TokenKind::Name("sparse_tensor") => {
                    p.advance()?;
                    p.parenthesized(|p| {
                        let elem_type = Some(p.element_type()? as i32);
                        Ok(Type::SparseTensorType(type_proto::SparseTensor { elem_type, shape: p.shape()? }))
                    })?
                }
                TokenKind::Name("opaque") => {
                    p.advance()?;
                    Type::OpaqueType(p.opaque()?)
                }
                _ => {
                    let elem_type = Some(p.element_type()? as i32);
                    Type::TensorType(type_proto::Tensor { elem_type, shape: p.shape()? })
                }
            };
            Ok(TypeProto { value: Some(value), ..TypeProto::default() })
        })
    }

    fn parenthesized<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.expect('(')?;
        let parsed = inner(self)?;
        self.expect(')')?;
        Ok(parsed)
    }

    fn element_type(&mut self) -> Parsed<DataType> {
        let TokenKind::Name(name) = self.token.kind else { return Err(self.expected("a type")) };
        let Some(found) = element_type(name) else { return Err(self.expected("an element type")) };
        self.advance()?;
        Ok(found)
    }

    /// Parses `[2,N,?]`; `[]` is an unknown rank and nothing at all a scalar.
    fn shape(&mut self) -> Parsed<Option<TensorShapeProto>> {
        let mut shape = TensorShapeProto::default();
        if !self.matches('[')? {
            return Ok(Some(shape));
        }
        if self.matches(']')? {
            return Ok(None);
        }
        self.separated(']', |p| {
            let value = match p.token.kind {
                TokenKind::Symbol('?') => {
                    p.advance()?;
                    None
                }
                TokenKind::Name(_) | TokenKind::Text(_) => Some(Dim::DimParam(p.name("a dimension")?)),
                _ => Some(Dim::DimValue(p.number("a dimension (a number, a name or `?`)")?)),
            };
            shape.dim.push(Dimension { value, ..Dimension::default() });
            Ok(())
        })?;
        Ok(Some(shape))
    }

    /// Parses `()`, `(name)` or `(domain,name)`.
    fn opaque(&mut self) -> Parsed<type_proto::Opaque> {
        let mut opaque = type_proto::Opaque::default();
        self.expect('(')?;
        if self.matches(')')? {
            return Ok(opaque);
        }
        let mut name = self.name("a name")?;
        while self.matches('.')? {
            name.push('.');
            name.push_str(&self.name("a name")?);
        }
        if self.matches(',')? {
            opaque.domain = Some(name);
            name = self.name("a name")?;
        }
        opaque.name = Some(name);
        self.expect(')')?;
        Ok(opaque)
    }

    /// Parses the elements of a tensor of type `type`, or where they are: `{1,2}` or `["location": "weights.bin",
    /// ...]`.
    pub(super) fn tensor_data(&mut self, r#type: Option<&TypeProto>) -> Parsed<TensorProto> {
        let Some(Type::TensorType(r#type)) = r#type.and_then(|t| t.value.as_ref()) else {
            return Err(self
                .lexer
                .error(self.token.at, "only a tensor can have elements; its type comes first"));
        };
        let Some(shape) = &r#type.shape else {
            return Err(self.lexer.error(self.token.at, "a tensor with elements needs a shape"));
        };
        let mut tensor = TensorProto { data_type: r#type.elem_type, ..TensorProto::default() };
        for dim in &shape.dim {
            let Some(Dim::DimValue(size)) = dim.value else {
                let what = "a tensor with elements has a number for each dimension";
                return Err(self.lexer.error(self.token.at, what));
            };
            tensor.dims.push(size);
        }
        if self.matches('[')? {
            tensor.data_location = Some(DataLocation::External as i32);
            self.entries(&mut tensor.external_data)?;
        } else if self.at('{') {
            self.advance()?;
            let data_type = DataType::try_from(tensor.data_type()).unwrap_or(DataType::Undefined);
            self.separated('}', |p| p.element(data_type, &mut tensor))?;
        } else {
            return Err(self.expected("the tensor's elements in `{}` or its external data in `[]`"));
        }
        Ok(tensor)
    }

    /// Parses one entry of the typed field that the spec prescribes for the type.
    fn element(&mut self, data_type: DataType, tensor: &mut TensorProto) -> Parsed<()> {
        match data_type {
            DataType::Float | DataType::Complex64 => tensor.float_data.push(self.float("a float")?),
            DataType::Double | DataType::Complex128 => tensor.double_data.push(self.float("a double")?),
            DataType::Int64 => tensor.int64_data.push(self.int()?),
            DataType::Uint32 | DataType::Uint64 => {
                tensor.uint64_data.push(self.number("an unsigned integer")?);
            }
            DataType::String => tensor.string_data.push(self.text()?.into()),
            _ => tensor.int32_data.push(self.number("a 32-bit integer")?),
        }
        Ok(())
    }
}
