//! Plan templates: plans with `$names` in them.

use std::collections::BTreeMap;

use super::bind::Setting;
use crate::plan::{
    Plan, PlanError, PlanSource, Problem, from_node,
    yaml::{Key, Node, Value},
};
use miette::SourceSpan;

/// A plan in which a value may be `$name`, the variable of that name.
///
/// A set of modules that stands in a list becomes a part of that list. A rule whose target is a set that has nothing in
/// it is left out.
#[derive(Clone, Debug)]
pub struct Template {
    root: Node,
}

/// Where a variable stands.
pub(super) struct Place<'a> {
    pub(super) span: SourceSpan,
    /// The word of the rule that it is in.
    pub(super) rule: Option<&'a str>,
}

/// The value of a node with the variables in it.
enum Filled {
    Node(Node),
    /// An empty set.
    Nothing,
}

impl Template {
    pub(super) fn new(root: Node) -> Self {
        Self { root }
    }

    /// Returns the names in it, each with the places where it stands.
    pub(super) fn names(&self) -> BTreeMap<&str, Vec<Place<'_>>> {
        let mut names = BTreeMap::new();
        collect(&self.root, &mut Vec::new(), &mut names);
        names
    }

    /// Returns the plan with these values for the names in it. Mistakes are shown in `source`, the space's
    /// text.
    ///
    /// # Errors
    /// [`PlanError`] if it is no plan with these values.
    pub fn plan(&self, source: &PlanSource, values: &BTreeMap<&str, Setting>) -> Result<Plan, PlanError> {
        match filled(&self.root, values) {
            Filled::Node(root) => from_node(source.clone(), &root),
            Filled::Nothing => Err(PlanError::new(source, Problem::Empty)),
        }
    }

    /// Returns the plan with these values as JSON, in the order of the template.
    pub fn json(&self, values: &BTreeMap<&str, Setting>) -> serde_json::Value {
        match filled(&self.root, values) {
            Filled::Node(root) => json(&root),
            Filled::Nothing => serde_json::Value::Null,
        }
    }

    /// Returns the template itself as JSON.
    pub(super) fn as_json(&self) -> serde_json::Value {
        json(&self.root)
    }
}

/// Returns the variable that a value names.
fn name(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => text.strip_prefix('$'),
        _ => None,
    }
}

fn collect<'a>(node: &'a Node, keys: &mut Vec<&'a str>, names: &mut BTreeMap<&'a str, Vec<Place<'a>>>) {
    if let Some(name) = name(node) {
        let rule = match keys.as_slice() {
            ["rules" | "always", rule, ..] => Some(*rule),
            _ => None,
        };
        names.entry(name).or_default().push(Place { span: node.span, rule });
    }
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| collect(item, keys, names)),
        Value::Map(entries) => {
            for (key, value) in entries {
                keys.push(&key.name);
                collect(value, keys, names);
                keys.pop();
            }
        }
        _ => {}
    }
}

fn filled(node: &Node, values: &BTreeMap<&str, Setting>) -> Filled {
    let with = |value: Value| Filled::Node(Node { value, span: node.span, verbatim: None });
    if let Some(setting) = name(node).and_then(|name| values.get(name)) {
        return match setting {
            Setting::Modules(modules) if modules.is_empty() => Filled::Nothing,
            Setting::Modules(modules) => {
                with(Value::List(modules.iter().map(|module| text(module, node.span)).collect()))
            }
            Setting::Number(number) => with(Value::Float(*number)),
            Setting::Option(option) => with(from_json(option)),
        };
    }
    match &node.value {
        Value::List(items) => {
            let had_items = !items.is_empty();
            let mut all = Vec::with_capacity(items.len());
            for item in items {
                let is_set = matches!(
                    name(item).and_then(|name| values.get(name)),
                    Some(Setting::Modules(modules)) if !modules.is_empty()
                );
                match (filled(item, values), is_set) {
                    (Filled::Nothing, _) => {}
                    (Filled::Node(Node { value: Value::List(members), .. }), true) => all.extend(members),
                    (Filled::Node(item), _) => all.push(item),
                }
            }
            let only_empty_sets =
                had_items && all.is_empty() && items.iter().all(|item| name(item).is_some());
            if only_empty_sets { Filled::Nothing } else { with(Value::List(all)) }
        }
        Value::Map(entries) => {
            let mut all: Vec<(Key, Node)> = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                match filled(value, values) {
                    Filled::Node(mut value) => {
                        if WINDOWS.contains(&key.name.as_str()) {
                            order(&mut value);
                        }
                        all.push((key.clone(), value));
                    }
                    // A rule, or the target of one.
                    Filled::Nothing => return Filled::Nothing,
                }
            }
            with(Value::Map(all))
        }
        _ => Filled::Node(node.clone()),
    }
}

/// Keys whose value is the two ends of a range.
const WINDOWS: [&str; 2] = ["during", "sigma"];

/// Puts the lower end of a range first: either of two variables may be the larger.
fn order(node: &mut Node) {
    let number = |node: &Node| match node.value {
        Value::Integer(number) => Some(number as f64),
        Value::Float(number) => Some(number),
        _ => None,
    };
    if let Value::List(items) = &mut node.value
        && let [first, second] = items.as_mut_slice()
        && let (Some(low), Some(high)) = (number(first), number(second))
        && low > high
    {
        std::mem::swap(first, second);
    }
}

fn text(text: &str, span: SourceSpan) -> Node {
    Node { value: Value::Text(text.to_string()), span, verbatim: None }
}

fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Bool(flag) => Value::Bool(*flag),
        serde_json::Value::String(text) => Value::Text(text.clone()),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(integer) => Value::Integer(integer.into()),
            None => Value::Float(number.as_f64().unwrap_or_default()),
        },
        _ => Value::Null,
    }
}

fn json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(flag) => (*flag).into(),
        Value::Integer(number) => i64::try_from(*number).map_or((*number as f64).into(), Into::into),
        Value::Float(number) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => entries
            .iter()
            .map(|(key, value)| (key.name.clone(), json(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}
