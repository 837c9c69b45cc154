//! `DDIMScheduler`: Song et al., "Denoising Diffusion Implicit Models", equation 12.

use super::prediction::{self, Level, PredictionType};
use super::schedule::{Defaults, Schedule, ZeroSnr};
use super::spacing::{self, Spacing};
use super::{Config, Operand, Row, SamplerError, Table, TimestepType, terms};

pub(super) fn table(config: &Config, steps: usize, eta: f64) -> Result<Table, SamplerError> {
    let schedule = Schedule::new(config, Defaults::with(ZeroSnr::Zero))?;
    schedule.check_steps(steps, 1)?;
    let kind = PredictionType::of(config)?;
    let clip = prediction::clip(config, true)?;
    let final_alpha = if config.flag("set_alpha_to_one", true)? { 1.0 } else { schedule.first_alpha() };
    let spacing = Spacing::of(config, Spacing::Leading)?;
    let offset = spacing::offset(config, schedule.len())?;
    let timesteps = spacing::whole(spacing, schedule.len(), steps, offset);
    let stride = (schedule.len() / steps) as i64;

    let mut rows = Vec::with_capacity(timesteps.len());
    for (step, &timestep) in timesteps.iter().enumerate() {
        let alpha = schedule.alpha(timestep)?;
        let before = timestep - stride;
        let alpha_before = if before >= 0 { schedule.alpha(before)? } else { final_alpha };
        let level = Level::from_cumulative(alpha);
        let variance = (1.0 - alpha_before) / (1.0 - alpha) * (1.0 - alpha / alpha_before);
        let deviation = eta * variance.sqrt();
        // The direction that points back at the sample is the noise as the network has it, before any clipping.
        let direction = (1.0 - alpha_before - deviation * deviation).sqrt();
        let noise = kind.noise(level);
        let mut next = terms([
            (Operand::Prediction(0), alpha_before.sqrt()),
            (Operand::Sample, direction * noise.sample),
            (Operand::Output, direction * noise.output),
        ]);
        if eta > 0.0 {
            next.extend(terms([(Operand::Noise, deviation)]));
        }
        rows.push(Row {
            timestep: timestep as f64,
            step,
            fraction: step as f64 / steps as f64,
            sigma: schedule.sigma(timestep)?,
            input_scale: 1.0,
            prediction: kind.clean(level).clipped(clip),
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
