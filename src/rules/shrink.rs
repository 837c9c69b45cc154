//! `shrink`: runs a part of the network at another size.

use std::borrow::Cow;

use miette::SourceSpan;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Change, Edit, Fate, Model, RuleKind, Size, Syntax, ratio::Ratio};
use crate::{
    analysis::{
        Analysis,
        modules::ModuleId,
        resize::{Filter, NewSize, Resize, Resized},
        skip::Illegal,
    },
    plan::{
        Glob, Located, PlanError, Problem, Selector,
        read::{Fields, choice, fields, number, selector},
        yaml::Node,
    },
};

/// Run a part of the network at another size, mostly a smaller one. After it everything is of the size that it was.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = one_of_each)]
pub struct ShrinkRule {
    /// The word that starts the rule.
    #[serde(skip)]
    pub span: SourceSpan,
    /// The modules whose output is resized. At the first skip connection of another size that it meets, what came of it
    /// is resized to that one's (Deep Shrink).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Selector>,
    /// Of `after`: the module whose output is resized back. Skip connections between the two are of the other size
    /// (HiDiffusion).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Selector>,
    /// Modules that run at another size, each for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Selector>,
    /// The number above 1 that height and width are divided by, and rounded up; to four decimals.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 1))]
    pub by: Option<Located<f64>>,
    /// The latent size at which the part has the size that it is to have at every one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Located<Size>>,
    /// The filter of what is resized; `cubic` by default.
    pub filter: Filter,
    /// The filter of what is resized back: `filter` by default, and for `average` `cubic`.
    pub back: Filter,
}

/// Asks for one of the keys that say where, and one of those that say how much.
fn one_of_each(schema: &mut Schema) {
    let required = |key: &str| json!({ "required": [key] });
    let one_of = |keys: [&str; 2]| json!({ "oneOf": keys.map(required) });
    schema.insert("allOf".into(), json!([one_of(["after", "within"]), one_of(["by", "to"])]));
    schema.insert("dependentRequired".into(), json!({ "until": ["after"] }));
    schema.remove("required");
}

impl Syntax for ShrinkRule {
    const NAME: &'static str = "shrink";
    const KEYS: &'static [&'static str] = &["after", "until", "within", "by", "to", "filter", "back"];
    const EXAMPLE: &'static str = "shrink: { after: ..., by: 2 }";
    const ALWAYS: bool = true;

    fn is_choice(analysis: &Analysis<'_>, module: ModuleId) -> bool {
        analysis.gives_an_image(module)
    }

    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self> {
        let rule = fields(node, "`shrink`", Self::KEYS, problems)?;
        let where_it_is = "`after: down_blocks.0.downsamplers.0` resizes what that module gives";
        let place = one_of(
            &rule,
            ["after", "within"],
            "a part is `after` a module or `within` one",
            where_it_is,
            problems,
        )?;
        let how_much = "`by: 2` halves height and width";
        one_of(&rule, ["by", "to"], "a size is said `by` a number or `to` a size", how_much, problems)?;
        if let Some((until, _)) = rule.entry("until").filter(|_| place == "within") {
            let help = "it belongs to `after`".to_owned();
            problems.push(Problem::UnknownKey {
                key: until.name.clone(),
                place: "`shrink`",
                help,
                at: until.span,
            });
            return None;
        }
        let mut globs = |key: &'static str, what: &'static str| match rule.get(key) {
            Some(node) => selector(node, what, Glob::module, problems).map(Some),
            None => Some(None),
        };
        let (after, until, within) =
            (globs("after", "`after`"), globs("until", "`until`"), globs("within", "`within`"));
        let filter = match rule.get("filter") {
            Some(node) => choice(node, "`filter`", &Filter::NAMES, problems)?,
            None => Filter::Cubic,
        };
        let [cubic, linear, _, nearest] = Filter::NAMES;
        let back = match rule.get("back") {
            Some(node) => choice(node, "`back`", &[cubic, linear, nearest], problems)?,
            None if filter == Filter::Average => Filter::Cubic,
            None => filter,
        };
        let by = match rule.get("by") {
            Some(node) if filter == Filter::Average => {
                let is_whole = |by: f64| by.fract() == 0.0 && (2.0..=MOST).contains(&by);
                let expected = "a whole number from 2 to 64, as `average` takes the mean of whole squares";
                Some(number(node, "`by`", expected, is_whole, problems)?)
            }
            Some(node) => {
                let is_factor = |by: f64| by <= MOST && Ratio::of(by).is_above_one();
                let expected = "a number above 1 (which changes nothing) and up to 64";
                Some(number(node, "`by`", expected, is_factor, problems)?)
            }
            None => None,
        };
        let to = match rule.entry("to") {
            Some((key, _)) if filter == Filter::Average => {
                let message = "`average` divides sizes by a whole number".to_owned();
                let at = rule.entry("filter").map_or(key.span, |(key, _)| key.span);
                problems.push(Problem::conflict(message, Some("give it a `by`"), key.span, at));
                return None;
            }
            Some((_, node)) => Some(Size::read(node, "`to`", problems)?),
            None => None,
        };
        Some(Self { span, after: after?, until: until?, within: within?, by, to, filter, back })
    }
}

/// Largest `by`.
const MOST: f64 = 64.0;

/// Returns which of two keys is there; both or none is reported.
fn one_of(
    rule: &Fields<'_>,
    keys: [&'static str; 2],
    message: &str,
    help: &'static str,
    problems: &mut Vec<Problem>,
) -> Option<&'static str> {
    match keys.map(|key| rule.entry(key)) {
        [Some((first, _)), Some((second, _))] => {
            problems.push(Problem::conflict(message.to_owned(), Some(help), first.span, second.span));
            None
        }
        [None, None] => {
            rule.report_missing(&keys, Some(help), problems);
            None
        }
        [first, _] => Some(if first.is_some() { keys[0] } else { keys[1] }),
    }
}

impl RuleKind for ShrinkRule {
    fn span(&self) -> SourceSpan {
        self.span
    }

    fn noun(&self) -> &'static str {
        "a shrink"
    }

    fn canonical(&self) -> Value {
        let [after, until, within] =
            [&self.after, &self.until, &self.within].map(|globs| globs.as_ref().map(Selector::canonical));
        json!([Self::NAME, after, until, within, self.by, self.to, self.filter, self.back])
    }

    fn resolve(&self, model: &Model<'_>, errors: &mut Vec<PlanError>) -> Vec<Change> {
        let analysis = model.analysis;
        let last = match &self.until {
            None => None,
            Some(until) => match model
                .modules(until, |module, _| analysis.gives_an_image(module), errors)
                .as_slice()
            {
                [(_, last)] => Some(*last),
                [] => return Vec::new(),
                [_, (at, other), ..] => {
                    let path = &analysis.modules.get(*other).path;
                    errors.push(PlanError::not_editable(model.source, *at, path, "`until` is one module"));
                    return Vec::new();
                }
            },
        };
        let mut changes = Vec::new();
        for selector in self.after.iter().chain(&self.within) {
            for (at, module) in model.modules(selector, |module, _| analysis.gives_an_image(module), errors) {
                let path = &analysis.modules.get(module).path;
                match self.resized(analysis, module, last) {
                    Ok(Resized { splices, note }) => changes.push(Change {
                        rule: Self::NAME,
                        span: self.span,
                        subject: path.clone(),
                        module: Some(module),
                        how: self.how(),
                        done: "shrink",
                        undone: "does not run at another size",
                        fate: Fate::Changed,
                        note,
                        edits: splices.into_iter().map(Edit::Splice).collect(),
                    }),
                    Err(illegal) => errors.push(PlanError::not_editable(model.source, at, path, illegal)),
                }
            }
        }
        changes
    }
}

impl ShrinkRule {
    fn resized(
        &self,
        analysis: &Analysis<'_>,
        module: ModuleId,
        last: Option<ModuleId>,
    ) -> Result<Resized, Illegal> {
        let size = match (&self.by, &self.to) {
            (_, Some(to)) => {
                NewSize::Latents { height: to.value.height.into(), width: to.value.width.into() }
            }
            (by, None) => Ratio::of(by.map_or(1.0, |by| by.value)).divided_rounded_up(),
        };
        let resize = Resize { size, filter: self.filter, back: self.back };
        match (&self.within, last) {
            (Some(_), _) => analysis.resized_within(module, &resize),
            (None, None) => analysis.resized_after(module, &resize),
            (None, Some(last)) => analysis.resized_until(module, last, &resize),
        }
    }

    fn how(&self) -> (&'static str, Cow<'static, str>) {
        let filters = match self.filter == self.back {
            true => self.filter.name().to_owned(),
            false => format!("{}, back {}", self.filter.name(), self.back.name()),
        };
        match (&self.by, &self.to) {
            (_, Some(to)) => ("to", format!("{}, {filters}", to.value).into()),
            (by, None) => ("by", format!("{}, {filters}", by.map_or(1.0, |by| by.value)).into()),
        }
    }
}
