//! Engines as Python asks for them.

use std::{collections::BTreeMap, num::NonZeroUsize, path::PathBuf};

use crdiff::{
    engine::{
        Chosen, EngineError, EngineRequest, MemoryMode, Provider, ProviderKind, SessionOptions, choose,
        fetch::user_cache,
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
    /// Execution providers with their options; `None` leaves them to the plan.
    providers: Option<Vec<(String, BTreeMap<String, String>)>>,
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
        choose(&EngineRequest { kind, library: self.library.clone() })
    }

    /// The engine, and how it is to load models.
    pub fn open(&self, runtime: &Runtime) -> Result<(Chosen, SessionOptions), Failure> {
        let failed = |error: EngineError| Failure::engine(&error);
        let chosen = self.choose().map_err(failed)?;
        let options = SessionOptions::default()
            .intra_threads(self.threads.and_then(NonZeroUsize::new))
            .memory(if self.is_low() { MemoryMode::Low } else { MemoryMode::Fast })
            .providers(self.providers(runtime).map_err(failed)?)
            .engine_cache(user_cache().map(|folder| folder.join("engines")));
        Ok((chosen, options))
    }

    fn providers(&self, runtime: &Runtime) -> Result<Vec<Provider>, EngineError> {
        let of_plan = || {
            let named = runtime.providers.iter().map(|name| name.value.clone());
            named
                .map(|name| (name.clone(), runtime.options.get(&name).cloned().unwrap_or_default()))
                .collect()
        };
        let named: Vec<(String, BTreeMap<String, String>)> = self.providers.clone().unwrap_or_else(of_plan);
        let provider = |(name, options): (String, BTreeMap<String, String>)| {
            let provider = Provider { kind: name.parse::<ProviderKind>()?, options };
            provider.check().map(|()| provider)
        };
        named.into_iter().map(provider).collect()
    }
}
