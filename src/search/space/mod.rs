//! The search space: variables, the plan that they go into, the images to draw, and the objective.
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
mod error;
mod objective;
mod read;
mod sampling;
mod strategy;
mod syntax;
mod template;
mod variables;

use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

pub(super) use bind::settings_json;
pub use bind::{Bound, Setting, Settings};
pub use error::SpaceError;
pub use objective::{
    ChannelOrder, CommandSpec, Crop, ImageSpec, ObjectiveSpec, OnnxSpec, Over, Part, Resample, Resize,
    TextSpec,
};
pub use read::{json_schema, load, load_objective, parse};
pub use sampling::{Noises, Sampling};
pub use strategy::{Budget, Confirm, StrategySpec};
pub use template::Template;
pub use variables::{Choose, Member, Variable, VariableKind};

use crate::{hex::hex, plan::PlanSource};

/// A search space and how it is judged, checked as far as that goes without the model.
#[derive(Debug)]
pub struct Space {
    /// The variables, in the order of the file.
    pub variables: Vec<Variable>,
    /// The plan that the variables go into.
    pub plan: Template,
    /// The prompts.
    pub prompts: Vec<String>,
    /// How it is drawn.
    pub sampling: Sampling,
    /// When the search ends.
    pub budget: Budget,
    /// How the best trials are confirmed, if they are.
    pub confirm: Option<Confirm>,
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

impl Space {
    /// Returns a path of the space, from its folder.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// Returns SHA-256 in hex of what the search does, trial by trial, as JSON. Formatting, comments, defaults written out
    /// and the budget don't change it, but for what a schedule takes from the budget; nor does how it is confirmed.
    pub fn digest(&self) -> String {
        let Self { variables, plan, prompts, sampling, strategy, seed, objective, over, metrics, .. } = self;
        let meaning = json!({
            "version": 2, "variables": variables, "plan": plan.as_json(), "prompts": prompts, "sampling": sampling,
            "strategy": strategy, "seed": seed, "objective": objective, "over": over, "metrics": metrics,
        });
        hex(&Sha256::digest(meaning.to_string().as_bytes()))
    }
}
