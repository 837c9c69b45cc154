//! The whole compiler as one function.

use crate::{
    analysis::{
        flow::Flow,
        magnitude::Progress,
        modules::{self, Modules},
        shapes::{self, Shapes},
        skip::Facts,
        weights,
    },
    ir::Graph,
    passes::{self, PassError, Provenance, PruneOutcome},
    plan::{self, Plan, PlanError, ResolvedPlan},
};

/// What a compilation found and did, beside the graph itself.
#[derive(Debug)]
pub struct Compilation {
    /// The plan, resolved against the model.
    pub resolved: ResolvedPlan,
    /// What each prune rule came to, in the order of `resolved.prunes`.
    pub outcomes: Vec<PruneOutcome>,
    /// The modules of the model as it came.
    pub modules: Modules,
    /// The shapes of the model as it came.
    pub shapes: Shapes,
}

/// Why a model could not be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The plan does not fit the model.
    #[error(transparent)]
    Plan(#[from] Box<PlanError>),
    /// A pass failed.
    #[error(transparent)]
    Pass(#[from] PassError),
}

/// Makes `graph` the pruned graph of `plan`: modules bypassed, weights masked. Weights are read only for thresholds;
/// masked elements are made when the graph is written ([`crate::onnx::write`]). A plan that changes nothing leaves
/// the graph unedited, and it will be written byte for byte as it came.
///
/// # Errors
/// [`CompileError`]; the graph is then of no use.
pub fn compile(graph: &mut Graph, plan: &Plan, progress: &Progress<'_>) -> Result<Compilation, CompileError> {
    let shapes = shapes::shapes(graph);
    let modules = modules::modules(graph);
    let flow = Flow::of(graph);
    let weights = weights::weights(graph, &modules);
    let facts = Facts { graph, modules: &modules, shapes: &shapes, flow: &flow };
    let resolved = plan::resolve(plan, &facts, &weights).map_err(Box::new)?;
    let provenance =
        Provenance { emit: "pruned", plan: plan.digest.clone(), source: graph.structure_digest() };
    let outcomes = passes::run(graph, &resolved, &provenance, progress)?;
    Ok(Compilation { resolved, outcomes, modules, shapes })
}
