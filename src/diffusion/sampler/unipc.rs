//! `UniPCMultistepScheduler`: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast
//! Sampling of Diffusion Models", algorithms 5 and 6.
//!
//! Each call first corrects the sample it was made at, starting again from the corrected sample before,
//! then predicts the next one. The corrected sample is what a row keeps.

use super::euler::first_sigma;
use super::prediction::{self, Level, PredictionType};
use super::schedule::{Defaults, Schedule, ZeroSnr};
use super::sigmas::{self, Spread};
use super::spacing::{self, Spacing};
use super::{Config, Operand, Row, SamplerError, Table, Term, TimestepType, terms};

/// The values of `predict_x0`: which of the two the solver integrates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Clean,
    Noise,
}

/// The values of `solver_type`: the function B(h) of the paper.
#[derive(Clone, Copy)]
enum Bh {
    Bh1,
    Bh2,
}

pub(super) fn table(config: &Config, steps: usize) -> Result<Table, SamplerError> {
    prediction::refuse_thresholding(config)?;
    config.refuse("use_flow_sigmas", "flow matching has no table")?;
    config.refuse("use_dynamic_shifting", "flow matching has no table")?;
    let schedule = Schedule::new(config, Defaults::with(ZeroSnr::Tiny))?;
    let kind = PredictionType::of(config)?;
    let order = config.integer("solver_order", 2, 1..=3)?;
    let space = if config.flag("predict_x0", true)? { Space::Clean } else { Space::Noise };
    // The other names are those of sibling schedulers, whose configs diffusers takes over.
    let bh = config.choice(
        "solver_type",
        Bh::Bh2,
        &[("bh1", Bh::Bh1), ("bh2", Bh::Bh2), ("midpoint", Bh::Bh2), ("heun", Bh::Bh2), ("logrho", Bh::Bh2)],
    )?;
    let lower_order_final = config.flag("lower_order_final", true)?;
    let uncorrected = config.numbers("disable_corrector")?.unwrap_or_default();
    let (timesteps, sigmas) = levels(config, &schedule, steps)?;

    let at: Vec<Level> = sigmas.iter().map(|&sigma| Level::from_sigma(sigma.into())).collect();
    let update =
        |known: &[Level], to, base, corrected| Update { space, bh, known, to, base, corrected }.terms();
    let mut order_before = 0;
    let mut rows = Vec::with_capacity(timesteps.len());
    for (step, (&timestep, pair)) in timesteps.iter().zip(at.windows(2)).enumerate() {
        let keep = if step == 0 || uncorrected.contains(&(step as f64 - 1.0)) {
            terms([(Operand::Sample, 1.0)])
        } else {
            let known = newest(&at[..step], order_before);
            update(&known, pair[0], Operand::Kept, Corrected::This)
        };
        let order = order.min(step + 1);
        let order = if lower_order_final { order.min(timesteps.len() - step) } else { order };
        let known = newest(&at[..=step], order);
        rows.push(Row {
            timestep: timestep as f64,
            step,
            fraction: step as f64 / timesteps.len() as f64,
            sigma: pair[0].sigma / pair[0].alpha,
            input_scale: 1.0,
            prediction: match space {
                Space::Clean => kind.clean(pair[0]),
                Space::Noise => kind.noise(pair[0]),
            },
            keep: Some(keep),
            next: update(&known, pair[1], Operand::Kept, Corrected::Nothing),
        });
        order_before = order;
    }
    Ok(Table {
        class: config.class(),
        rows,
        sigmas,
        init_noise_sigma: 1.0,
        timestep_type: TimestepType::Int64,
    })
}

fn newest(levels: &[Level], count: usize) -> Vec<Level> {
    levels.iter().rev().take(count).copied().collect()
}

/// Timesteps, and the noise levels with the one to end at.
fn levels(config: &Config, schedule: &Schedule, steps: usize) -> Result<(Vec<i64>, Vec<f32>), SamplerError> {
    schedule.check_steps(steps, 1)?;
    let spacing = Spacing::of(config, Spacing::Linspace)?;
    let offset = spacing::offset(config, schedule.len())?;
    let timesteps = spacing::open_ended(spacing, schedule.len(), schedule.len(), steps, offset);
    let spread = Spread::of(config, &Spread::KEYS)?;
    let trained = schedule.sigmas();
    let highest = trained.last().copied().unwrap_or_default();
    let lowest = trained.first().copied().unwrap_or_default();
    let (timesteps, sigmas, lowest) = match spread.sigmas(config, highest.into(), lowest.into(), steps)? {
        None => {
            let fractional: Vec<f64> = timesteps.iter().map(|&timestep| timestep as f64).collect();
            (timesteps, sigmas::interpolate(&fractional, &trained), first_sigma(schedule))
        }
        Some(sigmas) => {
            let timesteps = sigmas.iter().map(|&sigma| {
                let timestep = sigmas::timestep_of(sigma, &trained);
                (if spread == Spread::Karras { timestep.round_ties_even() } else { timestep }) as i64
            });
            // Here the last step goes nowhere: it ends at the level it starts from.
            let lowest = sigmas.last().map_or(lowest, |&sigma| sigma as f32);
            (timesteps.collect(), sigmas, lowest)
        }
    };
    let last = config.choice("final_sigmas_type", 0.0, &[("zero", 0.0), ("sigma_min", lowest)])?;
    let sigmas = sigmas.into_iter().map(|sigma| sigma as f32).chain([last]).collect();
    Ok((timesteps, sigmas))
}

/// Whether the prediction at the end of a step is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Corrected {
    /// It is not: a predictor. The newest known prediction is this call's.
    Nothing,
    /// It is this call's: a corrector. The newest of the others is the call's before.
    This,
}

/// One update of the unified predictor-corrector.
struct Update<'a> {
    space: Space,
    bh: Bh,
    /// The levels of the predictions before the end of the step, newest first; as many as the order.
    known: &'a [Level],
    to: Level,
    base: Operand,
    corrected: Corrected,
}

impl Update<'_> {
    fn terms(&self) -> Vec<Term> {
        let Some(&from) = self.known.first() else { return Vec::new() };
        let h = self.to.lambda() - from.lambda();
        let hh = match self.space {
            Space::Clean => -h,
            Space::Noise => h,
        };
        let (ratio, factor) = match self.space {
            Space::Clean => (self.to.sigma / from.sigma, self.to.alpha),
            Space::Noise => (self.to.alpha / from.alpha, self.to.sigma),
        };
        // Where the known predictions lie, in steps from the newest; the corrected one would lie at 1.
        let places: Vec<f64> =
            self.known.iter().skip(1).map(|level| (level.lambda() - from.lambda()) / h).collect();
        let b_h = match self.bh {
            Bh::Bh1 => hh,
            Bh::Bh2 => hh.exp_m1(),
        };
        let (weights, corrected_weight) = self.weights(&places, hh, b_h);

        let age = match self.corrected {
            Corrected::Nothing => 0,
            Corrected::This => 1,
        };
        // Differences (m_i - m_0) / place_i, each with its weight.
        let mut newest = -factor * hh.exp_m1();
        let mut older = Vec::new();
        for (i, (place, weight)) in places.iter().zip(weights).enumerate() {
            let weight = -factor * b_h * weight / place;
            newest -= weight;
            older.push((Operand::Prediction(age + 1 + i), weight));
        }
        if let Some(weight) = corrected_weight {
            let weight = -factor * b_h * weight;
            newest -= weight;
            older.push((Operand::Prediction(0), weight));
        }
        terms([(self.base, ratio), (Operand::Prediction(age), newest)].into_iter().chain(older))
    }

    /// Returns the weights of the differences to the older predictions, and to the corrected one.
    fn weights(&self, places: &[f64], hh: f64, b_h: f64) -> (Vec<f64>, Option<f64>) {
        match (self.corrected, places.len()) {
            (Corrected::Nothing, 0) => (Vec::new(), None),
            (Corrected::Nothing, 1) => (vec![0.5], None),
            (Corrected::Nothing, _) => (moments(places, hh, b_h), None),
            (Corrected::This, 0) => (Vec::new(), Some(0.5)),
            (Corrected::This, _) => {
                let places: Vec<f64> = places.iter().copied().chain([1.0]).collect();
                let mut weights = moments(&places, hh, b_h);
                let last = weights.pop();
                (weights, last)
            }
        }
    }
}

/// Solves the Vandermonde system `sum over k of places_k^(i-1) * weight_k = i! * phi_(i+1)(hh) * hh / B(h)`
/// of the paper's theorem 3.1, for two or three unknowns, by Cramer's rule on divided differences.
fn moments(places: &[f64], hh: f64, b_h: f64) -> Vec<f64> {
    let mut phi = hh.exp_m1() / hh - 1.0;
    let mut factorial = 1.0;
    let mut targets = Vec::with_capacity(places.len());
    for i in 1..=places.len() {
        targets.push(phi * factorial / b_h);
        factorial *= (i + 1) as f64;
        phi = phi / hh - 1.0 / factorial;
    }
    match (places, targets.as_slice()) {
        (&[p, q], &[a, b]) => vec![(b - a * q) / (p - q), (b - a * p) / (q - p)],
        (&[p, q, r], &[a, b, c]) => {
            let weight = |p: f64, q: f64, r: f64| (c - (q + r) * b + q * r * a) / ((p - q) * (p - r));
            vec![weight(p, q, r), weight(q, p, r), weight(r, p, q)]
        }
        _ => targets,
    }
}
