//! `PNDMScheduler`: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds": the
//! transfer of equation 11 with noise from a linear multistep method (PLMS), after a warm-up of three
//! Runge-Kutta steps (PRK) or, with `skip_prk_steps`, after one step of lower order.

use super::prediction::{Level, PredictionType};
use super::schedule::{Defaults, Schedule, ZeroSnr};
use super::spacing::{self, Spacing};
use super::{Config, Operand, Prediction, Row, SamplerError, Table, Term, TimestepType, terms};

/// Calls of the network in the warm-up: three steps of four.
const WARM_UP: usize = 12;

pub(super) fn table(config: &Config, steps: usize) -> Result<Table, SamplerError> {
    let transfer = Transfer::new(config)?;
    let skip_warm_up = config.flag("skip_prk_steps", false)?;
    let schedule = &transfer.schedule;
    schedule.check_steps(steps, if skip_warm_up { 1 } else { 4 })?;
    let spacing = Spacing::of(config, Spacing::Leading)?;
    let offset = spacing::offset(config, schedule.len())?;
    let timesteps = spacing::whole(spacing, schedule.len(), steps, offset);
    let stride = (schedule.len() / steps) as i64;

    let rows = if skip_warm_up {
        transfer.starting_low(&timesteps, stride)?
    } else {
        transfer.after_warm_up(&timesteps, stride)?
    };
    Ok(Table {
        class: config.class(),
        rows,
        sigmas: Vec::new(),
        init_noise_sigma: 1.0,
        timestep_type: TimestepType::Int64,
    })
}

/// Outputs and their weights, which add up to the one used; by how many calls ago they were made.
type Mix = Vec<(usize, f64)>;

/// The quantities that the rows of one table share.
struct Transfer {
    schedule: Schedule,
    kind: PredictionType,
    final_alpha: f64,
}

impl Transfer {
    fn new(config: &Config) -> Result<Self, SamplerError> {
        let schedule = Schedule::new(config, Defaults::with(ZeroSnr::Unknown))?;
        let kind = PredictionType::without_sample(config)?;
        let one = config.flag("set_alpha_to_one", false)?;
        let final_alpha = if one { 1.0 } else { schedule.first_alpha() };
        Ok(Self { schedule, kind, final_alpha })
    }

    /// Returns the sample `base` moved between two timesteps by a mix of outputs.
    fn moved(&self, base: Operand, from: i64, to: i64, mix: &Mix) -> Result<Vec<Term>, SamplerError> {
        let alpha = self.schedule.alpha(from)?;
        let alpha_to = if to >= 0 { self.schedule.alpha(to)? } else { self.final_alpha };
        let beta = 1.0 - alpha;
        let denominator = alpha * (1.0 - alpha_to).sqrt() + (alpha * beta * alpha_to).sqrt();
        let slope = -(alpha_to - alpha) / denominator;
        let noise = self.kind.noise(Level::from_cumulative(alpha));
        let base = (base, (alpha_to / alpha).sqrt() + slope * noise.sample);
        let outputs =
            mix.iter().map(|&(age, weight)| (Operand::Prediction(age), slope * noise.output * weight));
        Ok(terms([base].into_iter().chain(outputs)))
    }

    /// Returns the rows of PLMS from the first call: one Euler step, done again with the mean of the slopes at both
    /// ends.
    fn starting_low(&self, timesteps: &[i64], stride: i64) -> Result<Vec<Row>, SamplerError> {
        let steps = timesteps.len();
        let mut rows = Vec::with_capacity(steps + 1);
        let mut remembered = vec![0];
        for (step, &timestep) in timesteps.iter().enumerate() {
            if step == 0 {
                let next = self.moved(Operand::Sample, timestep, timestep - stride, &vec![(0, 1.0)])?;
                rows.push(Row { keep: keep_sample(), ..self.row(timestep, 0, steps, next)? });
                continue;
            }
            if step == 1 {
                let mean = vec![(0, 0.5), (1, 0.5)];
                let next = self.moved(Operand::Kept, timestep + stride, timestep, &mean)?;
                rows.push(self.row(timestep, 0, steps, next)?);
            }
            remembered.push(rows.len());
            rows.push(self.multistep(timestep, stride, step, steps, &remembered)?);
        }
        Ok(rows)
    }

    /// Returns three steps of the classic Runge-Kutta method, then PLMS of full order.
    fn after_warm_up(&self, timesteps: &[i64], stride: i64) -> Result<Vec<Row>, SamplerError> {
        let steps = timesteps.len();
        let half = stride / 2;
        let mut rows = Vec::with_capacity(WARM_UP + steps);
        let mut remembered = Vec::new();
        for (step, pair) in timesteps.windows(2).take(WARM_UP / 4).enumerate() {
            let (start, end) = (pair[0], pair[1]);
            let middle = end + half;
            let one = vec![(0, 1.0)];
            let all = vec![(3, 1.0 / 6.0), (2, 1.0 / 3.0), (1, 1.0 / 3.0), (0, 1.0 / 6.0)];
            remembered.push(rows.len());
            let first = self.moved(Operand::Sample, start, start - half, &one)?;
            rows.push(Row { keep: keep_sample(), ..self.row(start, step, steps, first)? });
            for (timestep, to, mix) in [(middle, middle, &one), (middle, end, &one), (end, end, &all)] {
                let next = self.moved(Operand::Kept, start, to, mix)?;
                rows.push(self.row(timestep, step, steps, next)?);
            }
        }
        for (step, &timestep) in timesteps.iter().enumerate().skip(WARM_UP / 4) {
            remembered.push(rows.len());
            rows.push(self.multistep(timestep, stride, step, steps, &remembered)?);
        }
        Ok(rows)
    }

    /// Returns a step from the outputs of up to the last four of the calls in `remembered`, the current one last.
    fn multistep(
        &self,
        timestep: i64,
        stride: i64,
        step: usize,
        steps: usize,
        remembered: &[usize],
    ) -> Result<Row, SamplerError> {
        let weights: &[f64] = match remembered.len() {
            0 | 1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let now = remembered.last().copied().unwrap_or_default();
        let ages = remembered.iter().rev().map(|call| now - call);
        let mix = ages.zip(weights.iter().copied()).collect();
        let next = self.moved(Operand::Sample, timestep, timestep - stride, &mix)?;
        self.row(timestep, step, steps, next)
    }

    fn row(&self, timestep: i64, step: usize, steps: usize, next: Vec<Term>) -> Result<Row, SamplerError> {
        Ok(Row {
            timestep: timestep as f64,
            step,
            fraction: step as f64 / steps as f64,
            sigma: self.schedule.sigma(timestep)?,
            input_scale: 1.0,
            prediction: Prediction::new(0.0, 1.0),
            keep: None,
            next,
        })
    }
}

fn keep_sample() -> Option<Vec<Term>> {
    Some(terms([(Operand::Sample, 1.0)]))
}
