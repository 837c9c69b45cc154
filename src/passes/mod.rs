//! The passes, in order. A new pass is one file, one line in [`ORDERED`] and one test file.

mod bypass;
mod identity;
pub mod mask;
mod prune;
mod sweep;

use crate::{
    analysis::magnitude::{MagnitudeError, Progress},
    ir::{CheckError, EditError, Editor, Graph},
    onnx::OnnxError,
    plan::ResolvedPlan,
};
use mask::MaskError;
pub use prune::{MaskedTensor, PruneOutcome};

/// A pass that could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// An edit was refused.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// A tensor could not be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// Magnitudes could not be ranked.
    #[error(transparent)]
    Magnitude(#[from] MagnitudeError),
    /// A weight could not be masked.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// The graph was broken after the pass: a defect of this crate.
    #[error("the {pass} pass left a broken graph ({error}); please report this")]
    Broken {
        /// The pass.
        pass: &'static str,
        /// What is broken.
        error: CheckError,
    },
}

/// A pass: its name, and what it does.
struct Pass {
    name: &'static str,
    run: fn(&mut Context<'_>, &mut Editor<'_>) -> Result<(), PassError>,
}

/// The passes that make the pruned graph.
const ORDERED: [Pass; 4] = [
    // First, on values as the plan was resolved: later passes may add values, but never take a skip away.
    Pass { name: "bypass", run: |context, editor| bypass::run(context.plan, editor) },
    // Pools hold the weights of bypassed modules too, so they must still be there. Only descriptions of new elements
    // are made here: what the sweep removes is never computed.
    Pass {
        name: "prune",
        run: |context, editor| {
            context.outcomes = prune::run(context.plan, editor, context.progress)?;
            Ok(())
        },
    },
    // After everything that takes readers away.
    Pass { name: "sweep", run: |context, editor| sweep::run(&context.unread, editor) },
    // Last: it looks whether anything changed at all.
    Pass { name: "identity", run: |context, editor| identity::run(context.provenance, editor) },
];

struct Context<'a> {
    plan: &'a ResolvedPlan,
    provenance: &'a Provenance,
    progress: &'a Progress<'a>,
    unread: sweep::Unread,
    outcomes: Vec<PruneOutcome>,
}

/// Where an emitted graph comes from: written into its `metadata_props`.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// `pruned`, `fused` or `amplified`.
    pub emit: &'static str,
    /// SHA-256 of the plan's meaning.
    pub plan: String,
    /// SHA-256 of the source's structure ([`crate::ir::Graph::structure_digest`]).
    pub source: String,
}

/// Turns `graph` into the pruned graph of `plan`; returns what each prune rule came to. The graph is checked after
/// every pass.
///
/// # Errors
/// [`PassError`]; the graph is then of no use.
pub fn run(
    graph: &mut Graph,
    plan: &ResolvedPlan,
    provenance: &Provenance,
    progress: &Progress<'_>,
) -> Result<Vec<PruneOutcome>, PassError> {
    let unread = sweep::Unread::of(graph);
    let mut context = Context { plan, provenance, progress, unread, outcomes: Vec::new() };
    for pass in ORDERED {
        (pass.run)(&mut context, &mut graph.edit())?;
        graph.check().map_err(|error| PassError::Broken { pass: pass.name, error })?;
    }
    Ok(context.outcomes)
}
