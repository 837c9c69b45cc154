//! `variables:`, and their names in the plan.

use rustc_hash::FxHashSet;
use serde_json::Value as Json;

use super::{entries, scalar, text};
use crate::{
    plan::{
        Glob, Problem, join, nearest,
        read::{Fields, choice, fields, list, number, range},
        yaml::{Node, Value},
    },
    search::space::{Choose, Member, Template, Variable, VariableKind},
};

/// Where a ratio's search begins: the authors' start.
const RATIO_START: f64 = 0.3;
/// How far annealing moves a ratio at most: the authors' first step.
const RATIO_STEP: f64 = 0.1;
/// The share of a range that annealing moves another number at most: that of 0.10 in [0.1, 0.8].
const NUMBER_STEP: f64 = 1.0 / 7.0;
/// Values of a number in a grid.
const POINTS: usize = 5;

pub(super) fn variables_of(node: &Node, problems: &mut Vec<Problem>) -> Option<Vec<Variable>> {
    let entries = entries(node, "`variables`", problems)?;
    let mut variables = Vec::with_capacity(entries.len());
    let mut names = FxHashSet::default();
    for (key, node) in entries {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if key.name.is_empty() || !key.name.chars().all(is_name) {
            let expected = "made of letters, digits, `_` and `-`".to_string();
            let found = format!("`{}`", key.name);
            problems.push(Problem::OutOfRange {
                what: "the name of a variable",
                expected,
                found,
                at: key.span,
            });
            continue;
        }
        let kind = variable(node, problems);
        if let Some(kind) = kind.filter(|_| names.insert(key.name.clone())) {
            variables.push(Variable { name: key.name.clone(), span: key.span, kind });
        }
    }
    if variables.is_empty() && problems.is_empty() {
        let (expected, found) = ("at least one variable".to_string(), "none".to_string());
        problems.push(Problem::OutOfRange { what: "`variables`", expected, found, at: node.span });
    }
    Some(variables)
}

const VARIABLE_KINDS: [&str; 4] = ["ratio", "number", "choice", "modules"];

fn variable(node: &Node, problems: &mut Vec<Problem>) -> Option<VariableKind> {
    let keys = ["ratio", "number", "choice", "modules", "start", "step", "points", "choose"];
    let section = fields(node, "a variable", &keys, problems)?;
    let given: Vec<_> =
        VARIABLE_KINDS.iter().filter_map(|kind| Some((*kind, section.entry(kind)?))).collect();
    let (kind, value) = match given.as_slice() {
        [(kind, (_, value))] => (*kind, *value),
        [(_, (one, _)), (_, (other, _)), ..] => {
            let message = format!("a variable is one of these, not `{}` and `{}`", one.name, other.name);
            problems.push(Problem::conflict(message, None, one.span, other.span));
            return None;
        }
        [] => {
            let help = Some("as in `down: { ratio: [0.1, 0.8] }`");
            section.report_missing(&VARIABLE_KINDS, help, problems);
            return None;
        }
    };
    let allowed: &[&str] = match kind {
        "ratio" | "number" => &["start", "step", "points"],
        "choice" => &["start"],
        _ => &["choose"],
    };
    for (key, _) in ["start", "step", "points", "choose"].iter().filter_map(|key| section.entry(key)) {
        if !allowed.contains(&key.name.as_str()) {
            let message = format!("`{}` has no meaning for `{kind}`", key.name);
            let help = format!("with `{kind}` goes {}", join(allowed, "and"));
            problems.push(Problem::conflict(message, Some(&help), key.span, value.span));
            return None;
        }
    }
    match kind {
        "ratio" => {
            let is_ratio = |ratio: f64| (0.0..1.0).contains(&ratio);
            let ends = range(value, "`ratio`", "at least 0 and below 1", is_ratio, problems)?;
            numbers(&section, ends, RATIO_START.clamp(ends.0, ends.1), RATIO_STEP, problems)
        }
        "number" => {
            let ends = range(value, "`number`", "a finite number", f64::is_finite, problems)?;
            let (low, high) = ends;
            numbers(&section, ends, low + (high - low) / 2.0, (high - low) * NUMBER_STEP, problems)
        }
        "choice" => options(value, &section, problems),
        _ => modules(value, &section, problems),
    }
}

fn numbers(
    section: &Fields<'_>,
    (low, high): (f64, f64),
    start: f64,
    step: f64,
    problems: &mut Vec<Problem>,
) -> Option<VariableKind> {
    let start = match section.get("start") {
        Some(node) => {
            let within = |start: f64| (low..=high).contains(&start);
            number(node, "`start`", "within the variable's range", within, problems)?.value
        }
        None => start,
    };
    let step = match section.get("step") {
        Some(node) => {
            let allowed = |step: f64| step.is_finite() && step > 0.0;
            number(node, "`step`", "a number above 0", allowed, problems)?.value
        }
        None => step,
    };
    let points = match section.get("points") {
        Some(node) => {
            let allowed = |n: f64| (1.0..=1e6).contains(&n) && n.fract() == 0.0;
            number(node, "`points`", "a whole number from 1", allowed, problems)?.value as usize
        }
        None => POINTS,
    };
    Some(VariableKind::Number { low, high, start, step, points })
}

fn options(value: &Node, section: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<VariableKind> {
    let items = list(value, "`choice`", problems)?;
    let options: Vec<Json> = items.iter().map(|item| scalar(item, problems)).collect::<Option<_>>()?;
    if options.is_empty() {
        let (expected, found) = ("a list of options".to_string(), "an empty one".to_string());
        problems.push(Problem::OutOfRange { what: "`choice`", expected, found, at: value.span });
        return None;
    }
    let start = match section.get("start") {
        None => 0,
        Some(node) => {
            let wanted = scalar(node, problems)?;
            let found = options.iter().position(|option| *option == wanted);
            if found.is_none() {
                let expected = "one of the options".to_string();
                let found = wanted.to_string();
                problems.push(Problem::OutOfRange { what: "`start`", expected, found, at: node.span });
            }
            found?
        }
    };
    Some(VariableKind::Choice { options, start })
}

fn modules(value: &Node, section: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<VariableKind> {
    let items = list(value, "`modules`", problems)?;
    if items.is_empty() {
        let (expected, found) = ("a list of modules".to_string(), "an empty one".to_string());
        problems.push(Problem::OutOfRange { what: "`modules`", expected, found, at: value.span });
        return None;
    }
    let glob = |node: &Node, problems: &mut Vec<Problem>| -> Option<String> {
        let text = text(node, "a module", problems)?;
        if let Err(bad) = Glob::module(&text, node.span) {
            problems.push(Problem::BadGlob { reason: bad.reason, help: bad.help, at: node.span });
            return None;
        }
        Some(text)
    };
    let mut members = Vec::with_capacity(items.len());
    for item in items {
        members.push(match &item.value {
            Value::List(together) => {
                let globs = together.iter().map(|node| glob(node, problems)).collect::<Option<_>>()?;
                Member::Together { globs, span: item.span }
            }
            _ => Member::Each { glob: glob(item, problems)?, span: item.span },
        });
    }
    let words = [("any", Choose::Any), ("one", Choose::One), ("at-most-one", Choose::AtMostOne)];
    let choose = match section.get("choose") {
        Some(node) => choice(node, "`choose`", &words, problems)?,
        None => Choose::default(),
    };
    Some(VariableKind::Modules { members, choose })
}

/// Checks that every `$name` is a variable (or one that has a mistake of its own), and that every variable has its
/// place.
pub(super) fn check_names(
    variables: &[Variable],
    declared: &[String],
    plan: &Template,
    problems: &mut Vec<Problem>,
) {
    let names = plan.names();
    for (name, places) in &names {
        if declared.iter().any(|known| known == name) {
            continue;
        }
        let near = nearest(name, declared.iter().map(String::as_str));
        let help = match near.as_slice() {
            [] if declared.is_empty() => "there are no variables".to_string(),
            [] => format!("the variables are {}", join(declared, "and")),
            near => format!("did you mean {}?", join(near, "or")),
        };
        let key = format!("${name}");
        problems.extend(places.iter().map(|place| Problem::UnknownKey {
            key: key.clone(),
            place: "the plan",
            help: help.clone(),
            at: place.span,
        }));
    }
    for variable in variables.iter().filter(|variable| !names.contains_key(variable.name.as_str())) {
        let (key, help) = (format!("`${}`", variable.name), "or take the variable out".to_string());
        let (place, at) = ("the plan", variable.span);
        problems.push(Problem::MissingKey { key, place, help: Some(help), at });
    }
}
