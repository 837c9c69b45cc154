//! A model as a page draws it: its modules with their sizes, and the skip connections past the middle.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    analysis::{
        Analysis,
        flow::data_uses,
        macs,
        modules::{ModuleId, ModuleKind},
        shapes::ConcreteShapes,
    },
    ir::{Use, ValueId},
    report::inspect::{self, Filter, ModuleReport},
};

/// A model.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Anatomy {
    /// The file.
    pub name: String,
    /// The naming of the modules: `diffusers`, `ldm` or `unknown`.
    pub layout: &'static str,
    /// The prefix of a wrapper module that was dropped from every path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub wrapper: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Elements of all float initializers.
    pub parameters: u64,
    /// Version of the standard operator set.
    pub opset: Option<i64>,
    /// The latent size that shapes and multiply-accumulates are for: `64x64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Multiply-accumulates of the whole model at that size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macs: Option<u64>,
    /// Names of operators, which modules refer to by index.
    pub operators: Vec<String>,
    /// The modules, the ones around before the ones inside; lists (`resnets`, `attentions`) are passed over.
    pub modules: Vec<Part>,
    /// Ways from the modules going down to those going up: from, to, as indices of modules.
    pub skips: Vec<[usize; 2]>,
}

/// A module.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Part {
    /// Its path, as plans name it.
    pub path: String,
    /// The index of the module around it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<usize>,
    /// Its kind.
    pub kind: String,
    /// Nodes in it.
    pub nodes: usize,
    /// Float parameters in it, each counted once.
    pub parameters: u64,
    /// Multiply-accumulates at the size asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macs: Option<u64>,
    /// Shape of what it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Shape of what it makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Its operators: index of the name, and how often.
    pub operators: Vec<[usize; 2]>,
    /// Whether it can be bypassed; none where that is not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bypassable: Option<bool>,
    /// Why it cannot be bypassed, or at which sizes it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Anatomy {
    /// Looks at every module of the model called `name`. Shapes are symbolic and nothing is counted unless a latent size
    /// `(height, width)` is asked for.
    pub fn of(name: &str, analysis: &Analysis<'_>, at: Option<(i64, i64)>) -> Self {
        let report = inspect::inspect(name, analysis, &Filter::default());
        let concrete = at.map(|size| macs::at_size(analysis.graph, &analysis.shapes, size));
        let macs = concrete.as_ref().map(|concrete| macs::each(analysis.graph, concrete));
        let mut parts =
            Parts { analysis, concrete, macs, operators: Vec::new(), found: Vec::new(), ids: Vec::new() };
        let mut around: Vec<usize> = Vec::new();
        for module in report.modules {
            let Some(id) = analysis.modules.named(&module.path) else { continue };
            around.truncate(module.depth);
            parts.add(id, module, around.last().copied());
            around.push(parts.found.len() - 1);
        }
        Self {
            name: report.model,
            layout: report.layout,
            wrapper: report.wrapper,
            nodes: report.nodes,
            parameters: report.parameters,
            opset: report.opset,
            at: at.map(|(height, width)| format!("{height}x{width}")),
            macs: parts.macs.as_ref().map(|macs| macs.iter().sum()),
            skips: parts.skips(),
            operators: parts.operators,
            modules: parts.found,
        }
    }
}

struct Parts<'a> {
    analysis: &'a Analysis<'a>,
    concrete: Option<ConcreteShapes>,
    macs: Option<Vec<u64>>,
    operators: Vec<String>,
    found: Vec<Part>,
    /// The module of each part.
    ids: Vec<ModuleId>,
}

impl Parts<'_> {
    fn add(&mut self, id: ModuleId, report: ModuleReport, parent: Option<usize>) {
        let nodes = self.analysis.modules.nodes(id);
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for node in &nodes {
            let name = &self.analysis.graph.node(*node).op_type;
            let index = self.operators.iter().position(|known| *name == **known).unwrap_or_else(|| {
                self.operators.push(name.to_string());
                self.operators.len() - 1
            });
            *counts.entry(index).or_default() += 1;
        }
        let mut operators: Vec<[usize; 2]> = counts.into_iter().map(|(name, n)| [name, n]).collect();
        operators.sort_by_key(|[name, n]| (std::cmp::Reverse(*n), *name));
        let sum = |macs: &Vec<u64>| nodes.iter().filter_map(|node| macs.get(node.index())).sum();
        self.found.push(Part {
            path: report.path,
            parent,
            kind: report.kind,
            nodes: report.nodes,
            parameters: report.parameters,
            macs: self.macs.as_ref().map(sum),
            input: self.shape(report.input, || self.analysis.inputs(id)),
            output: self.shape(report.output, || self.analysis.outputs(id)),
            operators,
            bypassable: (report.bypassable || report.reason.is_some()).then_some(report.bypassable),
            reason: report.reason,
        });
        self.ids.push(id);
    }

    /// Returns the shape with numbers, where a size was asked for and they are known; else as it is.
    fn shape(&self, symbolic: Option<String>, values: impl Fn() -> Vec<ValueId>) -> Option<String> {
        let symbolic = symbolic?;
        let Some(concrete) = &self.concrete else { return Some(symbolic) };
        match values()[..] {
            [value] => concrete.of(value).map(|dims| format!("{dims:?}")).or(Some(symbolic)),
            _ => Some(symbolic),
        }
    }

    /// Returns the skip connections: which Concat nodes of the way up read which part of the way down. An end is a
    /// module in a block, or one beside them.
    fn skips(&self) -> Vec<[usize; 2]> {
        let (graph, modules, flow) = (self.analysis.graph, &self.analysis.modules, &self.analysis.flow);
        let part_of: BTreeMap<ModuleId, usize> = self.ids.iter().copied().zip(0..).collect();
        // The outermost part around a module that is no block, and the block.
        let place = |module: ModuleId| -> Option<(usize, Option<ModuleKind>)> {
            let mut line: Vec<ModuleId> = Vec::new();
            let mut at = Some(module);
            while let Some(id) = at {
                line.push(id);
                at = modules.get(id).parent;
            }
            let mut parts = line.into_iter().rev().filter_map(|id| Some((*part_of.get(&id)?, id)));
            let (outer, id) = parts.next()?;
            let kind = modules.get(id).kind;
            match kind {
                ModuleKind::DownBlock | ModuleKind::MidBlock | ModuleKind::UpBlock => {
                    Some((parts.next().map_or(outer, |(part, _)| part), Some(kind)))
                }
                _ => Some((outer, None)),
            }
        };
        let mut skips = BTreeSet::new();
        for (id, node) in graph.nodes().filter(|(_, node)| node.is("Concat")) {
            let at = |module| place(module).filter(|(_, kind)| *kind == Some(ModuleKind::UpBlock));
            if at(modules.of_node(id)).is_none() {
                continue;
            }
            let Some(result) = node.output(0) else { continue };
            // A Concat can be in the block, beside the module that it is for.
            let reader = data_uses(graph, result).find_map(|used| match used {
                Use::Operand { node, .. } => at(modules.of_node(node)),
                Use::Capture(_) | Use::Output(_) => None,
            });
            let to = reader.or_else(|| at(modules.of_node(id)));
            for value in flow.operands(node) {
                let Some(producer) = graph.producer(value) else { continue };
                let from = place(modules.of_node(producer));
                if let (Some((from, None | Some(ModuleKind::DownBlock))), Some((to, _))) = (from, to) {
                    skips.insert([from, to]);
                }
            }
        }
        skips.into_iter().collect()
    }
}
