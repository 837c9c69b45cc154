//! Following residual Adds back from the output of a module to its skip.

use super::{Illegal, Redirect};
use crate::{
    analysis::{
        Analysis, constants,
        flow::data_uses,
        modules::{ModuleId, ModuleKind},
        moves,
        shapes::Dim,
    },
    ir::{Node, Use, ValueId},
};

/// The end of a residual path of a module.
struct Origin {
    /// The value to replace: the output, or the output before a scale that stays.
    from: ValueId,
    /// The end of the path.
    at: ValueId,
}

impl Analysis<'_> {
    /// Returns the redirect that takes `output` of `module` to the module's skip.
    pub(super) fn shortcut(&self, module: ModuleId, output: ValueId) -> Result<Redirect, Illegal> {
        if let Some(redirect) = self.skip_of_part(module, output) {
            return Ok(redirect);
        }
        match self.skip_inside(module, output, false) {
            Err(inside) if self.modules.get(module).kind.is_branch() => {
                self.skip_around(module, output).ok_or(inside)
            }
            Ok(Origin { from, at }) => Ok(Redirect { from, to: at }),
            Err(inside) => Err(inside),
        }
    }

    /// Follows the residual Adds in `module` back from `output` until they lead out of it, or, if it may be `joined`, to
    /// a Concat of what comes from outside.
    fn skip_inside(&self, module: ModuleId, output: ValueId, joined: bool) -> Result<Origin, Illegal> {
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
                    return Err(Illegal::new("its output is its input already"));
                }
                break;
            };
            let node = self.graph.node(id);
            if let Some((a, b)) = self.addends(node) {
                at = self.skip_operand(module, a, b).ok_or_else(|| {
                    Illegal::at(self.graph, id, "adds two branches, neither of which is the other's skip")
                })?;
                residuals += 1;
                continue;
            }
            let operands: Vec<_> = self.flow.operands(node).collect();
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
                _ if residuals > 0 && self.leads_out_linearly(module, at) => break,
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
        Ok(Origin { from, at })
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
    fn skip_of_part(&self, module: ModuleId, output: ValueId) -> Option<Redirect> {
        let part = self.graph.node(self.graph.producer(output).filter(|_| self.is_inside(output, module))?);
        if !part.is("Slice") && !part.is("Split") {
            return None;
        }
        let sum =
            self.skip_inside(module, part.input(0)?, true).ok().filter(|o| Some(o.from) == part.input(0))?;
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

    /// Returns the Add after `module` that adds the module's output to what the module was computed from.
    fn skip_around(&self, module: ModuleId, output: ValueId) -> Option<Redirect> {
        let mut at = output;
        loop {
            let uses: Vec<_> = data_uses(self.graph, at).collect();
            let [Use::Operand { node, .. }] = uses[..] else { return None };
            let node = self.graph.node(node);
            let result = node.output(0)?;
            if let Some((a, b)) = self.addends(node) {
                let skip = if a == at { b } else { a };
                let around = self.is_skip_of(skip, at) && !self.is_inside(skip, module);
                return around.then_some(Redirect { from: result, to: skip });
            }
            let alone = self.flow.operands(node).all(|v| v == at);
            if !alone || !CARRIES.iter().any(|op| node.is(op)) {
                return None;
            }
            at = result;
        }
    }

    /// Returns the operands of a residual Add: two different values, neither of them a constant.
    fn addends(&self, node: &Node) -> Option<(ValueId, ValueId)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let computed = |v| !constants::is_constant(self.graph, v);
        (node.is("Add") && a != b && computed(a) && computed(b)).then_some((a, b))
    }

    /// Returns whether `branch` is computed from `skip`, or, where two branches stand side by side (SD3.5's second
    /// attention), from what `skip` adds its own branch to.
    fn is_skip_of(&self, skip: ValueId, branch: ValueId) -> bool {
        if self.flow.depends(self.graph, branch, skip) {
            return true;
        }
        let sum = self.graph.producer(skip).and_then(|p| self.addends(self.graph.node(p)));
        sum.is_some_and(|(a, b)| {
            let depends = |value, ancestor| self.flow.depends(self.graph, value, ancestor);
            (depends(b, a) && depends(branch, a)) || (depends(a, b) && depends(branch, b))
        })
    }

    /// Returns which of two added operands is the skip of the other.
    fn skip_operand(&self, module: ModuleId, a: ValueId, b: ValueId) -> Option<ValueId> {
        if self.is_skip_of(a, b) {
            return Some(a);
        }
        if self.is_skip_of(b, a) {
            return Some(b);
        }
        match (self.leads_out_linearly(module, a), self.leads_out_linearly(module, b)) {
            (true, false) => Some(a),
            (false, true) => Some(b),
            _ => None,
        }
    }

    /// Returns whether `value` is computed from outside `module` by linear layers alone.
    fn leads_out_linearly(&self, module: ModuleId, mut value: ValueId) -> bool {
        while self.is_inside(value, module) {
            let Some(node) = self.graph.producer(value).map(|p| self.graph.node(p)) else { return false };
            let operands: Vec<_> = self.flow.operands(node).collect();
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

/// Operators that may stand between a branch's last layer and its residual Add.
const CARRIES: [&str; 7] = ["Identity", "Mul", "Div", "Dropout", "Cast", "Reshape", "Transpose"];

fn is_linear(node: &Node) -> bool {
    ["Conv", "MatMul", "Gemm", "Add", "Identity", "Cast", "Reshape", "Transpose", "Flatten"]
        .iter()
        .any(|op| node.is(op))
}
