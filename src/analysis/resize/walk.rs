//! The walk through a part of a network that runs at another size.

use std::sync::Arc;

use super::{Resize, Resized, template::resized};
use crate::{
    analysis::{
        Analysis,
        shapes::{Dim, Edited},
        skip::Illegal,
        splice::Splice,
    },
    ir::{Attribute, NodeId, Template, TemplateOperand, ValueId, int_attribute},
};

/// Most nodes between a Reshape and the image whose sizes it restores.
const FAR: usize = 256;

/// A walk.
pub(super) struct Walk<'a, 'g> {
    analysis: &'a Analysis<'g>,
    resize: Resize,
    edited: Edited<'a>,
    splices: Vec<Splice>,
    /// The values that enter the part.
    entries: Vec<ValueId>,
}

impl<'a> Walk<'a, '_> {
    pub fn new<'g>(analysis: &'a Analysis<'g>, resize: Resize) -> Walk<'a, 'g> {
        let edited = Edited::new(analysis.graph, &analysis.shapes);
        Walk { analysis, resize, edited, splices: Vec::new(), entries: Vec::new() }
    }

    /// Resizes `value` for the operands `at`.
    pub fn enter(&mut self, value: ValueId, at: Vec<(NodeId, usize)>) -> Result<(), Illegal> {
        let Some((first, _)) = at.first().copied() else {
            let name = &self.analysis.graph.value(value).name;
            return Err(Illegal::new(format!("nothing reads `{name}` but a skip connection")));
        };
        let template = self.analysis.entered(value, self.resize.size, self.resize.filter)?;
        self.entries.push(value);
        self.put(first, at, template)
    }

    /// Goes through all nodes in order. Those `inside` run at the size that they read; the others read what they read.
    pub fn run(
        mut self,
        inside: &dyn Fn(NodeId) -> bool,
        other: Option<(NodeId, &[Attribute])>,
    ) -> Result<Resized, Illegal> {
        let graph = self.analysis.graph;
        let first = self.splices.iter().filter_map(Splice::first_reader).min();
        for id in graph.node_ids().filter(|id| first.is_none_or(|first| *id >= first)) {
            if !self.edited.reads_changed(id) {
                continue;
            }
            let node = graph.node(id);
            if !inside(id) {
                for value in
                    node.operands().filter(|value| self.edited.is_changed(*value)).collect::<Vec<_>>()
                {
                    self.leave(id, value, inside)?;
                }
                continue;
            }
            match node.op_type.as_str() {
                "Concat" => self.join(id)?,
                "Reshape" => self.reshape(id)?,
                "Resize" | "Upsample" if self.has_fixed_size(id) => {
                    return Err(Illegal::at(graph, id, "resizes to a size that it is told from elsewhere"));
                }
                _ => {}
            }
            let attributes = other.filter(|(node, _)| *node == id).map(|(_, attributes)| attributes);
            self.edited.visit(id, attributes).map_err(|reason| Illegal::at(graph, id, &reason))?;
        }
        if let Some(io) = graph.outputs().iter().find(|io| self.edited.is_changed(io.value)) {
            let name = &graph.value(io.value).name;
            return Err(Illegal::new(format!("the output `{name}` would have another size")));
        }
        let resized: Arc<[ValueId]> = self.edited.reshaped().into();
        for splice in &mut self.splices {
            splice.resized = Arc::clone(&resized);
        }
        Ok(Resized { note: self.edited.note(), splices: self.splices })
    }

    fn put(&mut self, first: NodeId, at: Vec<(NodeId, usize)>, template: Template) -> Result<(), Illegal> {
        let because = |reason: String| Illegal::at(self.analysis.graph, first, &reason);
        self.edited.splice(&at, &template).map_err(because)?;
        self.splices.push(Splice { at, template, replaces: Vec::new(), resized: Arc::default() });
        Ok(())
    }

    /// Resizes `value` back for all that is not inside.
    fn leave(
        &mut self,
        reader: NodeId,
        value: ValueId,
        inside: &dyn Fn(NodeId) -> bool,
    ) -> Result<(), Illegal> {
        let analysis = self.analysis;
        let mut at = analysis.readers(value)?;
        at.retain(|(node, _)| !inside(*node));
        if at.iter().any(|(node, slot)| self.edited.is_spliced(*node, *slot)) {
            return Ok(());
        }
        let no_size =
            || Illegal::at(analysis.graph, reader, "reads something that has no size to go back to");
        let wanted = analysis.shapes.of(value).filter(|_| analysis.is_image(value)).ok_or_else(no_size)?;
        let sizes = wanted.dims.get(2..).unwrap_or_default();
        let is_like = |entry: &&ValueId| {
            analysis.shapes.of(**entry).is_some_and(|shape| shape.dims.get(2..) == Some(sizes))
        };
        let template = match self.entries.iter().find(is_like) {
            Some(like) => self.like(value, *like),
            None => analysis.left(value, sizes, self.resize.back).ok_or_else(no_size)?,
        };
        self.put(reader, at, template)
    }

    /// Returns what gives `value` the size of `like`.
    fn like(&self, value: ValueId, like: ValueId) -> Template {
        let mut template = Template::default();
        let sizes = [2, 3].map(|axis| template.sizes(like, axis));
        resized(&mut template, value, sizes, self.resize.back);
        template
    }

    /// Makes the operands of a Concat of one size: the one that changed gets that of the other, and of two that changed
    /// the one from below that of the skip connection.
    fn join(&mut self, id: NodeId) -> Result<(), Illegal> {
        let analysis = self.analysis;
        let node = analysis.graph.node(id);
        let [Some(a), Some(b)] = node.inputs[..] else { return Ok(()) };
        let dims = [0, 1].map(|slot| self.edited.operand(id, slot).unwrap_or_default());
        let [[_, _, x @ ..], [_, _, y @ ..]] = [dims[0].as_slice(), dims[1].as_slice()] else {
            return Ok(());
        };
        if node.int("axis") != Some(1) || x.len() != 2 || self.edited.agree(x, y) {
            return Ok(());
        }
        let differs = |slot: usize, value| self.edited.is_changed(value) || self.edited.is_spliced(id, slot);
        let slot = match (differs(0, a), differs(1, b)) {
            (true, false) => 0,
            (false, true) => 1,
            _ => match analysis.skip_concat(id) {
                Some(concat) => concat.backbone.0,
                None => return Ok(()),
            },
        };
        let (value, like) = if slot == 0 { (a, b) } else { (b, a) };
        if self.edited.is_spliced(id, 0) || self.edited.is_spliced(id, 1) {
            return Ok(());
        }
        let template = self.like(value, like);
        self.put(id, vec![(id, slot)], template)
    }

    /// Gives a Reshape the sizes of the part, if its own come from elsewhere: to axes that are joined their product, to
    /// those that are divided again height and width of the image that it is computed from.
    fn reshape(&mut self, id: NodeId) -> Result<(), Illegal> {
        let analysis = self.analysis;
        let node = analysis.graph.node(id);
        let (Some(data), Some(sizes)) = (node.input(0), node.input(1)) else { return Ok(()) };
        let of = |value: Option<ValueId>| Some(analysis.shapes.of(value?)?.dims.clone());
        let (Some(old), Some(result)) = (of(Some(data)), of(node.output(0))) else { return Ok(()) };
        let Some(new) = self.edited.operand(id, 0).filter(|new| new.len() == old.len()) else {
            return Ok(());
        };
        let Some(groups) = groups(&old, &result) else { return Ok(()) };
        let mut template = Template::default();
        let (mut parts, mut wanted) = (Vec::new(), Vec::new());
        for Group { from, to } in groups {
            let dims = new.get(from.clone()).unwrap_or_default();
            let before = result.get(to.clone()).unwrap_or_default();
            if Some(dims) == old.get(from.clone()) {
                for (at, size) in to.zip(before) {
                    parts.push(match size.constant() {
                        Some(size) => TemplateOperand::ints(&[size]),
                        None => {
                            let [at, end] = [at, at + 1].map(|at| TemplateOperand::ints(&[at as i64]));
                            template.add("Slice", [TemplateOperand::Value(sizes), at, end], Vec::new())
                        }
                    });
                }
                wanted.extend_from_slice(before);
                continue;
            }
            match before {
                [_] => {
                    let Some(product) = dims.iter().try_fold(Dim::from(1), |product, dim| product.mul(dim))
                    else {
                        return Ok(());
                    };
                    let mut joined: Option<TemplateOperand> = None;
                    for (axis, dim) in from.zip(dims) {
                        let size = match self.edited.is_spliced(id, 0) {
                            true => dim.expressed(analysis.graph, &mut template),
                            false => Some(template.sizes(data, axis)),
                        };
                        let Some(size) = size else { return Ok(()) };
                        joined = Some(match joined {
                            Some(joined) => template.add("Mul", [joined, size], Vec::new()),
                            None => size,
                        });
                    }
                    parts.extend(joined);
                    wanted.push(product);
                }
                [rest @ .., height, width] if rest.iter().all(|size| size.constant().is_some()) => {
                    let Some((sizes, dims)) = self.image(id, [height, width], &mut template) else {
                        return Ok(());
                    };
                    let rest_sizes = rest.iter().filter_map(Dim::constant);
                    parts.extend(rest_sizes.map(|size| TemplateOperand::ints(&[size])));
                    parts.extend(sizes);
                    wanted.extend(rest.iter().cloned().chain(dims));
                }
                _ => return Ok(()),
            }
        }
        if self.edited.preview(id).is_some_and(|dims| dims == wanted) {
            return Ok(());
        }
        template.add("Concat", parts, vec![int_attribute("axis", 0)]);
        self.put(id, vec![(id, 1)], template)
    }

    /// Adds height and width of the image that node `id` is computed from, whose sizes were these, and returns them as
    /// operands and as sizes.
    fn image(
        &self,
        id: NodeId,
        wanted: [&Dim; 2],
        template: &mut Template,
    ) -> Option<([TemplateOperand; 2], [Dim; 2])> {
        let analysis = self.analysis;
        let mut at = id;
        for _ in 0..FAR {
            let node = analysis.graph.node(at);
            let mut read = (0..node.inputs.len()).filter_map(|slot| Some((slot, node.input(slot)?)));
            let (slot, value) = read.find(|(slot, value)| {
                analysis.flow.is_activation(*value)
                    && (self.edited.is_changed(*value) || self.edited.is_spliced(at, *slot))
            })?;
            if let Some([_, _, height, width]) = analysis.shapes.of(value).map(|shape| &*shape.dims)
                && [height, width] == wanted
            {
                let dims = self.edited.operand(at, slot)?;
                let dims = [dims.get(2)?.clone(), dims.get(3)?.clone()];
                if !self.edited.is_spliced(at, slot) {
                    return Some(([2, 3].map(|axis| template.sizes(value, axis)), dims));
                }
                let [height, width] =
                    [&dims[0], &dims[1]].map(|size| size.expressed(analysis.graph, template));
                return Some(([height?, width?], dims));
            }
            at = analysis.graph.producer(value)?;
        }
        None
    }

    /// Returns whether the node is told its size by something that did not change.
    fn has_fixed_size(&self, id: NodeId) -> bool {
        let sizes = self.analysis.graph.node(id).input(3);
        sizes.is_some_and(|sizes| !self.edited.is_changed(sizes) && !self.edited.is_spliced(id, 3))
    }
}

/// Axes of two shapes that have as many elements.
struct Group {
    from: std::ops::Range<usize>,
    to: std::ops::Range<usize>,
}

/// Divides two shapes of as many elements into the smallest groups of axes that have as many; `None` if there are none.
fn groups(from: &[Dim], to: &[Dim]) -> Option<Vec<Group>> {
    let product = |dims: &[Dim]| dims.iter().try_fold(Dim::from(1), |product, dim| product.mul(dim));
    let (mut found, mut i, mut j) = (Vec::new(), 0, 0);
    while i < from.len() || j < to.len() {
        let (left, right) = (from.len() - i, to.len() - j);
        let mut sizes: Vec<(usize, usize)> =
            (1..=left).flat_map(|a| (1..=right).map(move |b| (a, b))).collect();
        sizes.sort_by_key(|(a, b)| a + b);
        let fits = |(a, b): &(usize, usize)| {
            let [a, b] = [from.get(i..i + a), to.get(j..j + b)].map(|dims| product(dims.unwrap_or_default()));
            a.is_some() && a == b
        };
        let (a, b) = sizes.into_iter().find(fits)?;
        found.push(Group { from: i..i + a, to: j..j + b });
        (i, j) = (i + a, j + b);
    }
    Some(found)
}
