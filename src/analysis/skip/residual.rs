//! Following residual Adds back from the output of a module to its skip.

use super::{Illegal, Redirect};
use crate::{
    analysis::{
        Analysis, constants,
        flow::Flow,
        modules::{Evidence, ModuleId, ModuleKind},
        moves,
        shapes::Dim,
    },
    ir::{Node, NodeId, ValueId},
};

/// The end of a residual path of a module.
struct Origin {
    /// The value to replace: the output, or the output before a scale that stays.
    from: ValueId,
    /// The end of the path.
    at: ValueId,
}

impl Analysis<'_> {
    /// Returns the redirects that take `output` of `module` to the module's skip: none if it is what entered the module
    /// already.
    pub(super) fn shortcut(
        &self,
        module: ModuleId,
        flow: &Flow,
        output: ValueId,
    ) -> Result<Vec<Redirect>, Illegal> {
        if let Some(redirect) = self.skip_of_part(module, flow, output) {
            return Ok(vec![redirect]);
        }
        match self.skip_inside(module, flow, output, false) {
            Err(inside) if self.modules.get(module).kind.is_branch() => {
                self.skips_around(module, output).ok_or(inside)
            }
            Ok(origin) => {
                Ok(origin.map(|Origin { from, at }| Redirect { from, to: at }).into_iter().collect())
            }
            Err(inside) => Err(inside),
        }
    }

    /// Follows the residual Adds in `module` back from `output` until they lead out of it, or, if it may be `joined`, to
    /// a Concat of what comes from outside. Returns `None` if nothing is added on the way out.
    fn skip_inside(
        &self,
        module: ModuleId,
        flow: &Flow,
        output: ValueId,
        joined: bool,
    ) -> Result<Option<Origin>, Illegal> {
        let composite = matches!(
            self.modules.get(module).kind,
            ModuleKind::MidBlock | ModuleKind::DownBlock | ModuleKind::UpBlock
        );
        let (mut at, mut from, mut residuals) = (output, output, 0usize);
        let mut path = Vec::new();
        loop {
            let producer = self.graph.producer(at).filter(|_| self.is_inside(at, module));
            let Some(id) = producer else {
                if residuals == 0 {
                    return Ok(None);
                }
                break;
            };
            let node = self.graph.node(id);
            if residuals > 0
                && let Some(entering) = self.entering_a_sum(module, flow, id)
            {
                at = entering;
                continue;
            }
            if let Some((a, b)) = self.addends(node) {
                let skip = self.blended(flow, a, b).or_else(|| self.skip_operand(module, flow, a, b));
                at = skip.ok_or_else(|| {
                    Illegal::at(self.graph, id, "adds two branches, neither of which is the other's skip")
                })?;
                residuals += 1;
                continue;
            }
            let operands: Vec<_> = flow.operands(node).collect();
            match operands[..] {
                [operand] if self.keeps_elements(node) => at = operand,
                [operand] if moves::of(&self.shapes, node).is_some() && node.input(0) == Some(operand) => {
                    path.extend(moves::of(&self.shapes, node));
                    at = operand;
                }
                // A scale on the output stays (`output_scale_factor`), unless the whole block becomes its input.
                [operand] if constants::scales_by_constant(self.graph, node) && residuals == 0 => {
                    at = operand;
                    if !composite {
                        from = operand;
                        path.clear();
                    }
                }
                [operand] if constants::scales_by_constant(self.graph, node) && composite => at = operand,
                _ if residuals > 0 && self.leads_out_linearly(module, flow, at) => break,
                _ if residuals > 0 && joined && self.joins(module, node) => break,
                _ => {
                    return Err(Illegal::at(
                        self.graph,
                        id,
                        "makes its output, and no skip path leads around it",
                    ));
                }
            }
        }
        if !moves::cancel(path.into_iter().rev()) {
            return Err(Illegal::new("its skip path has the elements in another order than its output"));
        }
        Ok(Some(Origin { from, at }))
    }

    /// Returns whether `node` changes no element of what it reads but for its type.
    fn keeps_elements(&self, node: &Node) -> bool {
        let is_float = |value: Option<ValueId>| {
            value.and_then(|v| self.shapes.data_type(v)).is_some_and(|t| t.is_weight_float())
        };
        node.is("Identity")
            || constants::scales_by_one(self.graph, node)
            || (node.is("Cast") && is_float(node.input(0)) && is_float(node.output(0)))
    }

    /// Returns whether `node` is a Concat of values from outside `module`.
    fn joins(&self, module: ModuleId, node: &Node) -> bool {
        node.is("Concat") && node.operands().all(|v| !self.is_inside(v, module))
    }

    /// Returns the skip of an output that is a part of a residual sum, where the skip of the sum is a Concat: the
    /// operand of the Concat at the same place (FLUX's single blocks, which run text and sample as one stream).
    fn skip_of_part(&self, module: ModuleId, flow: &Flow, output: ValueId) -> Option<Redirect> {
        let part = self.graph.node(self.graph.producer(output).filter(|_| self.is_inside(output, module))?);
        if !part.is("Slice") && !part.is("Split") {
            return None;
        }
        let sum = self.skip_inside(module, flow, part.input(0)?, true).ok().flatten();
        let sum = sum.filter(|o| Some(o.from) == part.input(0))?;
        let concat = self.graph.node(self.graph.producer(sum.at)?);
        if !self.joins(module, concat) {
            return None;
        }
        let rank = self.shapes.of(sum.at)?.dims.len();
        let axis = axis(concat.int("axis")?, rank)?;
        let start = self.start_of_part(part, output, axis, rank)?;
        let length = |value: ValueId| self.shapes.of(value)?.dims.get(axis).filter(|d| d.is_known()).cloned();
        let mut offset = Dim::from(0);
        for operand in concat.operands() {
            if offset == start && length(operand)? == length(output)? {
                return Some(Redirect { from: output, to: operand });
            }
            offset = offset.add(&length(operand)?)?;
        }
        None
    }

    /// Returns where the part `output` of the operand of `node` begins on `axis`; `None` if it is cut on another axis, or
    /// in steps.
    fn start_of_part(&self, node: &Node, output: ValueId, axis_of: usize, rank: usize) -> Option<Dim> {
        if node.is("Split") {
            if axis(node.int("axis").unwrap_or(0), rank)? != axis_of {
                return None;
            }
            let before = node.results().take_while(|v| *v != output);
            return before
                .map(|v| self.shapes.of(v)?.dims.get(axis_of).cloned())
                .try_fold(Dim::from(0), |sum, length| sum.add(&length?));
        }
        let number = |slot: usize| node.input(slot).map(|v| self.shapes.scalar(v));
        let cut = match number(3) {
            Some(stated) => axis(stated? as i64, rank)?,
            None => 0,
        };
        let forward = number(4).is_none_or(|step| step == Some(1.0));
        (cut == axis_of && forward).then(|| self.shapes.size(node.input(1)?))?
    }

    /// Returns the operands of a residual Add: two different values, neither of them a constant.
    pub(super) fn addends(&self, node: &Node) -> Option<(ValueId, ValueId)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let computed = |v| !constants::is_constant(self.graph, v);
        (node.is("Add") && a != b && computed(a) && computed(b)).then_some((a, b))
    }

    /// Returns whether `branch` is computed from `skip`, or, where two branches stand side by side (SD3.5's second
    /// attention), from what `skip` adds its own branch to.
    pub(super) fn is_skip_of(&self, skip: ValueId, branch: ValueId) -> bool {
        if self.flow.depends(self.graph, branch, skip) {
            return true;
        }
        let sum = self.graph.producer(skip).and_then(|p| self.addends(self.graph.node(p)));
        sum.is_some_and(|(a, b)| {
            let depends = |value, ancestor| self.flow.depends(self.graph, value, ancestor);
            (depends(b, a) && depends(branch, a)) || (depends(a, b) && depends(branch, b))
        })
    }

    /// Returns what two added operands are shares of, if they are: `p` of a value, and `1 - p` of the same value with
    /// branches added to it (SVD mixes a block of one frame with a block over time so).
    fn blended(&self, flow: &Flow, a: ValueId, b: ValueId) -> Option<ValueId> {
        let ((x, p), (y, q)) = (self.share(flow, a)?, self.share(flow, b)?);
        let constants = self.shapes.scalar(p).zip(self.shapes.scalar(q));
        let whole = constants.is_some_and(|(p, q)| (p + q - 1.0).abs() < 1e-6);
        if !whole && !self.is_rest(p, q) && !self.is_rest(q, p) {
            return None;
        }
        if self.is_sum_on(y, x) {
            return Some(x);
        }
        self.is_sum_on(x, y).then_some(y)
    }

    /// Returns the activation and the factor of a product of the two.
    fn share(&self, flow: &Flow, value: ValueId) -> Option<(ValueId, ValueId)> {
        let node = self.graph.node(self.graph.producer(value)?);
        let (a, b) = (node.input(0)?, node.input(1)?);
        let factors = match (flow.is_activation(a), flow.is_activation(b)) {
            (true, false) => (a, b),
            (false, true) => (b, a),
            _ => return None,
        };
        node.is("Mul").then_some(factors)
    }

    /// Returns whether `rest` is `1 - share`.
    fn is_rest(&self, rest: ValueId, share: ValueId) -> bool {
        let node = self.graph.producer(rest).map(|p| self.graph.node(p)).filter(|node| node.is("Sub"));
        node.is_some_and(|node| {
            node.input(0).and_then(|one| self.shapes.scalar(one)) == Some(1.0) && node.input(1) == Some(share)
        })
    }

    /// Returns whether `value` is `base` with branches added to it, or `base` itself.
    fn is_sum_on(&self, mut value: ValueId, base: ValueId) -> bool {
        while value != base {
            let Some(node) = self.graph.producer(value).map(|p| self.graph.node(p)) else { return false };
            let next = match self.addends(node) {
                Some((a, b)) if self.is_skip_of(a, b) => Some(a),
                Some((a, b)) if self.is_skip_of(b, a) => Some(b),
                Some(_) => None,
                None => node.input(0).filter(|_| self.keeps_elements(node)),
            };
            let Some(next) = next else { return false };
            value = next;
        }
        true
    }

    /// Returns what enters `module`, if `node` in it adds something to that which is no activation: a table of positions,
    /// say (Cosmos has one in each block). Only where an exporter says that the node is in the module: other tools leave
    /// biases of the layer before it there.
    fn entering_a_sum(&self, module: ModuleId, flow: &Flow, id: NodeId) -> Option<ValueId> {
        let node = self.graph.node(id);
        let told = matches!(self.modules.evidence(id), Evidence::Metadata | Evidence::NodeName);
        let mut operands = flow.operands(node);
        let (first, rest) = (operands.next()?, operands.next());
        let alone = node.is("Add") && rest.is_none() && node.input(0) != node.input(1);
        (told && alone && !self.is_inside(first, module)).then_some(first)
    }

    /// Returns which of two added operands is the skip of the other, which is computed in the module.
    fn skip_operand(&self, module: ModuleId, flow: &Flow, a: ValueId, b: ValueId) -> Option<ValueId> {
        let (inside_a, inside_b) = (self.is_inside(a, module), self.is_inside(b, module));
        if inside_b && self.is_skip_of(a, b) {
            return Some(a);
        }
        if inside_a && self.is_skip_of(b, a) {
            return Some(b);
        }
        if !inside_a && !inside_b {
            return None;
        }
        match (self.leads_out_linearly(module, flow, a), self.leads_out_linearly(module, flow, b)) {
            (true, false) => Some(a),
            (false, true) => Some(b),
            _ => None,
        }
    }

    /// Returns whether `value` is computed from outside `module` by linear layers alone.
    fn leads_out_linearly(&self, module: ModuleId, flow: &Flow, mut value: ValueId) -> bool {
        while self.is_inside(value, module) {
            let Some(node) = self.graph.producer(value).map(|p| self.graph.node(p)) else { return false };
            let operands: Vec<_> = flow.operands(node).collect();
            match operands[..] {
                [operand] if is_linear(node) => value = operand,
                _ => return false,
            }
        }
        true
    }
}

/// Returns `axis`, counted from the end if negative, as an index below `rank`.
fn axis(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(axis).ok().filter(|axis| *axis < rank)
}

fn is_linear(node: &Node) -> bool {
    ["Conv", "MatMul", "Gemm", "Add", "Identity", "Cast", "Reshape", "Transpose", "Flatten"]
        .iter()
        .any(|op| node.is(op))
}
