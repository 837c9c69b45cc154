//! Progress on stderr for work that takes over a second, and Ctrl-C.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::compile::Stage;

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

/// A counter of bytes for each kind of work, drawn once all has taken a second.
#[derive(Debug)]
pub struct Bars {
    visibility: Visibility,
    started: Instant,
    current: Mutex<Option<(&'static str, u64, ProgressBar)>>,
}

impl Bars {
    /// Nothing is drawn yet.
    pub fn new(visibility: Visibility) -> Self {
        Self { visibility, started: Instant::now(), current: Mutex::new(None) }
    }

    /// Counts bytes of a stage of a compilation.
    pub fn compiling(&self, stage: Stage, bytes: u64) {
        let work = match stage {
            Stage::Ranking => "ranking weights",
            Stage::Writing => "writing",
        };
        self.advance(work, bytes);
    }

    /// Counts bytes of `work`, which is its name on the screen.
    pub fn advance(&self, work: &'static str, bytes: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let same = current.as_ref().is_some_and(|(known, ..)| *known == work);
        if !same {
            if let Some((.., bar)) = current.take() {
                bar.finish_and_clear();
            }
            *current = Some((work, 0, hidden_bar(work)));
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

impl Drop for Bars {
    fn drop(&mut self) {
        if let Some((.., bar)) = self.current.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
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
