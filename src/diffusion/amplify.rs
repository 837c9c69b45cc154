//! A plan's `amplify:` for the calls of one sampling: what each call mixes its output from.

use super::{PipelineError, feature_cache::is_during, sampler::Row};
use crate::plan::{Amplify, AmplifyWeight, Curve, Mode};

/// The networks whose outputs make the output of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mix {
    /// The dense network alone.
    Dense,
    /// The pruned network alone, on the branches that are amplified.
    Pruned,
    /// `dense + weight * (pruned - dense)`.
    Amplified {
        /// w.
        weight: f32,
        /// Where `pruned - dense` comes from.
        difference: DifferenceSource,
    },
}

/// Where the difference between the networks comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DifferenceSource {
    /// The pruned network runs in this call; nothing reads the difference later.
    Fresh,
    /// The pruned network runs in this call, and the difference is kept for later ones.
    FreshAndKept,
    /// The last one that was kept.
    Kept,
}

/// Returns the mix of each row of a sampler table.
///
/// The mix is the dense network alone at a weight of 0 and outside `during`, and the pruned one alone at a weight of 1:
/// no difference is computed then, so `every` doesn't count. Elsewhere the pruned network runs if no difference is
/// known or the known one is `every` steps old. All calls of a step (Heun's and Runge-Kutta's have several) run the
/// pruned network, or none does.
///
/// # Errors
/// [`PipelineError::Request`] if a list of weights isn't one a step, or the mode is [`Mode::Weights`], which is a
/// property of the compiled graph ([`crate::compile::Target::Amplified`]).
pub fn mixes(amplify: &Amplify, rows: &[Row]) -> Result<Vec<Mix>, PipelineError> {
    if amplify.mode == Mode::Weights {
        let what = "`mode: weights` amplifies within one network; there are no outputs to mix";
        return Err(PipelineError::Request(what.to_string()));
    }
    let steps = rows.iter().map(|row| row.step + 1).max().unwrap_or(0);
    let weights = weights(&amplify.weight.value, steps)?;
    let every = usize::try_from(amplify.every.value.get()).unwrap_or(usize::MAX);
    let mut mixes = Vec::with_capacity(rows.len());
    let mut fresh_step: Option<usize> = None;
    for row in rows {
        let weight = weights.get(row.step).copied().unwrap_or(0.0);
        mixes.push(if weight == 0.0 || !is_during(amplify.during, row) {
            Mix::Dense
        } else if weight == 1.0 {
            Mix::Pruned
        } else {
            let fresh = fresh_step.is_none_or(|step| step == row.step || row.step - step >= every);
            if fresh {
                fresh_step = Some(row.step);
            }
            let difference = if fresh { DifferenceSource::Fresh } else { DifferenceSource::Kept };
            Mix::Amplified { weight: weight as f32, difference }
        });
    }
    keep_what_is_read(&mut mixes);
    Ok(mixes)
}

/// Marks the fresh differences that a later call reads.
fn keep_what_is_read(mixes: &mut [Mix]) {
    let mut read = false;
    for mix in mixes.iter_mut().rev() {
        if let Mix::Amplified { difference, .. } = mix {
            match difference {
                DifferenceSource::Kept => read = true,
                DifferenceSource::Fresh if read => {
                    (*difference, read) = (DifferenceSource::FreshAndKept, false)
                }
                DifferenceSource::Fresh | DifferenceSource::FreshAndKept => {}
            }
        }
    }
}

/// Returns the weight of each step.
fn weights(weight: &AmplifyWeight, steps: usize) -> Result<Vec<f64>, PipelineError> {
    match weight {
        AmplifyWeight::Constant(weight) => Ok(vec![*weight; steps]),
        AmplifyWeight::Ramp { from, to, curve } => {
            let last = steps.saturating_sub(1).max(1) as f64;
            let at = |step: usize| {
                let t = step as f64 / last;
                let t = match curve {
                    Curve::Linear => t,
                    Curve::Cosine => (1.0 - (std::f64::consts::PI * t).cos()) / 2.0,
                };
                from + (to - from) * t
            };
            Ok((0..steps).map(at).collect())
        }
        AmplifyWeight::Steps(weights) if weights.len() == steps => Ok(weights.clone()),
        AmplifyWeight::Steps(weights) => {
            let what =
                format!("the plan's `amplify.weight` lists {} steps, but {steps} are run", weights.len());
            Err(PipelineError::Request(what))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::{
        diffusion::sampler::{Config, Table},
        plan::During,
    };
    use Mix::{Dense, Pruned};

    fn rows(class: &str, steps: usize) -> Vec<Row> {
        let config = Config::from_json(&format!(r#"{{"_class_name": "{class}"}}"#)).unwrap();
        Table::new(&config, steps, 0.0).unwrap().rows().to_vec()
    }

    fn amplify(weight: AmplifyWeight, every: u32) -> Amplify {
        let mut amplify = Amplify::default();
        amplify.weight.value = weight;
        amplify.every.value = NonZeroU32::new(every).unwrap();
        amplify
    }

    fn amplified(weight: f32, difference: DifferenceSource) -> Mix {
        Mix::Amplified { weight, difference }
    }

    #[test]
    fn a_weight_of_zero_or_one_is_one_network() {
        let rows = rows("DDIMScheduler", 3);
        let mixed = mixes(&amplify(AmplifyWeight::Steps(vec![0.0, 1.0, 1.5]), 1), &rows).unwrap();
        assert_eq!(mixed, [Dense, Pruned, amplified(1.5, DifferenceSource::Fresh)]);
    }

    #[test]
    fn ramps_reach_both_ends() {
        let rows = rows("DDIMScheduler", 5);
        let weights = |curve| {
            let mixed = mixes(&amplify(AmplifyWeight::Ramp { from: 2.0, to: 4.0, curve }, 1), &rows).unwrap();
            mixed
                .into_iter()
                .map(|mix| if let Mix::Amplified { weight, .. } = mix { weight } else { 0.0 })
                .collect::<Vec<_>>()
        };
        assert_eq!(weights(Curve::Linear), [2.0, 2.5, 3.0, 3.5, 4.0]);
        let cosine = weights(Curve::Cosine);
        assert_eq!((cosine[0], cosine[2], cosine[4]), (2.0, 3.0, 4.0));
        assert!((cosine[1] - 2.2929).abs() < 1e-4);
    }

    #[test]
    fn every_third_step_is_fresh_and_only_what_is_read_is_kept() {
        let rows = rows("DDIMScheduler", 7);
        let mixed = mixes(&amplify(AmplifyWeight::Constant(2.0), 3), &rows).unwrap();
        let [kept, old, fresh] =
            [DifferenceSource::FreshAndKept, DifferenceSource::Kept, DifferenceSource::Fresh]
                .map(|d| amplified(2.0, d));
        assert_eq!(mixed, [kept, old, old, kept, old, old, fresh]);
    }

    #[test]
    fn all_calls_of_a_step_are_of_one_kind() {
        let rows = rows("HeunDiscreteScheduler", 3);
        let mixed = mixes(&amplify(AmplifyWeight::Constant(2.0), 2), &rows).unwrap();
        let [kept, old, fresh] =
            [DifferenceSource::FreshAndKept, DifferenceSource::Kept, DifferenceSource::Fresh]
                .map(|d| amplified(2.0, d));
        assert_eq!(mixed, [fresh, kept, old, old, fresh]);
    }

    #[test]
    fn during_by_fraction_and_by_sigma() {
        let rows = rows("EulerDiscreteScheduler", 4);
        let mut part = amplify(AmplifyWeight::Constant(1.0), 1);
        part.during = During::Fraction { from: 0.25, to: 0.5 };
        assert_eq!(mixes(&part, &rows).unwrap(), [Dense, Pruned, Pruned, Dense]);
        part.during = During::Sigma { low: rows[3].sigma, high: rows[2].sigma };
        assert_eq!(mixes(&part, &rows).unwrap(), [Dense, Dense, Pruned, Pruned]);
    }

    #[test]
    fn a_list_must_have_a_weight_a_step() {
        let error =
            mixes(&amplify(AmplifyWeight::Steps(vec![1.0; 3]), 1), &rows("DDIMScheduler", 4)).unwrap_err();
        assert_eq!(error.to_string(), "the plan's `amplify.weight` lists 3 steps, but 4 are run");
    }
}
