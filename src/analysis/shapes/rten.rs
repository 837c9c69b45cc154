//! Conversion between our symbolic sizes and the expressions of `rten-shape-inference`.
//!
//! Those hold 32-bit integers, overflow, and grow without bound. So a rule never sees a size that is an expression:
//! each one that is not a small constant goes in as a variable of its own, and what comes out is built from those few
//! variables and put in normal form at once.

use rten_shape_inference::{InferShapes, InferShapesError, SymExpr, SymTensor, Symbol, SymbolGen};
use rustc_hash::FxHashMap;

use super::{
    dim::Dim,
    division::floor_div,
    infer::{Call, Failure},
    tensor::{Tensor, Unknowns},
};

/// Returns the dimensions of each result of `rule` for `operands`; `None` where the rule does not know them.
pub(super) fn apply(
    call: &mut Call<'_>,
    rule: &dyn InferShapes,
    operands: &[Operand<'_>],
) -> Result<Vec<Option<Vec<Dim>>>, Failure> {
    let mut bridge = Bridge::default();
    let inputs: Vec<Option<SymTensor>> = operands.iter().map(|operand| bridge.enter(operand)).collect();
    let results = rule.infer_shapes(inputs.into(), &mut SymbolGen::new()).map_err(|e| match e {
        InferShapesError::UnknownOutputCount => Failure::Unsupported(e.to_string()),
        _ => Failure::Invalid(e.to_string()),
    })?;
    let leave = |result: SymTensor| {
        let dims = result.shape()?;
        Some(dims.map(|dim| bridge.leave(&dim, call.unknowns)).collect())
    };
    Ok(results.into_iter().map(leave).collect())
}

/// An operand as a rule sees it.
pub(super) enum Operand<'a> {
    /// It is left out, or nothing is known of it.
    Missing,
    /// Its dimensions.
    Dims(&'a [Dim]),
    /// Its elements, which make a vector.
    Vector(&'a [Dim]),
}

impl<'a> Operand<'a> {
    /// Returns the dimensions of an operand, if there is one.
    pub fn dims(operand: Option<&'a Tensor>) -> Self {
        operand.and_then(|t| t.dims.as_deref()).map_or(Self::Missing, Self::Dims)
    }
}

#[derive(Default)]
struct Bridge {
    /// The size behind each variable, by the variable's name, which is its index.
    variables: Vec<Dim>,
    /// The sizes behind the rule's own unknowns.
    unknowns: FxHashMap<String, Dim>,
}

impl Bridge {
    fn enter(&mut self, operand: &Operand<'_>) -> Option<SymTensor> {
        let mut expressions = |dims: &[Dim]| dims.iter().map(|dim| self.expression(dim)).collect();
        match operand {
            Operand::Missing => None,
            Operand::Dims(dims) => Some(SymTensor::from_shape(expressions(dims))),
            Operand::Vector(elements) => Some(SymTensor::from_vec(expressions(elements))),
        }
    }

    fn expression(&mut self, dim: &Dim) -> SymExpr {
        if let Some(value) = dim.constant().and_then(|value| i32::try_from(value).ok()) {
            return SymExpr::Value(value);
        }
        let index = self.variables.iter().position(|known| known == dim).unwrap_or_else(|| {
            self.variables.push(dim.clone());
            self.variables.len() - 1
        });
        Symbol { name: index.to_string(), positive: true, synthetic: false }.into()
    }

    fn leave(&mut self, expression: &SymExpr, unknowns: &mut Unknowns) -> Dim {
        if let SymExpr::Var(symbol) = expression
            && symbol.synthetic
        {
            return self.unknowns.entry(symbol.name.clone()).or_insert_with(|| unknowns.fresh()).clone();
        }
        let dim = self.dim(expression);
        unknowns.or_fresh(dim)
    }

    /// Returns the size; `None` for the rule's own unknowns inside an expression, and for sizes that grow too large.
    fn dim(&self, expression: &SymExpr) -> Option<Dim> {
        let pair = |a: &SymExpr, b: &SymExpr| Some((self.dim(a)?, self.dim(b)?));
        match expression {
            SymExpr::Value(value) => Some(i64::from(*value).into()),
            SymExpr::Var(symbol) if symbol.synthetic => None,
            SymExpr::Var(symbol) => self.variables.get(symbol.name.parse::<usize>().ok()?).cloned(),
            SymExpr::Neg(a) => Dim::from(0).sub(&self.dim(a)?),
            SymExpr::Add(a, b) => pair(a, b).and_then(|(a, b)| a.add(&b)),
            SymExpr::Sub(a, b) => pair(a, b).and_then(|(a, b)| a.sub(&b)),
            SymExpr::Mul(a, b) => pair(a, b).and_then(|(a, b)| a.mul(&b)),
            SymExpr::Div(a, b) => pair(a, b).and_then(|(a, b)| floor_div(&a, &b)),
            SymExpr::DivCeil(a, b) => {
                let (a, b) = pair(a, b)?;
                floor_div(&a.add(&b)?.sub(&1.into())?, &b)
            }
            SymExpr::Max(a, b) => pair(a, b).and_then(|(a, b)| a.larger(&b)),
            SymExpr::Min(a, b) => pair(a, b).and_then(|(a, b)| a.smaller(&b)),
            SymExpr::Broadcast(a, b) => pair(a, b).and_then(|(a, b)| a.broadcast(&b)),
        }
    }
}
