//! Scores of confirmed trials beside the dense network's: paired differences of means with their standard errors.

use std::fmt;

use super::{
    Space,
    journal::{Confirmation, Subject},
    space::Over,
    trial::Scores,
};

/// The scores by images from noises that no trial began with.
#[derive(Clone, Debug, PartialEq)]
pub struct Confirmed {
    /// How many noises each prompt had.
    pub noises: usize,
    /// The dense network's.
    pub dense: Scores,
    /// The best trials', in the order of their scores in the search.
    pub trials: Vec<ConfirmedTrial>,
}

/// A trial that was confirmed.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfirmedTrial {
    /// Its number.
    pub trial: u64,
    /// Its scores.
    pub scores: Scores,
    /// How much better than the dense network it is, if both worked.
    pub difference: Option<Difference>,
}

/// A difference of two scores whose images have the same prompts and noises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// It.
    pub mean: f64,
    /// Its standard error; none where the score is that of one image.
    pub error: Option<StandardError>,
}

/// The standard error of a mean of differences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StandardError {
    /// It.
    pub value: f64,
    /// How many differences.
    pub count: usize,
    /// Whether each is a prompt's mean. Where there is one prompt, each is an image's.
    pub is_over_prompts: bool,
}

impl Confirmed {
    /// Returns what confirmations say of `subjects`, in their order.
    pub(super) fn of(space: &Space, subjects: &[Subject], confirmations: &[Confirmation]) -> Self {
        let of = |subject: Subject| {
            let found = confirmations.iter().find(|one| one.confirmed == subject);
            found.map_or_else(|| Scores::failed("it was not run"), |found| found.scores.clone())
        };
        let dense = of(Subject::Dense);
        let trial = |subject: &Subject| {
            let Subject::Trial(trial) = *subject else { return None };
            let scores = of(*subject);
            let difference = Difference::of(&scores, &dense, space.prompts.len(), space.over);
            Some(ConfirmedTrial { trial, scores, difference })
        };
        let noises = space.confirm.map_or(0, |confirm| confirm.noises);
        Self { noises, trials: subjects.iter().filter_map(trial).collect(), dense }
    }

    /// Returns the best trial of those that worked, of equal ones the better one in the search.
    pub fn best(&self) -> Option<&ConfirmedTrial> {
        let worked = self.trials.iter().filter(|trial| trial.scores.failed.is_none());
        worked.reduce(|best, trial| if trial.scores.score > best.scores.score { trial } else { best })
    }
}

impl Difference {
    /// Returns how much higher `scores` are than `dense`; `None` if one of the two failed. Images stand by prompt.
    fn of(scores: &Scores, dense: &Scores, prompts: usize, over: Over) -> Option<Self> {
        if scores.failed.is_some() || dense.failed.is_some() {
            return None;
        }
        let differences: Vec<f64> = scores.scores.iter().zip(&dense.scores).map(|(a, b)| a - b).collect();
        // The images of one prompt are no more alike than its noises.
        let is_over_prompts = prompts > 1;
        let size = if is_over_prompts { differences.len() / prompts } else { 1 };
        let means: Vec<f64> = differences.chunks(size.max(1)).map(mean).collect();
        let error = match over {
            Over::Mean => standard_error(&means),
            Over::Min => None,
        };
        let error = error.map(|value| StandardError { value, count: means.len(), is_over_prompts });
        Some(Self { mean: scores.score - dense.score, error })
    }

    /// Returns whether it is above zero by two standard errors.
    pub fn is_clear(&self) -> bool {
        self.mean > 0.0 && self.error.is_some_and(|error| self.mean >= 2.0 * error.value)
    }
}

/// Writes the error behind the difference, as `+0.1460 +- 0.0320`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.4}", self.mean)?;
        self.error.map_or(Ok(()), |error| write!(f, " +- {:.4}", error.value))
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Returns the standard error of the mean of `values`, which are a sample; `None` if they are fewer than two.
fn standard_error(values: &[f64]) -> Option<f64> {
    let (count, mean) = (values.len() as f64, mean(values));
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (count - 1.0) / count).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The errors are `statistics.stdev` of Python over the root of the count.
    #[test]
    fn standard_errors_are_over_prompts_or_over_the_images_of_one() {
        let scores =
            |scores: &[f64]| Scores { score: mean(scores), scores: scores.to_vec(), ..Scores::failed("") };
        let worked = |scores: Scores| Scores { failed: None, ..scores };
        let trial = worked(scores(&[0.9, 0.5, 0.7, 0.1, 0.4, 0.8]));
        let dense = worked(scores(&[0.6, 0.4, 0.9, 0.2, 0.1, 0.3]));
        let difference = |prompts, over| Difference::of(&trial, &dense, prompts, over).unwrap();
        for (prompts, count, expected) in [(3, 3, 0.160_727_512_683_215_9), (1, 6, 0.108_781_125_813_871_5)] {
            let Difference { mean, error: Some(error) } = difference(prompts, Over::Mean) else { panic!() };
            assert!(
                (mean - 0.15).abs() < 1e-12 && (error.value - expected).abs() < 1e-12,
                "{mean} {error:?}"
            );
            assert_eq!((error.count, error.is_over_prompts), (count, prompts > 1));
            assert!(!difference(prompts, Over::Mean).is_clear());
        }
        assert_eq!(difference(3, Over::Mean).to_string(), "+0.1500 +- 0.1607");
        assert_eq!(difference(3, Over::Min).error, None);
        let of = |error| Difference {
            mean: 0.2,
            error: Some(StandardError { value: error, count: 3, is_over_prompts: true }),
        };
        assert!(of(0.1).is_clear() && !of(0.101).is_clear());
        assert_eq!(Difference::of(&trial, &Scores::failed("out of luck"), 3, Over::Mean), None);
        let one = worked(scores(&[0.5]));
        assert_eq!(Difference::of(&one, &one, 1, Over::Mean).unwrap().error, None, "one image");
    }
}
