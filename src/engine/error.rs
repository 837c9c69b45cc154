//! Errors of engines, from the choice of one to the outputs of a model.

use std::path::PathBuf;

use super::{EngineKind, ProviderKind};
use crate::onnx::OnnxError;

/// An error of finding, starting or using an engine. `Display` says which engine and model, what is wrong and
/// what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No libonnxruntime anywhere.
    #[error(
        "no ONNX Runtime library found; looked at:{}\nfetch one with `crdiff doctor --fetch`, or name one with \
         `--ort-lib` or ORT_DYLIB_PATH",
        tried.iter().map(|t| format!("\n  {t}")).collect::<String>()
    )]
    LibraryNotFound {
        /// Each place that was searched and what was (not) there.
        tried: Vec<String>,
    },
    /// A library was found, but it cannot be used.
    #[error("{}: cannot be used as ONNX Runtime: {what}", path.display())]
    LibraryUnusable {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// ONNX Runtime is loaded once a process, and it has been loaded from elsewhere.
    #[error(
        "{}: this process already runs ONNX Runtime from {}; only one can be loaded",
        requested.display(),
        loaded.display()
    )]
    LibraryAlreadyLoaded {
        /// The one that is loaded.
        loaded: PathBuf,
        /// The one that was asked for.
        requested: PathBuf,
    },
    /// A name that is no engine.
    #[error("unknown engine `{name}`: the engines are ort, rten and tract")]
    UnknownEngine {
        /// The name.
        name: String,
    },
    /// A name that is no execution provider.
    #[error(
        "unknown execution provider `{name}`: the providers are cpu, cuda, tensorrt, nvtensorrtrtx, openvino and \
         webgpu"
    )]
    UnknownProvider {
        /// The name.
        name: String,
    },
    /// A word that is no kind of device.
    #[error("unknown device `{word}`: the devices are {}", super::DeviceWord::WORDS.join(", "))]
    UnknownDevice {
        /// The word.
        word: String,
    },
    /// The engine has no provider for a kind of device.
    #[error(
        "no execution provider for device `{device}`: this {engine} has none of {}",
        tried.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    NoProviderFor {
        /// The device.
        device: super::DeviceWord,
        /// The engine.
        engine: EngineKind,
        /// The providers that would run on it.
        tried: Vec<ProviderKind>,
    },
    /// A device and providers were asked for.
    #[error("device `{device}` stands for a provider and its options: name it or providers, not both")]
    DeviceAndProviders {
        /// The device.
        device: super::DeviceWord,
    },
    /// An option is for a provider that is not among those that run.
    #[error("provider option `{option}` is for a provider that isn't run: name its provider, or a device")]
    NoProviderOfOption {
        /// The option, as it was given.
        option: String,
    },
    /// A plan has options for a provider that it doesn't name.
    #[error("the plan's `runtime.options` are for {provider}, which is not in its `providers`")]
    PlanOptions {
        /// The provider.
        provider: ProviderKind,
    },
    /// A plug-in library of execution providers cannot be used.
    #[error("provider library {name}={}: {what}", path.display())]
    ProviderLibrary {
        /// The name that it was to have.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// An option of an execution provider cannot be given.
    #[error("option `{name}` of the {provider} provider: {what}")]
    ProviderOption {
        /// The provider.
        provider: ProviderKind,
        /// The option.
        name: String,
        /// The fault, and the remedy.
        what: String,
    },
    /// The engine is not in this build.
    #[error("engine `{engine}` is not in this build of crdiff: build it with `--features {engine}`")]
    NotBuilt {
        /// The engine.
        engine: EngineKind,
    },
    /// The engine refuses the model.
    #[error("{engine} cannot load {model}: {what}")]
    Load {
        /// The engine.
        engine: EngineKind,
        /// The model's path, or "a model in memory".
        model: String,
        /// The engine's reason.
        what: String,
    },
    /// A requested execution provider cannot run the model. There is no silent fallback to the CPU.
    #[error("{engine} cannot run {model} on {provider}: {what}")]
    Provider {
        /// The engine.
        engine: EngineKind,
        /// The model's path, or "a model in memory".
        model: String,
        /// The provider.
        provider: ProviderKind,
        /// Why not.
        what: String,
    },
    /// A value that was fed, or asked for, is not what the model takes, or gives.
    #[error("{model}: {what}")]
    Signature {
        /// The model's path, or "a model in memory".
        model: String,
        /// Which input or output, what is wrong with it, what the model has.
        what: String,
    },
    /// The engine failed while running the model.
    #[error("{engine} failed to run {model}: {what}")]
    Run {
        /// The engine.
        engine: EngineKind,
        /// The model's path, or "a model in memory".
        model: String,
        /// The engine's reason.
        what: String,
    },
    /// A tensor or a file of tensors is broken or of a type that host tensors don't have.
    #[error("{place}: {what}")]
    Tensor {
        /// The tensor or file.
        place: String,
        /// The fault.
        what: String,
    },
    /// The model file itself is broken or missing.
    #[error("{model}: {source}")]
    Model {
        /// The model's path, or "a model in memory".
        model: String,
        /// The fault.
        source: OnnxError,
    },
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The attempt, as a verb phrase.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The library could not be fetched.
    #[error("cannot fetch ONNX Runtime {version}: {what}")]
    Fetch {
        /// The release.
        version: &'static str,
        /// Why not.
        what: String,
    },
}

impl EngineError {
    pub(crate) fn tensor(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Tensor { place: place.into(), what: what.into() }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}
