//! Engines as Python asks for them.

use std::{collections::BTreeMap, num::NonZeroUsize, path::PathBuf};

use crdiff::{
    engine::{
        Chosen, Engine, EngineError, EngineRequest, MemoryMode, Provider, ProviderRequest, SessionOptions,
        choose, fetch::user_cache,
    },
    passes::MaskForm,
    plan::Runtime,
};
use pyo3::prelude::*;

use crate::failure::Failure;

/// On what to run.
#[derive(Clone, Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub struct EngineOptions {
    /// The engine's name.
    engine: Option<String>,
    /// The ONNX Runtime library, or its folder.
    library: Option<PathBuf>,
    /// A word for a device.
    device: Option<String>,
    /// Execution providers with their options; `None` leaves them to the device or the plan.
    providers: Option<Vec<(String, BTreeMap<String, String>)>>,
    /// Further options, `KEY` or `PROVIDER.KEY` with a value.
    provider_options: Vec<(String, String)>,
    /// Plug-in libraries of providers, each with a name.
    provider_libraries: Vec<(String, PathBuf)>,
    /// `fast` or `low`.
    memory: String,
    /// Threads within an operator.
    threads: Option<usize>,
}

impl EngineOptions {
    /// Whether networks share their weights in memory and branches run in turn.
    pub fn is_low(&self) -> bool {
        self.memory == "low"
    }

    /// How masked weights are in graphs that run beside the dense one.
    pub fn masks(&self) -> MaskForm {
        if self.is_low() { MaskForm::Computed } else { MaskForm::Stored }
    }

    /// The engine.
    pub fn choose(&self) -> Result<Chosen, EngineError> {
        let kind = self.engine.as_deref().map(str::parse).transpose()?;
        let provider_libraries = self.provider_libraries.clone();
        choose(&EngineRequest { kind, library: self.library.clone(), provider_libraries })
    }

    /// The engine, and how it is to load models.
    pub fn open(&self, runtime: &Runtime) -> Result<(Chosen, SessionOptions), Failure> {
        let failed = |error: EngineError| Failure::engine(&error);
        let chosen = self.choose().map_err(failed)?;
        let options = SessionOptions::default()
            .intra_threads(self.threads.and_then(NonZeroUsize::new))
            .memory(if self.is_low() { MemoryMode::Low } else { MemoryMode::Fast })
            .providers(self.providers(runtime, &*chosen.engine).map_err(failed)?)
            .engine_cache(user_cache().map(|folder| folder.join("engines")));
        Ok((chosen, options))
    }

    fn providers(&self, runtime: &Runtime, engine: &dyn Engine) -> Result<Vec<Provider>, EngineError> {
        let provider = |(name, options): &(String, BTreeMap<String, String>)| {
            Ok(Provider { kind: name.parse()?, options: options.clone() })
        };
        let request = ProviderRequest {
            device: self.device.as_deref().map(str::parse).transpose()?,
            providers: self.providers.iter().flatten().map(provider).collect::<Result<_, EngineError>>()?,
            options: self.provider_options.clone(),
        };
        let names: Vec<&str> = runtime.providers.iter().map(|name| name.value.as_str()).collect();
        request.resolve(engine, &names, &runtime.options)
    }
}
