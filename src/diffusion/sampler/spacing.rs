//! Where the steps lie among the training timesteps.
//!
//! The names are those of table 2 in Lin et al., "Common Diffusion Noise Schedules and Sample Steps
//! are Flawed". Everything rounds halves to even, as numpy does.

use super::{Config, SamplerError};

/// The values of `timestep_spacing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

impl Spacing {
    pub(super) fn of(config: &Config, default: Self) -> Result<Self, SamplerError> {
        let choices =
            [("leading", Self::Leading), ("trailing", Self::Trailing), ("linspace", Self::Linspace)];
        config.choice("timestep_spacing", default, &choices)
    }
}

/// Returns `steps_offset`, at most the training timesteps.
pub(super) fn offset(config: &Config, train_steps: usize) -> Result<usize, SamplerError> {
    config.integer("steps_offset", 0, 0..=train_steps)
}

/// Returns the timesteps of the schedulers that step on whole timesteps (DDIM, DDPM, PNDM), highest first.
pub(super) fn whole(spacing: Spacing, train_steps: usize, steps: usize, offset: usize) -> Vec<i64> {
    match spacing {
        Spacing::Leading => leading(train_steps / steps, steps, offset),
        Spacing::Trailing => trailing(train_steps, train_steps, steps),
        Spacing::Linspace => {
            let points = linspace(0.0, train_steps as f64 - 1.0, steps);
            points.into_iter().rev().map(|point| point.round_ties_even() as i64).collect()
        }
    }
}

/// Returns the timesteps of the Euler and Heun schedulers, which may lie between whole ones and are float32.
pub(super) fn fractional(spacing: Spacing, train_steps: usize, steps: usize, offset: usize) -> Vec<f64> {
    if spacing == Spacing::Linspace {
        let points = linspace(0.0, train_steps as f64 - 1.0, steps);
        return points.into_iter().rev().map(|point| f64::from(point as f32)).collect();
    }
    whole(spacing, train_steps, steps, offset).into_iter().map(|timestep| timestep as f64).collect()
}

/// Returns the timesteps of the multistep solvers (DPM-Solver, UniPC), which leave out the lowest of one more
/// point. `last` is where the schedule ends: `train_steps`, or less where lambda is clipped.
pub(super) fn open_ended(
    spacing: Spacing,
    train_steps: usize,
    last: usize,
    steps: usize,
    offset: usize,
) -> Vec<i64> {
    match spacing {
        Spacing::Leading => {
            let mut timesteps = leading(last / (steps + 1), steps + 1, offset);
            timesteps.pop();
            timesteps
        }
        Spacing::Trailing => trailing(last, train_steps, steps),
        Spacing::Linspace => {
            let points = linspace(0.0, last as f64 - 1.0, steps + 1);
            points.into_iter().skip(1).rev().map(|point| point.round_ties_even() as i64).collect()
        }
    }
}

fn leading(ratio: usize, count: usize, offset: usize) -> Vec<i64> {
    (0..count).rev().map(|i| (i * ratio + offset) as i64).collect()
}

/// Returns `numpy.arange(last, 0, -train_steps / steps)`, rounded, less one. numpy's rounding can add one value
/// more than there are steps; it is left out here.
fn trailing(last: usize, train_steps: usize, steps: usize) -> Vec<i64> {
    let last = last as f64;
    let ratio = train_steps as f64 / steps as f64;
    let stride = last - (last - ratio);
    let count = ((last / ratio).ceil() as usize).min(steps);
    (0..count).map(|i| (last - i as f64 * stride).round_ties_even() as i64 - 1).collect()
}

/// Returns `numpy.linspace(start, stop, count)`.
pub(super) fn linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    let step = (stop - start) / (count.max(2) - 1) as f64;
    let last = count.saturating_sub(1);
    (0..count).map(|i| if i == last && i > 0 { stop } else { i as f64 * step + start }).collect()
}
