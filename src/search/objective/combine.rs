//! Several objectives as one.

use std::path::Path;

use super::{Drawn, Objective, OpenGraph, Scored, open as open_one};
use crate::search::{SearchError, space::Part};

/// How several scores become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// The mean by weight.
    Mean,
    /// The least of the weighted ones.
    Min,
}

/// Several objectives.
pub(super) struct Combined {
    how: How,
    parts: Vec<(String, f64, Box<dyn Objective>)>,
}

/// Makes ready all parts.
pub(super) fn open(
    parts: &[Part],
    how: How,
    folder: &Path,
    graph: OpenGraph<'_>,
) -> Result<Combined, SearchError> {
    let one = |part: &Part| Ok((part.name.clone(), part.weight, open_one(&part.objective, folder, graph)?));
    Ok(Combined { how, parts: parts.iter().map(one).collect::<Result<_, SearchError>>()? })
}

impl Objective for Combined {
    fn score(&mut self, drawn: &Drawn<'_>) -> Result<Scored, SearchError> {
        let mut parts = Vec::with_capacity(self.parts.len());
        let mut weighted = Vec::with_capacity(self.parts.len());
        for (name, weight, objective) in &mut self.parts {
            let scored = objective.score(drawn)?;
            weighted.push((scored.score * *weight, *weight));
            parts.push((name.clone(), scored.score));
            parts.extend(scored.parts.into_iter().map(|(inner, score)| (format!("{name}.{inner}"), score)));
        }
        let score = match self.how {
            How::Mean => {
                let (sum, weights) = weighted.iter().fold((0.0, 0.0), |(s, w), (x, v)| (s + x, w + v));
                sum / weights
            }
            How::Min => weighted.iter().map(|(score, _)| *score).fold(f64::INFINITY, f64::min),
        };
        Ok(Scored { score, parts })
    }
}
