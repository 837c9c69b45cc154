//! Long work: on a thread of its own, while the calling one waits without the GIL, looks for signals and reports progress.

use std::{
    panic,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use pyo3::prelude::*;

use crate::failure::Failure;

/// How long a signal may wait.
const PATIENCE: Duration = Duration::from_millis(50);

/// How work tells what it does and learns that it should stop.
pub struct Observer<'a> {
    /// Set when it should stop.
    pub stop: &'a AtomicBool,
    sender: Sender<(&'static str, Told)>,
}

/// The event's data beside its name.
pub enum Told {
    /// So many more bytes are done.
    Bytes(u64),
    /// A step, from 0, and its timestep.
    Step(usize, f64),
    /// A warning.
    Text(String),
}

impl Observer<'_> {
    /// Tells something.
    pub fn tell(&self, name: &'static str, told: Told) {
        // The other side is there until the work ends.
        let _ = self.sender.send((name, told));
    }

    /// Tells that so many more bytes of a stage are done.
    pub fn advance(&self, stage: &'static str, bytes: u64) {
        self.tell(stage, Told::Bytes(bytes));
    }

    /// As [`advance`](Self::advance), for work that cannot be told to stop: it is unwound from here.
    pub fn advance_or_unwind(&self, stage: &'static str, bytes: u64) {
        if self.stop.load(Ordering::Relaxed) {
            panic::resume_unwind(Box::new(Stopped));
        }
        self.advance(stage, bytes);
    }
}

/// The payload with which stopped work is unwound.
struct Stopped;

/// Does `work`. `listener`, if there is one, is called with what is told; what it raises, and what a signal's handler
/// raises, stops the work and is raised here.
pub fn work<T: Send>(
    py: Python<'_>,
    listener: Option<&Py<PyAny>>,
    work: impl FnOnce(&Observer<'_>) -> Result<T, Failure> + Send,
) -> PyResult<T> {
    let stop = &AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    let (result, raised) = py.allow_threads(move || {
        thread::scope(|scope| {
            let worker = scope.spawn(move || work(&Observer { stop, sender }));
            let mut raised: Option<PyErr> = None;
            loop {
                let event = match receiver.recv_timeout(PATIENCE) {
                    Err(RecvTimeoutError::Disconnected) => break,
                    event => event.ok(),
                };
                if raised.is_some() {
                    continue;
                }
                let told = Python::with_gil(|py| {
                    if let (Some((name, told)), Some(listener)) = (event, listener) {
                        match told {
                            Told::Bytes(bytes) => listener.call1(py, (name, bytes)),
                            Told::Step(step, timestep) => listener.call1(py, (name, (step, timestep))),
                            Told::Text(text) => listener.call1(py, (name, text)),
                        }?;
                    }
                    py.check_signals()
                });
                if let Err(error) = told {
                    raised = Some(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
            (worker.join(), raised)
        })
    });
    match (raised, result) {
        (Some(raised), _) => Err(raised),
        (None, Ok(result)) => result.map_err(|failure| failure.into_py(py)),
        (None, Err(payload)) => panic::resume_unwind(payload),
    }
}
