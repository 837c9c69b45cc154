//! An attention within windows: each token attends to those of its own window (HiDiffusion's MSW-MSA).

use super::{Attention, einsum::Equation};
use crate::{
    analysis::{
        Analysis,
        shapes::{Dim, Shapes},
        skip::Illegal,
        splice::Splice,
    },
    ir::{Graph, Node, NodeId, Template, TemplateOperand, ValueId, int_attribute, ints_attribute},
};

/// Most operators between the product of queries and keys and that of probabilities and values.
const DEPTH: usize = 16;
/// Operators of one operand that work element by element, or along the keys.
const UNARY: [&str; 4] = ["Softmax", "Cast", "Identity", "Dropout"];

/// How tokens are divided.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// How many windows there are from top to bottom.
    pub rows: i64,
    /// How many there are from left to right.
    pub columns: i64,
    /// By how many quarters of a window they begin later, around the edges.
    pub quarters: i64,
}

impl Windows {
    /// Checks that they divide `pixels`, where the graph is of one size alone.
    fn divide(self, analysis: &Analysis<'_>, pixels: ValueId) -> Result<(), String> {
        let dims = analysis.shapes.of(pixels).map(|shape| &*shape.dims);
        let Some([_, _, height, width]) = dims else { return Ok(()) };
        let size = [height, width].map(Dim::constant);
        let leaves = |(size, count): (Option<i64>, i64)| size.is_some_and(|size| size % count != 0);
        match size.into_iter().zip([self.rows, self.columns]).any(leaves) {
            true => Err(format!(
                "has a feature map of {height}x{width}, which {}x{} windows do not divide",
                self.rows, self.columns
            )),
            false => Ok(()),
        }
    }
}

/// The layout of one operand: which axis has the tokens, and the last axes of all.
#[derive(Clone, Copy)]
struct Layout {
    rank: usize,
    /// Heads, or the product of batch and heads, by its constant size if it is one.
    heads: Option<i64>,
    /// Whether the tokens are on the last axis, and the channels on the one before.
    is_transposed: bool,
    channels: i64,
}

impl Layout {
    /// Returns the sizes of all axes: `lead`, tokens and channels.
    fn dims(self, lead: TemplateOperand, tokens: Vec<TemplateOperand>) -> Vec<TemplateOperand> {
        let channels = TemplateOperand::ints(&[self.channels]);
        match self.is_transposed {
            true => [vec![lead, channels], tokens].concat(),
            false => [vec![lead], tokens, vec![channels]].concat(),
        }
    }
}

impl Attention {
    /// Returns what makes the attention one within windows: the whole of it, from queries, keys and values to the result,
    /// with each window as a head of its own.
    ///
    /// # Errors
    /// [`Illegal`] if it is not self-attention over the pixels of something, has a mask, or is laid out in no known way.
    pub fn windowed(&self, analysis: &Analysis<'_>, windows: Windows) -> Result<Splice, Illegal> {
        let at = |reason: &str| Illegal::at(analysis.graph, self.node, reason);
        let chain = self
            .core(analysis)
            .ok_or_else(|| at("has more between queries, keys and values than scale and softmax"))?;
        let pixels = self
            .pixels(analysis)
            .ok_or_else(|| at("has tokens that are not the pixels of what its block reads"))?;
        windows.divide(analysis, pixels).map_err(|reason| at(&reason))?;
        let unknown = || at("has queries, keys or values of no known layout");
        let mut template = Template::default();
        let grid = Grid::new(&mut template, pixels, windows);
        let [scores, product] = [self.scores, self.product].map(|id| analysis.graph.node(id));
        let transposed = self.transposed(scores, product).ok_or_else(unknown)?;
        let mut divided = Vec::new();
        let mut layouts = Vec::new();
        for (operand, is_transposed) in
            [&self.query, &self.key, &self.value].into_iter().zip(transposed.operands)
        {
            let layout = layout(analysis, operand.value, is_transposed).ok_or_else(unknown)?;
            divided.push(grid.divide(&mut template, operand.value, layout));
            layouts.push(layout);
        }
        let [query, key, value] = <[TemplateOperand; 3]>::try_from(divided).map_err(|_| unknown())?;
        let result = match self.scores == self.product {
            true => template.add(scores.op_type.to_string(), [query, key, value], scores.attributes.to_vec()),
            false => {
                let mut current =
                    template.add(scores.op_type.to_string(), [query, key], scores.attributes.to_vec());
                for (id, slot) in &chain {
                    let node = analysis.graph.node(*id);
                    let operands: Vec<TemplateOperand> = node
                        .inputs
                        .iter()
                        .enumerate()
                        .filter_map(|(index, operand)| match index == *slot {
                            true => Some(current.clone()),
                            false => operand.map(TemplateOperand::Value),
                        })
                        .collect();
                    current = template.add(node.op_type.to_string(), operands, node.attributes.to_vec());
                }
                let operands =
                    if self.values_slot(product) == Some(0) { [value, current] } else { [current, value] };
                template.add(product.op_type.to_string(), operands, product.attributes.to_vec())
            }
        };
        let values = layouts.last().copied().ok_or_else(unknown)?;
        grid.join(&mut template, result, Layout { is_transposed: transposed.result, ..values });
        let mut replaces: Vec<NodeId> = chain.iter().map(|(id, _)| *id).collect();
        replaces.extend([self.scores, self.product]);
        let mut splice = analysis.splice(analysis.readers(self.attended)?, template)?;
        splice.replaces = replaces;
        Ok(splice)
    }

    /// Returns the nodes between the two products, each with the operand that comes from the first; none for an operator
    /// that has both inside. `None` if there is more than scale and softmax.
    fn core(&self, analysis: &Analysis<'_>) -> Option<Vec<(NodeId, usize)>> {
        let graph = analysis.graph;
        let scores = graph.node(self.scores);
        if scores.is("Attention") {
            // Others are masks, and keys of earlier calls; heads must be an axis.
            let is_plain = scores.inputs.iter().skip(3).all(Option::is_none);
            return (is_plain && scores.int("q_num_heads").is_none()).then(Vec::new);
        }
        let product = graph.node(self.product);
        let mut chain = Vec::new();
        let mut value = product.input(1_usize.checked_sub(self.values_slot(product)?)?)?;
        while graph.producer(value) != Some(self.scores) {
            let id = graph.producer(value).filter(|_| chain.len() < DEPTH)?;
            let node = graph.node(id);
            let is_number = |slot: usize| node.input(slot).is_some_and(|v| is_scalar(analysis, v));
            let slot = match node.op_type.as_str() {
                op if UNARY.contains(&op) && node.operands().count() == 1 => 0,
                "Mul" | "Div" if is_number(1) => 0,
                "Mul" if is_number(0) => 1,
                _ => return None,
            };
            chain.push((id, slot));
            value = node.input(slot)?;
        }
        chain.reverse();
        Some(chain)
    }

    /// Returns which operand of the second product the values are.
    fn values_slot(&self, product: &Node) -> Option<usize> {
        product.inputs.iter().position(|value| *value == Some(self.value.value))
    }

    /// Returns where the tokens are on the last axis, if they are on one of the last two and the channels on the other.
    fn transposed(&self, scores: &Node, product: &Node) -> Option<Transposed> {
        if self.scores == self.product {
            return Some(Transposed { operands: [false; 3], result: false });
        }
        if scores.is("MatMul") && product.is("MatMul") && self.values_slot(product) == Some(1) {
            return Some(Transposed { operands: [false, true, false], result: false });
        }
        if !scores.is("Einsum") || !product.is("Einsum") {
            return None;
        }
        let (first, second) = (Equation::of(scores)?, Equation::of(product)?);
        let slot = self.values_slot(product)?;
        let channels = first.summed()?;
        let values = second.operands.get(slot)?;
        let own = *second.result.get(second.axis_of(slot)?)?;
        let rank = values.len();
        let last_but = |letters: &[char], channels: char| -> Option<bool> {
            let [lead @ .., a, b] = letters else { return None };
            let is_lead = letters.len() == rank && values.get(..lead.len()) == Some(lead);
            let is_token = |letter: char| letter != channels && !lead.contains(&letter);
            match (*a == channels, *b == channels) {
                (true, false) => (is_lead && is_token(*b)).then_some(true),
                (false, true) => (is_lead && is_token(*a)).then_some(false),
                _ => None,
            }
        };
        Some(Transposed {
            operands: [
                last_but(first.operands.first()?, channels)?,
                last_but(first.operands.get(1)?, channels)?,
                last_but(values, own)?,
            ],
            result: last_but(&second.result, own)?,
        })
    }

    /// Returns what the nearest block reads whose height times width is the number of tokens, of queries and of keys.
    fn pixels(&self, analysis: &Analysis<'_>) -> Option<ValueId> {
        let facts = self.facts(analysis.graph, &analysis.shapes);
        let tokens = facts.queries.filter(|queries| Some(queries) == facts.keys.as_ref())?;
        let parent = |module: &_| analysis.modules.get(*module).parent;
        let mut around = std::iter::successors(Some(self.module(&analysis.modules)), parent);
        around.find_map(|module| {
            let input = analysis.input(module).ok()?;
            let dims = &analysis.shapes.of(input)?.dims;
            let [_, _, height, width] = &dims[..] else { return None };
            (height.mul(width)? == tokens).then_some(input)
        })
    }
}

/// A feature map that is divided into windows in a graph that was compiled before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divided {
    /// The value whose height and width are divided.
    pub pixels: ValueId,
    /// Rows and columns of windows.
    pub windows: [i64; 2],
}

impl Divided {
    /// Finds the windows that the Reshape `node` makes, as [`Attention::windowed`] writes it.
    pub fn by(graph: &Graph, shapes: &Shapes, node: NodeId) -> Option<Self> {
        let from = |id: NodeId, slot: usize, op: &str| {
            graph.producer(graph.node(id).input(slot)?).filter(|producer| graph.node(*producer).is(op))
        };
        let number = |id: NodeId, slot: usize| shapes.size(graph.node(id).input(slot)?)?.constant();
        let dims = from(node, 1, "Concat").filter(|_| graph.node(node).is("Reshape"))?;
        let mut found: [Option<(ValueId, i64)>; 2] = [None; 2];
        for slot in 0..graph.node(dims).inputs.len() {
            let Some(quotient) = from(dims, slot, "Div") else { continue };
            let Some(size) = from(quotient, 0, "Slice") else { continue };
            let pixels = from(size, 0, "Shape").and_then(|shape| graph.node(shape).input(0));
            let axis = number(size, 1).and_then(|axis| usize::try_from(axis.checked_sub(2)?).ok());
            if let Some(place) = axis.and_then(|axis| found.get_mut(axis)) {
                *place = pixels.zip(number(quotient, 1));
            }
        }
        let [Some((pixels, rows)), Some((other, columns))] = found else { return None };
        (pixels == other).then_some(Self { pixels, windows: [rows, columns] })
    }
}

fn is_scalar(analysis: &Analysis<'_>, value: ValueId) -> bool {
    let is_one = |dims: &[_]| dims.iter().all(|dim: &Dim| dim.constant() == Some(1));
    analysis.shapes.of(value).is_some_and(|shape| is_one(&shape.dims))
}

fn layout(analysis: &Analysis<'_>, value: ValueId, is_transposed: bool) -> Option<Layout> {
    let dims = &analysis.shapes.of(value)?.dims;
    let (rank, channels) = (dims.len(), if is_transposed { dims.iter().rev().nth(1) } else { dims.last() });
    let channels = channels?.constant()?;
    let heads = match rank {
        4 => Some(dims.get(1)?.constant()?),
        3 => None,
        _ => return None,
    };
    Some(Layout { rank, heads, is_transposed, channels })
}

/// Which of an attention's operands, and whether its result, have the tokens on the last axis and the channels before it.
struct Transposed {
    operands: [bool; 3],
    result: bool,
}

/// Pixels and windows, as integers that the graph computes: vectors of one element each.
struct Grid {
    windows: Windows,
    size: [TemplateOperand; 2],
    of_window: [TemplateOperand; 2],
    shift: [TemplateOperand; 2],
}

impl Grid {
    fn new(template: &mut Template, pixels: ValueId, windows: Windows) -> Self {
        let shape = template.add("Shape", [TemplateOperand::Value(pixels)], Vec::new());
        let counts = [windows.rows, windows.columns];
        let size = [2, 3].map(|axis| {
            let bounds = [axis, axis + 1].map(|bound| TemplateOperand::ints(&[bound]));
            let [from, to] = bounds;
            template.add("Slice", [shape.clone(), from, to], Vec::new())
        });
        let of_window = [0, 1].map(|axis| {
            let count = TemplateOperand::ints(&[counts[axis]]);
            template.add("Div", [size[axis].clone(), count], Vec::new())
        });
        let shift = [0, 1].map(|axis| {
            let quarter =
                template.add("Div", [of_window[axis].clone(), TemplateOperand::ints(&[4])], Vec::new());
            template.add("Mul", [quarter, TemplateOperand::ints(&[windows.quarters])], Vec::new())
        });
        Self { windows, size, of_window, shift }
    }

    /// Makes each window of `value` a head.
    fn divide(&self, template: &mut Template, value: ValueId, layout: Layout) -> TemplateOperand {
        let lead = layout.rank - 2;
        let kept = TemplateOperand::ints(&vec![0; lead]);
        let mut current = TemplateOperand::Value(value);
        let first = if layout.is_transposed { lead + 1 } else { lead };
        if self.windows.quarters != 0 {
            current = reshape(template, current, layout.dims(kept.clone(), self.size.to_vec()));
            for (axis, shift) in self.shift.iter().enumerate() {
                current = roll(template, current, first + axis, shift, false);
            }
        }
        let [rows, columns] = [self.windows.rows, self.windows.columns].map(|n| TemplateOperand::ints(&[n]));
        let [height, width] = self.of_window.clone();
        current =
            reshape(template, current, layout.dims(kept, vec![rows, height.clone(), columns, width.clone()]));
        // Windows behind the heads, before what is left of tokens and channels.
        let at = |offset: usize| (first + offset) as i64;
        let mut order: Vec<i64> = (0..lead as i64).collect();
        order.extend([at(0), at(2)]);
        order.extend(layout.is_transposed.then_some(lead as i64));
        order.extend([at(1), at(3)]);
        order.extend((!layout.is_transposed).then_some(lead as i64 + 4));
        current = template.add("Transpose", [current], vec![ints_attribute("perm", order)]);
        let tokens = template.add("Mul", [height, width], Vec::new());
        let count = self.windows.rows * self.windows.columns;
        let merged = match layout.heads {
            Some(heads) => TemplateOperand::ints(&[0, heads * count]),
            None => TemplateOperand::ints(&[-1]),
        };
        reshape(template, current, layout.dims(merged, vec![tokens]))
    }

    /// Puts the windows of `result` together again.
    fn join(&self, template: &mut Template, result: TemplateOperand, layout: Layout) {
        let lead = layout.rank - 2;
        let [rows, columns] = [self.windows.rows, self.windows.columns];
        let divided = match layout.heads {
            Some(heads) => TemplateOperand::ints(&[0, heads, rows, columns]),
            None => TemplateOperand::ints(&[-1, rows, columns]),
        };
        let mut current = reshape(template, result, layout.dims(divided, self.of_window.to_vec()));
        let offsets = if layout.is_transposed { [2, 0, 3, 1, 4] } else { [0, 2, 1, 3, 4] };
        let mut order: Vec<i64> = (0..lead as i64).collect();
        order.extend(offsets.map(|offset| lead as i64 + offset));
        current = template.add("Transpose", [current], vec![ints_attribute("perm", order)]);
        let kept = TemplateOperand::ints(&vec![0; lead]);
        if self.windows.quarters != 0 {
            current = reshape(template, current, layout.dims(kept.clone(), self.size.to_vec()));
            let first = if layout.is_transposed { lead + 1 } else { lead };
            for (axis, shift) in self.shift.iter().enumerate() {
                current = roll(template, current, first + axis, shift, true);
            }
        }
        let tokens = template.add("Mul", self.size.clone(), Vec::new());
        reshape(template, current, layout.dims(kept, vec![tokens]));
    }
}

fn reshape(template: &mut Template, value: TemplateOperand, dims: Vec<TemplateOperand>) -> TemplateOperand {
    let dims = template.add("Concat", dims, vec![int_attribute("axis", 0)]);
    template.add("Reshape", [value, dims], Vec::new())
}

/// Begins at the element `shift` of `axis`, or ends before it, and goes on around the edge.
fn roll(
    template: &mut Template,
    value: TemplateOperand,
    axis: usize,
    shift: &TemplateOperand,
    back: bool,
) -> TemplateOperand {
    let axes = TemplateOperand::ints(&[axis as i64]);
    let zero = || TemplateOperand::ints(&[0]);
    let end = TemplateOperand::ints(&[i64::MAX]);
    let at = match back {
        true => template.add("Sub", [zero(), shift.clone()], Vec::new()),
        false => shift.clone(),
    };
    let mut part = |from, to| template.add("Slice", [value.clone(), from, to, axes.clone()], Vec::new());
    let (later, earlier) = (part(at.clone(), end), part(zero(), at));
    template.add("Concat", [later, earlier], vec![int_attribute("axis", axis as i64)])
}
