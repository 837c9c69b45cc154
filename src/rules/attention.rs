//! `attention`: gives attentions another map than the softmax of queries and keys.

use std::borrow::Cow;

use miette::SourceSpan;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Change, Edit, Fate, Model, RuleKind, Size, Syntax, modules};
use crate::{
    analysis::{
        Analysis,
        attention::{Attention, Windows},
        modules::ModuleId,
        skip::Illegal,
    },
    plan::{
        Located, PlanError, Problem, Selector,
        read::{Fields, choice, fields, number},
        yaml::Node,
    },
};

/// Give attentions another map than the softmax of queries and keys.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionRule {
    /// The word that starts the rule.
    #[serde(skip)]
    pub span: SourceSpan,
    /// The modules of the attentions, such as `mid_block.**.attn1`.
    pub modules: Selector,
    /// The map. `identity`: each token attends to itself alone, so the attention gives its values (PAG). `mean`: all
    /// tokens attend alike, by the mean of their queries (SEG). `window`: each token attends to those of its window
    /// (HiDiffusion).
    pub map: Map,
    /// Of `window`: rows x columns of windows, such as 2x2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<Located<Size>>,
    /// Of `window`: the part of a window by which all are rolled, 0 (the default), 0.25, 0.5 or 0.75.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<Located<f64>>,
}

/// How much each token attends to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Map {
    /// To itself alone.
    Identity,
    /// To all, as the mean of the tokens does.
    Mean,
    /// To those of its window.
    Window,
}

impl Map {
    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Mean => "mean",
            Self::Window => "window",
        }
    }
}

impl Syntax for AttentionRule {
    const NAME: &'static str = "attention";
    const KEYS: &'static [&'static str] = &["modules", "map", "windows", "shift"];
    const EXAMPLE: &'static str = "attention: { modules: ..., map: identity }";
    const ALWAYS: bool = true;

    fn is_choice(analysis: &Analysis<'_>, module: ModuleId) -> bool {
        is_one(analysis, module)
    }

    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self> {
        let rule = fields(node, "`attention`", Self::KEYS, problems)?;
        let modules = modules(&rule, problems);
        let words = [Map::Identity, Map::Mean, Map::Window].map(|map| (map.name(), map));
        let help =
            Some("`map: identity` lets each token attend to itself alone, `map: mean` all of them alike");
        let map =
            rule.require("map", help, problems).and_then(|node| choice(node, "`map`", &words, problems));
        let (windows, shift) = windows(&rule, map, problems)?;
        Some(Self { span, modules: modules?, map: map?, windows, shift })
    }
}

/// `windows` and `shift`.
type WindowKeys = (Option<Located<Size>>, Option<Located<f64>>);

/// Reads the keys that `map: window` alone has.
fn windows(rule: &Fields<'_>, map: Option<Map>, problems: &mut Vec<Problem>) -> Option<WindowKeys> {
    let of_windows = map == Some(Map::Window);
    for key in ["windows", "shift"] {
        if let Some((key, _)) = rule.entry(key).filter(|_| map.is_some() && !of_windows) {
            let help = "it belongs to `map: window`".to_owned();
            let key_name = key.name.clone();
            problems.push(Problem::UnknownKey { key: key_name, place: "`attention`", help, at: key.span });
            return None;
        }
    }
    let help = Some("`windows: 2x2` halves height and width");
    let windows = match of_windows {
        true => Some(Size::read(rule.require("windows", help, problems)?, "`windows`", problems)?),
        false => None,
    };
    if let Some(only) = windows.filter(|windows| windows.value == Size { height: 1, width: 1 }) {
        let (expected, found) = ("more than one window".to_owned(), only.value.to_string());
        problems.push(Problem::OutOfRange { what: "`windows`", expected, found, at: only.span });
        return None;
    }
    let is_quarter = |shift: f64| (0.0..1.0).contains(&shift) && (shift * 4.0).fract() == 0.0;
    let shift = match rule.get("shift") {
        Some(node) => Some(number(node, "`shift`", "0, 0.25, 0.5 or 0.75", is_quarter, problems)?),
        None => None,
    };
    Some((windows, shift))
}

impl RuleKind for AttentionRule {
    fn span(&self) -> SourceSpan {
        self.span
    }

    fn noun(&self) -> &'static str {
        "an attention"
    }

    fn canonical(&self) -> Value {
        json!([Self::NAME, self.modules.canonical(), self.map, self.windows, self.shift])
    }

    fn resolve(&self, model: &Model<'_>, errors: &mut Vec<PlanError>) -> Vec<Change> {
        let analysis = model.analysis;
        let edits = |attention: &Attention| {
            let edit = match self.map {
                Map::Identity => attention.identity(analysis.graph, &analysis.shapes).map(Edit::Redirect),
                Map::Mean => attention.mean_queries(analysis).map(Edit::Splice),
                Map::Window => attention.windowed(analysis, self.divided()).map(Edit::Splice),
            };
            Ok(vec![edit?])
        };
        let change = |subject: String, module: ModuleId, edits: Vec<Edit>| Change {
            rule: Self::NAME,
            span: self.span,
            subject,
            module: Some(module),
            how: ("map", self.how()),
            done: "attention",
            undone: "still has its attention map",
            fate: Fate::Changed,
            note: self.windows.map(|windows| {
                format!("only at sizes at which its height and width are multiples of {}", windows.value)
            }),
            edits,
        };
        changes(model, &self.modules, edits, change, errors)
    }
}

impl AttentionRule {
    fn divided(&self) -> Windows {
        let Size { height, width } = self.windows.map_or(Size { height: 1, width: 1 }, |size| size.value);
        let quarters = self.shift.map_or(0.0, |shift| shift.value * 4.0) as i64;
        Windows { rows: height.into(), columns: width.into(), quarters }
    }

    fn how(&self) -> Cow<'static, str> {
        match (&self.windows, &self.shift) {
            (Some(windows), Some(shift)) => {
                format!("window, {}, shift {}", windows.value, shift.value).into()
            }
            (Some(windows), None) => format!("window, {}", windows.value).into(),
            (None, _) => self.map.name().into(),
        }
    }
}

/// Returns whether `module` is an attention.
pub(super) fn is_one(analysis: &Analysis<'_>, module: ModuleId) -> bool {
    analysis.attentions.all.iter().any(|attention| attention.module(&analysis.modules) == module)
}

/// Returns a change for each module that `selector` selects, with the edits of all of its attentions. A module that is no
/// attention, or has one that cannot be edited, is an error.
pub(super) fn changes(
    model: &Model<'_>,
    selector: &Selector,
    edits: impl Fn(&Attention) -> Result<Vec<Edit>, Illegal>,
    change: impl Fn(String, ModuleId, Vec<Edit>) -> Change,
    errors: &mut Vec<PlanError>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for (at, module, attentions) in selected(model, selector, errors) {
        let path = &model.analysis.modules.get(module).path;
        let edits = attentions.into_iter().map(&edits).collect::<Result<Vec<_>, _>>();
        match edits {
            Ok(edits) => changes.push(change(path.clone(), module, edits.concat())),
            Err(illegal) => errors.push(PlanError::not_editable(model.source, at, path, illegal)),
        }
    }
    changes
}

/// Returns the modules that `selector` means and their attentions. A module that is no attention is an error.
fn selected<'a>(
    model: &Model<'a>,
    selector: &Selector,
    errors: &mut Vec<PlanError>,
) -> Vec<(SourceSpan, ModuleId, Vec<&'a Attention>)> {
    let analysis = model.analysis;
    let all: Vec<(ModuleId, &Attention)> =
        analysis.attentions.all.iter().map(|a| (a.module(&analysis.modules), a)).collect();
    let is_one = |module: ModuleId| all.iter().any(|(other, _)| *other == module);
    let mut found = Vec::new();
    for (at, module) in model.modules(selector, |module, _| is_one(module), errors) {
        let own: Vec<&Attention> = all.iter().filter(|(of, _)| *of == module).map(|(_, a)| *a).collect();
        if own.is_empty() {
            let path = &analysis.modules.get(module).path;
            let reason = no_attention(model, module, &all);
            errors.push(PlanError::not_editable(model.source, at, path, reason));
        } else {
            found.push((at, module, own));
        }
    }
    found
}

/// Says that `module` is no attention, and which ones are in it.
fn no_attention(model: &Model<'_>, module: ModuleId, all: &[(ModuleId, &Attention)]) -> String {
    const SHOWN: usize = 4;
    let modules = &model.analysis.modules;
    let inside: Vec<String> = all
        .iter()
        .filter(|(other, _)| modules.is_within(*other, module))
        .map(|(other, _)| format!("`{}`", modules.get(*other).path))
        .collect();
    let more = inside.len().saturating_sub(SHOWN);
    match inside.as_slice() {
        [] => "it is no attention".into(),
        _ if more > 0 => {
            let shown = inside.get(..SHOWN).unwrap_or_default().join(", ");
            format!("it is no attention; {shown} and {more} more in it are")
        }
        inside => format!("it is no attention; those in it are {}", inside.join(", ")),
    }
}
