//! What stays from trial to trial: an engine that keeps the sessions that don't change, and remembers what the text
//! encoders said and what the dense network gave while it ran alone.
//!
//! Trials differ in their pruned graphs. Until a trial's pruned network first runs in a picture, the dense network sees
//! what it saw in every other trial: always in the first call, and in all calls before `amplify.during` begins. These
//! outputs are kept, by a digest of the inputs, and given again.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

use crate::{
    diffusion::pipeline::Folder,
    engine::{
        DeviceSession, Engine, EngineError, EngineKind, HostTensor, MemoryMode, Placement, Session,
        SessionOptions, TensorInfo,
    },
};

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The UNet as it was exported.
    Dense,
    /// A trial's graph.
    Trial,
    /// A text encoder.
    Text,
    /// The VAE.
    Decoder,
}

/// What a worker's engine did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineTime {
    /// Loading those models that every trial uses.
    pub loading: Duration,
    /// Loading trials' graphs.
    pub loading_trials: Duration,
    /// Calls of text encoders and, while it ran alone, of the dense network.
    pub calls: u64,
    /// Those among them that were answered from memory.
    pub remembered: u64,
}

impl EngineTime {
    /// Adds another worker's.
    pub fn add(&mut self, other: &Self) {
        self.loading += other.loading;
        self.loading_trials += other.loading_trials;
        self.calls += other.calls;
        self.remembered += other.remembered;
    }
}

/// Outputs that are given again. One serves all workers of a search.
#[derive(Debug)]
pub struct Memory {
    known: Mutex<Known>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Known {
    outputs: FxHashMap<[u8; 32], Arc<Outputs>>,
    bytes: usize,
}

type Outputs = Vec<(String, HostTensor)>;

impl Memory {
    /// Keeps at most `limit` bytes of outputs.
    pub fn new(limit: usize) -> Self {
        Self { known: Mutex::default(), limit }
    }

    fn get(&self, key: &[u8; 32]) -> Option<Arc<Outputs>> {
        lock(&self.known).outputs.get(key).cloned()
    }

    fn put(&self, key: [u8; 32], outputs: &Outputs) {
        let bytes: usize = outputs.iter().map(|(_, tensor)| tensor.data().len() * 4).sum();
        let mut known = lock(&self.known);
        if known.bytes + bytes <= self.limit && !known.outputs.contains_key(&key) {
            known.bytes += bytes;
            known.outputs.insert(key, Arc::new(outputs.clone()));
        }
    }
}

/// The engine of one worker.
pub struct KeptEngine {
    engine: Arc<dyn Engine>,
    folder: PathBuf,
    /// Sessions that nobody holds, and what is known of those that were loaded.
    home: Arc<Mutex<Home>>,
    handle: Handle,
}

#[derive(Default)]
struct Home {
    sessions: FxHashMap<Key, Box<dyn Session>>,
    known: FxHashMap<Key, Arc<Description>>,
}

/// A model, and how it is loaded: TensorRT's engines are loaded for certain sizes.
type Key = (PathBuf, String);

/// What a session says of itself.
#[derive(Default)]
struct Description {
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    placement: Vec<Placement>,
}

/// What a worker knows of its engine.
#[derive(Clone)]
pub struct Handle {
    memory: Arc<Memory>,
    /// Whether no trial's graph has run in this picture.
    alone: Arc<AtomicBool>,
    time: Arc<Mutex<EngineTime>>,
    fed: Arc<Mutex<Arc<Fed>>>,
}

/// Inputs of a trial's graph that nobody else knows of, and what they are fed: masked weights.
pub type Fed = Vec<(String, HostTensor)>;

impl Handle {
    /// A picture begins.
    pub fn begin_picture(&self) {
        self.alone.store(true, Ordering::Relaxed);
    }

    /// The weights that the trial's graph is fed from now on.
    pub fn feed(&self, fed: &Arc<Fed>) {
        *lock(&self.fed) = Arc::clone(fed);
    }

    fn fed(&self) -> Arc<Fed> {
        Arc::clone(&lock(&self.fed))
    }

    /// Time spent so far.
    pub fn time(&self) -> EngineTime {
        lock(&self.time).clone()
    }
}

impl KeptEngine {
    /// Wraps `engine` for the pipeline in `folder`.
    pub fn new(engine: Box<dyn Engine>, folder: &Folder, memory: Arc<Memory>) -> (Self, Handle) {
        let alone = Arc::new(AtomicBool::new(true));
        let handle = Handle { memory, alone, time: Arc::default(), fed: Arc::default() };
        let kept = Self {
            engine: Arc::from(engine),
            folder: folder.path.clone(),
            home: Arc::default(),
            handle: handle.clone(),
        };
        (kept, handle)
    }

    fn role(&self, path: &Path) -> Role {
        let Ok(inside) = path.strip_prefix(&self.folder) else { return Role::Trial };
        let part = inside.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        match part.as_deref() {
            Some(part) if part.starts_with("text_encoder") => Role::Text,
            Some(part) if part.starts_with("vae_decoder") => Role::Decoder,
            Some("unet") if path.file_name().is_some_and(|name| name == "model.onnx") => Role::Dense,
            _ => Role::Trial,
        }
    }
}

impl Engine for KeptEngine {
    fn kind(&self) -> EngineKind {
        self.engine.kind()
    }

    fn version(&self) -> &str {
        self.engine.version()
    }

    fn load(&self, path: &Path, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let role = self.role(path);
        let key = (path.to_path_buf(), format!("{options:?}"));
        let (session, known) = {
            let mut home = lock(&self.home);
            (home.sessions.remove(&key), home.known.get(&key).cloned())
        };
        let is_known = known.is_some();
        let mut kept = KeptSession {
            role,
            key: key.clone(),
            description: known.unwrap_or_else(|| Arc::new(Description::default())),
            session,
            engine: Arc::clone(&self.engine),
            options: options.clone(),
            home: Arc::clone(&self.home),
            handle: self.handle.clone(),
        };
        // A text encoder that has answered everything needn't be loaded again.
        if kept.session.is_none() && !(is_known && role == Role::Text) {
            let fed = if role == Role::Trial { self.handle.fed() } else { Arc::default() };
            let session = kept.loaded()?;
            let is_fed = |input: &&TensorInfo| fed.iter().any(|(name, _)| *name == input.name);
            let description = Arc::new(Description {
                inputs: session.inputs().iter().filter(|input| !is_fed(input)).cloned().collect(),
                outputs: session.outputs().to_vec(),
                placement: session.placement().to_vec(),
            });
            kept.description = Arc::clone(&description);
            if role != Role::Trial {
                lock(&self.home).known.insert(key, description);
            }
        }
        Ok(Box::new(kept))
    }

    fn load_bytes(&self, model: Bytes, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        self.engine.load_bytes(model, options)
    }
}

/// A session that goes home when it is let go.
struct KeptSession {
    role: Role,
    key: Key,
    description: Arc<Description>,
    /// `None` while it is not loaded.
    session: Option<Box<dyn Session>>,
    engine: Arc<dyn Engine>,
    options: SessionOptions,
    home: Arc<Mutex<Home>>,
    handle: Handle,
}

impl KeptSession {
    fn loaded(&mut self) -> Result<&mut dyn Session, EngineError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                let started = Instant::now();
                let session = self.engine.load(&self.key.0, &self.options)?;
                let mut time = lock(&self.handle.time);
                match self.role {
                    Role::Trial => time.loading_trials += started.elapsed(),
                    _ => time.loading += started.elapsed(),
                }
                session
            }
        };
        Ok(&mut **self.session.insert(session))
    }
}

impl Drop for KeptSession {
    fn drop(&mut self) {
        // The text encoders' answers stay; where memory is short, they needn't.
        let is_spared = self.role == Role::Text && self.options.memory == MemoryMode::Low;
        if self.role == Role::Trial || is_spared {
            return;
        }
        if let Some(session) = self.session.take() {
            lock(&self.home).sessions.insert(self.key.clone(), session);
        }
    }
}

impl Session for KeptSession {
    fn inputs(&self) -> &[TensorInfo] {
        &self.description.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.description.outputs
    }

    fn run(
        &mut self,
        inputs: &[(&str, &HostTensor)],
        outputs: Option<&[&str]>,
    ) -> Result<Outputs, EngineError> {
        let handle = self.handle.clone();
        let is_remembered = match self.role {
            Role::Text => true,
            Role::Dense => handle.alone.load(Ordering::Relaxed),
            Role::Decoder => false,
            Role::Trial => {
                handle.alone.store(false, Ordering::Relaxed);
                let fed = handle.fed();
                let weights = fed.iter().map(|(name, tensor)| (name.as_str(), tensor));
                let all: Vec<(&str, &HostTensor)> = inputs.iter().copied().chain(weights).collect();
                return self.loaded()?.run(&all, outputs);
            }
        };
        if !is_remembered {
            return self.loaded()?.run(inputs, outputs);
        }
        let key = key(&self.key.0, inputs, outputs);
        lock(&handle.time).calls += 1;
        if let Some(known) = handle.memory.get(&key) {
            lock(&handle.time).remembered += 1;
            return Ok(Outputs::clone(&known));
        }
        let result = self.loaded()?.run(inputs, outputs)?;
        handle.memory.put(key, &result);
        Ok(result)
    }

    fn placement(&self) -> &[Placement] {
        &self.description.placement
    }

    /// The session's own: what stays on a device is not remembered. A trial that is fed weights has none.
    fn device(&mut self) -> Option<&mut dyn DeviceSession> {
        if self.role == Role::Trial && !self.handle.fed().is_empty() {
            return None;
        }
        self.loaded().ok()?.device()
    }
}

/// A digest of a model and all that is fed to it.
fn key(path: &Path, inputs: &[(&str, &HostTensor)], outputs: Option<&[&str]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let text = |hash: &mut Sha256, bytes: &[u8]| {
        hash.update(bytes.len().to_le_bytes());
        hash.update(bytes);
    };
    text(&mut hash, path.as_os_str().as_encoded_bytes());
    for (name, tensor) in inputs {
        text(&mut hash, name.as_bytes());
        text(&mut hash, format!("{:?} {:?}", tensor.data_type(), tensor.dims()).as_bytes());
        text(&mut hash, &tensor.to_le_bytes());
    }
    for name in outputs.into_iter().flatten() {
        text(&mut hash, name.as_bytes());
    }
    hash.finalize().into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
