//! `attention`: gives attentions another map than the softmax of queries and keys.

use miette::SourceSpan;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Change, Edit, Fate, Model, RuleKind, Syntax};
use crate::{
    analysis::{Analysis, attention::Attention, modules::ModuleId},
    plan::{
        Glob, PlanError, Problem, Selector,
        read::{choice, fields, selector},
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
    /// The map. `identity`: each token attends to itself alone, so the attention gives its values (PAG).
    pub map: Map,
}

/// How much each token attends to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Map {
    /// To itself alone.
    Identity,
}

impl Map {
    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
        }
    }
}

impl Syntax for AttentionRule {
    const NAME: &'static str = "attention";
    const KEYS: &'static [&'static str] = &["modules", "map"];
    const EXAMPLE: &'static str = "attention: { modules: ..., map: identity }";
    const ALWAYS: bool = true;

    fn is_choice(analysis: &Analysis<'_>, module: ModuleId) -> bool {
        analysis.attentions.all.iter().any(|attention| attention.module(&analysis.modules) == module)
    }

    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self> {
        let rule = fields(node, "`attention`", Self::KEYS, problems)?;
        let modules = rule
            .require("modules", None, problems)
            .and_then(|node| selector(node, "`modules`", Glob::module, problems));
        let words = [Map::Identity].map(|map| (map.name(), map));
        let help = Some("`map: identity` lets each token attend to itself alone");
        let map =
            rule.require("map", help, problems).and_then(|node| choice(node, "`map`", &words, problems));
        Some(Self { span, modules: modules?, map: map? })
    }
}

impl RuleKind for AttentionRule {
    fn span(&self) -> SourceSpan {
        self.span
    }

    fn noun(&self) -> &'static str {
        "an attention"
    }

    fn canonical(&self) -> Value {
        json!([Self::NAME, self.modules.canonical(), self.map])
    }

    fn resolve(&self, model: &Model<'_>, errors: &mut Vec<PlanError>) -> Vec<Change> {
        let analysis = model.analysis;
        let all: Vec<(ModuleId, &Attention)> =
            analysis.attentions.all.iter().map(|a| (a.module(&analysis.modules), a)).collect();
        let is_one = |module: ModuleId| all.iter().any(|(other, _)| *other == module);
        let mut changes = Vec::new();
        for (at, module) in model.modules(&self.modules, |module, _| is_one(module), errors) {
            let path = &analysis.modules.get(module).path;
            if !is_one(module) {
                errors.push(PlanError::not_editable(
                    model.source,
                    at,
                    path,
                    no_attention(model, module, &all),
                ));
                continue;
            }
            let of_module = all.iter().filter(|(other, _)| *other == module);
            let redirects = of_module.map(|(_, a)| match self.map {
                Map::Identity => a.identity(analysis.graph, &analysis.shapes),
            });
            match redirects.collect::<Result<Vec<_>, _>>() {
                Ok(redirects) => changes.push(Change {
                    rule: Self::NAME,
                    span: self.span,
                    subject: path.clone(),
                    module: Some(module),
                    how: ("map", self.map.name().into()),
                    done: "attention",
                    undone: "still has its attention map",
                    fate: Fate::Changed,
                    note: None,
                    edits: redirects.into_iter().map(Edit::Redirect).collect(),
                }),
                Err(illegal) => errors.push(PlanError::not_editable(model.source, at, path, illegal)),
            }
        }
        changes
    }
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
