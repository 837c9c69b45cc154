//! Progress on stderr for work that takes over a second, and Ctrl-C.

#[cfg(feature = "runner")]
use std::io::{IsTerminal, stderr};
use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    lock::lock,
    observer::{Event, Observer, Stage},
};

/// Set by Ctrl-C. Long work looks at it and stops without leaving a file.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Installs the Ctrl-C handler, once; a second Ctrl-C ends the process at once. Returns what Ctrl-C sets.
pub fn interruptible() -> &'static AtomicBool {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // Without a handler Ctrl-C ends the process as usual, so a failure to install it is no error.
        let _ = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
    });
    &INTERRUPTED
}

/// Whether progress is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// On stderr, if that is a terminal.
    Shown,
    /// Not at all.
    Hidden,
}

/// An observer that counts the bytes of each stage, drawn once all has taken a second, and stops at Ctrl-C.
#[derive(Debug)]
pub struct Bars {
    visibility: Visibility,
    started: Instant,
    current: Mutex<Option<(Stage, u64, ProgressBar)>>,
}

impl Bars {
    /// Makes the display; nothing is drawn yet.
    pub fn new(visibility: Visibility) -> Self {
        interruptible();
        Self { visibility, started: Instant::now(), current: Mutex::new(None) }
    }

    /// Counts bytes of a stage.
    fn advance(&self, stage: Stage, bytes: u64) {
        let mut current = lock(&self.current);
        let same = current.as_ref().is_some_and(|(known, ..)| *known == stage);
        if !same {
            if let Some((.., bar)) = current.take() {
                bar.finish_and_clear();
            }
            *current = Some((stage, 0, hidden_bar(stage.name())));
        }
        let Some((_, total, bar)) = current.as_mut() else { return };
        *total += bytes;
        let due = self.visibility == Visibility::Shown && self.started.elapsed() > Duration::from_secs(1);
        if due && bar.is_hidden() {
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        }
        bar.set_position(*total);
    }
}

impl Observer for Bars {
    fn hear(&self, event: Event<'_>) {
        if let Event::Bytes(stage, bytes) = event {
            self.advance(stage, bytes);
        }
    }

    fn is_stopped(&self) -> bool {
        INTERRUPTED.is_stopped()
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Some((.., bar)) = self.current.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

/// How often a line is written where there is no terminal to draw on.
#[cfg(feature = "runner")]
const EVERY: Duration = Duration::from_secs(5);

/// A count of steps or trials on stderr: a bar in a terminal, a line every few seconds in a log.
#[cfg(feature = "runner")]
#[derive(Debug)]
pub struct Counter {
    bar: ProgressBar,
    /// When the last line was written, where lines are; a bar needs none.
    lines: Option<Mutex<Instant>>,
    unit: &'static str,
    state: Mutex<Count>,
}

#[cfg(feature = "runner")]
#[derive(Clone, Debug)]
struct Count {
    message: String,
    started: Instant,
    /// The position when counting began: the work of an earlier run says nothing of how fast this one is.
    first: u64,
    position: u64,
    total: Option<u64>,
}

#[cfg(feature = "runner")]
impl Counter {
    /// Makes the display; nothing is drawn yet. `total` is how many there will be, if that is known.
    pub fn new(visibility: Visibility, unit: &'static str, total: Option<u64>) -> Self {
        let shown = visibility == Visibility::Shown;
        let target = match shown && stderr().is_terminal() {
            true => ProgressDrawTarget::stderr_with_hz(5),
            false => ProgressDrawTarget::hidden(),
        };
        let lines = (shown && !stderr().is_terminal()).then(|| Mutex::new(Instant::now()));
        let started = Instant::now();
        let state = Count { message: String::new(), started, first: 0, position: 0, total };
        let counter =
            Self { bar: ProgressBar::with_draw_target(total, target), lines, unit, state: Mutex::new(state) };
        counter.style(total);
        counter
    }

    fn style(&self, total: Option<u64>) {
        // The bar cuts a line that is too long at the end of the message.
        let template = match total {
            Some(_) => {
                format!("{{bar:10}} {{pos}}/{{len}} {}, {{elapsed}}, {{eta}} left  {{wide_msg}}", self.unit)
            }
            None => format!("{{spinner}} {{pos}} {}, {{elapsed}}  {{wide_msg}}", self.unit),
        };
        if let Ok(style) = ProgressStyle::with_template(&template) {
            self.bar.set_style(style);
        }
    }

    /// Counts from `position` of `total` from now on.
    pub fn begin(&self, position: u64, total: Option<u64>) {
        let mut state = lock(&self.state);
        (state.first, state.position, state.total, state.started) =
            (position, position, total, Instant::now());
        self.style(total);
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(position);
        self.bar.reset_eta();
        self.bar.reset_elapsed();
    }

    /// Says what is going on.
    pub fn message(&self, message: impl Into<String>) {
        let message = message.into();
        self.bar.set_message(message.clone());
        lock(&self.state).message = message;
    }

    /// Shows that `position` are done.
    pub fn set(&self, position: u64) {
        self.bar.set_position(position);
        let mut state = lock(&self.state);
        state.position = position;
        let Some(lines) = &self.lines else { return };
        let mut last = lock(lines);
        if last.elapsed() >= EVERY {
            *last = Instant::now();
            anstream::eprintln!("{}", state.line(self.unit, state.started.elapsed()));
        }
    }

    /// Writes a line of its own on stderr.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| anstream::eprintln!("{line}"));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(feature = "runner")]
impl Count {
    fn line(&self, unit: &str, elapsed: Duration) -> String {
        let done = self.position.saturating_sub(self.first);
        let seconds = elapsed.as_secs_f64();
        let message = if self.message.is_empty() { String::new() } else { format!("{}: ", self.message) };
        let of = self.total.map(|total| format!("/{total}")).unwrap_or_default();
        let left = self.total.filter(|_| done > 0).map(|total| {
            let left = total.saturating_sub(self.position) as f64 * seconds / done as f64;
            format!(", about {} left", span(left))
        });
        format!("{message}{}{of} {unit}, {} so far{}", self.position, span(seconds), left.unwrap_or_default())
    }
}

/// Returns a time in seconds as people say it: 42 s, 3 min 20 s, 2 h 5 min.
#[cfg(feature = "runner")]
pub fn span(seconds: f64) -> String {
    let seconds = seconds.round().max(0.0) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

fn hidden_bar(work: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {msg}: {decimal_bytes} at {decimal_bytes_per_sec}")
    {
        bar.set_style(style);
    }
    bar.set_message(work);
    bar
}

#[cfg(all(test, feature = "runner"))]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_done_and_what_is_left() {
        let mut count = Count {
            message: "best score 0.8123".to_string(),
            started: Instant::now(),
            first: 10,
            position: 20,
            total: Some(120),
        };
        let line = |count: &Count| count.line("trials", Duration::from_secs(200));
        assert_eq!(
            line(&count),
            "best score 0.8123: 20/120 trials, 3 min 20 s so far, about 33 min 20 s left"
        );
        (count.position, count.message) = (10, String::new());
        assert_eq!(line(&count), "10/120 trials, 3 min 20 s so far");
        count.total = None;
        assert_eq!(line(&count), "10 trials, 3 min 20 s so far");
        assert_eq!((span(7500.0), span(42.4)), ("2 h 5 min".to_string(), "42 s".to_string()));
    }
}
