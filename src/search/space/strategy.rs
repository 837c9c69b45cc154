//! How long a search goes on, and where, and how what it found is confirmed: `budget:`, `strategy:` and `confirm:`.

use std::time::Duration;

use serde::Serialize;

use super::{
    sampling::NOISES,
    syntax::{Form, Range, Reader, section},
};
use crate::{
    plan::{
        Problem,
        read::choice,
        yaml::{Node, Value},
    },
    search::strategy::Schedule,
};

/// The budget of a search, which ends at the first of these.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budget {
    /// The number of trials.
    pub trials: Option<u64>,
    /// So much time in trials.
    pub time: Option<Duration>,
}

/// The confirmation of the best trials, which draws them and the dense network from noises that no trial began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// How many of the best trials.
    pub best: usize,
    /// How many noises for each prompt at each size.
    pub noises: usize,
}

/// How points are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StrategySpec {
    /// Simulated annealing.
    Annealing(Schedule),
    /// Evenly drawn points.
    Random,
    /// Every combination.
    Grid,
}

impl StrategySpec {
    /// Returns its name in a space.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Annealing(_) => "annealing",
            Self::Random => "random",
            Self::Grid => "grid",
        }
    }
}

/// Trials of a search that says nothing else: the authors'.
const DEFAULT_TRIALS: u64 = 120;
const COUNT: Range = Range::whole("a whole number from 1", 1.0, 1e9);
const COUNT_FROM_0: Range = Range::whole("a whole number from 0", 0.0, 1e9);

section! {
    /// When a search ends.
    pub(super) BUDGET = "Budget", "`budget`";
    trials: Number(COUNT), "After so many trials.";
    time: OneOf(&[Number(Range::ABOVE_0), Text]),
        "After so much time in trials: 90s, 45m, 2h, or a number of seconds.";
}

section! {
    /// How the best trials are confirmed: by images from noises that no trial began with.
    pub(super) CONFIRM = "Confirm", "`confirm`";
    best or "how many of the best trials are drawn again": Number(COUNT), "How many of the best trials.";
    noises or "how many noises each prompt has": Number(NOISES), "How many noises for each prompt at each size.";
}

const NAMES: [&str; 3] = ["annealing", "random", "grid"];

/// The forms of `strategy:`.
pub(super) const FORM: Form = Form::OneOf(&[Form::Word(&NAMES), Form::Mapping(&STRATEGY)]);

section! {
    /// Annealing with another schedule.
    STRATEGY = "Annealing", "`strategy`";
    annealing or "": Mapping(&SCHEDULE), "Changes of the schedule.";
}

section! {
    /// Changes of the schedule.
    SCHEDULE = "Schedule", "`annealing`";
    temperature: Number(Range::ABOVE_0), "T at the start [default: 0.1].";
    cooling: Number(Range::of("above 0 and at most 1", 0.0, 1.0).open([true, false])),
        "The factor on T after each iteration [default: 0.95].";
    patience: Number(COUNT), "How many iterations without a new best are borne [default: 20 % of the trials].";
    reheat: Number(Range::of("a number from 1", 1.0, f64::MAX)), "The factor on T to reheat [default: 1.5].";
    reheats: Number(COUNT_FROM_0), "How often at most [default: 3].";
    reheat_above: Number(Range::FINITE), "Only once the best score is above this [default: 0.8].";
    restarts: Number(COUNT_FROM_0), "How many restarts from a perturbed best at most [default: 2].";
}

pub(super) fn budget(reader: &Reader<'_>, problems: &mut Vec<Problem>) -> Budget {
    if ["trials", "time"].iter().all(|key| reader.get(key).is_none()) {
        reader.fields.report_missing(&["trials", "time"], None, problems);
    }
    let time = reader.get("time").and_then(|node| duration(node, problems));
    Budget { trials: reader.number("trials", problems).map(|trials| trials as u64), time }
}

pub(super) fn confirm(reader: &Reader<'_>, problems: &mut Vec<Problem>) -> Option<Confirm> {
    Some(Confirm { best: reader.count("best", problems)?, noises: reader.count("noises", problems)? })
}

/// Reads `90s`, `45m`, `2h`, or a number of seconds.
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

/// Reads `strategy:`. `budget` gets the trials that the strategy has unless the space says a budget.
pub(super) fn strategy(
    node: Option<&Node>,
    budget: &mut Budget,
    problems: &mut Vec<Problem>,
) -> Option<StrategySpec> {
    let (name, changes) = match node {
        None => (NAMES[0], None),
        Some(node) if matches!(node.value, Value::Map(_)) => {
            let reader = Reader::new(&STRATEGY, node, problems)?;
            (NAMES[0], Some(reader.section("annealing", problems)?))
        }
        Some(node) => (choice(node, "`strategy`", &NAMES.map(|name| (name, name)), problems)?, None),
    };
    if name != "grid" && *budget == Budget::default() {
        budget.trials = Some(DEFAULT_TRIALS);
    }
    let mut schedule = Schedule::of(budget.trials.unwrap_or(DEFAULT_TRIALS));
    if let Some(reader) = changes {
        let mut number = |name, default| reader.number(name, problems).unwrap_or(default);
        schedule = Schedule {
            temperature: number("temperature", schedule.temperature),
            cooling: number("cooling", schedule.cooling),
            patience: number("patience", schedule.patience as f64) as u64,
            reheat: number("reheat", schedule.reheat),
            reheats: number("reheats", schedule.reheats.into()) as u32,
            reheat_above: number("reheat_above", schedule.reheat_above),
            restarts: number("restarts", schedule.restarts.into()) as u32,
        };
    }
    Some(match name {
        "random" => StrategySpec::Random,
        "grid" => StrategySpec::Grid,
        _ => StrategySpec::Annealing(schedule),
    })
}
