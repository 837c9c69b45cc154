//! Digest of a space, by which a journal knows its search.

use serde::{Serialize, Serializer};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Space;
use crate::{diffusion::sampler::Class, hex::hex};

impl Space {
    /// Returns the SHA-256 in hex of what the search does, trial by trial, as JSON. Formatting, comments, defaults
    /// written out and the budget don't change it, but for what a schedule takes from the budget.
    pub fn digest(&self) -> String {
        let Self { variables, plan, prompts, sampling, strategy, seed, objective, over, metrics, .. } = self;
        let meaning = json!({
            "version": 2, "variables": variables, "plan": plan.as_json(), "prompts": prompts, "sampling": sampling,
            "strategy": strategy, "seed": seed, "objective": objective, "over": over, "metrics": metrics,
        });
        hex(&Sha256::digest(meaning.to_string().as_bytes()))
    }
}

pub(super) fn scheduler<S: Serializer>(class: &Option<Class>, serializer: S) -> Result<S::Ok, S::Error> {
    class.map(Class::name).serialize(serializer)
}
