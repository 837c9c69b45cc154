//! `LCMScheduler`: Luo et al., "Latent Consistency Models", multistep consistency sampling.

use super::prediction::{self, Level, PredictionType};
use super::schedule::{BetaSchedule, Defaults, Schedule, ZeroSnr};
use super::{Config, Operand, Row, SamplerError, Table, TimestepType, terms};

/// The data's standard deviation in the boundary condition's scalings.
const SIGMA_DATA: f64 = 0.5;

pub(super) fn table(config: &Config, steps: usize) -> Result<Table, SamplerError> {
    let defaults = Defaults {
        beta_start: 0.00085,
        beta_end: 0.012,
        beta_schedule: BetaSchedule::ScaledLinear,
        zero_snr: ZeroSnr::Zero,
    };
    let schedule = Schedule::new(config, defaults)?;
    let kind = PredictionType::of(config)?;
    let clip = prediction::clip(config, false)?;
    let scaling = config.number("timestep_scaling", 10.0)?;
    let timesteps = timesteps(config, &schedule, steps)?;

    let mut rows = Vec::with_capacity(timesteps.len());
    for (step, &timestep) in timesteps.iter().enumerate() {
        let scaled = timestep as f64 * scaling;
        let square = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / square, scaled / square.sqrt());
        let next = match timesteps.get(step + 1) {
            Some(&before) => {
                let level = Level::from_cumulative(schedule.alpha(before)?);
                terms([
                    (Operand::Prediction(0), level.alpha * out),
                    (Operand::Sample, level.alpha * skip),
                    (Operand::Noise, level.sigma),
                ])
            }
            None => terms([(Operand::Prediction(0), out), (Operand::Sample, skip)]),
        };
        rows.push(Row {
            timestep: timestep as f64,
            step,
            fraction: step as f64 / steps as f64,
            sigma: schedule.sigma(timestep)?,
            input_scale: 1.0,
            prediction: kind.clean(Level::from_cumulative(schedule.alpha(timestep)?)).clipped(clip),
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

/// Returns `steps` of the timesteps the model was distilled at, evenly from the highest.
fn timesteps(config: &Config, schedule: &Schedule, steps: usize) -> Result<Vec<i64>, SamplerError> {
    let original = config.integer("original_inference_steps", 50, 1..=schedule.len())?;
    if !(1..=original).contains(&steps) {
        return Err(SamplerError::Steps { class: config.class(), steps, least: 1, most: original });
    }
    let stride = schedule.len() / original;
    let spread = original as f64 / steps as f64;
    Ok((0..steps).map(|i| ((original - (i as f64 * spread) as usize) * stride) as i64 - 1).collect())
}
