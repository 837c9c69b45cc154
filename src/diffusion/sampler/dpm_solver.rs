//! `DPMSolverMultistepScheduler` with the data-prediction algorithms: Lu et al., "DPM-Solver++", and its
//! stochastic form.

use super::euler::first_sigma;
use super::prediction::{self, Level, PredictionType};
use super::schedule::{BetaSchedule, Defaults, Schedule, ZeroSnr};
use super::sigmas::{self, Spread};
use super::spacing::{self, Spacing};
use super::{Config, Operand, Row, SamplerError, Table, Term, TimestepType, terms};

/// The values of `algorithm_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Ode,
    Sde,
}

/// The values of `solver_type`, of the second-order update.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Solver {
    Midpoint,
    Heun,
}

/// Fewer steps than this make `lower_order_final` matter.
const FEW_STEPS: usize = 15;

pub(super) fn table(config: &Config, steps: usize) -> Result<Table, SamplerError> {
    prediction::refuse_thresholding(config)?;
    config.refuse("use_flow_sigmas", "flow matching has no table")?;
    config.refuse("use_dynamic_shifting", "flow matching has no table")?;
    let fixed = ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"];
    config.choice("variance_type", (), &fixed.map(|name| (name, ())))?;
    let schedule = Schedule::new(config, Defaults::with(ZeroSnr::Tiny))?;
    let kind = PredictionType::of(config)?;
    let order = config.integer("solver_order", 2, 1..=3)?;
    // The other names are those of sibling schedulers, whose configs diffusers takes over.
    let algorithm = config.choice(
        "algorithm_type",
        Algorithm::Ode,
        &[("dpmsolver++", Algorithm::Ode), ("sde-dpmsolver++", Algorithm::Sde), ("deis", Algorithm::Ode)],
    )?;
    let solver = config.choice(
        "solver_type",
        Solver::Midpoint,
        &[
            ("midpoint", Solver::Midpoint),
            ("heun", Solver::Heun),
            ("logrho", Solver::Midpoint),
            ("bh1", Solver::Midpoint),
            ("bh2", Solver::Midpoint),
        ],
    )?;
    let lower_order_final = config.flag("lower_order_final", true)?;
    let euler_at_final = config.flag("euler_at_final", false)?;
    let (timesteps, sigmas) = levels(config, &schedule, steps)?;
    let ends_clean = sigmas.last() == Some(&0.0);
    let few = lower_order_final && timesteps.len() < FEW_STEPS;

    let at: Vec<Level> = sigmas.iter().map(|&sigma| Level::from_sigma(sigma.into())).collect();
    let mut rows = Vec::with_capacity(timesteps.len());
    for (step, (&timestep, pair)) in timesteps.iter().zip(at.windows(2)).enumerate() {
        let remaining = timesteps.len() - step;
        let mut order = order.min(step + 1);
        if remaining == 1 && (euler_at_final || few || ends_clean) {
            order = 1;
        } else if remaining == 2 && few {
            order = order.min(2);
        }
        // The levels of the predictions in use, newest first.
        let known: Vec<Level> = at[..=step].iter().rev().take(order).copied().collect();
        rows.push(Row {
            timestep: timestep as f64,
            step,
            fraction: step as f64 / timesteps.len() as f64,
            sigma: pair[0].sigma / pair[0].alpha,
            input_scale: 1.0,
            prediction: kind.clean(pair[0]),
            keep: None,
            next: update(algorithm, solver, &known, pair[1]),
        });
    }
    Ok(Table {
        class: config.class(),
        rows,
        sigmas,
        init_noise_sigma: 1.0,
        timestep_type: TimestepType::Int64,
    })
}

/// Timesteps, and the noise levels with the one to end at.
fn levels(config: &Config, schedule: &Schedule, steps: usize) -> Result<(Vec<i64>, Vec<f32>), SamplerError> {
    schedule.check_steps(steps, 1)?;
    let clip = config.number("lambda_min_clipped", f64::NEG_INFINITY)?;
    // Lambda falls with the timestep; timesteps below the clip are not used.
    let clipped = schedule.lambdas().iter().rev().take_while(|&&lambda| f64::from(lambda) < clip).count();
    let last = schedule.len() - clipped;
    if last == 0 {
        return Err(
            config.value_error("lambda_min_clipped", "a number below the highest lambda of the schedule")
        );
    }
    let spacing = Spacing::of(config, Spacing::Linspace)?;
    let offset = spacing::offset(config, schedule.len())?;
    let timesteps = spacing::open_ended(spacing, schedule.len(), last, steps, offset);

    let [karras, exponential, beta] = Spread::KEYS;
    let spread = Spread::of(config, &[karras, ("use_lu_lambdas", Spread::Lu), exponential, beta])?;
    let trained = schedule.sigmas();
    let highest = trained.last().copied().unwrap_or_default();
    let lowest = trained.first().copied().unwrap_or_default();
    let (timesteps, sigmas) = match spread.sigmas(config, highest.into(), lowest.into(), steps)? {
        None => {
            let fractional: Vec<f64> = timesteps.iter().map(|&timestep| timestep as f64).collect();
            (timesteps, sigmas::interpolate(&fractional, &trained))
        }
        Some(sigmas) => {
            let cosine = BetaSchedule::of(config, BetaSchedule::Linear)? == BetaSchedule::SquaredCosine;
            let round = matches!(spread, Spread::Karras | Spread::Lu) && !cosine;
            let timesteps = sigmas.iter().map(|&sigma| {
                let timestep = sigmas::timestep_of(sigma, &trained);
                (if round { timestep.round_ties_even() } else { timestep }) as i64
            });
            (timesteps.collect(), sigmas)
        }
    };
    let last =
        config.choice("final_sigmas_type", 0.0, &[("zero", 0.0), ("sigma_min", first_sigma(schedule))])?;
    let sigmas = sigmas.into_iter().map(|sigma| sigma as f32).chain([last]).collect();
    Ok((timesteps, sigmas))
}

/// Returns the next sample from the clean predictions at the `known` levels (newest first, one to three of them).
///
/// With `h` the step in lambda, the exact solution is an integral over an exponential times the clean
/// prediction; order 1 holds the prediction still, order 2 and 3 add its first and second differences.
fn update(algorithm: Algorithm, solver: Solver, known: &[Level], to: Level) -> Vec<Term> {
    let Some(&from) = known.first() else { return Vec::new() };
    let h = to.lambda() - from.lambda();
    // The stochastic form runs over twice the distance and makes up for it with noise.
    let z = match algorithm {
        Algorithm::Ode => h,
        Algorithm::Sde => 2.0 * h,
    };
    let decay = match algorithm {
        Algorithm::Ode => 1.0,
        Algorithm::Sde => (-h).exp(),
    };
    let phi_1 = -(-z).exp_m1();
    let mut weights = [to.alpha * phi_1, 0.0, 0.0];
    if let &[_, before, ref older @ ..] = known {
        let h_0 = from.lambda() - before.lambda();
        let phi_2 = 1.0 - phi_1 / z;
        let r_0 = h_0 / h;
        match older.first() {
            None => {
                let slope = match solver {
                    Solver::Midpoint => 0.5 * phi_1,
                    Solver::Heun => phi_2,
                };
                let slope = to.alpha * slope / r_0;
                weights[0] += slope;
                weights[1] -= slope;
            }
            Some(oldest) => {
                let r_1 = (before.lambda() - oldest.lambda()) / h;
                // Carrying on as for the ODE, the stochastic form would have +0.5 too; diffusers has -0.5.
                let phi_3 = match algorithm {
                    Algorithm::Ode => 0.5 - phi_2 / z,
                    Algorithm::Sde => -0.5 - phi_2 / z,
                };
                // Differences d_0 = (m_0 - m_1) / r_0 and d_1 = (m_1 - m_2) / r_1; the first derivative
                // is d_0 + r_0 / (r_0 + r_1) (d_0 - d_1), the second (d_0 - d_1) / (r_0 + r_1).
                let (first, second) = (to.alpha * phi_2, to.alpha * phi_3);
                let curvature = (first * r_0 + second) / (r_0 + r_1);
                let (d_0, d_1) = ((first + curvature) / r_0, -curvature / r_1);
                weights[0] += d_0;
                weights[1] += d_1 - d_0;
                weights[2] -= d_1;
            }
        }
    }
    let mut next = terms([
        (Operand::Sample, to.sigma / from.sigma * decay),
        (Operand::Prediction(0), weights[0]),
        (Operand::Prediction(1), weights[1]),
        (Operand::Prediction(2), weights[2]),
    ]);
    if algorithm == Algorithm::Sde {
        let noise = to.sigma * (-(-2.0 * h).exp_m1()).sqrt();
        next.extend(terms([(Operand::Noise, noise)]));
    }
    next
}
