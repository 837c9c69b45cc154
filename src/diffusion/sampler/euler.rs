//! `EulerDiscreteScheduler` and `EulerAncestralDiscreteScheduler`: Karras et al., "Elucidating the Design
//! Space of Diffusion-Based Generative Models", algorithm 2 without churn, and k-diffusion's
//! `sample_euler_ancestral`.

use super::prediction::PredictionType;
use super::schedule::{Defaults, Schedule, ZeroSnr};
use super::sigmas::{self, Spread};
use super::spacing::{self, Spacing};
use super::{Config, Operand, Row, SamplerError, Table, Term, TimestepType, terms};

/// Noise levels and the timesteps that belong to them, for the schedulers that start from noise of the
/// first level.
pub(super) struct Levels {
    /// A timestep for each step.
    pub(super) timesteps: Vec<f64>,
    /// A noise level for each step; the one to end at is not among them.
    pub(super) sigmas: Vec<f32>,
    /// The standard deviation of the first sample.
    pub(super) init_noise_sigma: f64,
}

impl Levels {
    pub(super) fn new(
        config: &Config,
        schedule: &Schedule,
        spread: Spread,
        steps: usize,
    ) -> Result<Self, SamplerError> {
        schedule.check_steps(steps, 1)?;
        let spacing = Spacing::of(config, Spacing::Linspace)?;
        let offset = spacing::offset(config, schedule.len())?;
        let timesteps = spacing::fractional(spacing, schedule.len(), steps, offset);
        let trained = schedule.sigmas();
        let sigmas = sigmas::interpolate(&timesteps, &trained);
        let highest = sigmas.first().copied().unwrap_or_default();
        let lowest = sigmas.last().copied().unwrap_or_default();
        let (timesteps, sigmas) = match spread.sigmas(config, highest, lowest, steps)? {
            None => (timesteps, sigmas),
            Some(sigmas) => {
                let timestep = |&sigma: &f64| f64::from(sigmas::timestep_of(sigma, &trained) as f32);
                (sigmas.iter().map(timestep).collect(), sigmas)
            }
        };
        let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        let most = sigmas.iter().copied().fold(0.0, f32::max);
        let init = if spacing == Spacing::Leading { (most * most + 1.0).sqrt() } else { most };
        Ok(Self { timesteps, sigmas, init_noise_sigma: init.into() })
    }
}

/// Returns the factor that scales a sample of this noise level to unit variance.
pub(super) fn input_scale(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}

/// Returns the sample moved along the line to its clean prediction, from noise level `from` to `to`.
fn moved(from: f64, to: f64) -> Vec<Term> {
    let kept = to / from;
    terms([(Operand::Sample, kept), (Operand::Prediction(0), 1.0 - kept)])
}

pub(super) fn table(config: &Config, steps: usize) -> Result<Table, SamplerError> {
    let schedule = Schedule::new(config, Defaults::with(ZeroSnr::Tiny))?;
    let kind = PredictionType::of(config)?;
    config.choice("interpolation_type", (), &[("linear", ())])?;
    let continuous = config.choice("timestep_type", false, &[("discrete", false), ("continuous", true)])?;
    let levels = Levels::new(config, &schedule, Spread::of(config, &Spread::KEYS)?, steps)?;
    let last =
        config.choice("final_sigmas_type", 0.0, &[("zero", 0.0), ("sigma_min", first_sigma(&schedule))])?;
    let mut table = step_table(config, levels, last, kind, moved);
    if continuous && kind == PredictionType::V {
        for row in &mut table.rows {
            row.timestep = f64::from(0.25 * (row.sigma as f32).ln());
        }
    }
    Ok(table)
}

pub(super) fn ancestral_table(config: &Config, steps: usize) -> Result<Table, SamplerError> {
    let schedule = Schedule::new(config, Defaults::with(ZeroSnr::Tiny))?;
    let kind = PredictionType::without_sample(config)?;
    let levels = Levels::new(config, &schedule, Spread::Trained, steps)?;
    let next = |from: f64, to: f64| {
        // Down to a lower level than `to`, then up to it with fresh noise.
        let up = to * (1.0 - (to / from).powi(2)).sqrt();
        let mut next = moved(from, to * to / from);
        next.extend(terms([(Operand::Noise, up)]));
        next
    };
    Ok(step_table(config, levels, 0.0, kind, next))
}

/// Returns the noise level of the first training timestep.
pub(super) fn first_sigma(schedule: &Schedule) -> f32 {
    schedule.sigmas().first().copied().unwrap_or_default()
}

fn step_table(
    config: &Config,
    levels: Levels,
    last: f32,
    kind: PredictionType,
    next: impl Fn(f64, f64) -> Vec<Term>,
) -> Table {
    let Levels { timesteps, mut sigmas, init_noise_sigma } = levels;
    sigmas.push(last);
    let steps = timesteps.len();
    let pairs = sigmas.windows(2).map(|pair| (f64::from(pair[0]), f64::from(pair[1])));
    let rows =
        timesteps.into_iter().zip(pairs).enumerate().map(|(step, (timestep, (sigma, sigma_next)))| Row {
            timestep,
            step,
            fraction: step as f64 / steps as f64,
            sigma,
            input_scale: input_scale(sigma),
            prediction: kind.clean_unscaled(sigma),
            keep: None,
            next: next(sigma, sigma_next),
        });
    let rows = rows.collect();
    Table { class: config.class(), rows, sigmas, init_noise_sigma, timestep_type: TimestepType::Float32 }
}
