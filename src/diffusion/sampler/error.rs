//! What can be wrong with a scheduler config, or with what is asked of it.

use super::Class;

/// A sampler table that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// The file is not a JSON object.
    #[error("the scheduler config is not a JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// No class name in the file.
    #[error("the scheduler config has no `_class_name`; expected one of {}", Class::names())]
    NoClass,
    /// A scheduler that has no table here.
    #[error("the scheduler `{0}` is not supported; expected one of {names}", names = Class::names())]
    UnknownClass(String),
    /// A key holds a value of another type or range than it should.
    #[error("`{key}` of {class} is {value}; expected {expected}")]
    Value {
        /// The scheduler's class.
        class: Class,
        /// The key in `scheduler_config.json`.
        key: &'static str,
        /// The value there, as JSON.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A feature that a table cannot hold or that is not implemented.
    #[error("`{key}: {value}` of {class} is not supported; {instead}")]
    Unsupported {
        /// The scheduler's class.
        class: Class,
        /// The key in `scheduler_config.json`.
        key: &'static str,
        /// The value there, as JSON.
        value: String,
        /// What is supported.
        instead: &'static str,
    },
    /// More steps than the schedule has, or none.
    #[error("{class} cannot take {steps} steps; expected {least} to {most}")]
    Steps {
        /// The scheduler's class.
        class: Class,
        /// Steps asked for.
        steps: usize,
        /// The fewest there can be.
        least: usize,
        /// The most there can be.
        most: usize,
    },
    /// A timestep outside the training schedule.
    #[error(
        "{class} comes to timestep {timestep}, outside the training schedule of {train_steps}; lower `steps_offset`"
    )]
    Timestep {
        /// The scheduler's class.
        class: Class,
        /// The timestep.
        timestep: i64,
        /// Length of the training schedule.
        train_steps: usize,
    },
    /// The settings divide by zero somewhere, as they do in diffusers.
    #[error(
        "{class} with these settings is not finite at call {call} (timestep {timestep}); \
         look at `prediction_type`, `rescale_betas_zero_snr`, `final_sigmas_type`, the betas and eta"
    )]
    NotFinite {
        /// The scheduler's class.
        class: Class,
        /// The model call, from 0.
        call: usize,
        /// Its timestep.
        timestep: f64,
    },
}
