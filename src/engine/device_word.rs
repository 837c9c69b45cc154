//! Kinds of devices, each by one word that stands for a provider and its options.

use std::{fmt, str::FromStr};

use super::{Engine, EngineError, Provider, ProviderKind};

/// A kind of device to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceWord {
    /// A GPU, by the first provider that the engine has for one.
    Gpu,
    /// An NPU.
    Npu,
    /// Whatever this provider runs on by itself.
    By(ProviderKind),
}

impl DeviceWord {
    /// The words.
    pub const WORDS: [&str; 8] =
        ["cpu", "gpu", "npu", "cuda", "tensorrt", "nvtensorrtrtx", "openvino", "webgpu"];

    /// Returns the providers that run on it in `engine`, the preferred one first. Those that are named are returned
    /// whether the engine has them or not: loading a model says what is missing.
    ///
    /// # Errors
    /// [`EngineError::NoProviderFor`] if the engine has none for it.
    pub fn providers(self, engine: &dyn Engine) -> Result<Vec<Provider>, EngineError> {
        let openvino = |device: &str| {
            let mut provider = Provider::from(ProviderKind::OpenVino);
            provider.options.insert("device_type".to_string(), device.to_string());
            provider
        };
        let choices: Vec<Provider> = match self {
            // TensorRT leaves nodes to CUDA that it has no kernels for.
            Self::By(ProviderKind::TensorRt) => {
                return Ok(vec![ProviderKind::TensorRt.into(), ProviderKind::Cuda.into()]);
            }
            Self::By(kind) => return Ok(vec![kind.into()]),
            Self::Gpu => vec![
                ProviderKind::Cuda.into(),
                ProviderKind::NvTensorRtRtx.into(),
                openvino("GPU"),
                ProviderKind::WebGpu.into(),
            ],
            Self::Npu => vec![openvino("NPU")],
        };
        let tried = choices.iter().map(|provider| provider.kind).collect();
        let chosen = choices.into_iter().find(|provider| engine.has_provider(provider.kind));
        chosen.map(|provider| vec![provider]).ok_or(EngineError::NoProviderFor {
            device: self,
            engine: engine.kind(),
            tried,
        })
    }
}

impl fmt::Display for DeviceWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpu => f.write_str("gpu"),
            Self::Npu => f.write_str("npu"),
            Self::By(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for DeviceWord {
    type Err = EngineError;

    fn from_str(word: &str) -> Result<Self, EngineError> {
        match word.to_ascii_lowercase().as_str() {
            "gpu" => Ok(Self::Gpu),
            "npu" => Ok(Self::Npu),
            other => match other.parse() {
                Ok(kind) => Ok(Self::By(kind)),
                Err(_) => Err(EngineError::UnknownDevice { word: word.to_string() }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::RtenEngine;

    #[test]
    fn words_are_read_and_never_fall_back() {
        for word in DeviceWord::WORDS {
            assert_eq!(word.parse::<DeviceWord>().unwrap().to_string(), word);
        }
        let error = "vpu".parse::<DeviceWord>().unwrap_err().to_string();
        assert!(error.contains("cpu, gpu, npu"), "{error}");
        let kinds = |word: &str| -> Result<Vec<ProviderKind>, String> {
            let providers = word.parse::<DeviceWord>().unwrap().providers(&RtenEngine);
            providers.map(|all| all.iter().map(|p| p.kind).collect()).map_err(|e| e.to_string())
        };
        assert_eq!(kinds("cpu"), Ok(vec![ProviderKind::Cpu]));
        assert_eq!(kinds("tensorrt"), Ok(vec![ProviderKind::TensorRt, ProviderKind::Cuda]));
        let none = "no execution provider for device `gpu`: this rten has none of cuda, nvtensorrtrtx, openvino, webgpu";
        assert_eq!(kinds("gpu").unwrap_err(), none);
        assert!(kinds("npu").unwrap_err().contains("openvino"));
    }
}
