//! `prune`: masks the weights of Linear and Conv2d modules, which multiplies them by a scale of 0 or another.

use std::fmt;

use miette::SourceSpan;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{Change, Edit, Fate, Model, RuleKind, Syntax, WeightEdit};
use crate::{
    analysis::{Analysis, modules::ModuleId, weights::Weight},
    plan::{
        Glob, Group, Located, PlanError, Problem, Selector, nearest,
        read::{Fields, choice, fields, finite, number, or_default, selector, wrong_type},
        yaml::{self, Node},
    },
};

/// Multiply the masked weights of the selected modules by `scale`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneRule {
    /// The word that starts the rule.
    #[serde(skip)]
    pub span: SourceSpan,
    /// The modules whose weight is meant (never the bias).
    pub weights: Selector,
    /// Which of the weights are masked.
    #[serde(flatten)]
    pub mask: Mask,
    /// The factor on masked weights; 0 by default.
    #[serde(default = "zero")]
    pub scale: Located<f64>,
}

/// Which weights are masked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Mask {
    /// A share of the weights, the smallest magnitudes first: k = floor(n * ratio) of a pool of n.
    Ratio {
        /// The share, at least 0 and below 1.
        ratio: Located<Ratio>,
        /// One threshold for all that the rule selects (`group`, the default) or one for each tensor.
        #[serde(default)]
        pool: Pool,
        /// Weights as large as the threshold: mask `all` (the default, and the paper's rule), or `exact`ly the share.
        #[serde(default)]
        ties: Ties,
    },
    /// The weights up to a magnitude.
    Threshold {
        /// The largest magnitude that is masked.
        #[schemars(range(min = 0))]
        threshold: Located<f64>,
    },
    /// All but the largest few of each run of consecutive weights.
    Pattern {
        /// "N:M": the N largest of every M are kept, 0 < N < M <= 64.
        pattern: Located<Pattern>,
    },
}

/// A share of at least 0 and below 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Ratio(#[schemars(range(min = 0), extend("exclusiveMaximum" = 1))] f64);

impl Ratio {
    /// Makes a ratio; `None` unless `0 <= ratio < 1`.
    pub fn new(ratio: f64) -> Option<Self> {
        (0.0..1.0).contains(&ratio).then_some(Self(ratio))
    }

    /// Returns the number.
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

    /// Makes a pattern; `None` unless `0 < keep < of <= 64`.
    pub fn new(keep: u8, of: u8) -> Option<Self> {
        (0 < keep && keep < of && of <= Self::MAX_OF).then_some(Self { keep, of })
    }

    /// Returns how many weights of a run are kept.
    pub fn keep(self) -> u8 {
        self.keep
    }

    /// Returns how long a run is.
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

impl JsonSchema for Pattern {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Pattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9]{1,2}:[0-9]{1,2}$" })
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

/// How weights are treated whose magnitude equals the k-th smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ties {
    /// All are masked, so more than k can be: the authors' rule.
    #[default]
    All,
    /// As many as make k, in the order of the weights.
    Exact,
}

fn zero() -> Located<f64> {
    Located { value: 0.0, span: 0.into() }
}

impl Syntax for PruneRule {
    const NAME: &'static str = "prune";
    const KEYS: &'static [&'static str] =
        &["weights", "ratio", "threshold", "pattern", "pool", "scale", "ties"];
    const EXAMPLE: &'static str = "prune: { weights: ..., ratio: ... }";

    fn is_choice(analysis: &Analysis<'_>, module: ModuleId) -> bool {
        let path = &analysis.modules.get(module).path;
        analysis.weights.editable.iter().any(|weight| weight.path == *path)
    }

    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self> {
        let rule = fields(node, "`prune`", Self::KEYS, problems)?;
        let weights = rule
            .require("weights", Some("`weights` names the modules whose weights are meant"), problems)
            .and_then(|node| selector(node, "`weights`", Glob::weight, problems));
        let mask = mask(&rule, problems);
        let scale = match rule.get("scale") {
            Some(node) => finite(node, "`scale`", problems),
            None => Some(Located { value: 0.0, span }),
        };
        Some(Self { span, weights: weights?, mask: mask?, scale: scale? })
    }
}

fn mask(rule: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<Mask> {
    let given: Vec<_> = ["ratio", "threshold", "pattern"].iter().filter_map(|key| rule.entry(key)).collect();
    let [(key, node)] = given.as_slice() else {
        match given.as_slice() {
            [(first, _), others @ ..] => problems.extend(others.iter().map(|(second, _)| {
                let message = format!("a `prune` takes `{}` or `{}`, not both", first.name, second.name);
                Problem::conflict(message, None, first.span, second.span)
            })),
            [] => rule.report_missing(&["ratio", "threshold", "pattern"], None, problems),
        }
        return None;
    };
    if key.name != "ratio" {
        for (only, _) in ["pool", "ties"].iter().filter_map(|key| rule.entry(key)) {
            let message = format!("`{}` is for `ratio`, not for `{}`", only.name, key.name);
            let help = format!("leave `{}` out", only.name);
            problems.push(Problem::conflict(message, Some(&help), key.span, only.span));
        }
    }
    match key.name.as_str() {
        "threshold" => threshold(node, "`threshold`", problems),
        "pattern" => pattern(node, problems).map(|pattern| Mask::Pattern { pattern }),
        _ => {
            let pools = [("group", Pool::Group), ("tensor", Pool::Tensor)];
            let pool = or_default(rule.get("pool"), |node| choice(node, "`pool`", &pools, problems));
            let kinds = [("all", Ties::All), ("exact", Ties::Exact)];
            let ties = or_default(rule.get("ties"), |node| choice(node, "`ties`", &kinds, problems));
            Some(Mask::Ratio { ratio: ratio(node, "`ratio`", problems)?, pool: pool?, ties: ties? })
        }
    }
}

/// Reads a ratio.
pub(crate) fn ratio(node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<Located<Ratio>> {
    let allowed = |ratio| Ratio::new(ratio).is_some();
    let ratio = number(node, what, "at least 0 and below 1", allowed, problems)?;
    Ratio::new(ratio.value).map(|value| Located { value, span: ratio.span })
}

/// Reads a threshold.
pub(crate) fn threshold(node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<Mask> {
    let allowed = |number: f64| number.is_finite() && number >= 0.0;
    let threshold = number(node, what, "0 or a finite number above", allowed, problems)?;
    Some(Mask::Threshold { threshold })
}

fn pattern(node: &Node, problems: &mut Vec<Problem>) -> Option<Located<Pattern>> {
    let yaml::Value::Text(text) = &node.value else {
        problems.push(wrong_type(node, "`pattern`", "text such as \"2:4\""));
        return None;
    };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u8>().ok())?;
    let parsed = text.split_once(':').and_then(|(keep, of)| Pattern::new(number(keep)?, number(of)?));
    if parsed.is_none() {
        problems.push(Problem::OutOfRange {
            what: "`pattern`",
            expected: "\"N:M\" with 0 < N < M <= 64 (N of every M weights are kept)".into(),
            found: format!("{text:?}"),
            at: node.span,
        });
    }
    parsed.map(|value| Located { value, span: node.span })
}

impl RuleKind for PruneRule {
    fn span(&self) -> SourceSpan {
        self.span
    }

    fn noun(&self) -> &'static str {
        "a prune rule"
    }

    fn canonical(&self) -> Value {
        // -0 and 0 mean the same.
        let number = |number: f64| number + 0.0;
        let mask = match self.mask {
            Mask::Ratio { ratio, pool, ties } => json!(["ratio", number(ratio.value.get()), pool, ties]),
            Mask::Threshold { threshold } => json!(["threshold", number(threshold.value)]),
            Mask::Pattern { pattern } => json!(["pattern", pattern.value]),
        };
        json!([Self::NAME, self.weights.canonical(), mask, number(self.scale.value)])
    }

    fn scale(&self) -> Option<Located<f64>> {
        Some(self.scale)
    }

    fn resolve(&self, model: &Model<'_>, errors: &mut Vec<PlanError>) -> Vec<Change> {
        let subject = match &self.weights {
            Selector::Globs(globs) => {
                for glob in globs {
                    let reaches = |within: &str| glob.reaches(within);
                    check(model, glob.span(), glob.text(), |path| glob.matches(path), reaches, errors);
                }
                globs.iter().map(Glob::text).collect::<Vec<_>>().join(", ")
            }
            Selector::CrDiff(group) => {
                let text = format!("crdiff.{}", group.name());
                if !has_targets(model, *group) {
                    let others = [Group::Down, Group::Mid, Group::Up];
                    if *group == Group::All || !others.iter().any(|other| has_targets(model, *other)) {
                        errors.push(no_target(model, self.span, &text));
                        return Vec::new();
                    }
                    let note = format!(
                        "the network has no attention or feed-forward in `{}`, so the rule masks nothing",
                        group.name()
                    );
                    return vec![Change { note: Some(note), ..self.change(text, Vec::new()) }];
                }
                let reaches = |within: &str| group.reaches(within);
                check(model, self.span, &text, |path| group.targets(path), reaches, errors);
                text
            }
        };
        let selected = model.analysis.weights.editable.iter().filter(|w| self.weights.matches(&w.path));
        let weights: Vec<Weight> = selected.cloned().collect();
        if let Mask::Pattern { pattern } = self.mask {
            let of = i64::from(pattern.value.of());
            for weight in weights.iter().filter(|w| w.input_len() % of != 0) {
                let reason = format!(
                    "its {} inputs cannot be divided into groups of {of}, as the pattern needs",
                    weight.input_len()
                );
                errors.push(PlanError::not_editable(model.source, pattern.span, &weight.path, reason));
            }
        }
        for weight in &weights {
            if let Some(other) = weight.merged_with.as_ref().filter(|other| !self.weights.matches(other)) {
                let reason = format!("one multiplication serves it and `{other}`: select both, or none");
                errors.push(PlanError::not_editable(model.source, self.span, &weight.path, reason));
            }
        }
        let edit = WeightEdit { weights, mask: self.mask, scale: self.scale.value };
        vec![self.change(subject, vec![Edit::Transform(edit)])]
    }
}

impl PruneRule {
    fn change(&self, subject: String, edits: Vec<Edit>) -> Change {
        Change {
            rule: Self::NAME,
            span: self.span,
            subject,
            module: None,
            how: ("", "".into()),
            done: "pruned",
            undone: "is not masked",
            fate: Fate::Changed,
            note: None,
            edits,
        }
    }
}

/// Returns whether CR-Diff prunes anything in `group`, as far as layers are placed.
fn has_targets(model: &Model<'_>, group: Group) -> bool {
    let weights = &model.analysis.weights;
    let mut paths = weights.editable.iter().map(|w| &w.path).chain(weights.blocked.iter().map(|b| &b.path));
    paths.any(|path| group.targets(path)) || weights.unplaced.iter().any(|u| group.reaches(&u.within))
}

/// Returns the error for a rule of CR-Diff in a network that has no target of any such rule. It says which weights of
/// attentions there are.
pub(super) fn no_target(model: &Model<'_>, at: SourceSpan, text: &str) -> PlanError {
    let modules = &model.analysis.modules;
    let mut names: Vec<&str> = Vec::new();
    for projection in model.analysis.attentions.all.iter().flat_map(|a| a.projections()) {
        let path = modules.get(modules.of_node(projection.node)).path.as_str();
        let name = match path.rsplit_once('.') {
            // Sequential layers are numbered: `to_out.0`.
            Some((outer, "0")) => &path[outer.rfind('.').map_or(0, |dot| dot + 1)..],
            Some((_, name)) => name,
            None => path,
        };
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    let help = match names.as_slice() {
        [] => "the paper's rule means modules with `attn` or `ff` in their path".to_string(),
        [only] => format!(
            "the paper's rule means modules with `attn` or `ff` in their path; here `weights: \"**.{only}\"` are those of attentions"
        ),
        names => format!(
            "the paper's rule means modules with `attn` or `ff` in their path; here `weights: \"**.{{{}}}\"` are those of attentions",
            names.join(",")
        ),
    };
    let problem = Problem::NoMatch { pattern: text.to_string(), help: Some(help), at };
    PlanError::new(model.source, problem)
}

/// Reports a selector that matches no weight, or weights that cannot be masked, or that may mean a layer whose module
/// is not known: a rule masks all of what it means, or nothing.
fn check(
    model: &Model<'_>,
    at: SourceSpan,
    text: &str,
    matches: impl Fn(&str) -> bool,
    reaches: impl Fn(&str) -> bool,
    errors: &mut Vec<PlanError>,
) {
    let weights = &model.analysis.weights;
    let blocked: Vec<_> = weights.blocked.iter().filter(|b| matches(&b.path)).collect();
    if let Some(first) = blocked.first() {
        let more = match blocked.len() {
            1 => String::new(),
            n => format!(" ({} more like it)", n - 1),
        };
        let reason = format!("{}{more}", first.reason);
        errors.push(PlanError::not_editable(model.source, at, &first.path, reason));
    } else if let Some(error) = model.unplaced(at, text, reaches) {
        errors.push(error);
    } else if !weights.editable.iter().any(|w| matches(&w.path)) {
        let near = nearest(text, weights.editable.iter().map(|w| w.path.as_str()));
        errors.push(PlanError::no_match(model.source, at, text, &near));
    }
}
