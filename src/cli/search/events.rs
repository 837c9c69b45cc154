//! Progress of a search: a bar or lines on stderr, or JSON on stdout.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cli::{
        print,
        progress::{Counter, Visibility},
    },
    search::{
        journal::Subject,
        run::{Event, Search},
    },
};

/// A listener that reports the events of a search.
pub(super) struct Reporter {
    json: bool,
    counter: Counter,
    trials: Option<u64>,
    /// Images of a trial.
    images: usize,
    /// Images of a confirmation.
    fresh: usize,
    started: Instant,
    drawn: Cell<usize>,
    best: Cell<Option<f64>>,
    /// How many networks are confirmed.
    confirmed: Cell<u64>,
}

impl Reporter {
    pub(super) fn new(json: bool, visibility: Visibility, search: &Search<'_>) -> Self {
        let trials = search.bound.space.budget.trials;
        let (images, fresh) = (search.shots.len(), search.fresh.len());
        let counter = Counter::new(visibility, "trials", trials);
        let (drawn, best, confirmed) = (Cell::new(0), Cell::new(None), Cell::new(0));
        Self { json, counter, trials, images, fresh, started: Instant::now(), drawn, best, confirmed }
    }

    /// Prints an event, where they are printed.
    pub(super) fn print(&self, event: &Value) {
        if self.json {
            // Whoever reads no events wants the plan all the same.
            print(format_args!("{event}\n")).ok();
        }
    }

    pub(super) fn finish(&self) {
        self.counter.finish();
    }

    pub(super) fn tell(&self, event: &Event<'_>) {
        match event {
            Event::Resumed(trials) => {
                self.counter.begin(*trials as u64, self.trials);
                if *trials > 0 {
                    self.counter.say(&format!("{trials} trials are in the journal already"));
                }
                self.print(&json!({ "event": "resumed", "trials": trials }));
            }
            Event::Dense(scores) => {
                self.count(self.images);
                if let Some(why) = &scores.failed {
                    self.counter.say(&format!("warning: the dense pipeline failed: {why}"));
                }
                self.print(&json!({ "event": "dense", "score": scores.score, "failed": scores.failed }));
            }
            Event::Trial(record) => {
                self.count(self.images);
                let score = record.scores.score;
                self.best.set(Some(self.best.get().map_or(score, |best| best.max(score))));
                let best = self.best.get().unwrap_or(score);
                self.counter.message(message(best, score, self.drawn.get(), self.started.elapsed()));
                self.counter.set(record.trial + 1);
                if let Some(why) = &record.scores.failed {
                    let told = json!(record.values);
                    self.counter.say(&format!("warning: trial {} failed: {why} ({told})", record.trial));
                }
                self.print(&json!({
                    "event": "trial", "trial": record.trial, "score": score, "best": best, "values": record.values,
                    "failed": record.scores.failed,
                }));
            }
            Event::Confirming { known, all } => {
                self.counter.begin(*known as u64, Some(*all as u64));
                self.counter.message("confirming the best");
                self.confirmed.set(*known as u64);
                self.print(&json!({ "event": "confirming", "known": known, "all": all }));
            }
            Event::Confirmed(confirmation) => {
                self.count(self.fresh);
                let (scores, rate) = (&confirmation.scores, rate(self.drawn.get(), self.started.elapsed()));
                self.counter.message(format!("confirming the best, last {:.4}, {rate}", scores.score));
                self.confirmed.set(self.confirmed.get() + 1);
                self.counter.set(self.confirmed.get());
                let (trial, name) = match confirmation.confirmed {
                    Subject::Dense => (None, "the dense pipeline".to_string()),
                    Subject::Trial(trial) => (Some(trial), format!("trial {trial}")),
                };
                if let Some(why) = &scores.failed {
                    self.counter.say(&format!("warning: {name} failed on fresh noises: {why}"));
                }
                self.print(&json!({
                    "event": "confirmed", "trial": trial, "score": scores.score, "failed": scores.failed,
                }));
            }
        }
    }

    fn count(&self, images: usize) {
        self.drawn.set(self.drawn.get() + images);
    }
}

/// Returns the scores by name, and how fast images are drawn and scored.
fn message(best: f64, last: f64, images: usize, elapsed: Duration) -> String {
    format!("best score {best:.4}, last {last:.4}, {}", rate(images, elapsed))
}

fn rate(images: usize, elapsed: Duration) -> String {
    format!("{:.2} images/s", images as f64 / elapsed.as_secs_f64().max(1e-3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_have_names() {
        let message = message(0.91234, -2.0, 30, Duration::from_secs(20));
        assert_eq!(message, "best score 0.9123, last -2.0000, 1.50 images/s");
    }
}
