//! Trials of a search, for other optimisers.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use crdiff::{
    diffusion::{pipeline::Folder, prediction_cache::PredictionCache},
    engine::SessionOptions,
    observer::Observer,
    passes::MaskForm,
    search::{
        Space,
        compile::Compiler,
        objective::open_graph,
        space,
        trial::{Worker, shots},
        trials::{Trials as Open, bound},
    },
};
use pyo3::prelude::*;
use serde_json::Value;

use crate::{
    engine::EngineOptions,
    failure::Failure,
    work::{lock, work},
};

/// Bytes of dense outputs that are kept.
const MEMORY: usize = 1 << 30;

/// A space on a pipeline. It is on a thread of its own, since parts of it borrow from each other.
#[pyclass(frozen, module = "crdiff._crdiff")]
pub struct Trials {
    asked: Mutex<Sender<Asked>>,
}

/// A trial that somebody waits for.
struct Asked {
    values: Value,
    stop: Arc<AtomicBool>,
    answer: Sender<Result<String, Failure>>,
}

/// Where a space is: a file, or a text with the folder that its paths start from.
#[derive(FromPyObject)]
enum Place {
    File(PathBuf),
    Text(String, PathBuf),
}

#[pymethods]
impl Trials {
    /// Opens a space on a pipeline.
    #[staticmethod]
    #[pyo3(signature = (pipeline, space, *, prompts, engine))]
    fn open(
        py: Python<'_>,
        pipeline: PathBuf,
        space: Place,
        prompts: Vec<String>,
        engine: EngineOptions,
    ) -> PyResult<Self> {
        work(py, None, |_| {
            let space = match &space {
                Place::File(path) => space::load(path),
                Place::Text(text, folder) => space::parse("space", text, folder),
            };
            let mut space = space.map_err(|error| Failure::space(&error))?;
            if !prompts.is_empty() {
                space.prompts = prompts;
            }
            let (asked, receiver) = mpsc::channel();
            let (opened, is_open) = mpsc::channel();
            thread::spawn(move || match open(&pipeline, &space, &engine) {
                Ok(trials) => {
                    // Nobody may be there any more.
                    let _ = opened.send(Ok(()));
                    answer(trials, &receiver);
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            });
            is_open.recv().map_err(Failure::other)??;
            Ok(Self { asked: Mutex::new(asked) })
        })
    }

    /// Tries values, a JSON object with a value for each variable. Returns the answer, as JSON.
    fn run(&self, py: Python<'_>, values: &str) -> PyResult<String> {
        work(py, None, |observer| {
            let values = serde_json::from_str(values).map_err(Failure::value)?;
            let (answer, answered) = mpsc::channel();
            let stop = Arc::new(AtomicBool::new(false));
            let asked = Asked { values, stop: Arc::clone(&stop), answer };
            lock(&self.asked).send(asked).map_err(Failure::other)?;
            loop {
                match answered.recv_timeout(Duration::from_millis(50)) {
                    Ok(answer) => return answer,
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(Failure::other("the thread of the trials has ended"));
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        stop.store(observer.is_stopped(), Ordering::Relaxed);
                    }
                }
            }
        })
    }
}

/// Opens a pipeline, and binds a space to it.
fn open<'a>(pipeline: &Path, space: &'a Space, engine: &EngineOptions) -> Result<Open<'a>, Failure> {
    let folder = Folder::open(pipeline).map_err(Failure::pipeline)?;
    let mut compiler = Compiler::open(&folder.unet()).map_err(Failure::search)?;
    let bound = bound(space, &compiler).map_err(|error| Failure::space(&error))?;
    let plan = bound.plan(&bound.settings(&bound.start())).map_err(|error| Failure::Plan(Box::new(error)))?;
    let (chosen, options) = engine.open(&plan.runtime)?;
    // As inputs, masks are no reason to load a network again; a device would be sent them in each run.
    compiler.masks = match engine.masks() {
        MaskForm::Stored if !options.runs_on_a_device() => MaskForm::Fed,
        masks => masks,
    };
    let scorers = SessionOptions::default().intra_threads(options.intra_threads);
    let graph = |spec: &_| open_graph(spec, &space.folder, &*engine.choose()?.engine, &scorers);
    let cache = Arc::new(PredictionCache::new(MEMORY));
    let worker =
        Worker::open(space, &folder, chosen.engine, options, cache, &graph).map_err(Failure::search)?;
    let shots = shots(space, &folder);
    Ok(Open::new(bound, compiler, worker, shots))
}

/// Answers until nobody can ask any more.
fn answer(mut trials: Open<'_>, receiver: &Receiver<Asked>) {
    for Asked { values, stop, answer } in receiver {
        let found = trials.run(values, &*stop).map_err(Failure::search);
        let found = found.and_then(|found| serde_json::to_string(&found).map_err(Failure::other));
        let _ = answer.send(found);
    }
}
