//! Skip paths: the value that stands in for a bypassed module's output, and whether the bypass is legal.
//!
//! The skip path is found from data flow: at a residual Add, the branch is the operand that is computed from the
//! other one, and that other one is the skip. Where neither is computed from the other (a resnet whose shortcut is
//! a convolution), the skip is the operand that reaches the module's input through linear layers alone. Neither the
//! order of operands nor any name decides.

mod around;
mod residual;

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Analysis,
    flow::{Flow, data_uses},
    modules::{ModuleId, ModuleKind},
    shapes::Agreement,
};
use crate::ir::{Graph, NodeId, Use, ValueId};

/// The kind of value that stands in for the output of a bypassed module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// The module's residual skip.
    #[default]
    Shortcut,
    /// The module's input.
    Input,
    /// The hidden operand of the skip Concat before an up-block's resnet, as BK-SDM does.
    Backbone,
}

impl Via {
    /// Returns its name in plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shortcut => "shortcut",
            Self::Input => "input",
            Self::Backbone => "backbone",
        }
    }
}

/// A legal bypass.
#[derive(Clone, Debug)]
pub struct Bypass {
    /// The module.
    pub module: ModuleId,
    /// Each value that is replaced, and its replacement. One for most modules, two where two streams run side by side.
    pub redirects: Vec<Redirect>,
    /// Sizes at which the bypass is legal, if not at all: "legal for heights and widths divisible by 8".
    pub note: Option<String>,
}

/// A redirection: everything that reads `from` reads `to` instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Redirect {
    /// The module's output.
    pub from: ValueId,
    /// The value that takes its place.
    pub to: ValueId,
}

/// A Concat of an up-block at which a skip connection ends.
#[derive(Clone, Debug)]
pub struct SkipConcat {
    /// The node.
    pub node: NodeId,
    /// The operand that comes from below: its place and its value.
    pub backbone: (usize, ValueId),
    /// The operand that comes over the skip connection.
    pub skip: (usize, ValueId),
    /// The result.
    pub result: ValueId,
}

/// Why a module cannot be changed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Illegal {
    /// A full clause: "its output comes from Conv node `...`, which has no skip path around it".
    pub reason: String,
    /// The node that stands in the way.
    pub node: Option<NodeId>,
}

impl Illegal {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), node: None }
    }

    pub(crate) fn at(graph: &Graph, node: NodeId, reason: &str) -> Self {
        Self { reason: format!("{} {reason}", graph.node(node).describe()), node: Some(node) }
    }
}

impl Analysis<'_> {
    /// Decides what bypassing `module` means.
    ///
    /// # Errors
    /// [`Illegal`] if the module has no such path, or the shapes on both sides are not proven equal.
    pub fn bypass(&self, module: ModuleId, via: Via) -> Result<Bypass, Illegal> {
        self.decide(module, via).map_err(|illegal| self.explain(module, self.reshapes(module, illegal)))
    }

    /// Adds to `illegal` that the module changes the shape, if it has one input and one output and does.
    fn reshapes(&self, module: ModuleId, illegal: Illegal) -> Illegal {
        let ([input], [output]) = (&self.inputs(module)[..], &self.outputs(module)[..]) else {
            return illegal;
        };
        let (Some(before), Some(after)) = (self.shapes.of(*input), self.shapes.of(*output)) else {
            return illegal;
        };
        match self.shapes.compare(*input, *output) {
            Agreement::Different(_) if illegal.node.is_some() => {
                Illegal { reason: format!("it turns {before} into {after}: {}", illegal.reason), ..illegal }
            }
            _ => illegal,
        }
    }

    fn decide(&self, module: ModuleId, via: Via) -> Result<Bypass, Illegal> {
        let flow = self.flow_in(module);
        let outputs = self.leaving(module, flow);
        if module == self.modules.root() {
            return Err(Illegal::new("it is the whole model"));
        }
        if outputs.is_empty() {
            return Err(Illegal::new(
                "nothing outside it reads anything that it computes from sample or text",
            ));
        }
        let redirects = match via {
            Via::Shortcut => {
                let skips = outputs.iter().map(|output| self.shortcut(module, flow, *output));
                let redirects = skips.collect::<Result<Vec<_>, _>>()?.concat();
                if redirects.is_empty() {
                    return Err(Illegal::new("its output is its input already"));
                }
                redirects
            }
            Via::Input => vec![Redirect { from: self.only_output(&outputs)?, to: self.input(module)? }],
            Via::Backbone => vec![Redirect { from: self.only_output(&outputs)?, to: self.backbone(module)? }],
        };
        let mut note = None;
        for redirect in &redirects {
            note = self.agree(redirect)?.or(note);
        }
        Ok(Bypass { module, redirects, note })
    }

    /// Returns the modules in `module` that can be bypassed, nearest first: what to try instead.
    pub fn bypassable_within(&self, module: ModuleId) -> Vec<ModuleId> {
        let mut found = Vec::new();
        let mut level = self.modules.get(module).children.clone();
        while found.is_empty() && !level.is_empty() {
            found.extend(level.iter().copied().filter(|m| self.is_candidate(*m)));
            level = level.iter().flat_map(|m| self.modules.get(*m).children.clone()).collect();
        }
        found
    }

    /// Returns whether `module` is of a kind that has a skip path, and that path is legal.
    pub fn is_candidate(&self, module: ModuleId) -> bool {
        let kind = self.modules.get(module).kind;
        kind.is_block() && self.bypass(module, Via::Shortcut).is_ok()
    }

    /// Returns the modules that no name marks as blocks, but whose output is their input plus a branch.
    pub(super) fn blocks_by_structure(&self) -> Vec<ModuleId> {
        let unnamed =
            self.modules.iter().filter(|(_, m)| m.kind == ModuleKind::Other && !m.children.is_empty());
        let is_block = |id: ModuleId| {
            let bypass = self.bypass(id, Via::Shortcut);
            bypass.is_ok_and(|b| b.redirects.iter().all(|r| !self.is_inside(r.to, id)))
        };
        unnamed.map(|(id, _)| id).filter(|id| is_block(*id)).collect()
    }

    /// Returns the flow that `module` lies in: that of the sample, or that of the text if nothing in it is computed from
    /// the sample.
    fn flow_in(&self, module: ModuleId) -> &Flow {
        let mut nodes = self.modules.nodes(module).into_iter();
        let carries = nodes.any(|n| self.graph.node(n).results().any(|v| self.flow.is_activation(v)));
        if carries { &self.flow } else { &self.context }
    }

    /// Returns the activations that leave `module`.
    pub fn outputs(&self, module: ModuleId) -> Vec<ValueId> {
        self.leaving(module, &self.flow)
    }

    fn leaving(&self, module: ModuleId, flow: &Flow) -> Vec<ValueId> {
        let inside = |node: NodeId| self.modules.is_within(self.modules.of_node(node), module);
        let mut outputs = Vec::new();
        for node in self.modules.nodes(module) {
            for value in self.graph.node(node).results().filter(|v| flow.is_activation(*v)) {
                let leaves = data_uses(self.graph, value).any(|used| match used {
                    Use::Operand { node, .. } | Use::Capture(node) => !inside(node),
                    Use::Output(_) => true,
                });
                if leaves {
                    outputs.push(value);
                }
            }
        }
        outputs
    }

    /// Returns the activations that enter `module`.
    pub fn inputs(&self, module: ModuleId) -> Vec<ValueId> {
        self.entering(module, &self.flow)
    }

    fn entering(&self, module: ModuleId, flow: &Flow) -> Vec<ValueId> {
        let mut inputs = Vec::new();
        for id in self.modules.nodes(module) {
            let node = self.graph.node(id);
            if node.is("Shape") || node.is("Size") {
                continue;
            }
            for value in flow.operands(node) {
                if !self.is_inside(value, module) && !inputs.contains(&value) {
                    inputs.push(value);
                }
            }
        }
        inputs
    }

    fn is_inside(&self, value: ValueId, module: ModuleId) -> bool {
        self.graph.producer(value).is_some_and(|p| self.modules.is_within(self.modules.of_node(p), module))
    }

    pub(super) fn only_output(&self, outputs: &[ValueId]) -> Result<ValueId, Illegal> {
        match outputs {
            [output] => Ok(*output),
            _ => Err(Illegal::new(format!("it has {} outputs: {}", outputs.len(), self.names(outputs)))),
        }
    }

    /// Returns the value that everything else which flows into `module` is computed from: its input. Where the
    /// exporter's scopes are lost, a norm before the first convolution may not be known to lie in the module.
    pub(super) fn input(&self, module: ModuleId) -> Result<ValueId, Illegal> {
        let inputs = self.entering(module, self.flow_in(module));
        let first = inputs.iter().find(|first| {
            inputs.iter().all(|other| other == *first || self.flow.depends(self.graph, *other, **first))
        });
        first
            .copied()
            .ok_or_else(|| Illegal::new(format!("it has {} inputs: {}", inputs.len(), self.names(&inputs))))
    }

    fn names(&self, values: &[ValueId]) -> String {
        let names: Vec<_> = values.iter().map(|v| format!("`{}`", self.graph.value(*v).name)).collect();
        names.join(", ")
    }

    fn backbone(&self, module: ModuleId) -> Result<ValueId, Illegal> {
        Ok(self.backbone_concat(module)?.backbone.1)
    }

    /// Returns the Concat that is the input of `module`, at which a skip connection ends.
    pub(super) fn backbone_concat(&self, module: ModuleId) -> Result<SkipConcat, Illegal> {
        let no_concat = || {
            Illegal::new(
                "its input is not the Concat of an up-block with a skip connection, so there is no backbone",
            )
        };
        let concat = self.graph.producer(self.input(module)?).and_then(|node| self.skip_concat(node));
        concat.ok_or_else(no_concat)
    }

    /// Returns the Concats at which skip connections end, each with the block that it is the input of: the outermost.
    pub fn skip_concats(&self) -> Vec<(ModuleId, SkipConcat)> {
        let mut found: Vec<(ModuleId, SkipConcat)> = Vec::new();
        for (module, _) in self.modules.iter() {
            let concat = self.skip_concat_before(module);
            let concat = concat.filter(|concat| found.iter().all(|(_, known)| known.node != concat.node));
            found.extend(concat.map(|concat| (module, concat)));
        }
        found
    }

    /// Returns the Concat that is the input of the block `module`, if a skip connection ends at it.
    pub fn skip_concat_before(&self, module: ModuleId) -> Option<SkipConcat> {
        let is_block = self.modules.get(module).kind.is_block();
        let input = if is_block { self.input(module).ok()? } else { return None };
        self.skip_concat(self.graph.producer(input)?)
    }

    pub(super) fn skip_concat(&self, id: NodeId) -> Option<SkipConcat> {
        let node = self.graph.node(id);
        let operands: Vec<ValueId> = self.flow.operands(node).collect();
        let ([Some(a), Some(b)], [_, _]) = (&*node.inputs, operands.as_slice()) else { return None };
        let (first, second) = ((0, *a), (1, *b));
        // The skip connection was computed on the way down, so everything on the way up depends on it.
        let (backbone, skip) =
            match (self.flow.depends(self.graph, *a, *b), self.flow.depends(self.graph, *b, *a)) {
                (true, false) => (first, second),
                (false, true) => (second, first),
                _ => return None,
            };
        let result = node.output(0)?;
        node.is("Concat").then_some(SkipConcat { node: id, backbone, skip, result })
    }

    /// Adds to `illegal` what another tool did to the graph, if that is why.
    fn explain(&self, module: ModuleId, illegal: Illegal) -> Illegal {
        let around = self.modules.get(module).parent.unwrap_or(module);
        let foreign = self.modules.nodes(around).into_iter().map(|id| (id, self.graph.node(id)));
        let mut tampered = foreign.filter_map(|(id, node)| {
            if node.op_type.contains("Quantize") || node.op_type.contains("Integer") {
                Some((id, "the graph is quantised: compile the float graph, then quantise the result"))
            } else if node.domain == "com.microsoft" {
                Some((
                    id,
                    "the graph was fused by ONNX Runtime's optimizer: compile the graph as it was exported",
                ))
            } else {
                None
            }
        });
        match tampered.next() {
            Some((id, why)) => Illegal {
                reason: format!("{} ({why}; found {})", illegal.reason, self.graph.node(id).describe()),
                node: illegal.node,
            },
            None => illegal,
        }
    }

    /// Checks that both sides of `redirect` have the same type and shape.
    fn agree(&self, redirect: &Redirect) -> Result<Option<String>, Illegal> {
        let describe = |value| match self.shapes.of(value) {
            Some(shape) => shape.to_string(),
            None => "an unknown shape".to_string(),
        };
        let (from, to) = (describe(redirect.from), describe(redirect.to));
        match self.shapes.compare(redirect.from, redirect.to) {
            Agreement::Equal => Ok(None),
            Agreement::EqualWhenDivisible { by, symbols } => {
                Ok(Some(format!("legal where {} are divisible by {by}", symbols.join(" and "))))
            }
            Agreement::Different { .. } if from == to => {
                let name =
                    |value| self.shapes.data_type(value).map_or_else(|| "another".to_string(), |t| t.name());
                let (from, to) = (name(redirect.from), name(redirect.to));
                Err(Illegal::new(format!(
                    "it changes the element type: its skip path has {to}, its output {from}"
                )))
            }
            Agreement::Different { .. } => {
                Err(Illegal::new(format!("it changes the shape: its skip path has {to}, its output {from}")))
            }
            Agreement::Unknown => Err(Illegal::new(format!(
                "the shapes cannot be proven equal: its skip path has {to}, its output {from}"
            ))),
        }
    }
}
