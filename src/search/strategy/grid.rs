//! Grid search: every combination.

use super::{Asked, Axis, Coordinate, Point, Strategy};

/// Every point of a grid, the last axis changing fastest.
#[derive(Clone, Debug)]
pub struct Grid {
    axes: Vec<Axis>,
    next: Option<Vec<usize>>,
}

impl Grid {
    /// Returns the grid over `axes`: their numbers at evenly spaced points, all their options.
    pub fn new(axes: Vec<Axis>) -> Self {
        let next = Some(vec![0; axes.len()]);
        Self { axes, next }
    }

    /// Returns how many points there are; `None` if that is beyond counting.
    pub fn count(axes: &[Axis]) -> Option<u64> {
        let sizes = axes.iter().map(|axis| u64::try_from(size(axis)).ok());
        sizes.into_iter().try_fold(1u64, |count, size| count.checked_mul(size?))
    }
}

impl Strategy for Grid {
    fn ask(&mut self) -> Asked {
        let Some(indices) = self.next.take() else { return Asked::Done };
        let point: Point = self.axes.iter().zip(&indices).map(|(axis, index)| at(axis, *index)).collect();
        let mut following = indices;
        for (axis, index) in self.axes.iter().zip(&mut following).rev() {
            *index += 1;
            if *index < size(axis) {
                self.next = Some(following);
                break;
            }
            *index = 0;
        }
        Asked::Point(point)
    }

    fn tell(&mut self, _: f64) {}
}

fn size(axis: &Axis) -> usize {
    match axis {
        Axis::Number { points, .. } => (*points).max(1),
        Axis::Choice { options, .. } => (*options).max(1),
    }
}

fn at(axis: &Axis, index: usize) -> Coordinate {
    match axis {
        Axis::Number { start, points: 0 | 1, .. } => Coordinate::Number(*start),
        Axis::Number { low, high, points, .. } => {
            let share = index as f64 / (points - 1) as f64;
            Coordinate::Number((low + (high - low) * share).clamp(*low, *high))
        }
        Axis::Choice { .. } => Coordinate::Choice(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_comes_once() {
        let axes = vec![
            Axis::Choice { options: 2, start: 0 },
            Axis::Number { low: 0.0, high: 1.0, start: 0.0, step: 0.1, points: 3 },
        ];
        assert_eq!(Grid::count(&axes), Some(6));
        let mut grid = Grid::new(axes);
        let mut points = Vec::new();
        while let Asked::Point(point) = grid.ask() {
            let [Coordinate::Choice(option), Coordinate::Number(x)] = point[..] else { panic!("two") };
            points.push((option, x));
        }
        assert_eq!(points, [(0, 0.0), (0, 0.5), (0, 1.0), (1, 0.0), (1, 0.5), (1, 1.0)]);
        assert_eq!(grid.ask(), Asked::Done);
        assert_eq!(Grid::count(&vec![Axis::Choice { options: 2, start: 0 }; 64]), None);
    }
}
