//! `bypass`: takes modules out. Whoever used a module's output uses something that came before it.

use miette::SourceSpan;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Change, Edit, Fate, Model, RuleKind, Syntax, modules};
use crate::{
    analysis::{
        modules::{Module, ModuleId},
        skip::Via,
    },
    plan::{
        Glob, PlanError, PlanSource, Problem, Selector,
        read::{choice, fields, or_default, selector},
        yaml::{self, Node},
    },
};

/// Take modules out of the graph.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = or_modules)]
pub struct BypassRule {
    /// The word that starts the rule.
    #[serde(skip)]
    pub span: SourceSpan,
    /// The modules.
    pub modules: Selector,
    /// The value in its place: the module's residual skip, its input, or the hidden operand of the skip Concat before
    /// an up-block's resnet.
    #[serde(default)]
    pub via: Via,
}

/// Allows a bypass by the residual skip to be written as its modules alone.
fn or_modules(schema: &mut Schema) {
    let modules = schema.pointer("/properties/modules/$ref").cloned();
    *schema = schemars::json_schema!({ "anyOf": [{ "$ref": modules }, schema.clone()] });
}

impl Syntax for BypassRule {
    const NAME: &'static str = "bypass";
    const KEYS: &'static [&'static str] = &["modules", "via"];
    const EXAMPLE: &'static str = "bypass: { modules: ..., via: ... }";

    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self> {
        if !matches!(node.value, yaml::Value::Map(_)) {
            let modules = selector(node, "`bypass`", Glob::module, problems)?;
            return Some(Self { span, modules, via: Via::default() });
        }
        let rule = fields(node, "`bypass`", Self::KEYS, problems)?;
        let modules = modules(&rule, problems);
        let words = [Via::Shortcut, Via::Input, Via::Backbone].map(|via| (via.name(), via));
        let via = or_default(rule.get("via"), |node| choice(node, "`via`", &words, problems));
        Some(Self { span, modules: modules?, via: via? })
    }
}

impl RuleKind for BypassRule {
    fn span(&self) -> SourceSpan {
        self.span
    }

    fn noun(&self) -> &'static str {
        "a bypass"
    }

    fn canonical(&self) -> Value {
        json!([Self::NAME, self.modules.canonical(), self.via])
    }

    fn two_ways(&self, source: &PlanSource, change: &Change) -> PlanError {
        let reason = "another rule bypasses it by another way";
        PlanError::illegal_bypass(source, change.span, &change.subject, reason, None)
    }

    fn resolve(&self, model: &Model<'_>, errors: &mut Vec<PlanError>) -> Vec<Change> {
        let mut changes = Vec::new();
        let selected = without_stages(model, &self.modules, errors);
        for (at, module) in model.modules(&selected, |_, module| module.kind.is_block(), errors) {
            let path = &model.analysis.modules.get(module).path;
            match model.analysis.bypass(module, self.via) {
                Ok(bypass) => changes.push(Change {
                    rule: Self::NAME,
                    span: self.span,
                    subject: path.clone(),
                    module: Some(module),
                    how: ("via", self.via.name().into()),
                    done: "bypassed",
                    undone: "is not bypassed",
                    fate: Fate::Gone,
                    note: bypass.note,
                    edits: bypass.redirects.into_iter().map(Edit::Redirect).collect(),
                }),
                Err(illegal) => {
                    let help = instead(model, module);
                    errors.push(PlanError::illegal_bypass(model.source, at, path, illegal, help));
                }
            }
        }
        changes
    }
}

/// Refuses globs that name whole stages, which exports have no modules for; returns the others.
fn without_stages(model: &Model<'_>, selector: &Selector, errors: &mut Vec<PlanError>) -> Selector {
    let Selector::Globs(globs) = selector else { return selector.clone() };
    let modules = &model.analysis.modules;
    let mut others = Vec::new();
    for glob in globs {
        let is_block = |m: &Module| m.kind.is_block() && glob.matches(&m.path);
        let is_matched = modules.named(glob.text()).is_some() || modules.iter().any(|(_, m)| is_block(m));
        let is_inside = |path: &str| {
            let mut ends = path.match_indices('.').map(|(end, _)| end);
            ends.any(|end| path.get(..end).is_some_and(|stage| glob.matches(stage)))
        };
        let inside = modules.iter().filter(|(id, m)| is_inside(&m.path) && model.analysis.is_candidate(*id));
        let inside: Vec<ModuleId> = inside.map(|(id, _)| id).collect();
        if is_matched || inside.is_empty() {
            others.push(glob.clone());
            continue;
        }
        let reason = "whole stages change the shape of what they are given";
        let help = format!("inside are {}", listed(model, &inside));
        errors.push(PlanError::illegal_bypass(model.source, glob.span(), glob.text(), reason, Some(help)));
    }
    Selector::Globs(others)
}

/// Names a few modules.
fn listed(model: &Model<'_>, modules: &[ModuleId]) -> String {
    const SHOWN: usize = 6;
    let path = |id: &ModuleId| format!("`{}`", model.analysis.modules.get(*id).path);
    let mut names = modules.iter().take(SHOWN).map(path).collect::<Vec<_>>().join(", ");
    if modules.len() > SHOWN {
        names.push_str(&format!(" and {} more", modules.len() - SHOWN));
    }
    names
}

/// Says what could be bypassed instead of `module`.
fn instead(model: &Model<'_>, module: ModuleId) -> Option<String> {
    let analysis = model.analysis;
    let path = |id: &ModuleId| format!("`{}`", analysis.modules.get(*id).path);
    let inside = analysis.bypassable_within(module);
    if inside.is_empty() {
        let parent = |module: ModuleId| analysis.modules.get(module).parent;
        let mut around = std::iter::successors(parent(module), |module| parent(*module));
        let around = around.find(|module| analysis.is_candidate(*module))?;
        return Some(format!("{} around it can be bypassed", path(&around)));
    }
    Some(format!("these modules in it can be bypassed: {}", listed(model, &inside)))
}
