//! A progress bar on stderr for work that takes over a second, and Ctrl-C.

use std::{
    ops::ControlFlow,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Set by Ctrl-C. Long work looks at it and stops without leaving a file.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Installs the Ctrl-C handler; a second Ctrl-C ends the process at once.
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

/// A bar over a number of bytes, shown once the work has taken a second.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar for `what`, in bytes of unknown total. A hidden one if `quiet`.
    pub fn bytes(what: &'static str, visibility: Visibility) -> Self {
        let bar = match visibility {
            Visibility::Hidden => ProgressBar::hidden(),
            Visibility::Shown => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5)),
        };
        let style = ProgressStyle::with_template("{msg} {binary_bytes} ({binary_bytes_per_sec})");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar }
    }

    /// Counts bytes; says to stop once Ctrl-C was pressed.
    pub fn advance(&self, bytes: u64) -> ControlFlow<()> {
        if self.bar.elapsed() > Duration::from_secs(1) {
            self.bar.inc(bytes);
        } else {
            self.bar.update(|state| state.set_pos(state.pos() + bytes));
        }
        if INTERRUPTED.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Whether progress is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// On stderr, if that is a terminal.
    Shown,
    /// Not at all.
    Hidden,
}

/// Whether Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
