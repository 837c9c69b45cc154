//! What identifies a space.

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::{CommandSpec, Member, ObjectiveSpec, Part, Space, VariableKind};
use crate::{diffusion::sampler::Class, hex::hex};

impl Space {
    /// SHA-256 in hex of what the search does, trial by trial. Formatting, comments and the budget don't change it, but
    /// for what a schedule takes from the budget.
    pub fn digest(&self) -> String {
        let variables: Vec<Json> = self
            .variables
            .iter()
            .map(|variable| json!([variable.name, canonical_kind(&variable.kind)]))
            .collect();
        let sampling = &self.sampling;
        let metrics: Vec<Json> =
            self.metrics.iter().map(|(name, metric)| json!([name, metric.canonical()])).collect();
        let text = json!({
            "version": 1,
            "variables": variables,
            "plan": self.plan.as_json(),
            "prompts": self.prompts,
            "sampling": [
                sampling.sizes, sampling.steps, sampling.guidance, sampling.negative_prompt, sampling.seeds,
                sampling.scheduler.map(Class::name), sampling.scheduler_options,
            ],
            "strategy": format!("{:?}", self.strategy),
            "seed": self.seed,
            "objective": self.objective.canonical(),
            "over": format!("{:?}", self.over),
            "metrics": metrics,
        });
        hex(&Sha256::digest(text.to_string().as_bytes()))
    }
}

fn canonical_kind(kind: &VariableKind) -> Json {
    let spanless = |member: &Member| match member {
        Member::Each { glob, .. } => json!(glob),
        Member::Together { globs, .. } => json!(globs),
    };
    match kind {
        VariableKind::Number { low, high, start, step, points } => json!([low, high, start, step, points]),
        VariableKind::Choice { options, start } => json!([options, start]),
        VariableKind::Modules { members, choose } => {
            json!([members.iter().map(spanless).collect::<Vec<_>>(), format!("{choose:?}")])
        }
    }
}

impl ObjectiveSpec {
    /// What it means, for the space's digest.
    fn canonical(&self) -> Json {
        let command = |spec: &CommandSpec| json!([spec.args, spec.timeout.as_secs_f64()]);
        let parts = |parts: &[Part]| -> Json {
            parts.iter().map(|part| json!([part.name, part.weight, part.objective.canonical()])).collect()
        };
        match self {
            Self::Command(spec) => json!({ "command": command(spec) }),
            Self::Serve(spec) => json!({ "serve": command(spec) }),
            Self::Onnx(spec) => json!({ "onnx": format!("{spec:?}") }),
            Self::Mean(all) => json!({ "mean": parts(all) }),
            Self::Min(all) => json!({ "min": parts(all) }),
        }
    }
}
