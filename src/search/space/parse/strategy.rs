//! `budget:` and `strategy:`.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    plan::{
        Problem,
        read::{choice, fields, number},
        yaml::{Node, Value},
    },
    search::{
        space::{Budget, StrategySpec},
        strategy::Schedule,
    },
};

/// Trials of a search that says nothing else: the authors'.
const DEFAULT_TRIALS: u64 = 120;

pub(super) fn budget(node: &Node, problems: &mut Vec<Problem>) -> Option<Budget> {
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

/// Parses `90s`, `45m`, `2h`, or a number of seconds.
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
pub(super) enum StrategyFields {
    Annealing(Changes),
    Random,
    Grid,
}

/// Reads the schedule of a space.
#[derive(Default)]
pub(super) struct Changes {
    numbers: BTreeMap<&'static str, f64>,
}

const SCHEDULE: [&str; 7] =
    ["temperature", "cooling", "patience", "reheat", "reheats", "reheat_above", "restarts"];

impl Default for StrategyFields {
    fn default() -> Self {
        Self::Annealing(Changes::default())
    }
}

impl StrategyFields {
    /// Returns the strategy, and the budget that it has unless the space says one.
    pub(super) fn with(self, budget: &mut Budget) -> StrategySpec {
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
                for (name, value) in changes.numbers {
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

pub(super) fn strategy(node: &Node, problems: &mut Vec<Problem>) -> Option<StrategyFields> {
    let Value::Map(_) = &node.value else {
        let words = [("annealing", 0), ("random", 1), ("grid", 2)];
        return Some(match choice(node, "`strategy`", &words, problems)? {
            0 => StrategyFields::Annealing(Changes::default()),
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
    Some(StrategyFields::Annealing(changes))
}
