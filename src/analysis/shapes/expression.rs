//! Sizes as nodes that compute them from the shapes of a graph's inputs.

use super::{Dim, atom::Atom, dim::Term, inputs::input_tensors};
use crate::ir::{Graph, Template, TemplateOperand, ValueId};

/// The place of a symbol: the input and the axis that it is the size of.
struct Symbol {
    name: String,
    input: ValueId,
    axis: usize,
}

impl Dim {
    /// Adds to `template` what computes the size from the inputs of `graph`, as a vector of one integer; `None` if it is
    /// no sum of products of symbols and floor divisions.
    pub fn expressed(&self, graph: &Graph, template: &mut Template) -> Option<TemplateOperand> {
        let mut symbols: Vec<Symbol> = Vec::new();
        for (io, tensor) in graph.inputs().zip(input_tensors(graph).0) {
            for (axis, dim) in tensor.dims.iter().flat_map(|dims| dims.iter()).enumerate() {
                if let Some(Atom::Symbol(name)) = dim.as_atom()
                    && !symbols.iter().any(|symbol| symbol.name == **name)
                {
                    symbols.push(Symbol { name: name.to_string(), input: io.value, axis });
                }
            }
        }
        self.sum_of(&symbols, template)
    }

    fn sum_of(&self, symbols: &[Symbol], template: &mut Template) -> Option<TemplateOperand> {
        let mut sum: Option<TemplateOperand> = None;
        for term in self.terms().iter() {
            let product = product(term, symbols, template)?;
            sum = Some(match sum {
                Some(sum) => template.add("Add", [sum, product], Vec::new()),
                None => product,
            });
        }
        Some(sum.unwrap_or_else(|| TemplateOperand::ints(&[0])))
    }
}

fn product(term: &Term, symbols: &[Symbol], template: &mut Template) -> Option<TemplateOperand> {
    let mut product = match term.coefficient {
        1 if !term.factors.is_empty() => None,
        coefficient => Some(TemplateOperand::ints(&[coefficient])),
    };
    for atom in &term.factors {
        let factor = match atom {
            Atom::Symbol(name) => {
                let symbol = symbols.iter().find(|symbol| symbol.name == **name)?;
                template.sizes(symbol.input, symbol.axis)
            }
            // Integers are divided toward zero, which is down where neither is negative.
            Atom::Floor(pair) if pair.0.is_at_least(0) && pair.1.is_at_least(1) => {
                let [n, d] = [&pair.0, &pair.1].map(|part| part.sum_of(symbols, template));
                template.add("Div", [n?, d?], Vec::new())
            }
            _ => return None,
        };
        product = Some(match product {
            Some(product) => template.add("Mul", [product, factor], Vec::new()),
            None => factor,
        });
    }
    product
}
