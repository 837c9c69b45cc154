//! What a plan means: the types that [`parse`](super::parse()) gives.

use super::diagnostics::PlanSource;
use super::select::Selector;
use crate::analysis::skip::Via;
use miette::SourceSpan;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

/// A value and where it stands in the plan (bytes of its text). A default has the span of what it belongs to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: SourceSpan,
}

/// A plan, checked as far as that goes without the model.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The rules, those of `crdiff:` and of the authors' result file included. Their order means nothing.
    pub rules: Vec<Rule>,
    /// How the difference between the pruned and the dense network is applied.
    pub amplify: Amplify,
    /// On what to run. It changes nothing in a compiled graph.
    pub runtime: Runtime,
    /// SHA-256 in hex of what the plan does to the network, the rules and `amplify`. Formatting, comments, the order
    /// of rules, defaults written out and `runtime` don't change it.
    pub digest: String,
    /// The text it came from, for errors to point at.
    pub source: PlanSource,
}

/// One rule.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// Take modules out of the graph.
    Bypass(BypassRule),
    /// Mask weights.
    Prune(PruneRule),
}

/// Take the selected modules out: whoever used a module's output uses something that came before it.
#[derive(Debug, Clone, PartialEq)]
pub struct BypassRule {
    /// The word that starts the rule.
    pub span: SourceSpan,
    /// The modules.
    pub modules: Selector,
    /// What is used instead.
    pub via: Via,
}

/// Multiply the masked weights of the selected modules by `scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct PruneRule {
    /// The word that starts the rule.
    pub span: SourceSpan,
    /// The modules whose `weight` is meant; biases never are.
    pub weights: Selector,
    /// Which of the weights are masked.
    pub mask: Mask,
    /// What masked weights are multiplied by: finite, 0 unless the plan says otherwise.
    pub scale: Located<f64>,
}

/// Which weights are masked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mask {
    /// The smallest magnitudes of a pool of n weights, k = floor(n * ratio) of them.
    Ratio {
        /// The share of the pool.
        ratio: Located<Ratio>,
        /// Which weights are ranked together.
        pool: Pool,
        /// What happens to weights as large as the k-th.
        ties: Ties,
    },
    /// Magnitudes up to this one: finite and not negative.
    Threshold(Located<f64>),
    /// All but the largest few of each run of consecutive weights.
    Pattern(Located<Pattern>),
}

/// A share of at least 0 and below 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Ratio(#[schemars(range(min = 0), extend("exclusiveMaximum" = 1))] f64);

impl Ratio {
    /// `None` unless `0 <= ratio < 1`.
    pub fn new(ratio: f64) -> Option<Self> {
        (0.0..1.0).contains(&ratio).then_some(Self(ratio))
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// N:M sparsity: of every `of` consecutive weights the `keep` largest are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    keep: u8,
    of: u8,
}

impl Pattern {
    /// The longest run, M.
    pub const MAX_OF: u8 = 64;

    /// `None` unless `0 < keep < of <= 64`.
    pub fn new(keep: u8, of: u8) -> Option<Self> {
        (0 < keep && keep < of && of <= Self::MAX_OF).then_some(Self { keep, of })
    }

    /// How many weights of a run are kept.
    pub fn keep(self) -> u8 {
        self.keep
    }

    /// How long a run is.
    pub fn of(self) -> u8 {
        self.of
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.keep, self.of)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which weights share a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// All that the rule selects.
    #[default]
    Group,
    /// Those of one tensor.
    Tensor,
}

/// What happens to weights whose magnitude equals the k-th smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ties {
    /// All are masked, so more than k can be: the authors' rule.
    #[default]
    All,
    /// As many as make k, in the order of the weights.
    Exact,
}

/// `D = (1 - w) * dense + w * pruned`, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Amplify {
    /// Where the plan says it: the value of `mode`, or else the key `amplify`. `None` if it says nothing and these
    /// are the defaults.
    pub span: Option<SourceSpan>,
    /// Between two outputs, or within the weights.
    pub mode: Mode,
    /// w.
    pub weight: Located<Weight>,
    /// The part of the sampling it happens in.
    pub during: During,
    /// The pruned network runs each n-th step; in between its last difference is used.
    pub every: Located<NonZeroU32>,
    /// The branches of classifier-free guidance it is for.
    pub on: On,
}

impl Default for Amplify {
    fn default() -> Self {
        let span = SourceSpan::from(0);
        Self {
            span: None,
            mode: Mode::default(),
            weight: Located { value: Weight::default(), span },
            during: During::default(),
            every: Located { value: NonZeroU32::MIN, span },
            on: On::default(),
        }
    }
}

/// Where the difference is amplified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the outputs of two networks: the paper's POA.
    #[default]
    Outputs,
    /// In one network, whose masked weights are multiplied by (1 - w).
    Weights,
}

/// w over the steps; every number is finite.
#[derive(Debug, Clone, PartialEq)]
pub enum Weight {
    /// The same at every step.
    Constant(f64),
    /// From one number at the first step to another at the last.
    Ramp {
        /// At the first step.
        from: f64,
        /// At the last.
        to: f64,
        /// How it goes from one to the other.
        curve: Curve,
    },
    /// A number a step; never empty.
    Steps(Vec<f64>),
}

impl Default for Weight {
    /// 1.5, the paper's.
    fn default() -> Self {
        Self::Constant(1.5)
    }
}

/// The shape of a ramp over t = 0..1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Curve {
    /// t.
    #[default]
    Linear,
    /// (1 - cos(pi t)) / 2.
    Cosine,
}

/// A part of the sampling, both ends included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum During {
    /// By the fraction of the steps done, `0 <= from <= to <= 1`.
    Fraction {
        /// The first.
        from: f64,
        /// The last.
        to: f64,
    },
    /// By the noise level, `0 <= low <= high`, both finite.
    Sigma {
        /// The lowest.
        low: f64,
        /// The highest.
        high: f64,
    },
}

impl Default for During {
    /// From the first step to the last.
    fn default() -> Self {
        Self::Fraction { from: 0.0, to: 1.0 }
    }
}

/// Branches of classifier-free guidance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// With and without the prompt.
    #[default]
    Both,
    /// With the prompt only.
    Cond,
}

/// On what to run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Runtime {
    /// Execution providers by name, the preferred one first.
    pub providers: Vec<Located<String>>,
    /// Options by provider and name, in the words of the engine.
    pub options: BTreeMap<String, BTreeMap<String, String>>,
}

/// The digest of rules and amplification; see [`Plan::digest`].
pub(super) fn digest(rules: &[Rule], amplify: &Amplify) -> String {
    let mut rules: Vec<String> = rules.iter().map(|rule| canonical_rule(rule).to_string()).collect();
    rules.sort_unstable();
    let text = json!({ "version": 1, "rules": rules, "amplify": canonical_amplify(amplify) }).to_string();
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn canonical_rule(rule: &Rule) -> Value {
    match rule {
        Rule::Bypass(BypassRule { modules, via, .. }) => json!(["bypass", canonical_selector(modules), via]),
        Rule::Prune(PruneRule { weights, mask, scale, .. }) => {
            let mask = match mask {
                Mask::Ratio { ratio, pool, ties } => json!(["ratio", number(ratio.value.get()), pool, ties]),
                Mask::Threshold(threshold) => json!(["threshold", number(threshold.value)]),
                Mask::Pattern(pattern) => json!(["pattern", pattern.value]),
            };
            json!(["prune", canonical_selector(weights), mask, number(scale.value)])
        }
    }
}

fn canonical_selector(selector: &Selector) -> Value {
    match selector {
        Selector::Globs(globs) => {
            let mut globs: Vec<&str> = globs.iter().map(|glob| glob.text()).collect();
            globs.sort_unstable();
            globs.dedup();
            json!(globs)
        }
        Selector::CrDiff(group) => json!({ "crdiff": group.name() }),
    }
}

fn canonical_amplify(amplify: &Amplify) -> Value {
    let weight = match &amplify.weight.value {
        Weight::Constant(weight) => json!(number(*weight)),
        Weight::Ramp { from, to, curve } => json!([curve, number(*from), number(*to)]),
        Weight::Steps(steps) => json!({ "steps": steps.iter().copied().map(number).collect::<Vec<_>>() }),
    };
    let during = match amplify.during {
        During::Fraction { from, to } => json!(["fraction", number(from), number(to)]),
        During::Sigma { low, high } => json!(["sigma", number(low), number(high)]),
    };
    json!([amplify.mode, weight, during, amplify.every.value, amplify.on])
}

/// -0 and 0 mean the same.
fn number(number: f64) -> f64 {
    number + 0.0
}
