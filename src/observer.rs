//! Progress and cancellation: observers, which hear of long work while it goes on, and can stop it.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

/// An observer of long work. It is called from several threads, and often: neither method should take long.
///
/// `()` observes nothing. An [`AtomicBool`] hears nothing, and stops the work once it is set.
pub trait Observer: Sync {
    /// Hears of an event.
    fn hear(&self, _: Event<'_>) {}

    /// Returns whether the work should stop. It then fails with [`Stopped`], and leaves no file behind.
    fn is_stopped(&self) -> bool {
        false
    }
}

impl Observer for () {}

impl Observer for AtomicBool {
    fn is_stopped(&self) -> bool {
        self.load(Ordering::Relaxed)
    }
}

/// An event of long work.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// So many more bytes of weights were read or written.
    Bytes(Stage, u64),
    /// A stage of a pipeline begins.
    Begun(Stage),
    /// The networks of a pipeline have run for a call of the sampler. A step may have several calls.
    Call {
        /// The call, from 0.
        call: usize,
        /// How many there will be.
        calls: usize,
        /// The step it belongs to, from 0.
        step: usize,
        /// How many steps there are.
        steps: usize,
        /// The timestep that was fed.
        timestep: f64,
    },
    /// An image as the network sees it after a step, where previews were asked for
    /// ([`Request::preview`](crate::diffusion::pipeline::Request::preview)).
    Preview {
        /// The step, from 0.
        step: usize,
        /// Which image of the batch it is.
        index: usize,
        /// Pixels from top to bottom.
        height: usize,
        /// Pixels from left to right.
        width: usize,
        /// Rows of red, green, blue.
        pixels: &'a [u8],
    },
    /// Something that is about to take time or room.
    Notice(&'a str),
    /// Something that the user should know.
    Warning(&'a str),
}

/// A stage of long work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Stage {
    /// Reading weights to find thresholds.
    Ranking,
    /// Writing an output.
    Writing,
    /// Reading weights to prove what they are.
    Checking,
    /// Reading the weights of two models to compare them.
    Comparing,
    /// Reading weights to digest them.
    Digesting,
    /// Loading a network.
    Loading,
    /// Encoding the prompts.
    Text,
    /// Sampling.
    Sampling,
    /// Decoding latents.
    Decoding,
}

impl Stage {
    /// Returns how progress is headed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ranking => "ranking weights",
            Self::Writing => "writing",
            Self::Checking => "checking weights",
            Self::Comparing => "comparing weights",
            Self::Digesting => "reading weights",
            Self::Loading => "loading",
            Self::Text => "text",
            Self::Sampling => "sampling",
            Self::Decoding => "decoding",
        }
    }
}

/// An observer said stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

impl dyn Observer + '_ {
    /// Tells of an event.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn tell(&self, event: Event<'_>) -> Result<(), Stopped> {
        self.hear(event);
        self.check()
    }

    /// Goes on, unless the work should stop.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn check(&self) -> Result<(), Stopped> {
        if self.is_stopped() { Err(Stopped) } else { Ok(()) }
    }
}

/// The progress of one stage.
#[derive(Clone, Copy)]
pub struct Progress<'a> {
    observer: &'a dyn Observer,
    stage: Stage,
}

impl<'a> Progress<'a> {
    /// Returns the progress of `stage`, of which `observer` hears.
    pub fn new(observer: &'a dyn Observer, stage: Stage) -> Self {
        Self { observer, stage }
    }

    /// Returns the progress of work that nobody observes.
    pub fn none() -> Self {
        Self::new(&(), Stage::Checking)
    }

    /// Tells that so many more bytes are done.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn advance(self, bytes: u64) -> Result<(), Stopped> {
        self.observer.tell(Event::Bytes(self.stage, bytes))
    }
}
