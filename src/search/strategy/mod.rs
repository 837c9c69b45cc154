//! Strategies: which point of a space to try next. They are pure: a strategy is asked for points and told scores, and
//! with the same seed and the same scores it gives the same points.

mod annealing;
mod grid;
mod random;

pub use annealing::{Annealing, Schedule};
pub use grid::Grid;
pub use random::RandomSampling;

use crate::diffusion::random::NumpyRandomState;

/// One direction of a space.
#[derive(Clone, Debug, PartialEq)]
pub enum Axis {
    /// A number, `low <= x <= high`.
    Number {
        /// The least.
        low: f64,
        /// The greatest.
        high: f64,
        /// Where a search begins.
        start: f64,
        /// How far annealing moves it at most.
        step: f64,
        /// How many values of it a grid has, both ends among them; at least 1.
        points: usize,
    },
    /// One of several options; at least 1.
    Choice {
        /// How many.
        options: usize,
        /// The one that a search begins with, below `options`.
        start: usize,
    },
}

/// A position on an [`Axis`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Coordinate {
    /// On [`Axis::Number`].
    Number(f64),
    /// On [`Axis::Choice`]: which option, from 0.
    Choice(usize),
}

/// A coordinate for each axis.
pub type Point = Vec<Coordinate>;

/// The answer of a strategy that is asked for a point.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// Try this one.
    Point(Point),
    /// Tell the scores of the points that are out first.
    Wait,
    /// There is nothing left to try.
    Done,
}

/// A strategy. Points are told in the order in which they were asked for.
pub trait Strategy {
    /// Returns the next point.
    fn ask(&mut self) -> Asked;

    /// Takes the score of the oldest point that has none yet; higher is better.
    fn tell(&mut self, score: f64);
}

impl Axis {
    /// Returns where a search begins.
    pub fn start(&self) -> Coordinate {
        match self {
            Self::Number { start, .. } => Coordinate::Number(*start),
            Self::Choice { start, .. } => Coordinate::Choice(*start),
        }
    }

    /// Returns a coordinate drawn evenly.
    fn draw(&self, random: &mut NumpyRandomState) -> Coordinate {
        match self {
            Self::Number { low, high, .. } => {
                Coordinate::Number((low + (high - low) * random.uniform()).clamp(*low, *high))
            }
            Self::Choice { options, .. } => Coordinate::Choice(index(random, *options)),
        }
    }
}

/// Returns an index below `count`, drawn evenly; 0 if `count` is 0.
fn index(random: &mut NumpyRandomState, count: usize) -> usize {
    ((random.uniform() * count as f64) as usize).min(count.saturating_sub(1))
}
