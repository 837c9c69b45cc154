//! `DDPMScheduler`: Ho et al., "Denoising Diffusion Probabilistic Models", equations 6 and 7.

use super::prediction::{self, Level, PredictionType};
use super::schedule::{Defaults, Schedule, ZeroSnr};
use super::spacing::{self, Spacing};
use super::{Config, Operand, Row, SamplerError, Table, TimestepType, terms};

/// The values of `variance_type`. `fixed_large_log` is left out: diffusers takes the root of a logarithm there, which
/// is not a number.
#[derive(Clone, Copy)]
enum Variance {
    FixedSmall,
    FixedLarge,
}

pub(super) fn table(config: &Config, steps: usize) -> Result<Table, SamplerError> {
    let schedule = Schedule::new(config, Defaults::with(ZeroSnr::Zero))?;
    schedule.check_steps(steps, 1)?;
    let kind = PredictionType::of(config)?;
    let clip = prediction::clip(config, true)?;
    let variance_type = config.choice(
        "variance_type",
        Variance::FixedSmall,
        &[
            ("fixed_small", Variance::FixedSmall),
            ("fixed_small_log", Variance::FixedSmall),
            ("fixed_large", Variance::FixedLarge),
        ],
    )?;
    let spacing = Spacing::of(config, Spacing::Leading)?;
    let offset = spacing::offset(config, schedule.len())?;
    let timesteps = spacing::whole(spacing, schedule.len(), steps, offset);

    let mut rows = Vec::with_capacity(timesteps.len());
    for (step, &timestep) in timesteps.iter().enumerate() {
        let alpha = schedule.alpha(timestep)?;
        let alpha_before = match timesteps.get(step + 1) {
            Some(&before) => schedule.alpha(before)?,
            None => 1.0,
        };
        let alpha_step = alpha / alpha_before;
        let beta_step = 1.0 - alpha_step;
        let remaining = (1.0 - alpha_before) / (1.0 - alpha);
        let variance = match variance_type {
            Variance::FixedSmall => (remaining * beta_step).max(1e-20),
            Variance::FixedLarge => beta_step,
        };
        let mut next = terms([
            (Operand::Prediction(0), alpha_before.sqrt() * beta_step / (1.0 - alpha)),
            (Operand::Sample, alpha_step.sqrt() * remaining),
        ]);
        if timestep > 0 {
            next.extend(terms([(Operand::Noise, variance.sqrt())]));
        }
        rows.push(Row {
            timestep: timestep as f64,
            step,
            fraction: step as f64 / steps as f64,
            sigma: schedule.sigma(timestep)?,
            input_scale: 1.0,
            prediction: kind.clean(Level::from_cumulative(alpha)).clipped(clip),
            keep: None,
            next,
        });
    }
    Ok(Table {
        class: config.class(),
        rows,
        sigmas: Vec::new(),
        init_noise_sigma: 1.0,
        timestep_type: TimestepType::Int64,
    })
}
