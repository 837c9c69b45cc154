//! `scheduler_config.json`: the class, and typed access to the keys a class reads.

use super::SamplerError;
use serde_json::{Map, Value};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The scheduler classes of diffusers that have a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// `DDIMScheduler`
    Ddim,
    /// `DDPMScheduler`
    Ddpm,
    /// `EulerDiscreteScheduler`
    Euler,
    /// `EulerAncestralDiscreteScheduler`
    EulerAncestral,
    /// `HeunDiscreteScheduler`
    Heun,
    /// `DPMSolverMultistepScheduler`
    DpmSolverMultistep,
    /// `PNDMScheduler`
    Pndm,
    /// `UniPCMultistepScheduler`
    UniPc,
    /// `LCMScheduler`
    Lcm,
}

impl Class {
    /// Every class, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Ddim,
        Self::Ddpm,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::DpmSolverMultistep,
        Self::Pndm,
        Self::UniPc,
        Self::Lcm,
    ];

    /// Returns the class name in diffusers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "DDIMScheduler",
            Self::Ddpm => "DDPMScheduler",
            Self::Euler => "EulerDiscreteScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Self::Heun => "HeunDiscreteScheduler",
            Self::DpmSolverMultistep => "DPMSolverMultistepScheduler",
            Self::Pndm => "PNDMScheduler",
            Self::UniPc => "UniPCMultistepScheduler",
            Self::Lcm => "LCMScheduler",
        }
    }

    pub(super) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Returns the settings that the class has in diffusers: the arguments of its `__init__`.
    pub fn keys(self) -> impl Iterator<Item = &'static str> {
        const THRESHOLDING: [&str; 3] = ["thresholding", "dynamic_thresholding_ratio", "sample_max_value"];
        const SPREAD: [&str; 3] = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];
        const CLIP: [&str; 2] = ["clip_sample", "clip_sample_range"];
        const ZERO_SNR: &str = "rescale_betas_zero_snr";
        let groups: [&'static [&'static str]; 4] = match self {
            Self::Ddim => [&["set_alpha_to_one", ZERO_SNR], &CLIP, &THRESHOLDING, &[]],
            Self::Ddpm => [&["variance_type", ZERO_SNR], &CLIP, &THRESHOLDING, &[]],
            Self::Euler => [
                &[
                    "interpolation_type",
                    "sigma_min",
                    "sigma_max",
                    "timestep_type",
                    "final_sigmas_type",
                    ZERO_SNR,
                ],
                &SPREAD,
                &[],
                &[],
            ],
            Self::EulerAncestral => [&[ZERO_SNR], &[], &[], &[]],
            Self::Heun => [&SPREAD, &CLIP, &[], &[]],
            Self::DpmSolverMultistep => [
                &["solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"],
                &["use_lu_lambdas", "final_sigmas_type", "lambda_min_clipped", "variance_type", ZERO_SNR],
                &SPREAD,
                &THRESHOLDING,
            ],
            Self::Pndm => [&["skip_prk_steps", "set_alpha_to_one"], &[], &[], &[]],
            Self::UniPc => [
                &[
                    "solver_order",
                    "predict_x0",
                    "solver_type",
                    "lower_order_final",
                    "disable_corrector",
                    "solver_p",
                ],
                &["final_sigmas_type", "sigma_min", "sigma_max", ZERO_SNR],
                &SPREAD,
                &THRESHOLDING,
            ],
            Self::Lcm => [
                &["original_inference_steps", "set_alpha_to_one", "timestep_scaling", ZERO_SNR],
                &CLIP,
                &THRESHOLDING,
                &[],
            ],
        };
        // Flow matching is known in order to be refused.
        const FLOW: [&str; 4] = ["use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type"];
        let flow: &[&str] = match self {
            Self::UniPc => &["shift_terminal"],
            _ => &[],
        };
        let multistep = matches!(self, Self::DpmSolverMultistep | Self::UniPc);
        let flow = FLOW.iter().filter(move |_| multistep).chain(flow);
        COMMON.iter().chain(groups.into_iter().flatten()).chain(flow).copied()
    }
}

/// The settings that every class has.
const COMMON: [&str; 8] = [
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
];

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Class {
    type Err = SamplerError;

    fn from_str(name: &str) -> Result<Self, SamplerError> {
        Self::ALL
            .into_iter()
            .find(|class| class.name() == name)
            .ok_or_else(|| SamplerError::UnknownClass(name.to_owned()))
    }
}

/// A `scheduler_config.json`, whose class need not be one that has a table.
#[derive(Debug, Clone)]
pub struct SavedConfig {
    class: String,
    values: Map<String, Value>,
}

impl SavedConfig {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// When it isn't a JSON object or names no class.
    pub fn from_json(text: &str) -> Result<Self, SamplerError> {
        let values: Map<String, Value> = serde_json::from_str(&without_infinities(text))?;
        let class = values.get("_class_name").and_then(Value::as_str).ok_or(SamplerError::NoClass)?;
        Ok(Self { class: class.to_owned(), values })
    }

    /// Returns the name of its class.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// Returns the settings for `class`, or for their own.
    ///
    /// # Errors
    /// [`SamplerError::UnknownClass`] if their own class has no table.
    pub fn config(&self, class: Option<Class>) -> Result<Config, SamplerError> {
        let class = class.map_or_else(|| self.class.parse(), Ok)?;
        Ok(Config { class, values: self.values.clone() })
    }
}

/// A scheduler's settings. Keys that the class doesn't know are kept and ignored, as diffusers does;
/// a missing key, or null, has the class's default.
#[derive(Debug, Clone)]
pub struct Config {
    class: Class,
    values: Map<String, Value>,
}

impl Config {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// When it isn't a JSON object or names no supported class. The values are checked when a table is made.
    pub fn from_json(text: &str) -> Result<Self, SamplerError> {
        SavedConfig::from_json(text)?.config(None)
    }

    /// Returns the scheduler's class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Returns the same settings for another class, as `Other.from_config(scheduler.config)` in diffusers: keys
    /// that are missing take the other class's defaults.
    #[must_use]
    pub fn with_class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// Returns the same settings but for one key, as `from_config(config, key=value)`.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.values.insert(key.to_owned(), value.into());
        self
    }

    /// Returns the same settings but for those that are asked for by name.
    ///
    /// # Errors
    /// [`SamplerError::UnknownKey`] if the class has no such setting.
    pub fn with_options(self, options: &[(String, Value)]) -> Result<Self, SamplerError> {
        options.iter().try_fold(self, |config, (key, value)| {
            if config.class.keys().any(|known| known == key) {
                return Ok(config.with(key, value.clone()));
            }
            Err(SamplerError::UnknownKey { class: config.class, key: key.clone() })
        })
    }

    pub(super) fn number(&self, key: &'static str, default: f64) -> Result<f64, SamplerError> {
        Ok(self.optional_number(key)?.unwrap_or(default))
    }

    pub(super) fn optional_number(&self, key: &'static str) -> Result<Option<f64>, SamplerError> {
        self.get(key).map(|value| value.as_f64().ok_or_else(|| self.value_error(key, "a number"))).transpose()
    }

    pub(super) fn integer(
        &self,
        key: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value
            .as_u64()
            .and_then(|value| usize::try_from(value).ok())
            .filter(|value| range.contains(value))
            .ok_or_else(|| {
                self.value_error(key, format!("an integer from {} to {}", range.start(), range.end()))
            })
    }

    pub(super) fn flag(&self, key: &'static str, default: bool) -> Result<bool, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.value_error(key, "true or false"))
    }

    pub(super) fn choice<T: Copy>(
        &self,
        key: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        choices.iter().find(|(name, _)| value.as_str() == Some(name)).map(|&(_, choice)| choice).ok_or_else(
            || {
                let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
                self.value_error(key, names.join(" or "))
            },
        )
    }

    pub(super) fn numbers(&self, key: &'static str) -> Result<Option<Vec<f64>>, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let numbers = value.as_array().and_then(|items| items.iter().map(Value::as_f64).collect());
        numbers.map(Some).ok_or_else(|| self.value_error(key, "a list of numbers"))
    }

    /// Refuses the key where it is true, which it is not by default.
    pub(super) fn refuse(&self, key: &'static str, instead: &'static str) -> Result<(), SamplerError> {
        if !self.flag(key, false)? {
            return Ok(());
        }
        Err(SamplerError::Unsupported { class: self.class, key, value: "true".to_owned(), instead })
    }

    pub(super) fn value_error(&self, key: &'static str, expected: impl Into<String>) -> SamplerError {
        let value = self.get(key).map_or_else(|| "missing".to_owned(), Value::to_string);
        SamplerError::Value { class: self.class, key, value, expected: expected.into() }
    }

    /// Returns the value of a key, unless it is missing or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }
}

/// Reads JSON as Python writes it: minus infinity is `-Infinity`, which JSON doesn't know. The one key that holds it,
/// `lambda_min_clipped`, has it as its default, so it can be null.
fn without_infinities(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut in_string = false;
    for piece in text.split_inclusive('"') {
        if in_string {
            result.push_str(piece);
        } else {
            result.push_str(&piece.replace("-Infinity", "null"));
        }
        let body = piece.trim_end_matches('"');
        let backslashes = body.len() - body.trim_end_matches('\\').len();
        if !in_string || backslashes % 2 == 0 {
            in_string = !in_string;
        }
    }
    result
}
