//! Errors of scheduler configs and of requests to a sampler.

use super::{Class, Preset};
use crate::plan::read::similar;

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
    #[error(
        "the scheduler `{0}` is not supported; supported are {names}: name one of them (--scheduler)",
        names = Class::names()
    )]
    UnknownClass(String),
    /// A name that is neither a class with a table nor one of the short ones.
    #[error("there is no scheduler `{0}`{near}", near = unknown_name(.0))]
    UnknownName(String),
    /// A setting that the class doesn't have.
    #[error("{class} has no setting `{key}`{near}", near = unknown_key(*class, key))]
    UnknownKey {
        /// The scheduler's class.
        class: Class,
        /// The given value.
        key: String,
    },
    /// A key holds a value of another type or range than it should.
    #[error("`{key}` of {class} is {value}; expected {expected}")]
    Value {
        /// The scheduler's class.
        class: Class,
        /// The key in `scheduler_config.json`.
        key: &'static str,
        /// The value there, as JSON.
        value: String,
        /// The remedy.
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
        /// The supported values.
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

/// How alike a name must be to one that is proposed: `lms` and `dpm++_sde` are schedulers too, if none of ours.
const ALIKE: f64 = 0.8;

fn unknown_name(name: &str) -> String {
    let names = Preset::names();
    let likeness = |known: &String| {
        let short = known.strip_suffix("Scheduler").unwrap_or(known);
        let like = |known| strsim::normalized_damerau_levenshtein(name, known);
        like(known).max(like(short))
    };
    let nearest = names.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|known| likeness(known) >= ALIKE) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => format!("; there are {}", names.join(", ")),
    }
}

fn unknown_key(class: Class, key: &str) -> String {
    let keys: Vec<&str> = class.keys().collect();
    let others: Vec<&str> = Class::ALL
        .into_iter()
        .filter(|other| other.keys().any(|known| known == key))
        .map(Class::name)
        .collect();
    match (others.as_slice(), similar(key, &keys)) {
        ([], Some(near)) => format!("; did you mean `{near}`?"),
        ([], None) => format!("; it has {}", keys.join(", ")),
        _ => format!("; it is one of {}", others.join(", ")),
    }
}
