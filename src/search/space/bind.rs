//! A space for one model: its sets have the model's modules in them, and points have a meaning.

use std::collections::{BTreeMap, BTreeSet};

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
    /// What is worth knowing of the plan's rules on this model, once each option was tried.
    pub notes: BTreeSet<String>,
    variables: Vec<BoundVariable<'a>>,
}

/// A variable, with the model's modules if it is a set.
#[derive(Debug)]
struct BoundVariable<'a> {
    name: &'a str,
    kind: &'a VariableKind,
    /// The members of a set: the modules of each.
    members: Vec<Vec<String>>,
}

impl<'a> Bound<'a> {
    /// Puts the modules of an analysed model into the sets of `space`.
    ///
    /// # Errors
    /// [`SpaceError`] if a glob matches no module, or a set has nothing to choose from.
    pub fn new(space: &'a Space, analysis: &Analysis<'_>) -> Result<Self, SpaceError> {
        let places = space.plan.names();
        let mut problems = Vec::new();
        let mut variables = Vec::new();
        for Variable { name, kind, .. } in &space.variables {
            let places = places.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
            let choices = Choices { analysis, rules: places.iter().filter_map(|place| place.rule).collect() };
            let members = match kind {
                VariableKind::Modules { members, .. } => choices.expanded(members, &mut problems),
                VariableKind::Number { .. } | VariableKind::Choice { .. } => Vec::new(),
            };
            variables.push(BoundVariable { name, kind, members });
        }
        match SpaceError::of(&space.source, problems) {
            Some(error) => Err(error),
            None => {
                let axes = variables.iter().flat_map(BoundVariable::axes).collect();
                Ok(Self { space, axes, notes: BTreeSet::new(), variables })
            }
        }
    }

    /// Returns where a search begins.
    pub fn start(&self) -> Point {
        self.axes.iter().map(Axis::start).collect()
    }

    /// Returns the values of the variables at `point`.
    pub fn settings(&self, point: &Point) -> Settings {
        let mut rest = point.as_slice();
        let one = |variable: &BoundVariable<'_>| {
            let (own, others) = rest.split_at(variable.axes().len().min(rest.len()));
            rest = others;
            (variable.name.to_string(), variable.at(own))
        };
        self.variables.iter().map(one).collect()
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
        let names: Vec<&str> = self.variables.iter().map(|variable| variable.name).collect();
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
        let one = |variable: &BoundVariable<'_>| {
            let name = variable.name;
            let value =
                values.get(name).ok_or_else(|| wrong(format!("the variable `{name}` has no value")))?;
            let setting = variable.setting(value).map_err(|what| wrong(format!("`{name}` {what}")))?;
            Ok((name.to_string(), setting))
        };
        self.variables.iter().map(one).collect()
    }

    /// Describes the range of each variable in words.
    pub fn describe(&self) -> Vec<(String, String)> {
        self.variables.iter().map(|variable| (variable.name.to_string(), variable.describe())).collect()
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

impl BoundVariable<'_> {
    /// Returns the directions in which it can be searched: one, or one for each member that is in or out.
    fn axes(&self) -> Vec<Axis> {
        match self.kind {
            VariableKind::Number { low, high, start, step, points } => {
                let (low, high, start, step, points) = (*low, *high, *start, *step, *points);
                vec![Axis::Number { low, high, start, step, points }]
            }
            VariableKind::Choice { options, start } => {
                vec![Axis::Choice { options: options.len(), start: *start }]
            }
            VariableKind::Modules { choose: Choose::Any, .. } => {
                self.members.iter().map(|_| Axis::Choice { options: 2, start: 0 }).collect()
            }
            VariableKind::Modules { choose, .. } => {
                let none = usize::from(*choose == Choose::AtMostOne);
                vec![Axis::Choice { options: self.members.len() + none, start: 0 }]
            }
        }
    }

    /// Returns its value at its coordinates of a point.
    fn at(&self, point: &[Coordinate]) -> Setting {
        let option = |at: usize| match point.get(at) {
            Some(Coordinate::Choice(option)) => *option,
            _ => 0,
        };
        match self.kind {
            VariableKind::Number { low, .. } => Setting::Number(match point.first() {
                Some(Coordinate::Number(number)) => *number,
                _ => *low,
            }),
            VariableKind::Choice { options, .. } => {
                Setting::Option(options.get(option(0)).cloned().unwrap_or_default())
            }
            VariableKind::Modules { choose: Choose::Any, .. } => {
                let chosen = self.members.iter().enumerate().filter(|(index, _)| option(*index) == 1);
                Setting::Modules(chosen.flat_map(|(_, member)| member.clone()).collect())
            }
            VariableKind::Modules { choose, .. } => {
                // With none, that is the first option.
                let chosen = option(0).checked_sub(usize::from(*choose == Choose::AtMostOne));
                Setting::Modules(chosen.and_then(|at| self.members.get(at)).cloned().unwrap_or_default())
            }
        }
    }

    fn setting(&self, value: &Value) -> Result<Setting, String> {
        match self.kind {
            VariableKind::Number { low, high, .. } => match value.as_f64() {
                Some(number) if (*low..=*high).contains(&number) => Ok(Setting::Number(number)),
                _ => Err(format!("must be {}, not {value}", self.describe())),
            },
            VariableKind::Choice { options, .. } if options.contains(value) => {
                Ok(Setting::Option(value.clone()))
            }
            VariableKind::Choice { .. } => Err(format!("must be {}, not {value}", self.describe())),
            VariableKind::Modules { choose, .. } => {
                let wrong = || format!("must be a list of modules, each one of {}", listed(&self.members));
                let items = value.as_array().ok_or_else(wrong)?;
                let named = items.iter().map(|item| item.as_str().map(str::to_string));
                let named: Vec<String> = named.collect::<Option<_>>().ok_or_else(wrong)?;
                let chosen = self.members.iter().filter(|member| member.iter().all(|m| named.contains(m)));
                let chosen: Vec<&Vec<String>> = chosen.collect();
                if let Some(other) = named.iter().find(|name| !chosen.iter().any(|m| m.contains(name))) {
                    return Err(format!("has no member `{other}` to choose; {}", wrong()));
                }
                match (choose, chosen.len()) {
                    (Choose::Any, _) | (_, 1) | (Choose::AtMostOne, 0) => {
                        Ok(Setting::Modules(chosen.into_iter().flatten().cloned().collect()))
                    }
                    (Choose::One, count) => Err(format!("takes one member, not {count}")),
                    (Choose::AtMostOne, count) => Err(format!("takes one member or none, not {count}")),
                }
            }
        }
    }

    fn describe(&self) -> String {
        match self.kind {
            VariableKind::Number { low, high, .. } => format!("a number from {low} to {high}"),
            VariableKind::Choice { options, .. } => {
                let options: Vec<String> = options.iter().map(Value::to_string).collect();
                format!("one of {}", options.join(", "))
            }
            VariableKind::Modules { choose, .. } => {
                let many = match choose {
                    Choose::Any => "any",
                    Choose::One => "one",
                    Choose::AtMostOne => "one or none",
                };
                format!("{many} of {}", listed(&self.members))
            }
        }
    }
}

fn listed(members: &[Vec<String>]) -> String {
    members.iter().map(|member| member.join(" + ")).collect::<Vec<_>>().join(", ")
}

fn by_name(settings: &Settings) -> BTreeMap<&str, Setting> {
    settings.iter().map(|(name, setting)| (name.as_str(), setting.clone())).collect()
}

/// The members of a set: modules that the rules take in which the set stands.
struct Choices<'a> {
    analysis: &'a Analysis<'a>,
    rules: Vec<&'a str>,
}

impl Choices<'_> {
    /// Returns the members of a set with the modules that its globs match, none twice.
    fn expanded(&self, members: &[Member], problems: &mut Vec<Problem>) -> Vec<Vec<String>> {
        let mut all: Vec<Vec<String>> = Vec::new();
        for member in members {
            let found = match member {
                Member::Each { glob, span } => {
                    self.matching(glob, *span, problems).into_iter().map(|module| vec![module]).collect()
                }
                Member::Together { globs, span } => {
                    vec![globs.iter().flat_map(|glob| self.matching(glob, *span, problems)).collect()]
                }
            };
            for member in found.into_iter().filter(|member: &Vec<String>| !member.is_empty()) {
                if !all.contains(&member) {
                    all.push(member);
                }
            }
        }
        all
    }

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
