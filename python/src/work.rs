//! Long work: on a thread of its own, while the calling one waits without the GIL, looks for signals and reports progress.

use std::{
    panic,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use crdiff::observer::{Event, Observer};
use pyo3::{prelude::*, types::PyBytes};

use crate::failure::Failure;

/// Takes a lock, whoever panicked while holding it: what it guards is whole after each statement.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a signal may wait.
const PATIENCE: Duration = Duration::from_millis(50);

/// The listener of work, on the other side of a channel.
pub struct Listener<'a> {
    /// Set when the work should stop.
    stop: &'a AtomicBool,
    sender: Sender<(&'static str, Told)>,
    /// The step that was told last: some samplers call the networks more than once in a step.
    step: AtomicUsize,
}

/// The event's data beside its name.
enum Told {
    /// So many more bytes are done.
    Bytes(u64),
    /// A step, from 0, and its timestep.
    Step(usize, f64),
    /// A preview.
    Image(Preview),
    /// A warning.
    Text(String),
}

/// An image in the middle of sampling: the step and the place in the batch, height and width, rows of red, green, blue.
struct Preview {
    at: (usize, usize),
    size: (usize, usize),
    pixels: Vec<u8>,
}

impl Observer for Listener<'_> {
    fn hear(&self, event: Event<'_>) {
        let (name, told) = match event {
            Event::Bytes(stage, bytes) => (stage.name(), Told::Bytes(bytes)),
            Event::Begun(stage) => (stage.name(), Told::Bytes(0)),
            Event::Call { step, .. } if self.step.swap(step, Ordering::Relaxed) == step => return,
            Event::Call { step, timestep, .. } => ("step", Told::Step(step, timestep)),
            Event::Preview { step, index, height, width, pixels } => {
                let preview = Preview { at: (step, index), size: (height, width), pixels: pixels.to_vec() };
                ("preview", Told::Image(preview))
            }
            Event::Notice(text) => ("notice", Told::Text(text.to_string())),
            Event::Warning(text) => ("warning", Told::Text(text.to_string())),
            _ => return,
        };
        // The other side is there until the work ends.
        let _ = self.sender.send((name, told));
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }
}

/// Does `work`. `listener`, if there is one, is called with what is told; what it raises, and what a signal's handler
/// raises, stops the work and is raised here.
pub fn work<T: Send>(
    py: Python<'_>,
    listener: Option<&Py<PyAny>>,
    work: impl FnOnce(&Listener<'_>) -> Result<T, Failure> + Send,
) -> PyResult<T> {
    let stop = &AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    let (result, raised) = py.allow_threads(move || {
        thread::scope(|scope| {
            let worker =
                scope.spawn(move || work(&Listener { stop, sender, step: AtomicUsize::new(usize::MAX) }));
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
                            Told::Image(Preview { at, size: (height, width), pixels }) => {
                                listener.call1(py, (name, (at, (height, width, PyBytes::new(py, &pixels)))))
                            }
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
