//! A space: what may vary, the plan it goes into, what is drawn with it, and how that is scored.
//!
//! ```yaml
//! version: 1
//! variables:
//!   down: { ratio: [0.1, 0.8] }
//!   up: { ratio: [0.1, 0.8] }
//! plan:
//!   version: 1
//!   crdiff: { down: $down, up: $up }
//! prompts: prompts.txt
//! sampling: { sizes: [96x96], steps: 30 }
//! objective: { command: [python3, score.py, "{image}", "{prompt}"] }
//! ```
//!
//! [`load`] gives a [`Space`]; [`Bound::new`] puts a model's modules into its sets, after which points have a meaning.

mod bind;
mod diagnostics;
mod digest;
mod objective;
mod parse;
mod schema;
mod template;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use miette::SourceSpan;
use serde::Serialize;
use serde_json::Value;

pub(super) use bind::settings_json;
pub use bind::{Bound, Setting, Settings};
pub use diagnostics::SpaceError;
pub use objective::{
    ChannelOrder, CommandSpec, Crop, ImageSpec, ObjectiveSpec, OnnxSpec, Over, Part, Resample, Resize,
    TextSpec,
};
pub use parse::{load, load_objective, parse};
pub use schema::json_schema;
pub use template::Template;

use super::strategy::Schedule;
use crate::{diffusion::sampler::Class, plan::PlanSource};

/// A search space: variables, plan and objective, checked as far as that goes without the model.
#[derive(Debug)]
pub struct Space {
    /// The variables, in the order of the file.
    pub variables: Vec<Variable>,
    /// The plan that the variables go into.
    pub plan: Template,
    /// The images to draw.
    pub prompts: Vec<String>,
    /// How it is drawn.
    pub sampling: Sampling,
    /// When the search ends.
    pub budget: Budget,
    /// How points are chosen.
    pub strategy: StrategySpec,
    /// The seed of the strategy.
    pub seed: u32,
    /// How an image is scored.
    pub objective: ObjectiveSpec,
    /// How the images' scores make a trial's.
    pub over: Over,
    /// The measurements beside the objective, by name.
    pub metrics: Vec<(String, ObjectiveSpec)>,
    /// The folder that the file's relative paths start from.
    pub folder: PathBuf,
    /// The file's text.
    pub source: PlanSource,
}

/// Something that may vary.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Variable {
    /// Its name, without the `$`.
    pub name: String,
    /// Where its name stands.
    #[serde(skip)]
    pub span: SourceSpan,
    /// Its range.
    pub kind: VariableKind,
}

/// The range of a variable.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VariableKind {
    /// A number of a range.
    Number {
        /// The least.
        low: f64,
        /// The greatest.
        high: f64,
        /// Where the search begins.
        start: f64,
        /// How far annealing moves it at most.
        step: f64,
        /// How many values a grid has.
        points: usize,
    },
    /// One of several words, numbers or truth values.
    Choice {
        /// They.
        options: Vec<Value>,
        /// Which one the search begins with.
        start: usize,
    },
    /// Modules of the model.
    Modules {
        /// The options.
        members: Vec<Member>,
        /// How many of them.
        choose: Choose,
    },
}

/// Something of a set of modules that can be chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Member {
    /// Each module that the glob matches, on its own.
    Each {
        /// The glob.
        glob: String,
        /// Where it stands.
        #[serde(skip)]
        span: SourceSpan,
    },
    /// The modules that these globs match, together.
    Together {
        /// The globs.
        globs: Vec<String>,
        /// Where they stand.
        #[serde(skip)]
        span: SourceSpan,
    },
}

/// How many members of a set are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choose {
    /// Any number, none too: each is in or out.
    #[default]
    Any,
    /// Exactly one.
    One,
    /// One or none.
    AtMostOne,
}

/// How images are drawn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sampling {
    /// Heights and widths in pixels; empty for the pipeline's own.
    pub sizes: Vec<(usize, usize)>,
    /// Steps of the sampler.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance: f64,
    /// The negative prompt.
    pub negative_prompt: Option<String>,
    /// An image for each of them, of each prompt and size.
    pub seeds: Vec<u64>,
    /// The scheduler, if it is not the pipeline's.
    #[serde(serialize_with = "digest::scheduler")]
    pub scheduler: Option<Class>,
    /// Settings of the scheduler to change.
    pub scheduler_options: Vec<(String, Value)>,
}

impl Default for Sampling {
    /// Returns 30 steps, guidance 7.5, seed 0: the authors' search, but for its prompts.
    fn default() -> Self {
        Self {
            sizes: Vec::new(),
            steps: 30,
            guidance: 7.5,
            negative_prompt: None,
            seeds: vec![0],
            scheduler: None,
            scheduler_options: Vec::new(),
        }
    }
}

/// When a search ends: at the first of these.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budget {
    /// The number of trials.
    pub trials: Option<u64>,
    /// So much time in trials.
    pub time: Option<Duration>,
}

/// How points are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StrategySpec {
    /// Simulated annealing.
    Annealing(Schedule),
    /// Evenly drawn points.
    Random,
    /// Every combination.
    Grid,
}

impl StrategySpec {
    /// Returns its name in a space.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Annealing(_) => "annealing",
            Self::Random => "random",
            Self::Grid => "grid",
        }
    }
}

impl Space {
    /// Returns a path of the space, from its folder.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }
}
