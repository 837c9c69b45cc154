//! Read-only facts about a graph: modules, shapes, flow, weights, skip paths. [`Analysis::of`] finds them.

pub mod attention;
pub mod constants;
pub mod cut;
pub mod flow;
pub mod macs;
pub mod magnitude;
pub mod modules;
mod moves;
pub mod per_row_inputs;
pub mod resize;
pub mod shapes;
pub mod skip;
pub mod splice;
pub mod weights;

use std::{ops::Deref, sync::Arc};

use self::{attention::Attentions, flow::Flow, modules::Modules, shapes::Shapes, weights::Weights};
use crate::ir::Graph;

/// A graph and what is known about it; the [`Findings`] are its fields too.
#[derive(Clone, Debug)]
pub struct Analysis<'g> {
    /// The graph.
    pub graph: &'g Graph,
    findings: Arc<Findings>,
}

/// All that is known about a graph, without the graph.
#[derive(Debug)]
pub struct Findings {
    /// Its module tree.
    pub modules: Modules,
    /// The symbolic shapes of its values.
    pub shapes: Shapes,
    /// Which values carry activations.
    pub flow: Flow,
    /// Which values are computed from the text.
    pub context: Flow,
    /// Its attentions.
    pub attentions: Attentions,
    /// The weights of its Linear and Conv2d layers.
    pub weights: Weights,
}

impl<'g> Analysis<'g> {
    /// Analyses `graph`.
    pub fn of(graph: &'g Graph) -> Self {
        let (shapes, (modules, attentions, weights, flow)) = rayon::join(
            || shapes::shapes(graph),
            || {
                let attentions = attention::structure(graph);
                let modules = modules::around(graph, &attentions);
                let weights = weights::around(graph, &modules, &attentions);
                (modules, attentions, weights, Flow::of(graph))
            },
        );
        let context = Flow::of_text(graph);
        let findings = Findings { modules, shapes, flow, context, attentions, weights };
        let mut analysis = Self::with(graph, Arc::new(findings));
        let blocks = analysis.blocks_by_structure();
        if let Some(findings) = Arc::get_mut(&mut analysis.findings) {
            blocks.into_iter().for_each(|module| findings.modules.set_block(module));
        }
        analysis
    }

    /// Puts `graph` and what [`Self::of`] found about it together again.
    pub fn with(graph: &'g Graph, findings: Arc<Findings>) -> Self {
        Self { graph, findings }
    }

    /// Returns the module tree alone, where the rest is not needed any more.
    pub fn into_modules(self) -> Modules {
        match Arc::try_unwrap(self.findings) {
            Ok(findings) => findings.modules,
            Err(shared) => shared.modules.clone(),
        }
    }

    /// Returns what is known about the graph, to be kept while the graph is edited.
    pub fn findings(&self) -> Arc<Findings> {
        Arc::clone(&self.findings)
    }
}

impl Deref for Analysis<'_> {
    type Target = Findings;

    fn deref(&self) -> &Findings {
        &self.findings
    }
}
