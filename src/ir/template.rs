//! Templates: nodes that are in no graph yet, with what they read.

use std::borrow::Cow;

use bytes::Bytes;

use super::{Attribute, ValueId, int_attribute};
use crate::onnx::DataType;

/// Nodes to be put into a graph, each after those that it reads. The template's result is that of the last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    /// The nodes; each has one result.
    pub nodes: Vec<TemplateNode>,
}

/// A node of a [`Template`].
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateNode {
    /// Operator of the standard ONNX domain.
    pub op_type: Cow<'static, str>,
    /// Operands.
    pub operands: Vec<TemplateOperand>,
    /// Attributes.
    pub attributes: Vec<Attribute>,
}

/// An operand of a node of a [`Template`].
#[derive(Clone, Debug, PartialEq)]
pub enum TemplateOperand {
    /// A value of the graph.
    Value(ValueId),
    /// The result of the template's node with this index.
    Node(usize),
    /// A tensor of its own.
    Tensor(TemplateTensor),
    /// An optional operand that is left out.
    Absent,
}

/// A small tensor of a [`Template`].
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateTensor {
    /// Element type.
    pub data_type: DataType,
    /// Dimensions.
    pub dims: Vec<i64>,
    /// Elements, little-endian.
    pub bytes: Bytes,
}

impl Template {
    /// Adds a node and returns its result.
    pub fn add(
        &mut self,
        op_type: impl Into<Cow<'static, str>>,
        operands: impl Into<Vec<TemplateOperand>>,
        attributes: Vec<Attribute>,
    ) -> TemplateOperand {
        self.nodes.push(TemplateNode { op_type: op_type.into(), operands: operands.into(), attributes });
        TemplateOperand::Node(self.nodes.len() - 1)
    }

    /// Adds what gives the size of `value` on `axis`, an integer without dimensions.
    pub fn size(&mut self, value: ValueId, axis: usize) -> TemplateOperand {
        let shape = self.add("Shape", [TemplateOperand::Value(value)], Vec::new());
        let axis = TemplateOperand::int(axis as i64);
        self.add("Gather", [shape, axis], vec![int_attribute("axis", 0)])
    }

    /// Adds what gives the size of `value` on `axis`, a vector of one integer.
    pub fn sizes(&mut self, value: ValueId, axis: usize) -> TemplateOperand {
        let shape = self.add("Shape", [TemplateOperand::Value(value)], Vec::new());
        let [from, to] = [axis, axis + 1].map(|at| TemplateOperand::ints(&[at as i64]));
        self.add("Slice", [shape, from, to], Vec::new())
    }

    /// Returns the values of the graph that its nodes read.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.nodes.iter().flat_map(|node| &node.operands).filter_map(|operand| match operand {
            TemplateOperand::Value(value) => Some(*value),
            TemplateOperand::Node(_) | TemplateOperand::Tensor(_) | TemplateOperand::Absent => None,
        })
    }
}

impl TemplateOperand {
    /// Returns a scalar of a float type; `None` if elements of that type cannot be made.
    pub fn float(number: f64, data_type: DataType) -> Option<Self> {
        let bytes = match data_type {
            DataType::FLOAT => (number as f32).to_le_bytes().to_vec(),
            DataType::DOUBLE => number.to_le_bytes().to_vec(),
            DataType::FLOAT16 => half::f16::from_f64(number).to_le_bytes().to_vec(),
            DataType::BFLOAT16 => half::bf16::from_f64(number).to_le_bytes().to_vec(),
            _ => return None,
        };
        Some(Self::Tensor(TemplateTensor { data_type, dims: Vec::new(), bytes: bytes.into() }))
    }

    /// Returns an integer, without dimensions.
    pub fn int(number: i64) -> Self {
        let bytes = number.to_le_bytes().to_vec().into();
        Self::Tensor(TemplateTensor { data_type: DataType::INT64, dims: Vec::new(), bytes })
    }

    /// Returns a vector of integers.
    pub fn ints(numbers: &[i64]) -> Self {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self::Tensor(TemplateTensor { data_type: DataType::INT64, dims: vec![numbers.len() as i64], bytes })
    }
}
