//! An attention whose map is the identity: each token attends to itself alone (perturbed-attention guidance).

use super::{Attention, einsum::Equation};
use crate::{
    analysis::{
        moves,
        shapes::{Agreement, Shapes},
        skip::{Illegal, Redirect},
    },
    ir::Graph,
};

impl Attention {
    /// Returns the redirect of an identity attention map, where each token attends to itself alone: the output
    /// projection, or what only reshapes for it, reads the values as they were before they were split into heads.
    ///
    /// # Errors
    /// [`Illegal`] if there are not as many keys as queries, or the values are not proven to come out of the
    /// attention in the order in which they go in.
    pub fn identity(&self, graph: &Graph, shapes: &Shapes) -> Result<Redirect, Illegal> {
        let [out] = self.out[..] else {
            let count = self.out.len();
            return Err(Illegal::new(format!(
                "its result is read by {count} output projections, not by one"
            )));
        };
        if shapes.compare(self.attended, self.value.value) != Agreement::Equal || !self.keeps_values(graph) {
            return Err(Illegal::at(
                graph,
                self.node,
                "has a result of another shape than its values, so its map is no square matrix",
            ));
        }
        let order = || {
            Illegal::at(graph, out.node, "does not read the values in the order in which the attention does")
        };
        let (base, path) = moves::before(graph, shapes, self.value.value, None).ok_or_else(order)?;
        let mut from = out.input;
        loop {
            let after = moves::before(graph, shapes, from, Some(self.attended));
            let (reached, after) =
                after.filter(|(reached, _)| *reached == self.attended).ok_or_else(order)?;
            if moves::cancel(path.iter().cloned().chain(after)) {
                return Ok(Redirect { from, to: base });
            }
            // What gives the projection another shape than the values had before they were split can stay.
            let before = graph.producer(from).filter(|_| from != reached);
            from = before.and_then(|node| graph.node(node).input(0)).ok_or_else(order)?;
        }
    }

    /// Returns whether the result is the values where the probabilities are the identity matrix.
    fn keeps_values(&self, graph: &Graph) -> bool {
        if self.product == self.node {
            return true;
        }
        let product = graph.node(self.product);
        let Some(slot) = product.inputs.iter().position(|v| *v == Some(self.value.value)) else {
            return false;
        };
        match Equation::of(product) {
            Some(equation) => equation.keeps(slot),
            None => product.is("MatMul"),
        }
    }
}
