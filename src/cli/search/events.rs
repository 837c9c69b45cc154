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
    search::{run::Event, space::Space},
};

/// A listener that reports the events of a search.
pub(super) struct Reporter {
    json: bool,
    counter: Counter,
    trials: Option<u64>,
    /// Images of a trial.
    images: usize,
    started: Instant,
    drawn: Cell<usize>,
    best: Cell<Option<f64>>,
}

impl Reporter {
    pub(super) fn new(json: bool, visibility: Visibility, space: &Space, images: usize) -> Self {
        let trials = space.budget.trials;
        let counter = Counter::new(visibility, "trials", trials);
        let (drawn, best) = (Cell::new(0), Cell::new(None));
        Self { json, counter, trials, images, started: Instant::now(), drawn, best }
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
                self.count();
                if let Some(why) = &scores.failed {
                    self.counter.say(&format!("warning: the dense pipeline failed: {why}"));
                }
                self.print(&json!({ "event": "dense", "score": scores.score, "failed": scores.failed }));
            }
            Event::Trial(record) => {
                self.count();
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
        }
    }

    fn count(&self) {
        self.drawn.set(self.drawn.get() + self.images);
    }
}

/// Returns the scores by name, and how fast images are drawn and scored.
fn message(best: f64, last: f64, images: usize, elapsed: Duration) -> String {
    let rate = images as f64 / elapsed.as_secs_f64().max(1e-3);
    format!("best score {best:.4}, last {last:.4}, {rate:.2} images/s")
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
