//! A space for one model: its sets have the model's modules in them, and points have a meaning.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Choose, Member, Space, SpaceError, Variable, VariableKind};
use crate::{
    analysis::{Analysis, modules::Module},
    plan::{Glob, Plan, PlanError, Problem, join, nearest},
    rules::is_choice,
    search::{
        SearchError,
        strategy::{Axis, Coordinate, Point},
    },
};

/// The value of a variable in one trial.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// A number of its range.
    Number(f64),
    /// One of its options.
    Option(Value),
    /// The modules that are chosen.
    Modules(Vec<String>),
}

impl Setting {
    /// Returns it as JSON.
    pub fn json(&self) -> Value {
        match self {
            Self::Number(number) => (*number).into(),
            Self::Option(option) => option.clone(),
            Self::Modules(modules) => json!(modules),
        }
    }
}

/// The value of each variable in one trial, in the order of the space.
pub type Settings = Vec<(String, Setting)>;

/// A space whose sets hold the modules of one model.
#[derive(Debug)]
pub struct Bound<'a> {
    /// The space.
    pub space: &'a Space,
    /// The directions in which it can be searched.
    pub axes: Vec<Axis>,
    variables: Vec<BoundVariable>,
}

/// A variable and its axes: one, or one for each member of a set.
#[derive(Debug)]
struct BoundVariable {
    name: String,
    kind: BoundKind,
}

#[derive(Debug)]
enum BoundKind {
    Number {
        low: f64,
        high: f64,
    },
    Choice(Vec<Value>),
    /// Each member is in or out.
    Any(Vec<Vec<String>>),
    /// One member; or none, the first option.
    One {
        members: Vec<Vec<String>>,
        none: bool,
    },
}

impl<'a> Bound<'a> {
    /// Puts the modules of an analysed model into the sets of `space`.
    ///
    /// # Errors
    /// [`SpaceError`] if a glob matches no module, or a set has nothing to choose from.
    pub fn new(space: &'a Space, analysis: &Analysis<'_>) -> Result<Self, SpaceError> {
        let places = space.plan.names();
        let mut problems = Vec::new();
        let mut axes = Vec::new();
        let mut variables = Vec::new();
        for variable in &space.variables {
            let places = places.get(variable.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            let choices = Choices { analysis, rules: places.iter().filter_map(|place| place.rule).collect() };
            let kind = bind(variable, &choices, &mut axes, &mut problems);
            variables.push(BoundVariable { name: variable.name.clone(), kind });
        }
        match SpaceError::of(&space.source, problems) {
            Some(error) => Err(error),
            None => Ok(Self { space, axes, variables }),
        }
    }

    /// Returns where a search begins.
    pub fn start(&self) -> Point {
        self.axes.iter().map(Axis::start).collect()
    }

    /// Returns the values of the variables at `point`.
    pub fn settings(&self, point: &Point) -> Settings {
        let option = |at: usize| match point.get(at) {
            Some(Coordinate::Choice(option)) => *option,
            _ => 0,
        };
        let mut settings = Vec::with_capacity(self.variables.len());
        let mut at = 0;
        for variable in &self.variables {
            let setting = match &variable.kind {
                BoundKind::Number { low, .. } => Setting::Number(match point.get(at) {
                    Some(Coordinate::Number(number)) => *number,
                    _ => *low,
                }),
                BoundKind::Choice(options) => {
                    Setting::Option(options.get(option(at)).cloned().unwrap_or_default())
                }
                BoundKind::Any(members) => {
                    let chosen = members.iter().enumerate().filter(|(index, _)| option(at + index) == 1);
                    Setting::Modules(chosen.flat_map(|(_, member)| member.clone()).collect())
                }
                BoundKind::One { members, none } => {
                    let chosen = option(at).checked_sub(usize::from(*none));
                    Setting::Modules(chosen.and_then(|at| members.get(at)).cloned().unwrap_or_default())
                }
            };
            at += variable.kind.axes();
            settings.push((variable.name.clone(), setting));
        }
        settings
    }

    /// Returns the plan with these settings.
    ///
    /// # Errors
    /// [`PlanError`] if it is no plan with them.
    pub fn plan(&self, settings: &Settings) -> Result<Plan, PlanError> {
        self.space.plan.plan(&self.space.source, &by_name(settings))
    }

    /// Returns the plan with these settings as JSON, in the order of the space. It can be put anywhere: files that it names
    /// have their whole paths.
    pub fn plan_json(&self, settings: &Settings) -> Value {
        let mut plan = self.space.plan.json(&by_name(settings));
        for section in ["always", "rules"] {
            let rules = plan.get_mut(section).and_then(Value::as_array_mut);
            for file in rules.into_iter().flatten().filter_map(|rule| rule.pointer_mut("/lora/file")) {
                let path = file.as_str().map(|name| self.space.source.folder().join(name));
                if let Some(path) = path.and_then(|path| std::path::absolute(path).ok()) {
                    *file = path.to_string_lossy().into();
                }
            }
        }
        plan
    }

    /// Settings from JSON: an object with a value for each variable.
    ///
    /// # Errors
    /// [`SearchError::Values`] if a variable is missing, unknown or out of its range.
    pub fn settings_from_json(&self, values: &Value) -> Result<Settings, SearchError> {
        let names: Vec<&str> = self.variables.iter().map(|variable| variable.name.as_str()).collect();
        let wrong = |what: String| SearchError::Values(what);
        let Value::Object(values) = values else {
            return Err(wrong(format!("the values must be an object with {}", join(&names, "and"))));
        };
        if let Some(unknown) = values.keys().find(|key| !names.contains(&key.as_str())) {
            return Err(wrong(format!(
                "there is no variable `{unknown}`; the space has {}",
                join(&names, "and")
            )));
        }
        let one = |variable: &BoundVariable| {
            let name = &variable.name;
            let value =
                values.get(name).ok_or_else(|| wrong(format!("the variable `{name}` has no value")))?;
            let setting = variable.kind.setting(value).map_err(|what| wrong(format!("`{name}` {what}")))?;
            Ok((name.clone(), setting))
        };
        self.variables.iter().map(one).collect()
    }

    /// Describes the range of each variable in words.
    pub fn describe(&self) -> Vec<(String, String)> {
        let one = |variable: &BoundVariable| (variable.name.clone(), variable.kind.describe());
        self.variables.iter().map(one).collect()
    }

    /// Returns, for each option of each axis that is a choice, the start with that option: the combinations of a
    /// search.
    pub fn probes(&self) -> Vec<Point> {
        let start = self.start();
        let mut probes = vec![start.clone()];
        for (at, axis) in self.axes.iter().enumerate() {
            let Axis::Choice { options, start: first } = axis else { continue };
            for option in (0..*options).filter(|option| option != first) {
                let mut probe = start.clone();
                probe[at] = Coordinate::Choice(option);
                probes.push(probe);
            }
        }
        probes
    }
}

impl BoundKind {
    fn axes(&self) -> usize {
        match self {
            Self::Any(members) => members.len(),
            Self::Number { .. } | Self::Choice(_) | Self::One { .. } => 1,
        }
    }

    fn setting(&self, value: &Value) -> Result<Setting, String> {
        match self {
            Self::Number { low, high } => match value.as_f64() {
                Some(number) if (*low..=*high).contains(&number) => Ok(Setting::Number(number)),
                _ => Err(format!("must be a number from {low} to {high}, not {value}")),
            },
            Self::Choice(options) if options.contains(value) => Ok(Setting::Option(value.clone())),
            Self::Choice(options) => {
                let options: Vec<String> = options.iter().map(Value::to_string).collect();
                Err(format!("must be one of {}, not {value}", options.join(", ")))
            }
            Self::Any(members) | Self::One { members, .. } => {
                let wrong = || format!("must be a list of modules, each one of {}", listed(members));
                let items = value.as_array().ok_or_else(wrong)?;
                let named = items.iter().map(|item| item.as_str().map(str::to_string));
                let named: Vec<String> = named.collect::<Option<_>>().ok_or_else(wrong)?;
                let chosen = members.iter().filter(|member| member.iter().all(|m| named.contains(m)));
                let chosen: Vec<&Vec<String>> = chosen.collect();
                if let Some(other) = named.iter().find(|name| !chosen.iter().any(|m| m.contains(name))) {
                    return Err(format!("has no member `{other}` to choose; {}", wrong()));
                }
                match self {
                    Self::One { none: false, .. } if chosen.len() != 1 => {
                        Err(format!("takes one member, not {}", chosen.len()))
                    }
                    Self::One { none: true, .. } if chosen.len() > 1 => {
                        Err(format!("takes one member or none, not {}", chosen.len()))
                    }
                    _ => Ok(Setting::Modules(chosen.into_iter().flatten().cloned().collect())),
                }
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Number { low, high } => format!("a number from {low} to {high}"),
            Self::Choice(options) => {
                let options: Vec<String> = options.iter().map(Value::to_string).collect();
                format!("one of {}", options.join(", "))
            }
            Self::Any(members) => format!("any of {}", listed(members)),
            Self::One { members, none: false } => format!("one of {}", listed(members)),
            Self::One { members, none: true } => format!("one or none of {}", listed(members)),
        }
    }
}

fn listed(members: &[Vec<String>]) -> String {
    members.iter().map(|member| member.join(" + ")).collect::<Vec<_>>().join(", ")
}

fn by_name(settings: &Settings) -> BTreeMap<&str, Setting> {
    settings.iter().map(|(name, setting)| (name.as_str(), setting.clone())).collect()
}

fn bind(
    variable: &Variable,
    choices: &Choices<'_>,
    axes: &mut Vec<Axis>,
    problems: &mut Vec<Problem>,
) -> BoundKind {
    match &variable.kind {
        VariableKind::Number { low, high, start, step, points } => {
            let (low, high, start, step, points) = (*low, *high, *start, *step, *points);
            axes.push(Axis::Number { low, high, start, step, points });
            BoundKind::Number { low, high }
        }
        VariableKind::Choice { options, start } => {
            axes.push(Axis::Choice { options: options.len(), start: *start });
            BoundKind::Choice(options.clone())
        }
        VariableKind::Modules { members, choose } => {
            let members = expanded(members, choices, problems);
            let none = *choose == Choose::AtMostOne;
            match choose {
                Choose::Any => {
                    axes.extend(members.iter().map(|_| Axis::Choice { options: 2, start: 0 }));
                    BoundKind::Any(members)
                }
                Choose::One | Choose::AtMostOne => {
                    axes.push(Axis::Choice { options: members.len() + usize::from(none), start: 0 });
                    BoundKind::One { members, none }
                }
            }
        }
    }
}

/// Returns the members of a set with the modules that its globs match.
fn expanded(members: &[Member], choices: &Choices<'_>, problems: &mut Vec<Problem>) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = Vec::new();
    let mut add = |member: Vec<String>| {
        if !member.is_empty() && !all.contains(&member) {
            all.push(member);
        }
    };
    for member in members {
        match member {
            Member::Each { glob, span } => {
                choices.matching(glob, *span, problems).into_iter().for_each(|module| add(vec![module]));
            }
            Member::Together { globs, span } => {
                add(globs.iter().flat_map(|glob| choices.matching(glob, *span, problems)).collect());
            }
        }
    }
    all
}

/// The members of a set: modules that the rules take in which the set stands.
struct Choices<'a> {
    analysis: &'a Analysis<'a>,
    rules: Vec<&'a str>,
}

impl Choices<'_> {
    /// Returns the modules that a glob means: the one that it names, or those among its matches that a rule can take.
    fn matching(&self, text: &str, span: miette::SourceSpan, problems: &mut Vec<Problem>) -> Vec<String> {
        let modules = &self.analysis.modules;
        if modules.named(text).is_some() {
            return vec![text.to_string()];
        }
        let Ok(glob) = Glob::module(text, span) else { return Vec::new() };
        let of_rules = |rule: &&str, id| is_choice(rule, self.analysis, id);
        let taken = || {
            let taken = modules.iter().filter(|(id, _)| self.rules.iter().any(|rule| of_rules(rule, *id)));
            taken.map(|(_, module): (_, &Module)| module.path.as_str())
        };
        let found: Vec<String> = taken().filter(|path| glob.matches(path)).map(str::to_string).collect();
        if found.is_empty() {
            let near = nearest(text, taken());
            let help = (!near.is_empty()).then(|| format!("did you mean {}?", join(&near, "or")));
            problems.push(Problem::NoMatch { pattern: text.to_string(), help, at: span });
        }
        found
    }
}

/// Settings as a JSON object.
pub(in crate::search) fn settings_json(settings: &Settings) -> Value {
    let entries = settings.iter().map(|(name, setting)| (name.clone(), setting.json()));
    entries.collect::<Map<_, _>>().into()
}
