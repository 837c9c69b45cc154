//! The passes, in order. A new pass is one file, one line in `ORDERED` and one test file.

mod bypass;
mod compact;
mod feed;
mod fuse;
mod identity;
pub mod mask;
mod prune;
mod rank;
pub(crate) mod sweep;

use crate::{
    analysis::magnitude::{MagnitudeError, Progress},
    ir::{CheckError, EditError, Editor, Graph},
    onnx::OnnxError,
    plan::ResolvedPlan,
};
pub use feed::FedWeight;
pub use fuse::{MixWeight, Sharing, WEIGHT_INPUT};
use mask::MaskError;
pub use prune::{MaskedTensor, PruneOutcome};
pub(crate) use rank::REPORTED_BINS;

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

/// Which graph is made of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Emit {
    /// The pruned network: modules bypassed, weights masked.
    Pruned,
    /// Dense and pruned network and their mix in one graph, with the inputs and outputs of the original.
    Fused(MixWeight),
    /// One network whose masked weights are multiplied by `1 - w`: amplification to first order at the cost of one
    /// network. Prune rules only.
    Amplified(f64),
}

impl Emit {
    /// Its name on the command line, in reports and in the graph's metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pruned => "pruned",
            Self::Fused(_) => "fused",
            Self::Amplified(_) => "amplified",
        }
    }
}

/// How masked weights are in the emitted graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaskForm {
    /// As new elements.
    #[default]
    Stored,
    /// As the original and a threshold, masked by nodes when the model is loaded, where the mask allows it.
    Computed,
    /// As inputs of the graph, for whoever runs it to feed: see [`Outcome::fed`].
    Fed,
}

/// A pass: its name, and what it does.
struct Pass {
    name: &'static str,
    run: fn(&mut Context<'_>, &mut Editor<'_>) -> Result<(), PassError>,
}

/// The passes, in order. Each looks at [`Context::emit`] for whether it has anything to do.
const ORDERED: [Pass; 7] = [
    // First, on values as the plan was resolved: later passes may add values, but never take a skip away.
    Pass {
        name: "bypass",
        run: |context, editor| match context.emit {
            Emit::Fused(_) => Ok(()),
            Emit::Pruned | Emit::Amplified(_) => bypass::run(context.plan, editor),
        },
    },
    // Pools hold the weights of bypassed modules too, so they must still be there. Only descriptions of new elements
    // are made here: what the sweep removes is never computed.
    Pass {
        name: "prune",
        run: |context, editor| {
            if !matches!(context.emit, Emit::Fused(_)) {
                context.outcomes = prune::run(context.plan, editor, context.progress)?;
            }
            Ok(())
        },
    },
    // In place of both: the dense branch must stay as it is, so the plan is followed in copies.
    Pass {
        name: "fuse",
        run: |context, editor| {
            if let Emit::Fused(weight) = context.emit {
                (context.outcomes, context.sharing) =
                    fuse::run(context.plan, weight, editor, context.progress)?;
            }
            Ok(())
        },
    },
    // Before the sweep: the original of a masked copy may have no reader until it gets one here.
    Pass {
        name: "compact",
        run: |context, editor| match context.masks {
            MaskForm::Computed => compact::run(context.plan, &mut context.outcomes, editor),
            MaskForm::Stored | MaskForm::Fed => Ok(()),
        },
    },
    // Before the sweep, for the same reason turned round: the masked initializers have no reader afterwards.
    Pass {
        name: "feed",
        run: |context, editor| {
            if context.masks == MaskForm::Fed {
                context.fed = feed::run(context.plan, &context.outcomes, editor)?;
            }
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
    emit: Emit,
    masks: MaskForm,
    provenance: &'a Provenance,
    progress: &'a Progress<'a>,
    unread: sweep::Unread,
    outcomes: Vec<PruneOutcome>,
    sharing: Sharing,
    fed: Vec<FedWeight>,
}

/// Where an emitted graph comes from: written into its `metadata_props`.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// [`Emit::name`]
    pub emit: &'static str,
    /// SHA-256 of the plan's meaning.
    pub plan: String,
    /// SHA-256 of the source's structure ([`crate::ir::Graph::structure_digest`]).
    pub source: String,
}

/// What the passes found out on the way.
#[derive(Debug)]
pub struct Outcome {
    /// What each prune rule came to.
    pub prunes: Vec<PruneOutcome>,
    /// What a fused graph computes once.
    pub sharing: Sharing,
    /// The inputs that [`MaskForm::Fed`] has added.
    pub fed: Vec<FedWeight>,
}

/// Turns `graph` into what `plan` makes of it. The graph is checked after every pass that edited it. In a plan for
/// [`Emit::Amplified`] the scale of every prune rule must be `1 - w` already.
///
/// # Errors
/// [`PassError`]; the graph is then of no use.
pub fn run(
    graph: &mut Graph,
    plan: &ResolvedPlan,
    emit: Emit,
    masks: MaskForm,
    provenance: &Provenance,
    progress: &Progress<'_>,
) -> Result<Outcome, PassError> {
    let unread = sweep::Unread::of(graph);
    let mut context = Context {
        plan,
        emit,
        masks,
        provenance,
        progress,
        unread,
        outcomes: Vec::new(),
        sharing: Sharing::default(),
        fed: Vec::new(),
    };
    for pass in ORDERED {
        let before = graph.edits();
        (pass.run)(&mut context, &mut graph.edit())?;
        if graph.edits() != before {
            graph.check().map_err(|error| PassError::Broken { pass: pass.name, error })?;
        }
    }
    Ok(Outcome { prunes: context.outcomes, sharing: context.sharing, fed: context.fed })
}
