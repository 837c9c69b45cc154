//! The plan language as types, for writing plans and for the JSON Schema in `configs/plan.schema.json`.
//!
//! Reading goes through the spanned tree instead, so that errors can point at the text; the tests hold the two
//! together.

use super::model::{Curve, Mode, On};
use crate::rules::{Ratio, Rule, always_schema};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use std::collections::BTreeMap;
use std::num::NonZeroU32;

/// A plan as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "crdiff plan")]
pub struct PlanFile {
    /// The version of the plan language: 1.
    #[schemars(extend("const" = 1))]
    pub version: u32,
    /// Changes in both networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, schema_with = "always_schema")]
    pub always: Option<Vec<Rule>>,
    /// Changes. All rules are resolved against the original graph, so their order doesn't matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule>>,
    /// The pruning of the CR-Diff paper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crdiff: Option<CrDiffFile>,
    /// How the difference between the pruned and the dense network is applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amplify: Option<AmplifyFile>,
    /// A cut through the network, whose shallow part runs alone in most steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheFile>,
    /// On what to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeFile>,
}

impl PlanFile {
    /// Returns a plan that changes nothing.
    pub fn empty() -> Self {
        Self {
            version: 1,
            always: None,
            rules: None,
            crdiff: None,
            amplify: None,
            cache: None,
            runtime: None,
        }
    }

    /// Returns the plan as YAML.
    ///
    /// # Errors
    /// None for the numbers and names that plans may hold.
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        serde_saphyr::to_string(self)
    }
}

/// The pruning of the CR-Diff paper.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum CrDiffFile {
    /// For UNets.
    Groups(CrDiffGroups),
    /// For diffusion transformers.
    Shared(CrDiffShared),
}

/// A ratio for each part of a UNet; a part left out isn't pruned.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CrDiffGroups {
    /// For `down_blocks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Ratio")]
    pub down: Option<Ratio>,
    /// For `mid_block`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Ratio")]
    pub mid: Option<Ratio>,
    /// For `up_blocks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Ratio")]
    pub up: Option<Ratio>,
}

/// One ratio for each tensor of a diffusion transformer.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CrDiffShared {
    /// The share, at least 0 and below 1.
    pub ratio: Ratio,
}

/// `D = (1 - w) * dense + w * pruned`, and when.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AmplifyFile {
    /// Between the outputs of two networks (`outputs`, the default), or in one network's masked weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Mode")]
    pub mode: Option<Mode>,
    /// w; 1.5 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "WeightFile")]
    pub weight: Option<WeightFile>,
    /// The part of the sampling it happens in; all of it by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DuringFile")]
    pub during: Option<DuringFile>,
    /// Run the pruned network each n-th step and use its last difference in between; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NonZeroU32")]
    pub every: Option<NonZeroU32>,
    /// Both branches of classifier-free guidance (`both`, the default), or the one with the prompt (`cond`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "On")]
    pub on: Option<On>,
}

/// w over the steps.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum WeightFile {
    /// The same at every step.
    Constant(f64),
    /// From one number at the first step to another at the last.
    Ramp(Ramp),
    /// A number a step.
    Steps(#[schemars(length(min = 1))] Vec<f64>),
}

/// From one number at the first step to another at the last.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    /// At the first step.
    pub from: f64,
    /// At the last.
    pub to: f64,
    /// In a straight line (`linear`, the default) or half a cosine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Curve")]
    pub curve: Option<Curve>,
}

/// A part of the sampling.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum DuringFile {
    /// By the fraction of the steps done: the first and the last.
    Fraction(#[schemars(inner(range(min = 0, max = 1)))] [f64; 2]),
    /// By the noise level.
    Sigma(SigmaRange),
}

/// A cut through the network: every so many steps it runs as a whole, in between only the part of it that lies on the
/// near side of the cut, with what the far side gave last.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheFile {
    /// The module at whose input the cut is: a block of the way up that a skip connection ends at. `crdiff inspect
    /// --cache` lists them.
    pub at: String,
    /// The whole network runs each n-th step; 3 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NonZeroU32")]
    pub every: Option<NonZeroU32>,
    /// The part of the sampling it happens in; all of it by default. Elsewhere the whole network runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DuringFile")]
    pub during: Option<DuringFile>,
}

/// A range of noise levels.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SigmaRange {
    /// The lowest and the highest.
    #[schemars(inner(range(min = 0)))]
    pub sigma: [f64; 2],
}

/// On what to run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuntimeFile {
    /// Execution providers, the preferred one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<String>,
    /// Options by provider and name, in the words of the engine.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, BTreeMap<String, OptionValue>>,
}

/// The value of a provider's option.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum OptionValue {
    /// Text, as it is.
    Text(String),
    /// `true` or `false`.
    Flag(bool),
    /// A number, in decimal.
    Number(f64),
}

/// Returns the JSON Schema of the plan language.
pub fn json_schema() -> Schema {
    schemars::schema_for!(PlanFile)
}
