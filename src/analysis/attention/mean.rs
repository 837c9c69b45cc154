//! An attention whose queries are their mean, so that all tokens attend alike (smoothed energy guidance).

use super::{Attention, einsum::Equation};
use crate::{
    analysis::{Analysis, skip::Illegal, splice::Splice},
    ir::{Template, TemplateOperand, int_attribute, ints_attribute},
};

/// The operator set from which on the axes of a ReduceMean are an operand.
const AXES_ARE_AN_OPERAND: i64 = 18;

impl Attention {
    /// Returns what makes all queries their mean over the tokens.
    ///
    /// # Errors
    /// [`Illegal`] if it is not known on which axis of the queries the tokens are.
    pub fn mean_queries(&self, analysis: &Analysis<'_>) -> Result<Splice, Illegal> {
        let unknown = || {
            Illegal::at(
                analysis.graph,
                self.node,
                "has queries of which it is not known where the tokens are",
            )
        };
        let axis = self.query_tokens(analysis).ok_or_else(unknown)?;
        let opset = analysis.graph.opset("").ok_or_else(unknown)?;
        let queries = || TemplateOperand::Value(self.query.value);
        let keep = int_attribute("keepdims", 1);
        let mut template = Template::default();
        let mean = match opset >= AXES_ARE_AN_OPERAND {
            true => template.add("ReduceMean", [queries(), TemplateOperand::ints(&[axis])], vec![keep]),
            false => template.add("ReduceMean", [queries()], vec![ints_attribute("axes", vec![axis]), keep]),
        };
        let shape = template.add("Shape", [queries()], Vec::new());
        template.add("Expand", [mean, shape], Vec::new());
        analysis.splice(vec![(self.scores, 0)], template)
    }

    /// Returns the axis of the queries on which the tokens are.
    fn query_tokens(&self, analysis: &Analysis<'_>) -> Option<i64> {
        let rank = analysis.shapes.of(self.query.value)?.dims.len() as i64;
        let scores = analysis.graph.node(self.scores);
        if scores.is("MatMul") {
            return (rank >= 2).then_some(rank - 2);
        }
        if scores.is("Attention") {
            // [batch, heads, tokens, width], or [batch, tokens, heads * width].
            return (3..=4).contains(&rank).then_some(rank - 2);
        }
        let equation = Equation::of(scores).filter(|_| scores.is("Einsum"))?;
        let token = equation.result.get(equation.axis_of(0)?)?;
        // Heads and batch are letters of both operands, so that one is left: the tokens.
        let own = equation.operands[0].iter().filter(|c| !equation.operands[1].contains(c)).count();
        let axis = equation.operands[0].iter().position(|c| c == token)?;
        (own == 1 && equation.operands[0].len() as i64 == rank).then_some(axis as i64)
    }
}
