//! `bypass`: takes modules out. Whoever used a module's output uses something that came before it.

use miette::SourceSpan;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Change, Edit, Fate, Kind, Model, Syntax};
use crate::{
    analysis::{modules::ModuleId, skip::Via},
    plan::{
        Glob, PlanError, PlanSource, Problem, Selector,
        fields::{choice, fields, or_default, selector},
        tree::{self, Node},
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
    /// What is used instead: the module's residual skip, its input, or the hidden operand of the skip Concat before
    /// an up-block's resnet.
    #[serde(default)]
    pub via: Via,
}

/// A bypass by the residual skip can be written as its modules alone.
fn or_modules(schema: &mut Schema) {
    let modules = schema.pointer("/properties/modules/$ref").cloned();
    *schema = schemars::json_schema!({ "anyOf": [{ "$ref": modules }, schema.clone()] });
}

impl Syntax for BypassRule {
    const NAME: &'static str = "bypass";
    const KEYS: &'static [&'static str] = &["modules", "via"];
    const EXAMPLE: &'static str = "bypass: { modules: ..., via: ... }";

    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self> {
        if !matches!(node.value, tree::Value::Map(_)) {
            let modules = selector(node, "`bypass`", Glob::module, problems)?;
            return Some(Self { span, modules, via: Via::default() });
        }
        let rule = fields(node, "`bypass`", Self::KEYS, problems)?;
        let modules = rule
            .require("modules", None, problems)
            .and_then(|node| selector(node, "`modules`", Glob::module, problems));
        let words = [Via::Shortcut, Via::Input, Via::Backbone].map(|via| (via.name(), via));
        let via = or_default(rule.get("via"), |node| choice(node, "`via`", &words, problems));
        Some(Self { span, modules: modules?, via: via? })
    }
}

impl Kind for BypassRule {
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
        for (at, module) in model.modules(&self.modules, |_, module| module.kind.is_block(), errors) {
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

/// Says what could be bypassed instead of `module`.
fn instead(model: &Model<'_>, module: ModuleId) -> Option<String> {
    const SHOWN: usize = 6;
    let analysis = model.analysis;
    let path = |id: &ModuleId| format!("`{}`", analysis.modules.get(*id).path);
    let inside = analysis.bypassable_within(module);
    if inside.is_empty() {
        let parent = |module: ModuleId| analysis.modules.get(module).parent;
        let mut around = std::iter::successors(parent(module), |module| parent(*module));
        let around = around.find(|module| analysis.is_candidate(*module))?;
        return Some(format!("{} around it can be bypassed", path(&around)));
    }
    let mut names = inside.iter().take(SHOWN).map(path).collect::<Vec<_>>().join(", ");
    if inside.len() > SHOWN {
        names.push_str(&format!(" and {} more", inside.len() - SHOWN));
    }
    Some(format!("these modules in it can be bypassed: {names}"))
}
