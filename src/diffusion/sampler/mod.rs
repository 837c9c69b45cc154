//! Samplers (DDIM, Euler, DPM-Solver++ and others) as tables of coefficients.
//!
//! Every scheduler here is linear: the next sample is a weighted sum of the sample, of what the network
//! predicted now and before, and of fresh noise. So a scheduler is a [`Table`] with a [`Row`] for each
//! call of the network, made once from `scheduler_config.json`, and one small loop ([`run`]) runs them all.
//!
//! The tables follow the classes of diffusers 0.42.1 number for number: betas, cumulative alphas and
//! sigmas are rounded to float32 where diffusers keeps them in float32; the weights are computed from
//! those in double precision. Settings that a table cannot hold (dynamic thresholding, learned variances, flow
//! matching) are refused by name.
//!
//! Two places where diffusers stumbles are not followed: where rounding makes the first two timesteps
//! equal it skips the first step, and for some numbers of steps (61 of 1000 is the lowest) its trailing
//! spacing has a timestep -1 at the end.

mod config;
mod ddim;
mod ddpm;
mod dpm_solver;
mod error;
mod euler;
mod heun;
mod lcm;
mod pndm;
mod prediction;
mod preset;
mod run;
mod schedule;
mod sigmas;
mod spacing;
mod unipc;

pub use config::{Class, Config, SavedConfig};
pub use error::SamplerError;
pub use prediction::Clean;
pub use preset::Preset;
pub use run::run;

/// The operand of a weight. All have the shape of the latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operand {
    /// The sample that this call's input was made from.
    Sample,
    /// The sample put aside by this row's or an earlier row's [`Row::keep`].
    Kept,
    /// The network's output in this call.
    Output,
    /// The prediction ([`Row::prediction`]) of this call (0), the call before (1), and so on.
    Prediction(usize),
    /// Fresh standard normal noise, drawn after the network has run.
    Noise,
}

/// A weighted operand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// The operand.
    pub operand: Operand,
    /// Its weight.
    pub weight: f64,
}

/// How a call's prediction is made: `sample * Sample + output * Output`, then clipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Weight of the sample.
    pub sample: f64,
    /// Weight of the network's output.
    pub output: f64,
    /// Where given, the prediction is clamped to plus and minus this (`clip_sample_range`).
    pub clip: Option<f64>,
}

/// One call of the network and what follows from it.
///
/// In order: the network runs on `input_scale * sample` at `timestep`; the prediction is made; where
/// `keep` is given, its sum is put aside; then the sum of `next` becomes the sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The timestep to feed, in training steps (for continuous Euler, a quarter of the sigma's logarithm).
    pub timestep: f64,
    /// The step this call belongs to, from 0. Heun's and Runge-Kutta's steps have several calls.
    pub step: usize,
    /// How far the sampling is, from 0 at the first step to below 1: the step over the number of steps.
    pub fraction: f64,
    /// The noise level of the sample in units of the signal; infinite at zero terminal SNR.
    pub sigma: f64,
    /// The network's input is the sample times this.
    pub input_scale: f64,
    /// How this call's prediction is made, which later rows may read.
    pub prediction: Prediction,
    /// The sum to put aside, if any.
    pub keep: Option<Vec<Term>>,
    /// The next sample.
    pub next: Vec<Term>,
}

impl Row {
    /// Returns whether the row draws noise (perhaps to weigh it with zero, as diffusers does at some last steps).
    pub fn draws_noise(&self) -> bool {
        self.next.iter().any(|term| term.operand == Operand::Noise)
    }
}

/// The type in which diffusers keeps the timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestepType {
    /// Whole timesteps, int64.
    Int64,
    /// Perhaps between two, float32.
    Float32,
}

/// A sampler for a given number of steps.
#[derive(Debug, Clone)]
pub struct Table {
    class: Class,
    rows: Vec<Row>,
    sigmas: Vec<f32>,
    init_noise_sigma: f64,
    timestep_type: TimestepType,
}

impl Table {
    /// Makes the table for `steps` steps. `eta` is the share of fresh noise in DDIM, from 0 to 1; as in
    /// the pipelines of diffusers the other classes ignore it.
    ///
    /// # Errors
    /// A key whose value is wrong or not supported; more steps than training timesteps; settings that
    /// divide by zero.
    pub fn new(config: &Config, steps: usize, eta: f64) -> Result<Self, SamplerError> {
        let table = match config.class() {
            Class::Ddim => ddim::table(config, steps, eta),
            Class::Ddpm => ddpm::table(config, steps),
            Class::Euler => euler::table(config, steps),
            Class::EulerAncestral => euler::ancestral_table(config, steps),
            Class::Heun => heun::table(config, steps),
            Class::DpmSolverMultistep => dpm_solver::table(config, steps),
            Class::Pndm => pndm::table(config, steps),
            Class::UniPc => unipc::table(config, steps),
            Class::Lcm => lcm::table(config, steps),
        }?;
        table.check_finite()?;
        Ok(table)
    }

    /// Returns the scheduler this is.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Returns a row for each call of the network, in order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Returns the `sigmas` of the diffusers scheduler, its last one after the last call; empty where the class
    /// has none (DDIM, DDPM, PNDM, LCM).
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// Returns the standard deviation of the first sample: standard normal noise times this.
    pub fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    /// Returns the type in which diffusers feeds the timesteps.
    pub fn timestep_type(&self) -> TimestepType {
        self.timestep_type
    }

    /// Returns how many predictions before the current one must be remembered.
    pub fn depth(&self) -> usize {
        let terms = self.rows.iter().flat_map(|row| row.keep.iter().flatten().chain(&row.next));
        let ages = terms.filter_map(|term| match term.operand {
            Operand::Prediction(age) => Some(age),
            _ => None,
        });
        ages.max().unwrap_or(0)
    }

    /// Returns how often the loop draws noise.
    pub fn draws(&self) -> usize {
        self.rows.iter().filter(|row| row.draws_noise()).count()
    }

    fn check_finite(&self) -> Result<(), SamplerError> {
        let finite = |row: &Row| {
            let terms = row.keep.iter().flatten().chain(&row.next);
            let weights = [row.timestep, row.input_scale, row.prediction.sample, row.prediction.output];
            // The loop runs in float32.
            terms.map(|term| term.weight).chain(weights).all(|weight| (weight as f32).is_finite())
        };
        match self.rows.iter().enumerate().find(|(_, row)| !finite(row)) {
            None => Ok(()),
            Some((call, row)) => {
                Err(SamplerError::NotFinite { class: self.class, call, timestep: row.timestep })
            }
        }
    }
}

/// Terms without those whose weight is zero; noise stays, since it is drawn all the same.
fn terms(weighted: impl IntoIterator<Item = (Operand, f64)>) -> Vec<Term> {
    weighted
        .into_iter()
        .filter(|&(operand, weight)| weight != 0.0 || operand == Operand::Noise)
        .map(|(operand, weight)| Term { operand, weight })
        .collect()
}
