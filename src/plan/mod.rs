//! The plan language: which modules are bypassed, which weights are masked, and how the difference is amplified.
//!
//! A plan is a small YAML file (JSON is YAML, so JSON works too):
//!
//! ```yaml
//! version: 1
//! rules:
//!   - bypass: mid_block.attentions.0
//!   - prune: { weights: "down_blocks.**.{attn1,ff}.**", ratio: 0.35 }
//! amplify: { weight: 1.5 }
//! cache: { at: up_blocks.3.resnets.2, every: 3 }
//! ```
//!
//! The result file of the CR-Diff authors' search is a plan as well. [`parse`] and [`load`] give a [`Plan`]:
//! defaults filled in, numbers in range, globs compiled, and a span kept for whatever a later error may have to
//! point at. Nothing here knows a model: whether a selector names anything is for the resolver, which asks
//! [`Selector::matches`] and answers with the constructors of [`PlanError`].
//!
//! [`PlanFile`] is the same language in the other direction, for writing plans, and the source of the JSON Schema.

mod amplify;
mod crdiff_rules;
mod cut;
pub(crate) mod diagnostics;
mod glob;
mod model;
mod parse;
pub(crate) mod read;
mod resolve;
mod schema;
mod select;
mod target;
pub(crate) mod yaml;

pub use crate::{
    analysis::skip::Via,
    rules::{
        AttentionRule, BypassRule, DilateRule, FreeuRule, LoraRule, Map, Mask, Missing, Pattern, Pool,
        PruneRule, Ratio, Rule, ShrinkRule, Size, TemperatureRule, Ties,
    },
};
pub use cut::cut;
pub(crate) use diagnostics::join;
pub use diagnostics::{PlanError, PlanSource, Problem};
pub use glob::{BadGlob, Glob};
pub use model::{Amplify, AmplifyWeight, Cache, Curve, During, Located, Mode, On, Plan, Runtime};
pub use parse::{MAX_BYTES, load, parse};
#[cfg(feature = "runner")]
pub(crate) use parse::{from_node, of_source};
pub use resolve::resolve;
pub use schema::{
    AmplifyFile, CacheFile, CrDiffFile, CrDiffGroups, CrDiffShared, DuringFile, OptionValue, PlanFile, Ramp,
    RuntimeFile, SigmaRange, WeightFile, json_schema,
};
pub use select::{Group, Selector, nearest};
pub use target::{CACHE_NAMES, Depth, Target, Unets};
