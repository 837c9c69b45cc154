//! A Triton model repository: for each model a folder with its `config.pbtxt` and, as version 1, the graph for the
//! onnxruntime backend.
//!
//! Triton's batching joins requests into one batch, so every input must have the batch first ([`make_rows`]). The
//! rules that the configuration follows are those of Triton's `model_config.proto`, of its core and of its onnxruntime
//! backend: an input without dimensions beside the batch is fed as `[1]` and reshaped away, outputs have exactly the
//! dimensions that the model has, and parameters that the backend doesn't know are refused.

mod accelerator;
mod bls;
mod config;

use std::path::{Path, PathBuf};

pub use accelerator::{Accelerator, Precision, TensorRt};
pub use bls::Pipeline;
use config::Config;

use super::{
    Batching, DeployError,
    atomic_dir::{self, Staging},
    make_rows,
};
use crate::{
    engine::Signature,
    ir::Graph,
    observer::Observer,
    onnx::{self, WeightPolicy, WriteOptions},
};

/// The name of the model file in a version's folder, which Triton expects.
const MODEL: &str = "model.onnx";

/// A model and its name in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name that requests use.
    pub name: String,
    /// The `.onnx` file. It is never changed.
    pub model: PathBuf,
}

impl Entry {
    /// Returns a model under its own name: that of the file, or of its folder where the file is called `model.onnx`.
    pub fn named_after(model: &Path) -> Self {
        let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let own = stem(model).filter(|name| name != "model");
        let folder = || model.parent().and_then(|folder| folder.canonicalize().ok()).and_then(|f| stem(&f));
        let name = own.or_else(folder).unwrap_or_else(|| "model".to_string());
        Self { name, model: model.to_path_buf() }
    }
}

/// How models are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The most rows of a batch; 0 to join no requests.
    pub max_batch: u32,
    /// How long a request waits for others, in microseconds; Triton's default is not at all.
    pub queue_delay: Option<u64>,
    /// The devices that instances run on.
    pub devices: Devices,
    /// Instances on each device.
    pub instances: u32,
    /// The accelerator that runs a model on a GPU.
    pub accelerator: Accelerator,
}

/// On what instances run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// On every GPU, or the CPU where there is none.
    Any,
    /// On the CPU.
    Cpu,
    /// On these GPUs.
    Gpus(Vec<u32>),
}

/// A model repository to write, and how.
#[derive(Clone, Copy)]
pub struct TritonJob<'a> {
    /// The models.
    pub entries: &'a [Entry],
    /// A pipeline whose models are among the entries, to be served as one.
    pub pipeline: Option<&'a Pipeline>,
    /// How they are served.
    pub serving: &'a Serving,
    /// The repository; made if it isn't there. Models that are in it stay.
    pub repository: &'a Path,
    /// Observes the writing.
    pub observer: &'a dyn Observer,
}

/// A model in the repository.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its name.
    pub name: String,
    /// The most rows of a batch; 0 if its requests are not joined.
    pub max_batch: u32,
    /// Inputs that were one value for the whole batch and are one a row now.
    pub widened: Vec<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
    config: Config,
}

/// Writes the repository's models. They appear together or not at all.
///
/// # Errors
/// [`DeployError`]: a name is taken or not a name, a model cannot be read or has types that the backend doesn't take,
/// what was asked for contradicts itself, or the disk is full.
pub fn export(job: &TritonJob<'_>) -> Result<Vec<Served>, DeployError> {
    job.serving.check()?;
    atomic_dir::complete(job.repository, |staging| fill(staging, job))
}

fn fill(staging: &Staging, job: &TritonJob<'_>) -> Result<Vec<Served>, DeployError> {
    let mut served: Vec<Served> = Vec::with_capacity(job.entries.len() + 1);
    for entry in job.entries {
        check_name(&entry.name)?;
        if served.iter().any(|known| known.name == entry.name) {
            return Err(DeployError::Request(format!(
                "two models would be called `{}`: write NAME=MODEL for one of them",
                entry.name
            )));
        }
        served.push(serve(entry, job, staging)?);
    }
    if let Some(pipeline) = job.pipeline {
        check_name(&pipeline.name)?;
        served.push(bls::write(pipeline, &served, staging)?);
    }
    Ok(served)
}

impl Serving {
    fn check(&self) -> Result<(), DeployError> {
        let refuse = |what: &str| Err(DeployError::Request(what.to_string()));
        if self.devices == Devices::Cpu && self.accelerator != Accelerator::None {
            return refuse("an accelerator runs on a GPU: leave out --cpu, or --accelerator");
        }
        if self.instances == 0 {
            return refuse("a model needs at least one instance");
        }
        if self.max_batch > i32::MAX as u32 || self.instances > i32::MAX as u32 {
            return refuse("Triton counts batches and instances in 32 bits with a sign");
        }
        self.accelerator.check()
    }
}

/// Checks a model's name, which is a folder's name and part of a URL.
fn check_name(name: &str) -> Result<(), DeployError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if !name.is_empty() && !name.starts_with('.') && name.chars().all(fits) {
        return Ok(());
    }
    Err(DeployError::Request(format!(
        "`{name}` is no name for a model: use letters, digits, `_`, `-` and `.`, or write NAME=MODEL"
    )))
}

fn serve(entry: &Entry, job: &TritonJob<'_>, staging: &Staging) -> Result<Served, DeployError> {
    let load = || -> Result<Graph, DeployError> { Ok(Graph::load(onnx::open_with_weights(&entry.model)?)?) };
    let mut graph = load()?;
    let mut notes = Vec::new();
    let (max_batch, widened) = match job.serving.max_batch {
        0 => (0, Vec::new()),
        most => match make_rows(&mut graph)? {
            Batching::Rows(widened) => (most, widened),
            Batching::Whole(why) => {
                notes.push(format!("requests are not joined (max_batch_size is 0): {why}"));
                graph = load()?;
                (0, Vec::new())
            }
        },
    };
    let mut config = Config::of(&entry.name, &graph, max_batch, job.serving)
        .map_err(|what| DeployError::model(&entry.model, what))?;
    config.accelerator = job.serving.accelerator.parameters(entry, &graph, max_batch, &mut notes)?;
    let folder = staging.path(&entry.name)?;
    let model = folder.join("1").join(MODEL);
    staging.write(&folder.join("config.pbtxt"), &config.text())?;
    std::fs::create_dir_all(folder.join("1")).map_err(DeployError::io("create", &folder))?;
    let options = WriteOptions::new(&model, layout(&graph)).observer(job.observer);
    onnx::write(&graph, &options)?;
    Ok(Served { name: entry.name.clone(), max_batch, widened, notes, config })
}

/// Names the data files, which keep their names unless one has the name that the model gets.
fn layout(graph: &Graph) -> WeightPolicy {
    let named_model = graph.initializers().any(|(_, initializer)| match &initializer.header.payload {
        onnx::Payload::External(range) => Path::new(&range.location).ends_with(MODEL),
        onnx::Payload::Raw(_) | onnx::Payload::Typed => false,
    });
    if named_model { WeightPolicy::Split(u64::MAX) } else { WeightPolicy::Copy }
}

impl Served {
    /// Returns the inputs and outputs, as the model in the repository declares them.
    fn signature(&self) -> &Signature {
        &self.config.signature
    }
}
