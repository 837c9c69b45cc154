//! The strategies: the authors' schedule against fixtures/annealing_goldens.py, and optima that are known.

use std::path::Path;

use crdiff::search::strategy::{
    Annealing, Asked, Axis, Coordinate, Grid, Point, RandomSampling, Schedule, Strategy,
};
use serde_json::Value;

fn axis(value: &Value) -> Axis {
    match value.get("options") {
        Some(options) => Axis::Choice {
            options: options.as_u64().unwrap() as usize,
            start: value["start"].as_u64().unwrap() as usize,
        },
        None => {
            let number = |key: &str| value[key].as_f64().unwrap();
            let (low, high) = (number("low"), number("high"));
            Axis::Number { low, high, start: number("start"), step: number("step"), points: 5 }
        }
    }
}

fn asked(strategy: &mut dyn Strategy) -> Point {
    match strategy.ask() {
        Asked::Point(point) => point,
        other => panic!("{other:?}"),
    }
}

#[test]
fn annealing_is_the_authors_schedule() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/search/annealing.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 3);
    let (mut reheats, mut restarts) = (0, 0);
    for case in &cases {
        let axes: Vec<Axis> = case["axes"].as_array().unwrap().iter().map(axis).collect();
        let schedule = Schedule::of(case["trials"].as_u64().unwrap());
        let mut annealing = Annealing::new(axes, schedule, case["seed"].as_u64().unwrap() as u32);
        for (number, step) in case["trace"].as_array().unwrap().iter().enumerate() {
            let place = format!("{}, trial {number}", case["name"]);
            let point = asked(&mut annealing);
            assert_eq!(annealing.ask(), Asked::Wait, "{place}");
            for (found, expected) in point.iter().zip(step["point"].as_array().unwrap()) {
                match found {
                    Coordinate::Number(x) => {
                        let expected = expected.as_f64().unwrap();
                        assert!((x - expected).abs() < 1e-12, "{place}: {x}, not {expected}");
                    }
                    Coordinate::Choice(option) => {
                        assert_eq!(*option as u64, expected.as_u64().unwrap(), "{place}");
                    }
                }
            }
            annealing.tell(step["score"].as_f64().unwrap());
            let (found, expected) = (annealing.temperature(), step["temperature"].as_f64().unwrap());
            assert!((found - expected).abs() < 1e-12, "{place}: T is {found}, not {expected}");
        }
        let last = case["trace"].as_array().unwrap().last().unwrap();
        reheats = last["reheats"].as_u64().unwrap().max(reheats);
        restarts = last["restarts"].as_u64().unwrap().max(restarts);
    }
    assert_eq!((reheats, restarts), (3, 2), "the goldens use every part of the schedule");
}

/// The best of a strategy's points, by `score`.
fn best(strategy: &mut dyn Strategy, trials: usize, score: impl Fn(&Point) -> f64) -> (Point, f64) {
    let mut best = (Point::new(), f64::NEG_INFINITY);
    for _ in 0..trials {
        let Asked::Point(point) = strategy.ask() else { break };
        let found = score(&point);
        strategy.tell(found);
        if found > best.1 {
            best = (point, found);
        }
    }
    best
}

/// How far a point's numbers are from `targets` at most.
fn distance(point: &Point, targets: [f64; 3]) -> f64 {
    let apart = |(coordinate, target): (&Coordinate, f64)| match coordinate {
        Coordinate::Number(x) => (x - target).abs(),
        Coordinate::Choice(_) => 0.0,
    };
    point.iter().zip(targets).map(apart).fold(0.0, f64::max)
}

/// 1 at `targets` and, where there is a choice, at its option 2.
fn bowl(point: &Point, targets: [f64; 3]) -> f64 {
    let square = |(coordinate, target): (&Coordinate, f64)| match coordinate {
        Coordinate::Number(x) => (x - target) * (x - target),
        Coordinate::Choice(_) => 0.0,
    };
    let sum: f64 = point.iter().zip(targets).map(square).sum();
    let is_wrong = point.get(3).is_some_and(|option| *option != Coordinate::Choice(2));
    1.0 - 10.0 * sum - if is_wrong { 0.5 } else { 0.0 }
}

fn ratios() -> Vec<Axis> {
    vec![Axis::Number { low: 0.1, high: 0.8, start: 0.3, step: 0.1, points: 8 }; 3]
}

/// The authors' schedule cools to its smallest steps in sixty trials: it finds what is near its start.
#[test]
fn the_authors_schedule_finds_a_near_optimum() {
    let targets = [0.35, 0.22, 0.42];
    let from = bowl(&asked(&mut Annealing::new(ratios(), Schedule::of(120), 0)), targets);
    for seed in 0..20 {
        let mut annealing = Annealing::new(ratios(), Schedule::of(120), seed);
        let (point, score) = best(&mut annealing, 120, |point| bowl(point, targets));
        assert!(distance(&point, targets) < 0.1 && score > 0.89, "seed {seed}: {score}, from {from}");
    }
}

#[test]
fn a_known_optimum_is_found_within_the_budget() {
    let targets = [0.45, 0.2, 0.62];
    let mut axes = ratios();
    axes.push(Axis::Choice { options: 4, start: 0 });
    let schedule = Schedule { cooling: 0.99, ..Schedule::of(240) };
    for seed in 0..20 {
        let mut annealing = Annealing::new(axes.clone(), schedule, seed);
        let (point, score) = best(&mut annealing, 240, |point| bowl(point, targets));
        assert!(distance(&point, targets) < 0.05 && score > 0.96, "annealing, seed {seed}: {score}");
        assert_eq!(point[3], Coordinate::Choice(2), "seed {seed}");
        let mut random = RandomSampling::new(axes.clone(), seed);
        let (_, score) = best(&mut random, 240, |point| bowl(point, targets));
        assert!(score > 0.5, "random, seed {seed}: {score}");
    }
    // .4 or .5, .2, .6, option 2: the grid's nearest.
    let nearest = 1.0 - 10.0 * (0.05f64.powi(2) + 0.02f64.powi(2));
    let (_, score) = best(&mut Grid::new(axes), usize::MAX, |point| bowl(point, targets));
    assert!((score - nearest).abs() < 1e-9, "{score}, not {nearest}");
}
