//! Prediction types (epsilon, v, sample): how the clean sample or the noise follows from a network's output.

use super::{Config, Prediction, Row, SamplerError};

/// The values of `prediction_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PredictionType {
    /// The noise.
    Epsilon,
    /// `alpha * noise - sigma * clean`.
    V,
    /// The clean sample.
    Sample,
}

impl PredictionType {
    pub(super) fn of(config: &Config) -> Result<Self, SamplerError> {
        Self::among(
            config,
            &[("epsilon", Self::Epsilon), ("v_prediction", Self::V), ("sample", Self::Sample)],
        )
    }

    /// Returns the prediction type, for the classes that cannot predict the sample.
    pub(super) fn without_sample(config: &Config) -> Result<Self, SamplerError> {
        Self::among(config, &[("epsilon", Self::Epsilon), ("v_prediction", Self::V)])
    }

    fn among(config: &Config, choices: &[(&str, Self)]) -> Result<Self, SamplerError> {
        config.choice("prediction_type", Self::Epsilon, choices)
    }

    /// Returns the clean sample, given `sample = alpha * clean + sigma * noise`.
    pub(super) fn clean(self, level: Level) -> Prediction {
        let Level { alpha, sigma } = level;
        match self {
            Self::Epsilon => Prediction::new(1.0 / alpha, -sigma / alpha),
            Self::V => Prediction::new(alpha, -sigma),
            Self::Sample => Prediction::new(0.0, 1.0),
        }
    }

    /// Returns the noise, given `sample = alpha * clean + sigma * noise`.
    pub(super) fn noise(self, level: Level) -> Prediction {
        let Level { alpha, sigma } = level;
        match self {
            Self::Epsilon => Prediction::new(0.0, 1.0),
            Self::V => Prediction::new(sigma, alpha),
            Self::Sample => Prediction::new(1.0 / sigma, -alpha / sigma),
        }
    }

    /// Returns the clean sample, given `sample = clean + sigma * noise`, with the network's input scaled to unit
    /// variance.
    pub(super) fn clean_unscaled(self, sigma: f64) -> Prediction {
        let square = sigma * sigma + 1.0;
        match self {
            Self::Epsilon => Prediction::new(1.0, -sigma),
            Self::V => Prediction::new(1.0 / square, -sigma / square.sqrt()),
            Self::Sample => Prediction::new(0.0, 1.0),
        }
    }
}

impl Prediction {
    pub(super) fn new(sample: f64, output: f64) -> Self {
        Self { sample, output, clip: None }
    }

    pub(super) fn clipped(self, clip: Option<f64>) -> Self {
        Self { clip, ..self }
    }
}

/// How the clean sample follows from what a network is given and gives.
#[derive(Debug, Clone, Copy)]
pub struct Clean(PredictionType);

impl Clean {
    /// Reads the prediction type.
    ///
    /// # Errors
    /// [`SamplerError`] if it is not known.
    pub fn of(config: &Config) -> Result<Self, SamplerError> {
        PredictionType::of(config).map(Self)
    }

    /// Returns the weights of the network's input and output in the clean sample; `None` where the input is noise alone and
    /// says nothing of it.
    pub fn weights(self, row: &Row) -> Option<[f32; 2]> {
        // Every input is scaled to unit variance.
        let level = match row.sigma.is_infinite() {
            true => Level { alpha: 0.0, sigma: 1.0 },
            false => Level::from_sigma(row.sigma),
        };
        let prediction = self.0.clean(level);
        let weights = [prediction.sample as f32, prediction.output as f32];
        weights.iter().all(|weight| weight.is_finite()).then_some(weights)
    }
}

/// How much of the clean sample and of the noise a sample holds; the squares add up to one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    pub(super) alpha: f64,
    pub(super) sigma: f64,
}

impl Level {
    /// Makes the level from a cumulative alpha, which is the square of ours.
    pub(super) fn from_cumulative(alpha: f64) -> Self {
        Self { alpha: alpha.sqrt(), sigma: (1.0 - alpha).sqrt() }
    }

    /// Makes the level from a noise level in units of the signal.
    pub(super) fn from_sigma(sigma: f64) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self { alpha, sigma: sigma * alpha }
    }

    /// Returns half the logarithm of the signal-to-noise ratio; infinite without noise.
    pub(super) fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }
}

/// Returns the clipping of clean samples, `clip_sample` and `clip_sample_range`; refuses `thresholding`.
pub(super) fn clip(config: &Config, default: bool) -> Result<Option<f64>, SamplerError> {
    refuse_thresholding(config)?;
    if !config.flag("clip_sample", default)? {
        return Ok(None);
    }
    let range = config.number("clip_sample_range", 1.0)?;
    if range < 0.0 {
        return Err(config.value_error("clip_sample_range", "a number that is not negative"));
    }
    Ok(Some(range))
}

/// Refuses dynamic thresholding, which depends on each image's own quantiles, so that no table holds it.
pub(super) fn refuse_thresholding(config: &Config) -> Result<(), SamplerError> {
    config.refuse("thresholding", "it is meant for models of pixels, not of latents")
}
