//! An observer made of a closure.

use std::sync::atomic::{AtomicBool, Ordering};

use crdiff::observer::{Event, Observer};

/// Gives each event to a closure, which says whether to stop.
pub struct Hears<F>(F, AtomicBool);

impl<F: Fn(Event<'_>) -> bool + Sync> Hears<F> {
    pub fn new(hear: F) -> Self {
        Self(hear, AtomicBool::new(false))
    }
}

impl<F: Fn(Event<'_>) -> bool + Sync> Observer for Hears<F> {
    fn hear(&self, event: Event<'_>) {
        self.1.fetch_or((self.0)(event), Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.1.is_stopped()
    }
}
