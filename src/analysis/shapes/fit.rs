//! Whether a node can run on operands of these shapes. Inference takes that for granted: it is told of graphs that run.

use super::{Dim, infer, tensor::Tensor, values::product};
use crate::ir::Node;

/// Operators that run on any size of their first operand; the others are of its channels, or of one element.
const ANY_SIZE: &[&str] = &[
    "Abs",
    "AveragePool",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Constant",
    "ConstantOfShape",
    "Cos",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "GlobalAveragePool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "MaxPool",
    "Mish",
    "Neg",
    "Range",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "Relu",
    "Resize",
    "Round",
    "Shape",
    "Sigmoid",
    "Sin",
    "Size",
    "Softmax",
    "Softplus",
    "Sqrt",
    "Squeeze",
    "Swish",
    "Tanh",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Upsample",
];
/// Operators whose operands are broadcast.
const BROADCAST: &[&str] = &[
    "Add",
    "And",
    "Div",
    "Equal",
    "Expand",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
];

/// Whether two lists of dimensions are the same at all sizes that matter.
type Agree<'a> = &'a mut dyn FnMut(&[Dim], &[Dim]) -> bool;

/// A node with what it reads and gives.
pub(super) struct Fit<'a> {
    pub node: &'a Node,
    pub operands: &'a [Option<Tensor>],
    pub results: &'a [Tensor],
}

impl Fit<'_> {
    /// Proves that the node runs.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check(&self, agree: Agree<'_>) -> Result<(), String> {
        let (op, mut agree) = (self.node.op_type.as_str(), agree);
        match op {
            _ if BROADCAST.contains(&op) => self.broadcast(&mut agree),
            "Concat" => self.concat(&mut agree),
            "Reshape" => self.reshape(&mut agree),
            "MatMul" => self.matmul(&mut agree),
            "Gemm" => match self.dims(0)?.last().and_then(Dim::constant) {
                Some(_) if self.node.int("transA").unwrap_or(0) == 0 => self.rest_is_constant(),
                _ => Err("multiplies over a size that changes".into()),
            },
            "Attention" => self.attention(&mut agree),
            "Einsum" => self.einsum(&mut agree),
            // Of a constant size, whatever is taken of it; a type alone is taken of CastLike's second operand.
            "Slice" | "CastLike" => Ok(()),
            "Split" | "Gather" => {
                match self.axis(if op == "Split" { "split along" } else { "read along" })?.constant() {
                    Some(_) => Ok(()),
                    None => Err("takes elements by their place, which depends on the size".into()),
                }
            }
            "LayerNormalization" | "RMSNormalization" => match self.dims(0)?.last().and_then(Dim::constant) {
                Some(_) if self.node.int("axis").unwrap_or(-1) == -1 => self.rest_is_constant(),
                _ => Err("normalizes over a size that changes".into()),
            },
            "BatchNormalization"
            | "Conv"
            | "ConvTranspose"
            | "GroupNormalization"
            | "InstanceNormalization" => match self.dims(0)?.get(1).and_then(Dim::constant) {
                Some(_) => self.rest_is_constant(),
                None => Err("has as many channels as something else has rows".into()),
            },
            _ if ANY_SIZE.contains(&op) => self.rest_is_constant(),
            _ => Err("is not known to run at another size".into()),
        }
    }

    fn dims(&self, slot: usize) -> Result<&[Dim], String> {
        let dims = self.operands.get(slot).and_then(Option::as_ref).and_then(|tensor| tensor.dims.as_deref());
        dims.ok_or_else(|| "reads something of an unknown shape".into())
    }

    fn all(&self) -> Result<Vec<&[Dim]>, String> {
        (0..self.operands.len())
            .filter(|slot| self.operands[*slot].is_some())
            .map(|slot| self.dims(slot))
            .collect()
    }

    fn axis(&self, what: &str) -> Result<&Dim, String> {
        let dims = self.dims(0)?;
        let axis = infer::axis(self.node.int("axis").unwrap_or(0), dims.len());
        axis.ok().and_then(|axis| dims.get(axis)).ok_or_else(|| format!("has no axis to be {what}"))
    }

    /// Operands behind the first have the sizes that they had.
    fn rest_is_constant(&self) -> Result<(), String> {
        match self.all()?.iter().skip(1).all(|dims| dims.iter().all(|dim| dim.constant().is_some())) {
            true => Ok(()),
            false => Err("has several operands whose sizes change".into()),
        }
    }

    fn broadcast(&self, agree: &mut Agree<'_>) -> Result<(), String> {
        let mut all: Vec<Vec<Dim>> = self.all()?.into_iter().map(<[Dim]>::to_vec).collect();
        if self.node.is("Expand") {
            let target = self.operands.get(1).and_then(Option::as_ref).and_then(Tensor::wholes);
            let target = target.ok_or("gives something of an unknown shape")?;
            all = vec![self.dims(0)?.to_vec(), target];
        }
        self.fits_together(&all, agree)
    }

    fn fits_together(&self, all: &[Vec<Dim>], agree: &mut Agree<'_>) -> Result<(), String> {
        let rank = all.iter().map(Vec::len).max().unwrap_or(0);
        for back in 1..=rank {
            let sizes =
                all.iter().filter_map(|dims| dims.len().checked_sub(back).and_then(|at| dims.get(at)));
            let sizes: Vec<&Dim> = sizes.filter(|size| size.constant() != Some(1)).collect();
            for pair in sizes.windows(2) {
                if let [a, b] = pair
                    && !agree(std::slice::from_ref(*a), std::slice::from_ref(*b))
                {
                    return Err(format!("would read sizes that do not fit: {a} and {b}"));
                }
            }
        }
        Ok(())
    }

    fn concat(&self, agree: &mut Agree<'_>) -> Result<(), String> {
        let mut all: Vec<Vec<Dim>> = self.all()?.into_iter().map(<[Dim]>::to_vec).collect();
        for dims in &mut all {
            let axis =
                infer::axis(self.node.int("axis").unwrap_or(0), dims.len()).map_err(|f| f.to_string())?;
            dims.remove(axis);
        }
        for pair in all.windows(2) {
            if let [a, b] = pair
                && !agree(a, b)
            {
                return Err("would join things of different sizes".into());
            }
        }
        Ok(())
    }

    fn reshape(&self, agree: &mut Agree<'_>) -> Result<(), String> {
        let result = self.results.first().and_then(|result| result.dims.as_deref());
        let sizes = product(self.dims(0)?).zip(result.and_then(product));
        match sizes.is_some_and(|(old, new)| agree(&[old], &[new])) {
            true => Ok(()),
            false => Err("would give something another number of elements".into()),
        }
    }

    fn matmul(&self, agree: &mut Agree<'_>) -> Result<(), String> {
        let (a, b) = (self.dims(0)?, self.dims(1)?);
        let ([lead_a @ .., _, inner_a], [lead_b @ .., inner_b, _]) = (a, b) else {
            return Err("multiplies vectors".into());
        };
        if !agree(std::slice::from_ref(inner_a), std::slice::from_ref(inner_b)) {
            return Err(format!("would multiply over sizes that do not fit: {inner_a} and {inner_b}"));
        }
        self.fits_together(&[lead_a.to_vec(), lead_b.to_vec()], agree)
    }

    /// An axis has one size in all operands. Equations with an ellipsis are not known.
    fn einsum(&self, agree: &mut Agree<'_>) -> Result<(), String> {
        let equation = self.node.string("equation").unwrap_or_default();
        let operands = equation.split_once("->").map_or(equation, |(operands, _)| operands);
        let mut sizes: Vec<(char, &Dim)> = Vec::new();
        for (dims, letters) in self.all()?.into_iter().zip(operands.split(',')) {
            let letters: Vec<char> = letters.chars().filter(|c| !c.is_whitespace()).collect();
            if letters.len() != dims.len() || !letters.iter().all(char::is_ascii_alphabetic) {
                return Err("has an equation that does not name each axis".into());
            }
            for (letter, size) in letters.into_iter().zip(dims) {
                match sizes.iter().find(|(known, _)| *known == letter) {
                    Some((_, known)) if !agree(std::slice::from_ref(*known), std::slice::from_ref(size)) => {
                        return Err(format!(
                            "would read sizes of one axis that do not fit: {known} and {size}"
                        ));
                    }
                    Some(_) => {}
                    None => sizes.push((letter, size)),
                }
            }
        }
        Ok(())
    }

    /// Keys and values are of as many tokens. The last two axes of all are tokens and channels, the first is the batch.
    fn attention(&self, agree: &mut Agree<'_>) -> Result<(), String> {
        if self.operands.iter().skip(3).any(Option::is_some) {
            return Err("has a mask, or keys of earlier calls".into());
        }
        let mut rows = Vec::new();
        for slot in 0..3 {
            match self.dims(slot)? {
                [batch, .., tokens, _] => rows.push([batch.clone(), tokens.clone()]),
                _ => return Err("has operands of no known layout".into()),
            }
        }
        let [queries, keys, values] = rows.as_slice() else {
            return Err("has no queries, keys and values".into());
        };
        match agree(&queries[..1], &keys[..1]) && agree(keys, values) {
            true => Ok(()),
            false => Err("would read keys and values of different sizes".into()),
        }
    }
}
