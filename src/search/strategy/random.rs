//! Random sampling.

use super::{Asked, Axis, Strategy};
use crate::diffusion::random::NumpyRandomState;

/// Points drawn evenly and independently.
#[derive(Clone, Debug)]
pub struct RandomSampling {
    axes: Vec<Axis>,
    random: NumpyRandomState,
}

impl RandomSampling {
    /// Points of `axes`, drawn with `seed`.
    pub fn new(axes: Vec<Axis>, seed: u32) -> Self {
        Self { axes, random: NumpyRandomState::new(seed) }
    }
}

impl Strategy for RandomSampling {
    fn ask(&mut self) -> Asked {
        Asked::Point(self.axes.iter().map(|axis| axis.draw(&mut self.random)).collect())
    }

    fn tell(&mut self, _: f64) {}
}

#[cfg(test)]
mod tests {
    use super::super::Coordinate;
    use super::*;

    #[test]
    fn points_are_within_the_axes_and_repeat_with_the_seed() {
        let axes = vec![
            Axis::Number { low: -1.0, high: 2.0, start: 0.0, step: 0.1, points: 3 },
            Axis::Choice { options: 3, start: 0 },
        ];
        let draw = |seed| {
            let mut random = RandomSampling::new(axes.clone(), seed);
            (0..200).map(|_| random.ask()).collect::<Vec<_>>()
        };
        let mut seen = [0; 3];
        for asked in draw(1) {
            let Asked::Point(point) = asked else { panic!("a point") };
            let [Coordinate::Number(x), Coordinate::Choice(option)] = point[..] else { panic!("two") };
            assert!((-1.0..=2.0).contains(&x));
            seen[option] += 1;
        }
        assert!(seen.iter().all(|count| *count > 40), "{seen:?}");
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
