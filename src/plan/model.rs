//! The meaning of a plan: the types that [`parse`](super::parse()) gives.

use super::diagnostics::PlanSource;
use crate::{
    hex::hex,
    rules::{LoraRule, Rule},
};
use miette::SourceSpan;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroU32;

/// A value and where it stands in the plan (bytes of its text). A default has the span of what it belongs to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: SourceSpan,
}

impl<T: Serialize> Serialize for Located<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<T: JsonSchema> JsonSchema for Located<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A plan, checked as far as that goes without the model.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The rules for both networks. Their order means nothing.
    pub always: Vec<Rule>,
    /// The rules for the network that amplification mixes with the dense one, those of `crdiff:` and of the authors'
    /// result file included. Their order means nothing.
    pub rules: Vec<Rule>,
    /// How the difference between the pruned and the dense network is applied.
    pub amplify: Amplify,
    /// Where the network is cut, so that most steps run its shallow part alone.
    pub cache: Option<Cache>,
    /// The execution providers to run on. It changes nothing in a compiled graph.
    pub runtime: Runtime,
    /// SHA-256 in hex of what the plan does to the network, the rules, `amplify` and `cache`. Formatting, comments, the order
    /// of rules, defaults written out and `runtime` don't change it.
    pub digest: String,
    /// The text it came from, for errors to point at.
    pub source: PlanSource,
}

impl Plan {
    /// Returns the plan for the text encoder with this number, from 1: its LoRAs for all networks, as far as they have
    /// layers for it. `None` if that is nothing.
    pub fn for_text_encoder(&self, number: u8) -> Option<Self> {
        let of_text = |rule: &Rule| match rule {
            Rule::Lora(rule) if rule.text_layers(number) > 0 => {
                Some(Rule::Lora(LoraRule { text_encoder: Some(number), ..rule.clone() }))
            }
            _ => None,
        };
        let always: Vec<Rule> = self.always.iter().filter_map(of_text).collect();
        let amplify = Amplify::default();
        let digest = digest(&always, &[], &amplify, None);
        let plan = Self { always, rules: Vec::new(), amplify, cache: None, digest, ..self.clone() };
        (!plan.always.is_empty()).then_some(plan)
    }

    /// Returns how many layers LoRAs have for text encoders under `always`, and how many under `rules`. The latter are left
    /// out: both networks share the text encoders.
    pub fn text_layers(&self) -> [usize; 2] {
        let layers = |rule: &Rule| match rule {
            Rule::Lora(rule) => (1..=3).map(|number| rule.text_layers(number)).sum(),
            _ => 0,
        };
        [&self.always, &self.rules].map(|rules| rules.iter().map(layers).sum())
    }

    /// Returns the files of LoRAs that have layers for text encoders alone, so that they leave the UNet as it is.
    pub fn loras_of_text_encoders(&self) -> impl Iterator<Item = &str> {
        self.always.iter().chain(&self.rules).filter_map(|rule| match rule {
            Rule::Lora(rule) if rule.is_for_text_encoders() => Some(rule.file.0.as_str()),
            _ => None,
        })
    }

    /// Returns the plan as far as it changes graphs of the UNet: without LoRAs for text encoders alone, without `amplify`, but
    /// for a w that is compiled into weights, and of `cache` only where it cuts.
    #[must_use]
    pub fn for_weights(&self) -> Self {
        let amplify = match self.amplify.mode {
            Mode::Outputs => Amplify::default(),
            Mode::Weights => self.amplify.clone(),
        };
        let cache = self.cache.clone().map(|cache| Cache::at(cache.at));
        let is_kept = |rule: &&Rule| !matches!(rule, Rule::Lora(rule) if rule.is_for_text_encoders());
        let [always, rules] = [&self.always, &self.rules]
            .map(|rules| rules.iter().filter(is_kept).cloned().collect::<Vec<_>>());
        let digest = digest(&always, &rules, &amplify, cache.as_ref());
        Self { always, rules, digest, amplify, cache, ..self.clone() }
    }
}

/// A cut through the network, and how many steps the values that cross it are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// The path of the module whose backbone is kept: a block that a skip connection ends at.
    pub at: Located<String>,
    /// The number of steps from one run of the whole network to the next; its shallow part runs in between.
    pub every: NonZeroU32,
    /// The part of the sampling it happens in. Elsewhere the whole network runs.
    pub during: During,
}

impl Cache {
    /// The steps between two runs of the whole network, where a plan doesn't say.
    pub const EVERY: NonZeroU32 = NonZeroU32::new(3).unwrap();

    /// Returns a cut with the defaults for all that the loop decides.
    pub fn at(at: Located<String>) -> Self {
        Self { at, every: Self::EVERY, during: During::default() }
    }
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
    pub weight: Located<AmplifyWeight>,
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
            weight: Located { value: AmplifyWeight::default(), span },
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
pub enum AmplifyWeight {
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

impl Default for AmplifyWeight {
    /// Returns 1.5, the paper's.
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
    /// Returns the whole range, from the first step to the last.
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

/// Returns the digest of rules, amplification and cache; see [`Plan::digest`].
pub(super) fn digest(always: &[Rule], rules: &[Rule], amplify: &Amplify, cache: Option<&Cache>) -> String {
    let canonical = |rules: &[Rule]| {
        let mut rules: Vec<String> = rules.iter().map(|rule| rule.kind().canonical().to_string()).collect();
        rules.sort_unstable();
        rules
    };
    let amplify = canonical_amplify(amplify);
    let mut meaning = json!({ "version": 1, "rules": canonical(rules), "amplify": amplify });
    if !always.is_empty() {
        meaning["always"] = canonical(always).into();
    }
    if let Some(Cache { at, every, during }) = cache {
        meaning["cache"] = json!([at.value, every, canonical_during(*during)]);
    }
    let text = meaning.to_string();
    hex(&Sha256::digest(text.as_bytes()))
}

fn canonical_amplify(amplify: &Amplify) -> Value {
    let weight = match &amplify.weight.value {
        AmplifyWeight::Constant(weight) => json!(number(*weight)),
        AmplifyWeight::Ramp { from, to, curve } => json!([curve, number(*from), number(*to)]),
        AmplifyWeight::Steps(steps) => {
            json!({ "steps": steps.iter().copied().map(number).collect::<Vec<_>>() })
        }
    };
    json!([amplify.mode, weight, canonical_during(amplify.during), amplify.every.value, amplify.on])
}

fn canonical_during(during: During) -> Value {
    match during {
        During::Fraction { from, to } => json!(["fraction", number(from), number(to)]),
        During::Sigma { low, high } => json!(["sigma", number(low), number(high)]),
    }
}

/// Writes a number so that -0 and 0, which mean the same, are equal.
fn number(number: f64) -> f64 {
    number + 0.0
}
