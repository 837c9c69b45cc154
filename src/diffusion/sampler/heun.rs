//! `HeunDiscreteScheduler`: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
//! Models", algorithm 1: an Euler step, then the mean of the slopes at both its ends.

use super::euler::{Levels, input_scale};
use super::prediction::{self, PredictionType};
use super::schedule::{BetaSchedule, Defaults, Schedule, ZeroSnr};
use super::sigmas::Spread;
use super::{Config, Operand, Row, SamplerError, Table, TimestepType, terms};

pub(super) fn table(config: &Config, steps: usize) -> Result<Table, SamplerError> {
    let defaults = Defaults {
        beta_start: 0.00085,
        beta_end: 0.012,
        beta_schedule: BetaSchedule::Linear,
        zero_snr: ZeroSnr::Unknown,
    };
    let schedule = Schedule::new(config, defaults)?;
    let kind = PredictionType::of(config)?;
    let clip = prediction::clip(config, false)?;
    let Levels { timesteps, sigmas, init_noise_sigma } =
        Levels::new(config, &schedule, Spread::of(config, &Spread::KEYS)?, steps)?;

    let mut rows = Vec::with_capacity(2 * steps);
    let mut row = |timestep: f64, step: usize, sigma: f64, keep, next| {
        rows.push(Row {
            timestep,
            step,
            fraction: step as f64 / steps as f64,
            sigma,
            input_scale: input_scale(sigma),
            prediction: kind.clean_unscaled(sigma).clipped(clip),
            keep,
            next,
        });
    };
    for (step, (&timestep, &sigma)) in timesteps.iter().zip(&sigmas).enumerate() {
        let after = timesteps.get(step + 1).zip(sigmas.get(step + 1));
        let sigma = f64::from(sigma);
        let sigma_next = after.map_or(0.0, |(_, &sigma_next)| f64::from(sigma_next));
        let kept = sigma_next / sigma;
        let euler = terms([(Operand::Sample, kept), (Operand::Prediction(0), 1.0 - kept)]);
        row(timestep, step, sigma, Some(terms([(Operand::Sample, 1.0)])), euler);
        if let Some((&timestep_next, _)) = after {
            // Half the way along either slope, (sample - prediction) / sigma.
            let half = (sigma_next - sigma) / 2.0;
            let heun = terms([
                (Operand::Kept, 1.0 + half / sigma),
                (Operand::Prediction(1), -half / sigma),
                (Operand::Sample, half / sigma_next),
                (Operand::Prediction(0), -half / sigma_next),
            ]);
            row(timestep_next, step, sigma_next, None, heun);
        }
    }
    let ends = sigmas
        .iter()
        .enumerate()
        .flat_map(|(i, &sigma)| std::iter::repeat_n(sigma, if i == 0 { 1 } else { 2 }));
    let sigmas = ends.chain([0.0]).collect();
    Ok(Table { class: config.class(), rows, sigmas, init_noise_sigma, timestep_type: TimestepType::Float32 })
}
