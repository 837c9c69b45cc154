//! Options of all commands that run models: the engine and its settings.

use std::{num::NonZeroUsize, path::PathBuf, str::FromStr};

use clap::ValueEnum;

use super::Failure;
use crate::{
    engine::{
        Chosen, DeviceWord, Engine, EngineKind, EngineRequest, MemoryMode, Provider, ProviderKind,
        ProviderRequest, SessionOptions, choose, fetch::user_cache,
    },
    passes::MaskForm,
    plan::Runtime,
};

/// The engine to run on.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// The engine: ort or rten [default: ONNX Runtime where its library is found, else rten]
    #[arg(long)]
    engine: Option<EngineKind>,
    /// The ONNX Runtime library, or the folder that it is in.
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,
    /// The device, which stands for a provider and its options: cpu, gpu, npu, or the name of a provider [default: the
    /// plan's providers]
    #[arg(long, value_name = "WORD", conflicts_with = "provider")]
    device: Option<DeviceWord>,
    /// An execution provider: cpu, cuda, tensorrt, nvtensorrtrtx, openvino, webgpu. Several in order of preference
    /// [default: the plan's]
    #[arg(long, value_name = "NAME")]
    provider: Vec<ProviderKind>,
    /// A plug-in library of execution providers, and a name for it.
    #[arg(long, value_name = "NAME=PATH")]
    provider_library: Vec<ProviderLibrary>,
    /// An option of a provider, of the first one unless named: cuda.device_id=1.
    #[arg(long, value_name = "[PROVIDER.]KEY=VALUE")]
    provider_option: Vec<String>,
    /// low: dense and pruned networks share their weights in memory, and branches run in turn; slower.
    #[arg(long, value_enum, default_value = "fast")]
    memory: Memory,
    /// Threads within an operator [default: one a core]
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

/// The value of `--provider-library`.
#[derive(Clone, Debug)]
pub struct ProviderLibrary {
    /// The name for it.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

impl FromStr for ProviderLibrary {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_string(), path: path.into() })
            }
            _ => Err("write NAME=PATH".to_string()),
        }
    }
}

/// The values of `--memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Memory {
    /// Several times the weights, fastest.
    Fast,
    /// The weights once.
    Low,
}

impl Memory {
    fn masks(self) -> MaskForm {
        match self {
            Self::Fast => MaskForm::Stored,
            Self::Low => MaskForm::Computed,
        }
    }
}

impl EngineArgs {
    /// Returns the memory mode.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Returns how masked weights are in graphs that run beside the dense one. In low memory weights of their own would
    /// be a part of the weights a second time.
    pub fn masks(&self) -> MaskForm {
        self.memory.masks()
    }

    /// Returns the engine, and how it is to load models; what the command line doesn't say, the plan does.
    pub fn open(&self, runtime: &Runtime) -> Result<(Chosen, SessionOptions), Failure> {
        let libraries = self.provider_library.iter();
        let chosen = choose(&EngineRequest {
            kind: self.engine,
            library: self.ort_lib.clone(),
            provider_libraries: libraries.map(|one| (one.name.clone(), one.path.clone())).collect(),
        })?;
        let options = self.options(runtime, &*chosen.engine)?;
        Ok((chosen, options))
    }

    fn options(&self, runtime: &Runtime, engine: &dyn Engine) -> Result<SessionOptions, Failure> {
        Ok(SessionOptions {
            intra_threads: self.threads,
            memory: match self.memory {
                Memory::Fast => MemoryMode::Fast,
                Memory::Low => MemoryMode::Low,
            },
            providers: self.providers(runtime, engine)?,
            engine_cache: user_cache().map(|folder| folder.join("engines")),
            ..SessionOptions::default()
        })
    }

    fn providers(&self, runtime: &Runtime, engine: &dyn Engine) -> Result<Vec<Provider>, Failure> {
        let option = |text: &String| match text.split_once('=') {
            Some((name, value)) => Ok((name.to_string(), value.to_string())),
            None => Err(Failure::Message(format!("`{text}` is no provider option: write KEY=VALUE"))),
        };
        let request = ProviderRequest {
            device: self.device,
            providers: self.provider.iter().map(|kind| (*kind).into()).collect(),
            options: self.provider_option.iter().map(option).collect::<Result<_, _>>()?,
        };
        let names: Vec<&str> = runtime.providers.iter().map(|name| name.value.as_str()).collect();
        Ok(request.resolve(engine, &names, &runtime.options)?)
    }
}
