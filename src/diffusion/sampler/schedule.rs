//! The training schedule (betas to sigmas) and where the steps lie in it.
//!
//! Everything a scheduler of diffusers keeps in a float32 tensor is rounded to `f32` here too, in the
//! order torch computes it, so that timesteps and sigmas come out equal.

use super::{Class, Config, SamplerError};

/// The longest training schedule accepted; diffusers' models have 1000.
const MOST_TRAIN_STEPS: usize = 100_000;

/// The values of `beta_schedule`: how betas grow over training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BetaSchedule {
    Linear,
    ScaledLinear,
    SquaredCosine,
}

impl BetaSchedule {
    pub(super) fn of(config: &Config, default: Self) -> Result<Self, SamplerError> {
        let choices = [
            ("linear", Self::Linear),
            ("scaled_linear", Self::ScaledLinear),
            ("squaredcos_cap_v2", Self::SquaredCosine),
        ];
        config.choice("beta_schedule", default, &choices)
    }
}

/// How a class treats `rescale_betas_zero_snr`.
#[derive(Debug, Clone, Copy)]
pub(super) enum ZeroSnr {
    /// It doesn't know the key.
    Unknown,
    /// The last cumulative alpha is zero.
    Zero,
    /// The last cumulative alpha is 2^-24, so that the first sigma is finite.
    Tiny,
}

/// The differences between classes in the making of a schedule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: BetaSchedule,
    pub(super) zero_snr: ZeroSnr,
}

impl Defaults {
    /// Returns the defaults that most classes have.
    pub(super) fn with(zero_snr: ZeroSnr) -> Self {
        Self { beta_start: 0.0001, beta_end: 0.02, beta_schedule: BetaSchedule::Linear, zero_snr }
    }
}

/// The cumulative products of the alphas, one for each training timestep.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    class: Class,
    alphas_cumprod: Vec<f32>,
}

impl Schedule {
    pub(super) fn new(config: &Config, defaults: Defaults) -> Result<Self, SamplerError> {
        let mut betas = betas(config, defaults)?;
        let zero_snr = match defaults.zero_snr {
            ZeroSnr::Unknown => false,
            ZeroSnr::Zero | ZeroSnr::Tiny => config.flag("rescale_betas_zero_snr", false)?,
        };
        if zero_snr {
            rescale_to_zero_snr(&mut betas);
        }
        let mut alphas_cumprod = cumulative_alphas(&betas);
        if zero_snr
            && matches!(defaults.zero_snr, ZeroSnr::Tiny)
            && let Some(last) = alphas_cumprod.last_mut()
        {
            *last = 2.0_f32.powi(-24);
        }
        Ok(Self { class: config.class(), alphas_cumprod })
    }

    /// Returns the number of training timesteps; at least one.
    pub(super) fn len(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// Returns the cumulative alpha at a timestep.
    pub(super) fn alpha(&self, timestep: i64) -> Result<f64, SamplerError> {
        let alpha = usize::try_from(timestep).ok().and_then(|index| self.alphas_cumprod.get(index));
        alpha.map(|&alpha| f64::from(alpha)).ok_or(SamplerError::Timestep {
            class: self.class,
            timestep,
            train_steps: self.len(),
        })
    }

    /// Returns the cumulative alpha at the first timestep.
    pub(super) fn first_alpha(&self) -> f64 {
        self.alphas_cumprod.first().copied().map_or(1.0, f64::from)
    }

    /// Returns the noise level in units of the signal at a timestep.
    pub(super) fn sigma(&self, timestep: i64) -> Result<f64, SamplerError> {
        let alpha = self.alpha(timestep)?;
        Ok(((1.0 - alpha) / alpha).sqrt())
    }

    /// Returns the noise level in units of the signal, `sqrt((1 - alpha) / alpha)`, at every training timestep.
    pub(super) fn sigmas(&self) -> Vec<f32> {
        self.alphas_cumprod.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
    }

    /// Returns `lambda = log(alpha / sigma)` at every training timestep.
    pub(super) fn lambdas(&self) -> Vec<f32> {
        self.alphas_cumprod.iter().map(|alpha| alpha.sqrt().ln() - (1.0 - alpha).sqrt().ln()).collect()
    }

    /// Refuses fewer than `least` steps and more than there are training timesteps.
    pub(super) fn check_steps(&self, steps: usize, least: usize) -> Result<(), SamplerError> {
        if (least..=self.len()).contains(&steps) {
            return Ok(());
        }
        Err(SamplerError::Steps { class: self.class, steps, least, most: self.len() })
    }
}

fn betas(config: &Config, defaults: Defaults) -> Result<Vec<f32>, SamplerError> {
    let count = config.integer("num_train_timesteps", 1000, 1..=MOST_TRAIN_STEPS)?;
    if let Some(betas) = config.numbers("trained_betas")? {
        if betas.len() != count {
            let expected = format!("{count} numbers, one for each of `num_train_timesteps`");
            return Err(config.value_error("trained_betas", expected));
        }
        return Ok(betas.into_iter().map(|beta| beta as f32).collect());
    }
    let start = config.number("beta_start", defaults.beta_start)?;
    let end = config.number("beta_end", defaults.beta_end)?;
    let schedule = BetaSchedule::of(config, defaults.beta_schedule)?;
    Ok(match schedule {
        BetaSchedule::Linear => torch_linspace(start as f32, end as f32, count),
        BetaSchedule::ScaledLinear => torch_linspace(start.sqrt() as f32, end.sqrt() as f32, count)
            .into_iter()
            .map(|root| root * root)
            .collect(),
        BetaSchedule::SquaredCosine => cosine_betas(count),
    })
}

/// Betas whose cumulative alphas follow a squared cosine (Nichol and Dhariwal, "Improved Denoising
/// Diffusion Probabilistic Models"), each at most 0.999.
fn cosine_betas(count: usize) -> Vec<f32> {
    let alpha_bar = |step: usize| {
        let time = step as f64 / count as f64;
        ((time + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
    };
    (0..count).map(|i| (1.0 - alpha_bar(i + 1) / alpha_bar(i)).min(0.999) as f32).collect()
}

/// Returns `torch.linspace` in float32: each half counts from its own end, with one rounding a value.
fn torch_linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / (count - 1) as f32;
    (0..count)
        .map(|i| {
            if i < count / 2 {
                step.mul_add(i as f32, start)
            } else {
                step.mul_add(-((count - 1 - i) as f32), end)
            }
        })
        .collect()
}

/// Returns `torch.cumprod(1 - betas)`, which accumulates in double precision.
fn cumulative_alphas(betas: &[f32]) -> Vec<f32> {
    let products = betas.iter().scan(1.0_f64, |product, beta| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    });
    products.collect()
}

/// Shifts and scales the square roots of the cumulative alphas so that the last is zero and the first
/// stays (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1).
fn rescale_to_zero_snr(betas: &mut [f32]) {
    let roots: Vec<f32> = cumulative_alphas(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return };
    let scale = first / (first - last);
    let mut before = 1.0;
    for (i, (beta, root)) in betas.iter_mut().zip(roots).enumerate() {
        let root = (root - last) * scale;
        let alpha_bar = root * root;
        *beta = 1.0 - if i == 0 { alpha_bar } else { alpha_bar / before };
        before = alpha_bar;
    }
}
