//! Simulated annealing as the CR-Diff authors search (arXiv 2604.05524 and its code).
//!
//! Their schedule, over ratios: the temperature starts at 0.1 and is multiplied by 0.95 after each iteration. A
//! neighbour moves one ratio by U(-s, s), s = max(0.005, 0.10 * T / 0.1), and is clamped to the range. A worse one is
//! accepted with probability exp(delta / T). After 20 % of the iterations without a new best the search reheats (T
//! times 1.5, at most 3 times, and only once a score above 0.8 was seen) or else restarts from a perturbed best (at
//! most twice).
//!
//! Where that leaves something open, and beyond ratios, this is what happens here:
//! - The start is the first trial. Every later trial is an iteration.
//! - A perturbed best moves every number by U(-step, step) and one choice to another option. It is accepted whatever
//!   its score is, and T returns to its first value.
//! - When reheats and restarts are used up, the search goes on to its budget.
//! - The axis to move is drawn evenly over all axes; a choice moves to one of its other options, drawn evenly.

use serde::Serialize;

use super::{Asked, Axis, Coordinate, Point, Strategy, index};
use crate::diffusion::random::NumpyRandomState;

/// The numbers of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Schedule {
    /// T at the start.
    pub temperature: f64,
    /// The factor on T after each iteration.
    pub cooling: f64,
    /// How many iterations without a new best are borne.
    pub patience: u64,
    /// The factor on T to reheat.
    pub reheat: f64,
    /// How often at most.
    pub reheats: u32,
    /// The best score must be above this.
    pub reheat_above: f64,
    /// How many restarts there are at most.
    pub restarts: u32,
}

impl Schedule {
    /// Returns the authors' schedule for a search of `iterations`.
    pub fn of(iterations: u64) -> Self {
        Self {
            temperature: 0.1,
            cooling: 0.95,
            patience: (iterations / 5).max(1),
            reheat: 1.5,
            reheats: 3,
            reheat_above: 0.8,
            restarts: 2,
        }
    }
}

/// Simulated annealing.
#[derive(Clone, Debug)]
pub struct Annealing {
    axes: Vec<Axis>,
    schedule: Schedule,
    random: NumpyRandomState,
    temperature: f64,
    current: Option<(Point, f64)>,
    best: Option<(Point, f64)>,
    since_best: u64,
    reheats: u32,
    restarts: u32,
    out: Option<Trial>,
    restart_next: bool,
}

/// The point that is being tried.
#[derive(Clone, Debug)]
struct Trial {
    point: Point,
    kind: MoveKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MoveKind {
    Start,
    Neighbour,
    Restart,
}

/// A twentieth of the first step is the least one: 0.005 of the authors' 0.10.
const LEAST: f64 = 0.05;

impl Annealing {
    /// Returns a search over `axes`.
    pub fn new(axes: Vec<Axis>, schedule: Schedule, seed: u32) -> Self {
        Self {
            axes,
            schedule,
            random: NumpyRandomState::new(seed),
            temperature: schedule.temperature,
            current: None,
            best: None,
            since_best: 0,
            reheats: 0,
            restarts: 0,
            out: None,
            restart_next: false,
        }
    }

    /// Returns the current T.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    fn neighbour(&mut self, of: &Point) -> Point {
        let mut point = of.clone();
        let at = index(&mut self.random, self.axes.len());
        let share = (self.temperature / self.schedule.temperature).max(LEAST);
        if let (Some(axis), Some(coordinate)) = (self.axes.get(at), point.get_mut(at)) {
            *coordinate = moved(axis, *coordinate, share, &mut self.random);
        }
        point
    }

    fn perturbed(&mut self, of: &Point) -> Point {
        let mut point = of.clone();
        let mut choices = Vec::new();
        for (at, (axis, coordinate)) in self.axes.iter().zip(&mut point).enumerate() {
            match axis {
                Axis::Number { .. } => *coordinate = moved(axis, *coordinate, 1.0, &mut self.random),
                Axis::Choice { .. } => choices.push(at),
            }
        }
        if !choices.is_empty() {
            let at = choices[index(&mut self.random, choices.len())];
            point[at] = moved(&self.axes[at], point[at], 1.0, &mut self.random);
        }
        point
    }

    fn accepts(&mut self, score: f64, kind: MoveKind) -> bool {
        let Some((_, current)) = &self.current else { return true };
        if kind == MoveKind::Restart || score > *current {
            return true;
        }
        self.random.uniform() < ((score - current) / self.temperature).exp()
    }

    /// Reheats or restarts if patience is at its end.
    fn lose_patience(&mut self) {
        if self.since_best < self.schedule.patience {
            return;
        }
        let best = self.best.as_ref().map_or(f64::NEG_INFINITY, |(_, score)| *score);
        if best > self.schedule.reheat_above && self.reheats < self.schedule.reheats {
            self.temperature *= self.schedule.reheat;
            self.reheats += 1;
            self.since_best = 0;
        } else if self.restarts < self.schedule.restarts {
            self.temperature = self.schedule.temperature;
            self.restarts += 1;
            self.since_best = 0;
            self.restart_next = true;
        }
    }
}

impl Strategy for Annealing {
    fn ask(&mut self) -> Asked {
        if self.out.is_some() {
            return Asked::Wait;
        }
        let restart = std::mem::take(&mut self.restart_next);
        let from = if restart { self.best.clone() } else { self.current.clone() };
        let trial = match from {
            None => Trial { point: self.axes.iter().map(Axis::start).collect(), kind: MoveKind::Start },
            Some((best, _)) if restart => Trial { point: self.perturbed(&best), kind: MoveKind::Restart },
            Some((current, _)) => Trial { point: self.neighbour(&current), kind: MoveKind::Neighbour },
        };
        let point = trial.point.clone();
        self.out = Some(trial);
        Asked::Point(point)
    }

    fn tell(&mut self, score: f64) {
        let Some(Trial { point, kind }) = self.out.take() else { return };
        if self.accepts(score, kind) {
            self.current = Some((point.clone(), score));
        }
        if self.best.as_ref().is_none_or(|(_, best)| score > *best) {
            self.best = Some((point, score));
            self.since_best = 0;
        } else {
            self.since_best += 1;
        }
        if kind != MoveKind::Start {
            self.temperature *= self.schedule.cooling;
        }
        self.lose_patience();
    }
}

/// Returns `coordinate` after a move on `axis`; a number goes at most `share` of its step.
fn moved(axis: &Axis, coordinate: Coordinate, share: f64, random: &mut NumpyRandomState) -> Coordinate {
    match (axis, coordinate) {
        (Axis::Number { low, high, step, .. }, Coordinate::Number(x)) => {
            let reach = step * share;
            Coordinate::Number((x + (2.0 * random.uniform() - 1.0) * reach).clamp(*low, *high))
        }
        (Axis::Choice { options, .. }, Coordinate::Choice(option)) if *options > 1 => {
            let other = index(random, options - 1);
            Coordinate::Choice(if other < option { other } else { other + 1 })
        }
        (_, coordinate) => coordinate,
    }
}
