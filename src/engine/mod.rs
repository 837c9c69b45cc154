//! Engines that run ONNX graphs: one trait over ONNX Runtime (a library found or fetched at run time), rten
//! (compiled in) and, with the feature `tract`, tract.
//!
//! This layer knows nothing of plans and passes. It never falls back in silence: [`choose`] says which engine it took
//! and why, and an execution provider that was asked for and doesn't run the model is an error.

mod choose;
pub mod device;
mod device_word;
pub mod doctor;
mod error;
pub mod fetch;
mod inline;
pub mod io;
pub mod locate;
mod ort;
mod provider_request;
mod providers;
mod rten;
mod signature;
mod tensor;
pub mod tensorrt;
#[cfg(feature = "tract")]
mod tract;

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    str::FromStr,
};

use bytes::Bytes;

pub use self::ort::{OLDEST_MINOR as OLDEST_ONNXRUNTIME_MINOR, OrtEngine};
pub use self::rten::RtenEngine;
#[cfg(feature = "tract")]
pub use self::tract::TractEngine;
pub use choose::{Chosen, EngineRequest, choose, choose_among};
pub use device::{Capture, DeviceSession, DeviceTensor, Feed};
pub use device_word::DeviceWord;
pub use error::EngineError;
pub use provider_request::{PlanOptions, ProviderRequest};
pub use providers::{Provider, ProviderKind};
pub(crate) use signature::tensor_info;
pub use signature::{Dim, Signature, TensorInfo};
pub use tensor::{HostTensor, TensorData, UINT8};
pub use tensorrt::ShapeRange;

/// An engine, which loads models.
pub trait Engine: Send + Sync {
    /// Returns which engine it is.
    fn kind(&self) -> EngineKind;

    /// Returns the engine's version: `1.31.1`.
    fn version(&self) -> &str;

    /// Loads the model at `path`; its external data lies beside it.
    ///
    /// # Errors
    /// [`EngineError`] if the engine refuses the model or cannot give what `options` ask for.
    fn load(&self, path: &Path, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError>;

    /// Loads a model from memory. It must hold its weights itself.
    ///
    /// # Errors
    /// As [`Engine::load`].
    fn load_bytes(&self, model: Bytes, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError>;

    /// Returns whether it has this provider. The provider can still lack its own libraries or a device: [`doctor`]
    /// tries.
    fn has_provider(&self, provider: ProviderKind) -> bool {
        provider == ProviderKind::Cpu
    }

    /// Adds the providers of a plug-in library, which the engine knows as `name` from then on.
    ///
    /// # Errors
    /// [`EngineError::ProviderLibrary`] if the engine takes none, or not this one.
    fn add_provider_library(&self, name: &str, path: &Path) -> Result<(), EngineError> {
        Err(EngineError::ProviderLibrary {
            name: name.to_string(),
            path: path.to_path_buf(),
            what: format!("{} has no execution providers; use ort", self.kind()),
        })
    }
}

/// A loaded model.
pub trait Session: Send {
    /// Returns the engine that it is of.
    fn kind(&self) -> EngineKind;

    /// Returns the inputs that a run must be fed.
    fn inputs(&self) -> &[TensorInfo];

    /// Returns the outputs that a run gives.
    fn outputs(&self) -> &[TensorInfo];

    /// Runs the model. `inputs` are named, in any order, and only read; `outputs` are the ones wanted, all for `None`.
    /// The results are in the order asked for, with buffers of their own.
    ///
    /// # Errors
    /// [`EngineError::Signature`] if an input is missing, unknown or of the wrong type or shape, or an output is
    /// unknown; [`EngineError::Run`] if the engine fails.
    fn run(
        &mut self,
        inputs: &[(&str, &HostTensor)],
        outputs: Option<&[&str]>,
    ) -> Result<Vec<(String, HostTensor)>, EngineError>;

    /// Returns how many of the optimised graph's nodes run where. Empty if no provider was asked for, or the engine has
    /// only one place.
    fn placement(&self) -> &[Placement] {
        &[]
    }

    /// Returns the engine itself, if it can be run from and into memory of its device; `None` for engines that have no
    /// such memory.
    fn device(&mut self) -> Option<&mut dyn DeviceSession> {
        None
    }
}

/// How many nodes of a loaded model an execution provider runs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Placement {
    /// ONNX Runtime's name of the provider: `CUDAExecutionProvider`.
    pub provider: String,
    /// Number of nodes after optimisation.
    pub nodes: usize,
}

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// ONNX Runtime.
    Ort,
    /// rten: pure Rust, CPU only.
    Rten,
    /// tract: pure Rust, CPU only, fixed shapes only.
    Tract,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ort => "ort",
            Self::Rten => "rten",
            Self::Tract => "tract",
        })
    }
}

impl FromStr for EngineKind {
    type Err = EngineError;

    fn from_str(name: &str) -> Result<Self, EngineError> {
        match name.to_ascii_lowercase().as_str() {
            "ort" | "onnxruntime" => Ok(Self::Ort),
            "rten" => Ok(Self::Rten),
            "tract" => Ok(Self::Tract),
            _ => Err(EngineError::UnknownEngine { name: name.to_string() }),
        }
    }
}

/// How to load a model. The default is ONNX Runtime's own: all optimisations, all cores, fast, on the CPU.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Threads within one operator; `None` for the engine's default, which is one for each core.
    pub intra_threads: Option<NonZeroUsize>,
    /// How far the graph is optimised.
    pub optimization: Optimization,
    /// How weights are kept in memory.
    pub memory: MemoryMode,
    /// Execution providers, the preferred one first; the CPU takes what they leave. Empty for the CPU alone.
    pub providers: Vec<Provider>,
    /// How nodes are treated that no requested provider takes.
    pub cpu_fallback: CpuFallback,
    /// Concrete dimensions, by input. tract needs them for all inputs that have dynamic ones; ONNX Runtime specialises
    /// named dimensions to them; rten doesn't need them.
    pub fixed_dims: BTreeMap<String, Vec<usize>>,
    /// The sizes that inputs will be fed, by input: what TensorRT's engines are built for. It finds them out at the
    /// first run else, and builds again where they change.
    pub profile: BTreeMap<String, ShapeRange>,
    /// The folder that TensorRT's engines are kept in; `None` keeps none.
    pub engine_cache: Option<PathBuf>,
    /// Further ONNX Runtime session configuration entries, by key.
    pub config: BTreeMap<String, String>,
}

impl SessionOptions {
    /// Sets the threads within one operator.
    #[must_use]
    pub fn intra_threads(self, intra_threads: Option<NonZeroUsize>) -> Self {
        Self { intra_threads, ..self }
    }

    /// Sets how far the graph is optimised.
    #[must_use]
    pub fn optimization(self, optimization: Optimization) -> Self {
        Self { optimization, ..self }
    }

    /// Sets how weights are kept in memory.
    #[must_use]
    pub fn memory(self, memory: MemoryMode) -> Self {
        Self { memory, ..self }
    }

    /// Sets execution providers, the preferred one first.
    #[must_use]
    pub fn providers(self, providers: Vec<Provider>) -> Self {
        Self { providers, ..self }
    }

    /// Sets concrete dimensions, by input.
    #[must_use]
    pub fn fixed_dims(self, fixed_dims: BTreeMap<String, Vec<usize>>) -> Self {
        Self { fixed_dims, ..self }
    }

    /// Sets the folder that TensorRT's engines are kept in.
    #[must_use]
    pub fn engine_cache(self, engine_cache: Option<PathBuf>) -> Self {
        Self { engine_cache, ..self }
    }

    /// Returns whether sessions compute in memory of their own, apart from the host's.
    pub fn runs_on_a_device(&self) -> bool {
        self.providers.first().is_some_and(|provider| provider.kind.has_own_memory())
    }

    /// Returns whether sessions are compiled for an accelerator: by a provider other than the CPU's.
    pub fn has_accelerator(&self) -> bool {
        self.providers.first().is_some_and(|provider| provider.kind != ProviderKind::Cpu)
    }
}

/// How far an engine optimises the graph when loading it (ONNX Runtime's levels; rten and tract know only on and off).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimization {
    /// Not at all.
    Disabled,
    /// Redundant nodes and constants.
    Basic,
    /// Also fusions.
    Extended,
    /// Also layout.
    #[default]
    All,
}

/// The trade between memory and speed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryMode {
    /// Weights may be rearranged for speed: several times the file's size for each session.
    #[default]
    Fast,
    /// Weights stay as they are, so that sessions that map the same file share its pages: on the CPU no NCHWc layout,
    /// no prepacking, and nothing computed from weights ahead; what a run computed in is given back after it. Slower.
    Low,
}

/// How nodes are treated that none of the requested providers takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuFallback {
    /// The CPU runs them; [`Session::placement`] says how many.
    #[default]
    Allow,
    /// The model is refused.
    Refuse,
}

/// Runs an engine's code on a model from outside. A panic in it becomes an error.
fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("it panicked: {message}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        let error = guarded(|| -> Result<(), String> { panic!("seen") }).unwrap_err();
        assert_eq!(error, "it panicked: seen");
    }
}
