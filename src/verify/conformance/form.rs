//! The forms in which a graph can hold a plan.

use super::{
    Form, Roots, Violation, fused_output, interface::Stamp, interface::WEIGHT_INPUT, per_row::PerRow,
    walk::Cone,
};
use crate::{
    ir::Graph,
    plan::{AmplifyWeight, During, On, Plan, Target},
    rules::{Edit, Edits},
};

impl Form {
    /// Returns its name for people.
    pub fn describe(&self) -> String {
        let mut text = self.target.describe().to_string();
        if let Some(depth) = self.depth {
            text = format!("{text}, the {} graph for a cache", depth.name());
        }
        match self.per_row.as_slice() {
            [] => text,
            inputs => format!("{text}, with {} for each row of the batch", inputs.join(" and ")),
        }
    }
}

impl Target {
    /// Returns its name for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::FusedWithInput => "fused, with w as an input",
            other => other.name(),
        }
    }

    /// Returns the forms that `compiled` can be, the likeliest first. Its metadata only decide which to try first; what
    /// it is taken for is then proven from its nodes and tensors.
    pub(super) fn candidates(
        original: &Graph,
        compiled: &Graph,
        plan: &Plan,
        edits: &Edits,
        stamp: Option<&Stamp>,
        [pruned, dense]: [&Cone; 2],
    ) -> Vec<Self> {
        let is_weight = |graph: &Graph| graph.inputs().any(|io| io.info.name() == WEIGHT_INPUT);
        let fused =
            if is_weight(compiled) && !is_weight(original) { Self::FusedWithInput } else { Self::Fused };
        match stamp.and_then(Stamp::emit) {
            Some("fused") => return vec![fused],
            Some("amplified") => return vec![Self::Amplified],
            Some("dense") => return vec![Self::Dense],
            Some(_) => return vec![Self::Pruned],
            None => {}
        }
        let is_mixed = |(index, io): (usize, &crate::ir::GraphIo)| {
            pruned.reach.has(original, [pruned, dense], io.value)
                && fused_output::mix(compiled, index).is_ok()
        };
        if fused == Self::FusedWithInput || original.outputs().iter().enumerate().any(is_mixed) {
            return vec![fused];
        }
        let amplified = edits.other.weights().next().is_some() && constant_weight(plan).is_some();
        let mut forms = vec![Self::Pruned];
        forms.extend(amplified.then_some(Self::Amplified));
        forms.extend((!edits.always.changes.is_empty()).then_some(Self::Dense));
        forms
    }

    /// Reports what of the plan a graph of this form cannot follow.
    pub(super) fn fits(self, plan: &Plan, edits: &Edits, differences: &mut Vec<Violation>) {
        if !matches!(self, Self::Fused | Self::Amplified) {
            return;
        }
        let mut report = |why: &str| {
            let message = format!("{why}: one graph does not know which step or branch it runs in");
            differences.push(Violation::last(message));
        };
        let amplify = &plan.amplify;
        if constant_weight(plan).is_none() {
            report("the plan's amplify.weight changes from step to step");
        }
        let always = matches!(&amplify.during, During::Fraction { from, to } if *from <= 0.0 && *to >= 1.0);
        if !always || amplify.every.value.get() != 1 || amplify.on != On::Both {
            report("the plan's amplify.during, every or on leaves steps or branches out");
        }
        let is_weights = |edit: &Edit| match edit {
            Edit::Transform(_) => true,
            Edit::Redirect(_) | Edit::Attributes(_) | Edit::Splice(_) | Edit::Merge(_) => false,
        };
        if self == Self::Amplified && !edits.other.changes.iter().flat_map(|c| &c.edits).all(is_weights) {
            let message = "an amplified graph stands for masked weights only, not for modules that are left out or \
                           changed otherwise";
            differences.push(Violation::last(message.into()));
        }
    }

    /// Returns the factor on masked weights, from the scale of their rule. In an amplified graph
    /// that is `(1 - w) + w * scale`: the amplification of what the rule does to the weight.
    pub(super) fn factor(self, plan: &Plan) -> Box<dyn Fn(f64) -> f64 + Sync> {
        match (self, constant_weight(plan)) {
            (Self::Amplified, Some(w)) => Box::new(move |scale| (1.0 - w) + w * scale),
            _ => Box::new(|scale| scale),
        }
    }

    /// Returns the outputs of the networks in `compiled`: pairs of values for each pair of outputs, the compiled
    /// graph's first.
    pub(super) fn roots(
        self,
        [compiled, original]: [&Graph; 2],
        rows: &PerRow,
        plan: &Plan,
        outputs: &[(usize, usize)],
        [pruned, dense]: [&Cone; 2],
        differences: &mut Vec<Violation>,
    ) -> Roots {
        let mut roots = Roots::default();
        for (found, wanted) in outputs {
            let (Some(have), Some(want)) = (compiled.outputs().get(*found), original.outputs().get(*wanted))
            else {
                continue;
            };
            let plain = (have.value, want.value, *found);
            match self {
                Self::Fused | Self::FusedWithInput => {}
                Self::Pruned | Self::Amplified => {
                    roots.pruned.push(plain);
                    continue;
                }
                Self::Dense => {
                    roots.dense.push(plain);
                    continue;
                }
            }
            // An output that the plan doesn't reach is the same in both networks: nothing is mixed.
            if !pruned.reach.has(original, [pruned, dense], want.value) {
                roots.pruned.push(plain);
                roots.dense.push(plain);
                continue;
            }
            let constant = if self == Self::Fused { constant_weight(plan) } else { None };
            let mix = fused_output::mix(compiled, *found).and_then(|mix| {
                fused_output::check_weight(compiled, mix.w, constant, rows, rows.rank(*wanted))?;
                Ok(mix)
            });
            match mix {
                Ok(mix) => {
                    roots.pruned.push((mix.pruned, want.value, *found));
                    roots.dense.push((mix.dense, want.value, *found));
                }
                Err(why) => {
                    let name = want.info.name();
                    differences.push(Violation::last(format!(
                        "output `{name}` is not the mix of both networks: {why}"
                    )));
                }
            }
        }
        roots
    }
}

fn constant_weight(plan: &Plan) -> Option<f64> {
    match plan.amplify.weight.value {
        AmplifyWeight::Constant(weight) => Some(weight),
        _ => None,
    }
}
