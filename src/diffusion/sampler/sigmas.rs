//! The noise levels of the schedulers that step on them: the training schedule's own, or spread in a
//! way of their own between its ends.

use super::spacing::linspace;
use super::{Config, SamplerError};

/// How noise levels are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spread {
    /// Those of the training schedule at the timesteps.
    Trained,
    /// Even in the seventh root (Karras et al., "Elucidating the Design Space of Diffusion-Based
    /// Generative Models", equation 5).
    Karras,
    /// Even in the logarithm.
    Exponential,
    /// Quantiles of the beta distribution (Lee et al., "Beta Sampling is All You Need").
    Beta,
    /// Even in the logarithm, as Lu et al.'s DPM-Solver has it.
    Lu,
}

const ONE_SPREAD: &str = "only one of the keys that spread sigmas can be true";

impl Spread {
    /// Returns the one of the given keys that is true.
    pub(super) fn of(config: &Config, keys: &[(&'static str, Self)]) -> Result<Self, SamplerError> {
        let mut spread = Self::Trained;
        for &(key, kind) in keys {
            if spread != Self::Trained {
                config.refuse(key, ONE_SPREAD)?;
            } else if config.flag(key, false)? {
                spread = kind;
            }
        }
        Ok(spread)
    }

    /// The keys that every class with spread sigmas knows.
    pub(super) const KEYS: [(&'static str, Self); 3] = [
        ("use_karras_sigmas", Self::Karras),
        ("use_exponential_sigmas", Self::Exponential),
        ("use_beta_sigmas", Self::Beta),
    ];

    /// Returns `count` noise levels from `sigma_max` down to `sigma_min`: the keys of those names, or else
    /// `highest` and `lowest`. `None` for the trained ones.
    pub(super) fn sigmas(
        self,
        config: &Config,
        highest: f64,
        lowest: f64,
        count: usize,
    ) -> Result<Option<Vec<f64>>, SamplerError> {
        let (highest, lowest) = match self {
            Self::Trained => return Ok(None),
            Self::Lu => (highest, lowest),
            Self::Karras | Self::Exponential | Self::Beta => (
                config.optional_number("sigma_max")?.unwrap_or(highest),
                config.optional_number("sigma_min")?.unwrap_or(lowest),
            ),
        };
        let even = |highest: f64, lowest: f64| linspace(highest, lowest, count).into_iter();
        Ok(match self {
            Self::Trained => None,
            Self::Karras => {
                const RHO: f64 = 7.0;
                let (from, to) = (highest.powf(1.0 / RHO), lowest.powf(1.0 / RHO));
                Some(even(0.0, 1.0).map(|ramp| (from + ramp * (to - from)).powf(RHO)).collect())
            }
            Self::Exponential => Some(even(highest.ln(), lowest.ln()).map(f64::exp).collect()),
            Self::Beta => {
                let sigma = |ramp: f64| lowest + beta_quantile(1.0 - ramp) * (highest - lowest);
                Some(even(0.0, 1.0).map(sigma).collect())
            }
            Self::Lu => {
                // The logarithms of the trained sigmas are float32.
                let logarithm = |sigma: f64| f64::from(sigma.ln() as f32);
                Some(even(logarithm(highest), logarithm(lowest)).map(f64::exp).collect())
            }
        })
    }
}

/// Returns `numpy.interp` of the training schedule's sigmas at fractional timesteps, held at its ends.
pub(super) fn interpolate(timesteps: &[f64], sigmas: &[f32]) -> Vec<f64> {
    let at = |index: usize| sigmas.get(index).or(sigmas.last()).copied().map_or(0.0, f64::from);
    let value = |&timestep: &f64| {
        let timestep = timestep.clamp(0.0, sigmas.len().saturating_sub(1) as f64);
        let below = timestep as usize;
        let (low, high) = (at(below), at(below + 1));
        (high - low) * (timestep - below as f64) + low
    };
    timesteps.iter().map(value).collect()
}

/// Returns the timestep whose sigma this is, between two training timesteps on the logarithms.
pub(super) fn timestep_of(sigma: f64, sigmas: &[f32]) -> f64 {
    let logarithm = sigma.max(1e-10).ln();
    let log_sigmas = |index: usize| {
        let sigma = sigmas.get(index).or(sigmas.last()).copied().map_or(0.0, f64::from);
        f64::from(sigma.ln() as f32)
    };
    // Sigmas grow with the timestep.
    let above = sigmas.partition_point(|&trained| f64::from(f64::from(trained).ln() as f32) <= logarithm);
    let low_index = above.saturating_sub(1).min(sigmas.len().saturating_sub(2));
    let (low, high) = (log_sigmas(low_index), log_sigmas(low_index + 1));
    let weight = ((low - logarithm) / (low - high)).clamp(0.0, 1.0);
    (1.0 - weight) * low_index as f64 + weight * (low_index + 1) as f64
}

/// Returns the quantile function of the beta distribution with both parameters 0.6.
fn beta_quantile(probability: f64) -> f64 {
    if probability > 0.5 {
        return 1.0 - beta_quantile(1.0 - probability);
    }
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if beta_distribution(middle) < probability {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// Returns the beta distribution with both parameters 0.6 up to `x` in (0, 0.5], from its power series
/// `x^a / (a B(a, b)) * (1 + sum of (1-b)(2-b)..(n-b) / n! * a / (a+n) * x^n)` (DLMF 8.17.7).
fn beta_distribution(x: f64) -> f64 {
    const A: f64 = 0.6;
    /// B(0.6, 0.6)
    const BETA: f64 = 2.415_344_208_002_472;
    let mut term = 1.0;
    let mut sum = 1.0 / A;
    for n in 1..200 {
        let n = f64::from(n);
        term *= (n - A) / n * x;
        sum += term / (A + n);
    }
    x.powf(A) / BETA * sum
}
