//! Calls of the sampler's network: which networks run on which branches, and how their difference is amplified.
//! The loops on the host and on a device both follow it.

use super::{
    PipelineError,
    amplify::{DifferenceSource, Mix},
};
use crate::plan::On;

/// Gives the input and the output of a call, which cost a copy where they are on a device.
pub(super) type CallTensors<'a> = &'a mut dyn FnMut() -> Result<[Vec<f32>; 2], PipelineError>;

/// Some of the branches of guidance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// None.
    None,
    /// All that there are.
    All,
    /// The one without the prompt.
    Unconditional,
    /// The one with the prompt.
    Conditional,
}

impl Scope {
    /// Returns whether the branch without the prompt (0) or with it (1) is among them.
    pub(super) fn has(self, branch: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Unconditional => branch == 0,
            Self::Conditional => branch == 1,
        }
    }
}

/// One call: each network's branches, and the amplification of the difference between the two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CallPlan {
    /// Where the dense network runs.
    pub(super) dense: Scope,
    /// Where the pruned network runs.
    pub(super) pruned: Scope,
    /// How the dense output is amplified, if it is: `dense + weight * difference`.
    pub(super) amplified: Option<Amplified>,
}

/// An amplified difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Amplified {
    /// w.
    pub(super) weight: f32,
    /// Where the difference comes from.
    pub(super) difference: DifferenceSource,
    /// The branches that it is for.
    pub(super) scope: Scope,
}

impl CallPlan {
    /// Plans a call that is mixed as `mix` says. Without guidance there is one branch, whatever `on` says.
    pub(super) fn new(mix: Mix, on: On, guided: bool) -> Self {
        let scope = if guided && on == On::Cond { Scope::Conditional } else { Scope::All };
        let (dense, pruned, amplified) = match mix {
            Mix::Dense => (Scope::All, Scope::None, None),
            Mix::Pruned if scope == Scope::All => (Scope::None, Scope::All, None),
            Mix::Pruned => (Scope::Unconditional, Scope::Conditional, None),
            Mix::Amplified { weight, difference } => {
                let pruned = if difference == DifferenceSource::Kept { Scope::None } else { scope };
                (Scope::All, pruned, Some(Amplified { weight, difference, scope }))
            }
        };
        Self { dense, pruned, amplified }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_that_are_not_amplified_are_the_dense_networks() {
        let plan = |mix, on, guided| {
            let plan = CallPlan::new(mix, on, guided);
            (plan.dense, plan.pruned, plan.amplified.map(|amplified| amplified.scope))
        };
        let amplified = |difference| Mix::Amplified { weight: 1.5, difference };
        use Scope::{All, Conditional, None as Nothing, Unconditional};
        assert_eq!(plan(Mix::Dense, On::Cond, true), (All, Nothing, None));
        assert_eq!(plan(Mix::Pruned, On::Both, true), (Nothing, All, None));
        assert_eq!(plan(Mix::Pruned, On::Cond, true), (Unconditional, Conditional, None));
        assert_eq!(plan(Mix::Pruned, On::Cond, false), (Nothing, All, None));
        assert_eq!(plan(amplified(DifferenceSource::Fresh), On::Both, true), (All, All, Some(All)));
        assert_eq!(
            plan(amplified(DifferenceSource::FreshAndKept), On::Cond, true),
            (All, Conditional, Some(Conditional))
        );
        assert_eq!(
            plan(amplified(DifferenceSource::Kept), On::Cond, true),
            (All, Nothing, Some(Conditional))
        );
    }
}
