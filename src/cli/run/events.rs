//! Progress of a run: a bar or lines on stderr, or JSON on stdout.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cli::{
        print,
        progress::{Counter, Visibility, interruptible},
    },
    diffusion::pipeline::Output,
    observer::{Event, Observer},
};

/// An observer that reports the events of a run.
pub(super) struct Reporter {
    json: bool,
    counter: Counter,
}

impl Reporter {
    pub(super) fn new(json: bool, visibility: Visibility) -> Self {
        Self { json, counter: Counter::new(visibility, "steps", None) }
    }

    /// Says what is drawn.
    pub(super) fn drawing(&self, what: &str) {
        self.counter.message(what);
    }

    pub(super) fn finish(&self) {
        self.counter.finish();
    }

    /// Prints an event, where they are printed.
    pub(super) fn tell(&self, event: &Value) {
        if self.json {
            // Whoever reads no events wants the image all the same.
            print(format_args!("{event}\n")).ok();
        }
    }
}

impl Observer for Reporter {
    fn hear(&self, event: Event<'_>) {
        match event {
            Event::Begun(stage) => self.tell(&json!({ "event": "stage", "stage": stage })),
            Event::Call { call, calls, step, steps, timestep } => {
                if call == 0 {
                    self.counter.begin(0, Some(steps as u64));
                }
                self.counter.set(step as u64 + 1);
                self.tell(&json!({
                    "event": "call", "call": call, "calls": calls, "step": step, "steps": steps, "timestep": timestep,
                }));
            }
            Event::Warning(text) => {
                self.counter.say(&format!("warning: {text}"));
                self.tell(&json!({ "event": "warning", "text": text }));
            }
            _ => {}
        }
    }

    fn is_stopped(&self) -> bool {
        interruptible().is_stopped()
    }
}

/// Returns the event at the end of a run.
pub(super) fn done(output: &Output) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let timings = &output.timings;
    let networks = &timings.networks;
    let mut done = json!({
        "event": "done", "sampler": output.scheduler.name(),
        "ms": {
            "loading": ms(timings.loading), "text": ms(timings.text), "sampling": ms(timings.sampling),
            "dense": ms(networks.dense), "pruned": ms(networks.pruned),
            "decoding": ms(timings.decoding),
        },
        "runs": { "dense": networks.dense_runs, "pruned": networks.pruned_runs },
    });
    // Of a plan with a cache; parts of what is above.
    for (name, time, runs) in [
        ("dense_shallow", networks.dense_shallow, networks.dense_shallow_runs),
        ("pruned_shallow", networks.pruned_shallow, networks.pruned_shallow_runs),
    ] {
        if runs > 0 {
            done["ms"][name] = ms(time).into();
            done["runs"][name] = runs.into();
        }
    }
    done
}
