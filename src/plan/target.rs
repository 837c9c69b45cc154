//! Which graph is made of a plan, and whether it can be.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::{Amplify, AmplifyWeight, During, Mode, On, Plan};
use crate::rules::{Edit, Edits};

/// Which graph is made of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Target {
    /// The pruned network.
    #[default]
    Pruned,
    /// Dense and pruned network mixed in one graph, with w from the plan's `amplify.weight`.
    Fused,
    /// The same, with w as a graph input.
    FusedWithInput,
    /// One network whose masked weights are multiplied by `1 - w`: amplification to first order at the cost of one
    /// network.
    Amplified,
    /// The network that amplification starts from: only what the plan changes in both.
    Dense,
}

impl Target {
    /// Returns its name on the command line, in reports, in a graph's metadata and name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pruned => "pruned",
            Self::Fused | Self::FusedWithInput => "fused",
            Self::Amplified => "amplified",
            Self::Dense => "dense",
        }
    }

    /// Returns whether the graph has both networks in it.
    pub fn is_fused(self) -> bool {
        matches!(self, Self::Fused | Self::FusedWithInput)
    }

    /// Returns the amplification weight w that is a constant of the graph; `None` if none is.
    ///
    /// # Errors
    /// Why the graph cannot follow `plan`, whose edits are `edits`.
    pub fn weight(self, plan: &Plan, edits: &Edits) -> Result<Option<f64>, String> {
        match self {
            Self::Pruned | Self::FusedWithInput | Self::Dense => Ok(None),
            Self::Fused => plan
                .amplify
                .constant()
                .map(Some)
                .map_err(|why| refusal("a fused graph with w baked in cannot follow this plan", why)),
            Self::Amplified => {
                masks_alone(edits)?;
                let refuse = |why| refusal("an amplified graph cannot follow this plan", why);
                plan.amplify.constant().map(Some).map_err(refuse)
            }
        }
    }
}

/// The graph of a pair that a cache takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Depth {
    /// The whole network, which gives what is kept as an output too.
    Full,
    /// The part of it on the near side of the cut, which takes what was kept as an input.
    Shallow,
}

impl Depth {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Full, Self::Shallow];

    /// Returns its name in files, reports, a graph's metadata and name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Shallow => "shallow",
        }
    }
}

impl Serialize for Depth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The names of what is kept, an output of the full graph and an input of the shallow one. The second is for the pruned
/// network of a fused graph, where it is another value there.
pub const CACHE_NAMES: [&str; 2] = ["cache", "cache_pruned"];

/// The networks that a sampling loop runs, as their files or as what is made of a plan for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unets<T = PathBuf> {
    /// The model's own.
    Dense,
    /// Another one in its place: a fused graph, or one with amplified weights.
    Instead(T),
    /// The model's own and a pruned one, mixed as `amplify` says.
    WithPruned(T),
    /// Two others, mixed in the same way: rules that a plan has for both networks make a dense one too.
    Pair {
        /// The dense one.
        dense: T,
        /// The pruned one.
        pruned: T,
    },
}

impl Unets<Target> {
    /// Returns what is made of `plan`. Rules for both networks alone leave nothing to mix. With a cache the dense network is
    /// never the model's own, which keeps nothing.
    pub fn of_plan(plan: &Plan) -> Self {
        let (has_always, has_rules) = (!plan.always.is_empty(), !plan.rules.is_empty());
        match (Self::of(plan.amplify.mode, has_always || plan.cache.is_some(), has_rules), has_always) {
            (Self::Instead(Target::Dense), false) => Self::Instead(Target::Pruned),
            (unets, _) => unets,
        }
    }

    /// Returns what is made of a plan with rules in these sets. Rules for both networks alone leave nothing to mix.
    pub fn of(mode: Mode, has_always: bool, has_rules: bool) -> Self {
        match (mode, has_always, has_rules) {
            (Mode::Weights, ..) => Self::Instead(Target::Amplified),
            (Mode::Outputs, false, _) => Self::WithPruned(Target::Pruned),
            (Mode::Outputs, true, false) => Self::Instead(Target::Dense),
            (Mode::Outputs, true, true) => Self::Pair { dense: Target::Dense, pruned: Target::Pruned },
        }
    }
}

impl<T> Unets<T> {
    /// Makes something of each network, the dense one first.
    ///
    /// # Errors
    /// The first that `make` gives.
    pub fn try_map<U, E>(self, mut make: impl FnMut(T) -> Result<U, E>) -> Result<Unets<U>, E> {
        Ok(match self {
            Self::Dense => Unets::Dense,
            Self::Instead(one) => Unets::Instead(make(one)?),
            Self::WithPruned(pruned) => Unets::WithPruned(make(pruned)?),
            Self::Pair { dense, pruned } => Unets::Pair { dense: make(dense)?, pruned: make(pruned)? },
        })
    }

    /// Returns the networks that are not the model's own, the dense one first.
    pub fn given(&self) -> impl DoubleEndedIterator<Item = &T> {
        let (dense, last) = match self {
            Self::Dense => (None, None),
            Self::Instead(one) | Self::WithPruned(one) => (None, Some(one)),
            Self::Pair { dense, pruned } => (Some(dense), Some(pruned)),
        };
        dense.into_iter().chain(last)
    }

    /// Returns whether a dense and a pruned network are mixed.
    pub fn are_mixed(&self) -> bool {
        matches!(self, Self::WithPruned(_) | Self::Pair { .. })
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Amplify {
    /// Returns w, if it is the same at every step and on both branches of guidance.
    ///
    /// # Errors
    /// The reason why it is not constant.
    pub fn constant(&self) -> Result<f64, &'static str> {
        let w = match self.weight.value {
            AmplifyWeight::Constant(w) => w,
            AmplifyWeight::Ramp { .. } | AmplifyWeight::Steps(_) => {
                return Err("amplify.weight changes from step to step");
            }
        };
        match (self.during, self.every.value.get(), self.on) {
            (During::Fraction { from, to }, 1, On::Both) if from <= 0.0 && to >= 1.0 => Ok(w),
            (_, 1, On::Both) => Err("amplify.during limits the steps"),
            (_, 1, On::Cond) => Err("amplify.on: cond treats the two branches of guidance differently"),
            _ => Err("amplify.every skips steps"),
        }
    }
}

fn refusal(what: &str, why: &str) -> String {
    format!(
        "{what}: {why}, and one graph does not know which step or branch it runs in. `crdiff run` follows the whole \
         plan; or emit a fused graph with `--poa-weight input` and let the sampling loop feed w (w = 0 turns \
         amplification off, but both branches are still computed)"
    )
}

/// Checks that the other network differs from the dense one by nothing but elements of weights set to 0.
fn masks_alone(edits: &Edits) -> Result<(), String> {
    let mut scaled = false;
    for change in &edits.other.changes {
        for edit in &change.edits {
            match edit {
                Edit::Transform(weights) => scaled |= weights.scale != 0.0,
                Edit::Attributes(_) | Edit::Splice(_) | Edit::Merge(_) => {
                    return Err(format!(
                        "an amplified graph stands for prune rules only: no weights multiplied by 1 - w stand for \
                         what `{}` changes. Emit a fused graph instead",
                        change.rule
                    ));
                }
                Edit::Redirect(_) => {
                    return Err(
                        "an amplified graph stands for prune rules only: for a bypassed module, multiplying by 1 - w \
                         is far from mixing the outputs (14 to 75 % off where it was measured). Emit a fused graph \
                         instead"
                            .to_string(),
                    );
                }
            }
        }
    }
    match scaled {
        true => {
            Err("an amplified graph sets the scale of masked weights itself, to 1 - w: leave `scale` out"
                .into())
        }
        false => Ok(()),
    }
}
