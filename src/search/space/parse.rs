//! From the text of a space to a [`Space`].

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustc_hash::FxHashSet;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::{
    Budget, Choose, Member, ObjectiveSpec, Sampling, Setting, Space, SpaceError, StrategySpec, Template,
    Variable, VariableKind,
    objective::{metric, text, top},
    template::unused,
};
use crate::{
    diffusion::sampler::Class,
    plan::{
        Glob, MAX_BYTES, PlanError, PlanSource, Problem,
        fields::{Fields, choice, fields, list, number, range, wrong_type},
        join, nearest,
        tree::{Key, Node, Value, read},
    },
    search::strategy::Schedule,
};

const KEYS: [&str; 10] = [
    "version",
    "variables",
    "plan",
    "prompts",
    "sampling",
    "budget",
    "strategy",
    "seed",
    "objective",
    "metrics",
];
const SAMPLING_KEYS: [&str; 8] =
    ["size", "sizes", "steps", "guidance", "negative_prompt", "seeds", "scheduler", "scheduler_options"];

/// Trials of a search that says nothing else: the authors'.
pub(super) const DEFAULT_TRIALS: u64 = 120;
/// Where a ratio's search begins: the authors' start.
const RATIO_START: f64 = 0.3;
/// How far annealing moves a ratio at most: the authors' first step.
const RATIO_STEP: f64 = 0.1;
/// The share of a range that annealing moves another number at most: that of 0.10 in [0.1, 0.8].
const NUMBER_STEP: f64 = 1.0 / 7.0;
/// Values of a number in a grid.
const POINTS: usize = 5;

/// Reads and parses the space at `path`, and the file of prompts that it names.
///
/// # Errors
/// [`SpaceError`] with everything that is wrong and can be seen without a model.
pub fn load(path: &Path) -> Result<Space, SpaceError> {
    let fail = |what: String| SpaceError::File { path: path.to_path_buf(), what };
    let length = fs::metadata(path).map_err(|e| fail(format!("cannot read: {e}")))?.len();
    if length > MAX_BYTES {
        return Err(fail(format!("it has {length} bytes; a space has at most {MAX_BYTES}")));
    }
    let bytes = fs::read(path).map_err(|e| fail(format!("cannot read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|_| fail("it is not UTF-8 text".to_string()))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parse(&path.display().to_string(), &text, folder)
}

/// Reads the objective of a space, or of a file that has nothing else, and the folder that its paths start from.
///
/// # Errors
/// As [`load`].
pub fn load_objective(path: &Path) -> Result<(ObjectiveSpec, PathBuf), SpaceError> {
    let fail = |what: String| SpaceError::File { path: path.to_path_buf(), what };
    let text = fs::read_to_string(path).map_err(|e| fail(format!("cannot read: {e}")))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let source = PlanSource::new(&path.display().to_string(), &text);
    let root = read(&text).map_err(|problem| SpaceError::from(PlanError::new(&source, problem)))?;
    let mut problems = Vec::new();
    let objective = fields(&root, "the space", &KEYS, &mut problems)
        .and_then(|space| space.require("objective", None, &mut problems))
        .and_then(|node| top(node, &mut problems));
    match (SpaceError::of(&source, problems), objective) {
        (Some(error), _) => Err(error),
        (None, Some((objective, _))) => Ok((objective, folder.to_path_buf())),
        (None, None) => Err(fail("it has no objective".to_string())),
    }
}

/// Parses a space. `name` is what errors call it; relative paths in it start from `folder`.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, text: &str, folder: &Path) -> Result<Space, SpaceError> {
    let source = PlanSource::new(name, text);
    let failed = |problem| SpaceError::from(PlanError::new(&source, problem));
    let root = read(text).map_err(failed)?;
    let mut problems = Vec::new();
    let space = match &root.value {
        Value::Null => return Err(SpaceError::File { path: name.into(), what: "it is empty".to_string() }),
        _ => document(&root, &source, folder, &mut problems),
    };
    match (SpaceError::of(&source, problems), space) {
        (Some(error), _) => Err(error),
        (None, Some(space)) => {
            let space = space?;
            check_plan(&space)?;
            Ok(space)
        }
        (None, None) => Err(failed(Problem::Empty)),
    }
}

fn document(
    root: &Node,
    source: &PlanSource,
    folder: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Result<Space, SpaceError>> {
    let space = fields(root, "the space", &KEYS, problems)?;
    version(&space, problems);
    let variables = space.require("variables", None, problems);
    let declared: Vec<String> = match variables.map(|node| &node.value) {
        Some(Value::Map(entries)) => entries.iter().map(|(key, _)| key.name.clone()).collect(),
        _ => Vec::new(),
    };
    let variables = variables.and_then(|node| variables_of(node, problems));
    let plan = space.require("plan", Some("a plan in which a value may be `$name`"), problems);
    let plan = plan.map(|node| Template::new(node.clone()));
    if let (Some(variables), Some(plan)) = (&variables, &plan) {
        check_names(variables, &declared, plan, problems);
    }
    let prompts = space.require("prompts", Some("a list, or a file with a prompt a line"), problems);
    let prompts = prompts.and_then(|node| prompts_of(node, folder, problems));
    let sampling = match space.get("sampling") {
        Some(node) => sampling(node, problems),
        None => Some(Sampling::default()),
    };
    let is_seed = |seed: f64| (0.0..=f64::from(u32::MAX)).contains(&seed) && seed.fract() == 0.0;
    let seed = match space.get("seed") {
        Some(node) => number(node, "`seed`", "a whole number from 0 to 4294967295", is_seed, problems),
        None => Some(crate::plan::Located { value: 0.0, span: root.span }),
    };
    let strategy = match space.get("strategy") {
        Some(node) => strategy(node, problems),
        None => Some(StrategyFields::Annealing(None)),
    };
    let budget = match space.get("budget") {
        Some(node) => budget(node, problems),
        None => Some(Budget::default()),
    };
    let objective = space.require("objective", None, problems).and_then(|node| top(node, problems));
    let metrics = space.get("metrics").map_or(Some(Vec::new()), |node| {
        let entries = entries(node, "`metrics`", problems)?;
        let read = |(key, node): &(Key, Node)| Some((key.name.clone(), metric(node, problems)?));
        entries.iter().map(read).collect()
    });
    let mut budget = budget?;
    let strategy = strategy?.with(&mut budget);
    let (objective, over) = objective?;
    let prompts = match prompts? {
        Ok(prompts) => prompts,
        Err(error) => return Some(Err(error)),
    };
    Some(Ok(Space {
        variables: variables?,
        plan: plan?,
        prompts,
        sampling: sampling?,
        budget,
        strategy,
        seed: seed?.value as u32,
        objective,
        over,
        metrics: metrics?,
        folder: folder.to_path_buf(),
        source: source.clone(),
    }))
}

fn version(space: &Fields<'_>, problems: &mut Vec<Problem>) {
    let Some(node) = space.require("version", Some("start the space with `version: 1`"), problems) else {
        return;
    };
    number(node, "`version`", "1", |version| version == 1.0, problems);
}

/// The entries of a mapping with free keys, none twice.
fn entries<'a>(node: &'a Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<&'a [(Key, Node)]> {
    let Value::Map(map) = &node.value else {
        problems.push(wrong_type(node, what, "a mapping"));
        return None;
    };
    let names: Vec<&str> = map.iter().map(|(key, _)| key.name.as_str()).collect();
    // Any key is known here; a key that is there twice still is a mistake.
    let _ = fields(node, what, &names, problems);
    Some(map)
}

fn variables_of(node: &Node, problems: &mut Vec<Problem>) -> Option<Vec<Variable>> {
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

fn scalar(node: &Node, problems: &mut Vec<Problem>) -> Option<Json> {
    match &node.value {
        Value::Bool(flag) => Some((*flag).into()),
        Value::Integer(number) => i64::try_from(*number).ok().map(Json::from),
        Value::Float(number) if number.is_finite() => Some((*number).into()),
        Value::Text(text) => Some(text.as_str().into()),
        _ => {
            problems.push(wrong_type(node, "an option", "text, a number, true or false"));
            None
        }
    }
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

/// Every `$name` is a variable (or one that has a mistake of its own), and every variable has its place.
fn check_names(variables: &[Variable], declared: &[String], plan: &Template, problems: &mut Vec<Problem>) {
    for (name, places) in plan.names() {
        if declared.contains(&name) {
            continue;
        }
        let near = nearest(&name, declared.iter().map(String::as_str));
        let help = match near.as_slice() {
            [] if declared.is_empty() => "there are no variables".to_string(),
            [] => format!("the variables are {}", join(declared, "and")),
            near => format!("did you mean {}?", join(near, "or")),
        };
        let key = format!("${name}");
        problems.extend(places.into_iter().map(|at| Problem::UnknownKey {
            key: key.clone(),
            place: "the plan",
            help: help.clone(),
            at,
        }));
    }
    let known = variables.iter().map(|variable| variable.name.as_str());
    let unused = unused(plan, known);
    for variable in variables.iter().filter(|variable| unused.contains(variable.name.as_str())) {
        let (key, help) = (format!("`${}`", variable.name), "or take the variable out".to_string());
        let (place, at) = ("the plan", variable.span);
        problems.push(Problem::MissingKey { key, place, help: Some(help), at });
    }
}

fn prompts_of(
    node: &Node,
    folder: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Result<Vec<String>, SpaceError>> {
    let prompts: Vec<String> = match &node.value {
        Value::Text(file) => match prompt_file(&folder.join(file)) {
            Ok(prompts) => prompts,
            Err(error) => return Some(Err(error)),
        },
        _ => {
            let items = list(node, "`prompts`", problems)?;
            items.iter().map(|item| text(item, "a prompt", problems)).collect::<Option<_>>()?
        }
    };
    if prompts.is_empty() {
        let (expected, found) = ("at least one prompt".to_string(), "none".to_string());
        problems.push(Problem::OutOfRange { what: "`prompts`", expected, found, at: node.span });
        return None;
    }
    Some(Ok(prompts))
}

/// A prompt a line; empty lines and those that start with `#` are left out.
fn prompt_file(path: &Path) -> Result<Vec<String>, SpaceError> {
    let text = fs::read_to_string(path).map_err(|e| SpaceError::File {
        path: path.to_path_buf(),
        what: format!("cannot read the prompts: {e}"),
    })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_string).collect())
}

fn sampling(node: &Node, problems: &mut Vec<Problem>) -> Option<Sampling> {
    let section = fields(node, "`sampling`", &SAMPLING_KEYS, problems)?;
    let mut sampling = Sampling::default();
    match (section.entry("size"), section.entry("sizes")) {
        (Some((one, _)), Some((many, _))) => {
            let message = "`size` is one size, `sizes` several: give one of the two";
            problems.push(Problem::conflict(message, None, one.span, many.span));
            return None;
        }
        (Some((_, node)), None) => sampling.sizes = vec![size(node, problems)?],
        (None, Some((_, node))) => {
            let items = list(node, "`sizes`", problems)?;
            sampling.sizes = items.iter().map(|item| size(item, problems)).collect::<Option<_>>()?;
        }
        (None, None) => {}
    }
    if let Some(node) = section.get("steps") {
        let allowed = |n: f64| (1.0..=10_000.0).contains(&n) && n.fract() == 0.0;
        sampling.steps = number(node, "`steps`", "a whole number from 1", allowed, problems)?.value as usize;
    }
    if let Some(node) = section.get("guidance") {
        sampling.guidance = number(node, "`guidance`", "a finite number", f64::is_finite, problems)?.value;
    }
    if let Some(node) = section.get("negative_prompt") {
        sampling.negative_prompt = Some(text(node, "`negative_prompt`", problems)?);
    }
    if let Some(node) = section.get("seeds") {
        let allowed = |n: f64| (0.0..=9e15).contains(&n) && n.fract() == 0.0;
        let items = list(node, "`seeds`", problems)?;
        let mut seed = |node| number(node, "a seed", "a whole number from 0", allowed, problems);
        let seeds = items.iter().map(|item| seed(item).map(|seed| seed.value as u64));
        sampling.seeds = seeds.collect::<Option<_>>()?;
        if sampling.seeds.is_empty() {
            let (expected, found) = ("at least one seed".to_string(), "none".to_string());
            problems.push(Problem::OutOfRange { what: "`seeds`", expected, found, at: node.span });
            return None;
        }
    }
    if let Some(node) = section.get("scheduler") {
        let names: Vec<(&str, Class)> = Class::ALL.iter().map(|class| (class.name(), *class)).collect();
        sampling.scheduler = Some(choice(node, "`scheduler`", &names, problems)?);
    }
    if let Some(node) = section.get("scheduler_options") {
        let entries = entries(node, "`scheduler_options`", problems)?;
        let option = |(key, node): &(Key, Node)| Some((key.name.clone(), scalar(node, problems)?));
        sampling.scheduler_options = entries.iter().map(option).collect::<Option<_>>()?;
    }
    Some(sampling)
}

/// `96x128`, `[96, 128]` or `96`: height and width in pixels.
fn size(node: &Node, problems: &mut Vec<Problem>) -> Option<(usize, usize)> {
    let side = |n: i128| usize::try_from(n).ok().filter(|n| (1..=1 << 20).contains(n));
    let found = match &node.value {
        Value::Integer(both) => side(*both).map(|n| (n, n)),
        Value::Text(text) => text.split_once('x').and_then(|(height, width)| {
            side(height.trim().parse().ok()?).zip(side(width.trim().parse().ok()?))
        }),
        Value::List(items) => match items.as_slice() {
            [Node { value: Value::Integer(height), .. }, Node { value: Value::Integer(width), .. }] => {
                side(*height).zip(side(*width))
            }
            _ => None,
        },
        _ => None,
    };
    if found.is_none() {
        let expected = "height x width in pixels, such as 96x128".to_string();
        let found = node.value.kind().to_string();
        problems.push(Problem::OutOfRange { what: "a size", expected, found, at: node.span });
    }
    found
}

fn budget(node: &Node, problems: &mut Vec<Problem>) -> Option<Budget> {
    let section = fields(node, "`budget`", &["trials", "time"], problems)?;
    let mut budget = Budget::default();
    if let Some(node) = section.get("trials") {
        let allowed = |n: f64| (1.0..=1e9).contains(&n) && n.fract() == 0.0;
        budget.trials =
            Some(number(node, "`trials`", "a whole number from 1", allowed, problems)?.value as u64);
    }
    if let Some(node) = section.get("time") {
        budget.time = Some(duration(node, problems)?);
    }
    if budget == Budget::default() {
        section.report_missing(&["trials", "time"], None, problems);
        return None;
    }
    Some(budget)
}

/// `90s`, `45m`, `2h`, or a number of seconds.
fn duration(node: &Node, problems: &mut Vec<Problem>) -> Option<Duration> {
    let seconds = match &node.value {
        Value::Integer(seconds) => Some(*seconds as f64),
        Value::Float(seconds) => Some(*seconds),
        Value::Text(text) => {
            let units = [('s', 1.0), ('m', 60.0), ('h', 3600.0), ('d', 86400.0)];
            let unit = units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(*unit)?, *seconds)));
            unit.and_then(|(count, seconds)| Some(count.trim().parse::<f64>().ok()? * seconds))
        }
        _ => None,
    };
    let seconds = seconds.filter(|seconds| (0.001..=1e9).contains(seconds));
    if seconds.is_none() {
        let expected = "a time above 0, such as 90s, 45m or 2h".to_string();
        let found = node.value.kind().to_string();
        problems.push(Problem::OutOfRange { what: "`time`", expected, found, at: node.span });
    }
    seconds.map(Duration::from_secs_f64)
}

/// A strategy before the budget is known.
enum StrategyFields {
    Annealing(Option<Changes>),
    Random,
    Grid,
}

/// What a space says of the schedule.
#[derive(Default)]
struct Changes {
    numbers: BTreeMap<&'static str, f64>,
}

const SCHEDULE: [&str; 7] =
    ["temperature", "cooling", "patience", "reheat", "reheats", "reheat_above", "restarts"];

impl StrategyFields {
    /// The strategy, and the budget that it has unless the space says one.
    fn with(self, budget: &mut Budget) -> StrategySpec {
        let unlimited = *budget == Budget::default();
        match self {
            Self::Grid => StrategySpec::Grid,
            Self::Random => {
                if unlimited {
                    budget.trials = Some(DEFAULT_TRIALS);
                }
                StrategySpec::Random
            }
            Self::Annealing(changes) => {
                if unlimited {
                    budget.trials = Some(DEFAULT_TRIALS);
                }
                let mut schedule = Schedule::of(budget.trials.unwrap_or(DEFAULT_TRIALS));
                for (name, value) in changes.unwrap_or_default().numbers {
                    match name {
                        "temperature" => schedule.temperature = value,
                        "cooling" => schedule.cooling = value,
                        "patience" => schedule.patience = value as u64,
                        "reheat" => schedule.reheat = value,
                        "reheats" => schedule.reheats = value as u32,
                        "reheat_above" => schedule.reheat_above = value,
                        _ => schedule.restarts = value as u32,
                    }
                }
                StrategySpec::Annealing(schedule)
            }
        }
    }
}

fn strategy(node: &Node, problems: &mut Vec<Problem>) -> Option<StrategyFields> {
    let Value::Map(_) = &node.value else {
        let words = [("annealing", 0), ("random", 1), ("grid", 2)];
        return Some(match choice(node, "`strategy`", &words, problems)? {
            0 => StrategyFields::Annealing(None),
            1 => StrategyFields::Random,
            _ => StrategyFields::Grid,
        });
    };
    let section = fields(node, "`strategy`", &["annealing"], problems)?;
    let annealing = section.require("annealing", None, problems)?;
    let section = fields(annealing, "`annealing`", &SCHEDULE, problems)?;
    let mut changes = Changes::default();
    for name in SCHEDULE {
        let Some(node) = section.get(name) else { continue };
        let (expected, allowed): (&'static str, fn(f64) -> bool) = match name {
            "temperature" => ("a number above 0", |t| t.is_finite() && t > 0.0),
            "cooling" => ("above 0 and at most 1", |c| c > 0.0 && c <= 1.0),
            "reheat" => ("a number from 1", |r| r.is_finite() && r >= 1.0),
            "reheat_above" => ("a finite number", f64::is_finite),
            "patience" => ("a whole number from 1", |n| (1.0..=1e9).contains(&n) && n.fract() == 0.0),
            _ => ("a whole number from 0", |n| (0.0..=1e9).contains(&n) && n.fract() == 0.0),
        };
        changes
            .numbers
            .insert(name, number(node, "a number of the schedule", expected, allowed, problems)?.value);
    }
    Some(StrategyFields::Annealing(Some(changes)))
}

/// Checks the plan with the variables where they start and at both ends.
fn check_plan(space: &Space) -> Result<(), SpaceError> {
    let ends: [fn(&VariableKind) -> Setting; 3] = [start, low, high];
    for end in ends {
        let values: BTreeMap<&str, Setting> =
            space.variables.iter().map(|variable| (variable.name.as_str(), end(&variable.kind))).collect();
        space.plan.plan(&space.source, &values)?;
    }
    Ok(())
}

fn start(kind: &VariableKind) -> Setting {
    match kind {
        VariableKind::Number { start, .. } => Setting::Number(*start),
        VariableKind::Choice { options, start } => {
            Setting::Option(options.get(*start).cloned().unwrap_or_default())
        }
        VariableKind::Modules { .. } => high(kind),
    }
}

fn low(kind: &VariableKind) -> Setting {
    match kind {
        VariableKind::Number { low, .. } => Setting::Number(*low),
        VariableKind::Choice { options, .. } => Setting::Option(options.first().cloned().unwrap_or_default()),
        VariableKind::Modules { choose: Choose::One, .. } => high(kind),
        VariableKind::Modules { .. } => Setting::Modules(Vec::new()),
    }
}

fn high(kind: &VariableKind) -> Setting {
    match kind {
        VariableKind::Number { high, .. } => Setting::Number(*high),
        VariableKind::Choice { options, .. } => Setting::Option(options.last().cloned().unwrap_or_default()),
        VariableKind::Modules { members, .. } => {
            let globs = members.iter().flat_map(|member| match member {
                Member::Each { glob, .. } => vec![glob.clone()],
                Member::Together { globs, .. } => globs.clone(),
            });
            Setting::Modules(globs.collect())
        }
    }
}

impl Space {
    /// SHA-256 in hex of what the search does, trial by trial. Formatting, comments and the budget don't change it, but
    /// for what a schedule takes from the budget.
    pub fn digest(&self) -> String {
        let variables: Vec<Json> = self
            .variables
            .iter()
            .map(|variable| json!([variable.name, canonical_kind(&variable.kind)]))
            .collect();
        let sampling = &self.sampling;
        let metrics: Vec<Json> =
            self.metrics.iter().map(|(name, metric)| json!([name, metric.canonical()])).collect();
        let text = json!({
            "version": 1,
            "variables": variables,
            "plan": self.plan.as_json(),
            "prompts": self.prompts,
            "sampling": [
                sampling.sizes, sampling.steps, sampling.guidance, sampling.negative_prompt, sampling.seeds,
                sampling.scheduler.map(Class::name), sampling.scheduler_options,
            ],
            "strategy": format!("{:?}", self.strategy),
            "seed": self.seed,
            "objective": self.objective.canonical(),
            "over": format!("{:?}", self.over),
            "metrics": metrics,
        });
        Sha256::digest(text.to_string().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A path of the space, from its folder.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }
}

fn canonical_kind(kind: &VariableKind) -> Json {
    let spanless = |member: &Member| match member {
        Member::Each { glob, .. } => json!(glob),
        Member::Together { globs, .. } => json!(globs),
    };
    match kind {
        VariableKind::Number { low, high, start, step, points } => json!([low, high, start, step, points]),
        VariableKind::Choice { options, start } => json!([options, start]),
        VariableKind::Modules { members, choose } => {
            json!([members.iter().map(spanless).collect::<Vec<_>>(), format!("{choose:?}")])
        }
    }
}
