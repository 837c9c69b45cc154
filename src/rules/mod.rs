//! The kinds of rules. A kind is a file here and a line in `kinds!`: one type for the reader, the JSON Schema and the
//! reference, and what it means for a model as [`Edits`]. After that nothing knows kinds.

mod attention;
pub(crate) mod bypass;
mod dilate;
mod edits;
mod freeu;
mod lora;
pub(crate) mod prune;
mod ratio;
mod shrink;
mod size;
mod temperature;

use std::path::Path;

use miette::SourceSpan;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};

pub use attention::{AttentionRule, Map};
pub use bypass::BypassRule;
pub use dilate::DilateRule;
pub use edits::{Attributes, Change, Edit, EditSet, Edits, Fate, Merge, Skips, Structure, WeightEdit};
pub use freeu::FreeuRule;
pub use lora::{Factor, LoraFile, LoraLayer, LoraRule, Missing};
pub use prune::{Mask, Pattern, Pool, PruneRule, Ratio, Ties};
pub use shrink::ShrinkRule;
pub use size::Size;
pub use temperature::TemperatureRule;

use crate::{
    analysis::{
        Analysis,
        modules::{Module, ModuleId},
    },
    plan::{
        Glob, Located, PlanError, PlanSource, Problem, Selector,
        diagnostics::join,
        nearest,
        read::{Fields, selector, unknown_key, wrong_type},
        yaml::{self, Key, Node},
    },
};

/// Returns the error for a plan that has nothing for the network, which the rule of `change` is for, but in no part of it.
pub(crate) fn idle(model: &Model<'_>, change: &Change) -> PlanError {
    match change.rule {
        LoraRule::NAME => lora::no_key(model, change),
        _ => prune::no_target(model, change.span, &change.subject),
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident($rule:ty),)+) => {
        /// One rule.
        #[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
        #[serde(rename_all = "lowercase", deny_unknown_fields)]
        pub enum Rule {
            $($(#[$doc])* $variant($rule),)+
        }

        impl Rule {
            pub(crate) fn kind(&self) -> &dyn RuleKind {
                match self {
                    $(Self::$variant(rule) => rule,)+
                }
            }

            fn kind_mut(&mut self) -> &mut dyn RuleKind {
                match self {
                    $(Self::$variant(rule) => rule,)+
                }
            }

            /// Opens the files that the rule names, from `folder`.
            pub(crate) fn open(&mut self, folder: &Path, problems: &mut Vec<Problem>) {
                self.kind_mut().open(folder, problems);
            }
        }

        /// Returns the JSON Schema of `always:`.
        pub(crate) fn always_schema(generator: &mut SchemaGenerator) -> Schema {
            let mut kinds: Vec<Value> = Vec::new();
            $(if <$rule>::ALWAYS {
                kinds.push(json!({
                    "type": "object",
                    "properties": { <$rule>::NAME: generator.subschema_for::<$rule>() },
                    "required": [<$rule>::NAME],
                    "additionalProperties": false
                }));
            })+
            schemars::json_schema!({ "type": ["array", "null"], "items": { "oneOf": kinds } })
        }

        const KINDS: &[Words] = &[$(Words {
            name: <$rule>::NAME,
            keys: <$rule>::KEYS,
            example: <$rule>::EXAMPLE,
            always: <$rule>::ALWAYS,
            read: |span, node, problems| <$rule>::read(span, node, problems).map(Rule::$variant),
            is_choice: <$rule>::is_choice,
        },)+];
    };
}

kinds! {
    /// Take modules out of the graph.
    Bypass(BypassRule),
    /// Multiply the selected modules' weights of small magnitude by `scale`.
    Prune(PruneRule),
    /// Let convolutions reach further: their kernels get gaps.
    Dilate(DilateRule),
    /// Give attentions another map than the softmax of queries and keys.
    Attention(AttentionRule),
    /// Multiply the logits of attentions, or their results.
    Temperature(TemperatureRule),
    /// Run a part of the network at another size.
    Shrink(ShrinkRule),
    /// Multiply halves of the backbone and low frequencies of the skip at skip connections.
    Freeu(FreeuRule),
    /// Add a LoRA to weights.
    Lora(LoraRule),
}

/// How a kind is written.
trait Syntax: Sized {
    /// Its word in plans.
    const NAME: &'static str;
    /// Its keys.
    const KEYS: &'static [&'static str];
    /// A rule with keys, for messages.
    const EXAMPLE: &'static str;
    /// Whether `always:` takes it too.
    const ALWAYS: bool = false;

    /// Returns whether `module` is one of those that a search chooses from where it varies the modules of such a rule.
    fn is_choice(analysis: &Analysis<'_>, module: ModuleId) -> bool {
        analysis.modules.get(module).kind.is_block()
    }

    /// Reads what stands after the word at `span`.
    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self>;
}

/// A kind of rule: its meaning for a model.
pub(crate) trait RuleKind {
    /// Returns where the rule's word stands.
    fn span(&self) -> SourceSpan;

    /// Returns the same JSON for all rules that mean the same: what digests are made of.
    fn canonical(&self) -> Value;

    /// Returns what the rule is called in messages: "a bypass".
    fn noun(&self) -> &'static str;

    /// Returns the scale of masked weights, if weights are all that it changes.
    fn scale(&self) -> Option<Located<f64>> {
        None
    }

    /// Opens the files that the rule names, from `folder`.
    fn open(&mut self, _folder: &Path, _problems: &mut Vec<Problem>) {}

    /// Returns the error for a `change` of a module that another rule of the kind changes in another way.
    fn two_ways(&self, source: &PlanSource, change: &Change) -> PlanError {
        let reason = "another rule changes it in another way";
        PlanError::not_editable(source, change.span, &change.subject, reason)
    }

    /// Returns what the rule changes in a model; what is wrong with it goes into `errors`.
    fn resolve(&self, model: &Model<'_>, errors: &mut Vec<PlanError>) -> Vec<Change>;
}

/// An analysed model that a plan is resolved against.
pub(crate) struct Model<'a> {
    pub analysis: &'a Analysis<'a>,
    /// The plan's text.
    pub source: &'a PlanSource,
}

impl Model<'_> {
    /// Returns the modules that `selector` means, each with the place of the glob: the one that a glob names, or those
    /// among its matches that `can_match`. A glob that selects none, or may mean more than is known, is an error.
    pub fn modules(
        &self,
        selector: &Selector,
        can_match: impl Fn(ModuleId, &Module) -> bool,
        errors: &mut Vec<PlanError>,
    ) -> Vec<(SourceSpan, ModuleId)> {
        let Selector::Globs(globs) = selector else { return Vec::new() };
        let modules = &self.analysis.modules;
        let mut found = Vec::new();
        for glob in globs {
            let before = found.len();
            match modules.named(glob.text()) {
                Some(module) => found.push((glob.span(), module)),
                None => {
                    let matched = modules.iter().filter(|(id, m)| can_match(*id, m) && glob.matches(&m.path));
                    found.extend(matched.map(|(id, _)| (glob.span(), id)));
                    if let Some(error) = self.unplaced(glob.span(), glob.text(), |path| glob.reaches(path)) {
                        errors.push(error);
                        continue;
                    }
                }
            }
            if found.len() == before {
                let paths = |all: bool| {
                    let selected = modules.iter().filter(|(id, m)| all || can_match(*id, m));
                    nearest(glob.text(), selected.map(|(_, m)| m.path.as_str()))
                };
                let near = Some(paths(false)).filter(|near| !near.is_empty()).unwrap_or_else(|| paths(true));
                errors.push(PlanError::no_match(self.source, glob.span(), glob.text(), &near));
            }
        }
        found
    }

    /// Returns the error for the selector `text` if it may mean a layer whose module is not known: one somewhere in a
    /// module that it `reaches`. A rule changes all of what it means, or nothing.
    fn unplaced(&self, at: SourceSpan, text: &str, reaches: impl Fn(&str) -> bool) -> Option<PlanError> {
        let first = self.analysis.weights.unplaced.iter().find(|layer| reaches(&layer.within))?;
        let node = self.analysis.graph.node(first.node).describe();
        let place = match first.within.as_str() {
            "" => String::new(),
            within => format!(" in `{within}`"),
        };
        let reason = format!("it may mean the layer of {node}{place}: {}", first.reason);
        Some(PlanError::not_editable(self.source, at, text, reason))
    }
}

/// Reads the key `modules` of a rule.
fn modules(rule: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<Selector> {
    let node = rule.require("modules", None, problems)?;
    selector(node, "`modules`", Glob::module, problems)
}

/// A kind as the reader knows it.
struct Words {
    name: &'static str,
    keys: &'static [&'static str],
    example: &'static str,
    always: bool,
    read: fn(SourceSpan, &Node, &mut Vec<Problem>) -> Option<Rule>,
    #[cfg_attr(not(feature = "runner"), expect(dead_code, reason = "searches ask"))]
    is_choice: fn(&Analysis<'_>, ModuleId) -> bool,
}

/// A list of rules in a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    /// `rules:`, for the network that amplification mixes with the dense one.
    Rules,
    /// `always:`, for both networks.
    Always,
}

impl Section {
    fn kinds(self) -> impl Iterator<Item = &'static Words> {
        KINDS.iter().filter(move |kind| self == Self::Rules || kind.always)
    }

    fn names(self) -> Vec<&'static str> {
        self.kinds().map(|kind| kind.name).collect()
    }
}

/// Returns the words of the kinds that change modules, not weights alone.
pub(crate) fn module_kinds() -> impl Iterator<Item = &'static str> {
    let of_weights = |kind: &&Words| ["weights", "file"].iter().any(|key| kind.keys.contains(key));
    KINDS.iter().filter(move |kind| !of_weights(kind)).map(|kind| kind.name)
}

/// Returns whether a search can choose `module` for a rule of the kind that is called `kind` in plans.
#[cfg(feature = "runner")]
pub(crate) fn is_choice(kind: &str, analysis: &Analysis<'_>, module: ModuleId) -> bool {
    KINDS.iter().any(|known| known.name == kind && (known.is_choice)(analysis, module))
}

/// Reads one item of a list of rules.
pub(crate) fn read(section: Section, node: &Node, problems: &mut Vec<Problem>) -> Option<Rule> {
    let yaml::Value::Map(entries) = &node.value else {
        problems.push(wrong_type(node, "a rule", "a mapping"));
        return None;
    };
    let Some((key, value)) = entries.first() else {
        let (key, help) = (join(&section.names(), "or"), None);
        problems.push(Problem::MissingKey { key, place: "a rule", help, at: node.span });
        return None;
    };
    let kind = KINDS.iter().find(|kind| kind.name == key.name);
    for (other, _) in entries.iter().skip(1) {
        if KINDS.iter().any(|kind| kind.name == other.name) {
            let help = Some("start another item of the list, with a `-`");
            let kinds: Vec<String> = section.names().iter().map(|name| format!("one `{name}`")).collect();
            let message = format!("a rule is {}", kinds.join(" or "));
            problems.push(Problem::conflict(message, help, key.span, other.span));
        } else {
            problems.push(outside(section, other, kind));
        }
    }
    match kind {
        Some(kind) if section == Section::Always && !kind.always => {
            let help = format!(
                "`always` takes {}; put `{}` under `rules`",
                join(&section.names(), "and"),
                kind.name
            );
            problems.push(Problem::UnknownKey {
                key: key.name.clone(),
                place: "`always`",
                help,
                at: key.span,
            });
            None
        }
        Some(kind) => {
            let known = problems.len();
            let rule = (kind.read)(key.span, value, problems);
            for problem in problems.iter_mut().skip(known) {
                if let Problem::WrongType { help: help @ None, at, .. } = problem
                    && *at == value.span
                {
                    *help = Some(format!("write it as in `{}`", kind.example));
                }
            }
            rule
        }
        None => {
            problems.push(unknown_key(key, "a rule", &section.names()));
            None
        }
    }
}

/// Returns the help for a key of the plan that is the word of a rule, if it is one.
pub(crate) fn misplaced(word: &str) -> Option<String> {
    let kind = KINDS.iter().find(|kind| kind.name == word)?;
    let lists = if kind.always { "`rules:` or `always:`" } else { "`rules:`" };
    Some(format!("it is a rule, an item of {lists}: `- {}`", kind.example))
}

/// Refuses a key beside the word of a rule, most likely one that belongs inside.
fn outside(section: Section, key: &Key, kind: Option<&Words>) -> Problem {
    let takes_it = |kind: &&Words| kind.keys.contains(&key.name.as_str());
    let meant = match kind {
        Some(kind) => Some(kind).filter(takes_it),
        None => section.kinds().find(takes_it),
    };
    match meant {
        Some(kind) => {
            let help =
                format!("it belongs inside, as in `{}`: in block style, indent it further", kind.example);
            Problem::UnknownKey { key: key.name.clone(), place: "a rule", help, at: key.span }
        }
        None => unknown_key(key, "a rule", &section.names()),
    }
}
