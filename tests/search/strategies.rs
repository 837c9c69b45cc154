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

/// The highest score of a strategy's points, by `score`.
fn best(strategy: &mut dyn Strategy, trials: usize, score: impl Fn(&Point) -> f64) -> f64 {
    let mut best = f64::NEG_INFINITY;
    for _ in 0..trials {
        let Asked::Point(point) = strategy.ask() else { break };
        let found = score(&point);
        best = best.max(found);
        strategy.tell(found);
    }
    best
}

/// 1 at ratios .45, .2, .62 and option 2.
fn bowl(point: &Point) -> f64 {
    let targets = [0.45, 0.2, 0.62];
    let distance = |(coordinate, target): (&Coordinate, f64)| match coordinate {
        Coordinate::Number(x) => (x - target) * (x - target),
        Coordinate::Choice(_) => 0.0,
    };
    let sum: f64 = point.iter().zip(targets).map(distance).sum();
    let option = if point[3] == Coordinate::Choice(2) { 0.0 } else { 0.2 };
    1.0 - sum - option
}

#[test]
fn a_known_optimum_is_found_within_the_budget() {
    let ratio = Axis::Number { low: 0.1, high: 0.8, start: 0.3, step: 0.1, points: 8 };
    let axes = vec![ratio.clone(), ratio.clone(), ratio, Axis::Choice { options: 4, start: 0 }];
    let start = 1.0 - (0.15f64.powi(2) + 0.1f64.powi(2) + 0.32f64.powi(2)) - 0.2;
    for seed in 0..20 {
        let mut annealing = Annealing::new(axes.clone(), Schedule::of(120), seed);
        let found = best(&mut annealing, 120, bowl);
        assert!(found > 0.985, "annealing, seed {seed}: {found}, from {start}");
        let drawn = best(&mut RandomSampling::new(axes.clone(), seed), 120, bowl);
        assert!(drawn > 0.88, "random, seed {seed}: {drawn}");
    }
    // .4 or .5, .2, .6, option 2: the grid's nearest.
    let nearest = 1.0 - 0.05f64.powi(2) - 0.02f64.powi(2);
    let gridded = best(&mut Grid::new(axes), usize::MAX, bowl);
    assert!((gridded - nearest).abs() < 1e-9, "{gridded}, not {nearest}");
}
