//! `variables:`, and their names in the plan.

use miette::SourceSpan;
use rustc_hash::FxHashSet;
use serde::Serialize;
use serde_json::Value as Json;

use super::{
    Template,
    syntax::{Form, Range, Reader, Section, entries, full, scalar, section, text},
};
use crate::plan::{
    Glob, Problem, join, nearest,
    read::range,
    yaml::{Node, Value},
};

/// A part of the plan that may vary.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Variable {
    /// Its name, without the `$`.
    pub name: String,
    /// Where its name stands.
    #[serde(skip)]
    pub span: SourceSpan,
    /// The values that it can have.
    pub kind: VariableKind,
}

/// The values that a variable can have.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VariableKind {
    /// A number of a range.
    Number {
        /// The least.
        low: f64,
        /// The greatest.
        high: f64,
        /// Where the search begins.
        start: f64,
        /// How far annealing moves it at most.
        step: f64,
        /// How many values a grid has.
        points: usize,
    },
    /// One of several words, numbers or truth values.
    Choice {
        /// They.
        options: Vec<Json>,
        /// Which one the search begins with.
        start: usize,
    },
    /// Modules of the model.
    Modules {
        /// The members that can be chosen.
        members: Vec<Member>,
        /// How many of them.
        choose: Choose,
    },
}

/// A part of a set of modules that can be chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Member {
    /// Each module that the glob matches, on its own.
    Each {
        /// The glob.
        glob: String,
        /// Where it stands.
        #[serde(skip)]
        span: SourceSpan,
    },
    /// The modules that these globs match, together.
    Together {
        /// The globs.
        globs: Vec<String>,
        /// Where they stand.
        #[serde(skip)]
        span: SourceSpan,
    },
}

/// How many members of a set are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choose {
    /// Any number, none too: each is in or out.
    #[default]
    Any,
    /// Exactly one.
    One,
    /// One or none.
    AtMostOne,
}

const SHARE: Range = Range::of("at least 0 and below 1", 0.0, 1.0).open([false, true]);
const POINTS: Range = Range::whole("a whole number from 1", 1.0, 1e6);
/// How many values of a number a grid has.
const DEFAULT_POINTS: usize = 5;
/// Where a ratio's search begins: the authors' start.
const RATIO_START: f64 = 0.3;
/// How far annealing moves a ratio at most: the authors' first step.
const RATIO_STEP: f64 = 0.1;
/// The share of a range that annealing moves another number at most: that of 0.10 in [0.1, 0.8].
const NUMBER_STEP: f64 = 1.0 / 7.0;

section! {
    /// A share of weights.
    RATIO = "Ratio", "a variable";
    ratio or "": Exactly(2, &Number(SHARE)), "The least and the greatest.";
    start: Number(SHARE), "Where the search begins [default: 0.3].";
    step: Number(Range::ABOVE_0), "How far annealing moves it at most [default: 0.1].";
    points: Number(POINTS), "How many values a grid has [default: 5].";
}

section! {
    /// A number.
    NUMBER = "Number", "a variable";
    number or "": Exactly(2, &Number(Range::FINITE)), "The least and the greatest.";
    start: Number(Range::FINITE), "Where the search begins [default: the middle].";
    step: Number(Range::ABOVE_0), "How far annealing moves it at most [default: a seventh of the range].";
    points: Number(POINTS), "How many values a grid has [default: 5].";
}

section! {
    /// One of several values.
    CHOICE = "Choice", "a variable";
    choice or "": List(&Scalar, "a list of options"), "Words, numbers, true or false.";
    start: Scalar, "The one that the search begins with [default: the first].";
}

const GLOB_OR_SEVERAL: Form = Form::OneOf(&[Form::Text, Form::List(&Form::Text, "a list of globs")]);

section! {
    /// Modules of the model.
    MODULES = "Modules", "a variable";
    modules or "": List(&GLOB_OR_SEVERAL, "a list of modules"),
        "Globs: each module that one matches can be chosen on its own. What a list in the list matches is chosen \
         together.";
    choose: Word(&["any", "one", "at-most-one"]), "How many are chosen [default: any].";
}

const KINDS: [&str; 4] = ["ratio", "number", "choice", "modules"];
static SECTIONS: [&Section; 4] = [&RATIO, &NUMBER, &CHOICE, &MODULES];

/// All that a variable may have, before it is known which kind it is.
static ANY: Section = Section {
    title: "Variable",
    place: "a variable",
    about: "",
    keys: &[RATIO.keys[0], NUMBER.keys[0], CHOICE.keys[0], MODULES.keys[0]],
};

/// The form of a variable.
pub(super) const FORM: Form = Form::OneOf(&[
    Form::Mapping(&RATIO),
    Form::Mapping(&NUMBER),
    Form::Mapping(&CHOICE),
    Form::Mapping(&MODULES),
]);

pub(super) fn variables(node: &Node, problems: &mut Vec<Problem>) -> Vec<Variable> {
    let Some(entries) = entries(node, "`variables`", problems) else { return Vec::new() };
    let mut variables = Vec::with_capacity(entries.len());
    let mut names = FxHashSet::default();
    for (key, node) in entries {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if key.name.is_empty() || !key.name.chars().all(is_name) {
            let (what, expected) =
                ("the name of a variable", "made of letters, digits, `_` and `-`".to_string());
            problems.push(Problem::OutOfRange {
                what,
                expected,
                found: format!("`{}`", key.name),
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
    variables
}

fn variable(node: &Node, problems: &mut Vec<Problem>) -> Option<VariableKind> {
    let any = Reader::part(&ANY, node, problems)?;
    let helps = [None, Some("as in `down: { ratio: [0.1, 0.8] }`")];
    let (kind, _, value) = any.kind(&KINDS, helps, problems)?;
    let section = SECTIONS.into_iter().zip(KINDS).find(|(_, of)| *of == kind)?.0;
    let names = section.names();
    let stray = ANY.names().into_iter().filter(|name| !names.contains(name));
    if let Some((key, _)) = stray.filter_map(|name| any.fields.entry(name)).next() {
        let message = format!("`{}` has no meaning for `{kind}`", key.name);
        let help = format!("with `{kind}` goes {}", join(names.get(1..).unwrap_or_default(), "and"));
        problems.push(Problem::conflict(message, Some(&help), key.span, value.span));
        return None;
    }
    let reader = Reader { section, ..any };
    match kind {
        "ratio" => {
            let ends = range(value, "`ratio`", SHARE.words(), |ratio| (0.0..1.0).contains(&ratio), problems)?;
            numbers(&reader, ends, RATIO_START.clamp(ends.0, ends.1), RATIO_STEP, problems)
        }
        "number" => {
            let ends = range(value, "`number`", Range::FINITE.words(), f64::is_finite, problems)?;
            let (low, high) = ends;
            numbers(&reader, ends, low + (high - low) / 2.0, (high - low) * NUMBER_STEP, problems)
        }
        "choice" => options(&reader, problems),
        _ => modules(&reader, problems),
    }
}

fn numbers(
    reader: &Reader<'_>,
    (low, high): (f64, f64),
    start: f64,
    step: f64,
    problems: &mut Vec<Problem>,
) -> Option<VariableKind> {
    let within = Range::of("within the variable's range", low, high);
    let start = match reader.get("start") {
        Some(node) => within.read(node, "`start`", problems)?,
        None => start,
    };
    let step = reader.number("step", problems).unwrap_or(step);
    let points = reader.count("points", problems).unwrap_or(DEFAULT_POINTS);
    Some(VariableKind::Number { low, high, start, step, points })
}

fn options(reader: &Reader<'_>, problems: &mut Vec<Problem>) -> Option<VariableKind> {
    let items = reader.list("choice", problems)?;
    let options: Vec<Json> = items.iter().map(|item| scalar(item, problems)).collect::<Option<_>>()?;
    let Some(node) = reader.get("start") else { return Some(VariableKind::Choice { options, start: 0 }) };
    let wanted = scalar(node, problems)?;
    let Some(start) = options.iter().position(|option| *option == wanted) else {
        let (expected, found) = ("one of the options".to_string(), wanted.to_string());
        problems.push(Problem::OutOfRange { what: "`start`", expected, found, at: node.span });
        return None;
    };
    Some(VariableKind::Choice { options, start })
}

fn modules(reader: &Reader<'_>, problems: &mut Vec<Problem>) -> Option<VariableKind> {
    let glob = |node: &Node, problems: &mut Vec<Problem>| -> Option<String> {
        let text = text(node, "a module", problems)?;
        if let Err(bad) = Glob::module(&text, node.span) {
            problems.push(Problem::BadGlob { reason: bad.reason, help: bad.help, at: node.span });
            return None;
        }
        Some(text)
    };
    let mut members = Vec::new();
    for item in reader.list("modules", problems)? {
        members.push(match &item.value {
            Value::List(_) => {
                let together = full(item, "`modules`", "a list of globs", problems)?;
                let globs = together.iter().map(|node| glob(node, problems)).collect::<Option<_>>()?;
                Member::Together { globs, span: item.span }
            }
            _ => Member::Each { glob: glob(item, problems)?, span: item.span },
        });
    }
    let choose = [Choose::Any, Choose::One, Choose::AtMostOne];
    let choose = reader.word("choose", &choose, problems).unwrap_or_default();
    Some(VariableKind::Modules { members, choose })
}

/// Checks that every `$name` is a variable (or one that has a mistake of its own), and that every variable has its place.
pub(super) fn check_names(
    variables: &[Variable],
    declared: &[&str],
    plan: &Template,
    problems: &mut Vec<Problem>,
) {
    let names = plan.names();
    for (name, places) in names.iter().filter(|(name, _)| !declared.contains(name)) {
        let near = nearest(name, declared.iter().copied());
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
