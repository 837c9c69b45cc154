//! ONNX Runtime's execution providers: names, options, and what each needs to work.

use std::{collections::BTreeMap, fmt, path::Path, str::FromStr, time::UNIX_EPOCH};

use ort::{
    ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, ExecutionProviderDispatch},
    session::builder::SessionBuilder,
};
use sha2::{Digest, Sha256};

use super::EngineError;

/// An execution provider and its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Which one.
    pub kind: ProviderKind,
    /// Its options, by ONNX Runtime's names: `device_id`, `trt_fp16_enable`. The CPU has none.
    pub options: BTreeMap<String, String>,
}

/// The execution providers that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// The CPU.
    Cpu,
    /// NVIDIA GPUs by CUDA and cuDNN.
    Cuda,
    /// NVIDIA GPUs by TensorRT.
    TensorRt,
    /// NVIDIA RTX GPUs by TensorRT for RTX.
    NvTensorRtRtx,
}

impl ProviderKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Cuda, Self::TensorRt, Self::NvTensorRtRtx];

    /// ONNX Runtime's name: `CUDAExecutionProvider`.
    pub fn ort_name(self) -> &'static str {
        match self {
            Self::Cpu => "CPUExecutionProvider",
            Self::Cuda => "CUDAExecutionProvider",
            Self::TensorRt => "TensorrtExecutionProvider",
            Self::NvTensorRtRtx => "NvTensorRTRTXExecutionProvider",
        }
    }

    /// What a machine needs for it.
    pub fn needs(self) -> &'static str {
        match self {
            Self::Cpu => "nothing more",
            Self::Cuda => {
                "a CUDA build of ONNX Runtime (PyPI: onnxruntime-gpu, its libonnxruntime_providers_*.so in one folder \
                 with libonnxruntime), an NVIDIA driver, and CUDA 13 (cublas, cudart, curand) and cuDNN 9 on the \
                 library path"
            }
            Self::TensorRt => {
                "a CUDA build of ONNX Runtime (PyPI: onnxruntime-gpu), an NVIDIA driver, and TensorRT 10 \
                 (libnvinfer.so.10, libnvonnxparser.so.10; PyPI: tensorrt-cu13<11), CUDA 13 and cuDNN 9 on the \
                 library path"
            }
            Self::NvTensorRtRtx => {
                "a build of ONNX Runtime with the NvTensorRtRtx provider, an NVIDIA RTX GPU, and TensorRT for RTX on \
                 the library path"
            }
        }
    }

    /// Whether the loaded ONNX Runtime was built with it; it may still lack libraries or a device.
    pub(super) fn is_built_in(self) -> bool {
        match self {
            Self::Cpu => Ok(true),
            Self::Cuda => ep::CUDA::is_available(),
            Self::TensorRt => ep::TensorRT::is_available(),
            Self::NvTensorRtRtx => ep::NVRTX::is_available(),
        }
        .unwrap_or(false)
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::NvTensorRtRtx => "nvtensorrtrtx",
        })
    }
}

impl FromStr for ProviderKind {
    type Err = EngineError;

    fn from_str(name: &str) -> Result<Self, EngineError> {
        let lower = name.to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|kind| kind.to_string() == lower || kind.ort_name().to_ascii_lowercase() == lower)
            .ok_or_else(|| EngineError::UnknownProvider { name: name.to_string() })
    }
}

impl From<ProviderKind> for Provider {
    fn from(kind: ProviderKind) -> Self {
        Self { kind, options: BTreeMap::new() }
    }
}

/// Registers one provider with a session that is being made. `model` identifies the model for TensorRT's engine cache.
pub(super) fn register(
    provider: &Provider,
    model: &ModelIdentity,
    builder: &mut SessionBuilder,
) -> Result<(), String> {
    if let Some((key, value)) = provider.options.iter().find(|(k, v)| k.contains('\0') || v.contains('\0')) {
        return Err(format!("option {key:?} = {value:?} contains a NUL character"));
    }
    let mut options = provider.options.clone();
    let dispatch: ExecutionProviderDispatch = match provider.kind {
        ProviderKind::Cpu if options.is_empty() => ep::CPU::default().with_arena_allocator(true).build(),
        ProviderKind::Cpu => return Err("the CPU provider has no options".to_string()),
        ProviderKind::Cuda => with_options(ep::CUDA::default(), &options).build(),
        ProviderKind::TensorRt => {
            separate_engine_cache(&mut options, model);
            with_options(ep::TensorRT::default(), &options).build()
        }
        ProviderKind::NvTensorRtRtx => with_options(ep::NVRTX::default(), &options).build(),
    };
    dispatch.register(builder).map_err(|e| e.message().to_string())
}

fn with_options<P: ArbitrarilyConfigurableExecutionProvider>(
    provider: P,
    options: &BTreeMap<String, String>,
) -> P {
    options.iter().fold(provider, |p, (key, value)| p.with_arbitrary_config(key, value))
}

/// What tells one model file from another without reading its weights.
pub(super) enum ModelIdentity<'a> {
    /// A file, by its path, length and time of change.
    File(&'a Path),
    /// A model in memory, by its bytes.
    Bytes(&'a [u8]),
}

/// Gives each model an engine cache of its own. TensorRT's provider names cached engines by graph structure, not by
/// weights (onnxruntime issues 6455 and 21672): with one cache, a pruned graph would silently run the dense engine.
fn separate_engine_cache(options: &mut BTreeMap<String, String>, model: &ModelIdentity) {
    let cached =
        options.get("trt_engine_cache_enable").is_some_and(|v| matches!(v.as_str(), "1" | "True" | "true"));
    if !cached || options.contains_key("trt_engine_cache_prefix") {
        return;
    }
    let mut hash = Sha256::new();
    match model {
        ModelIdentity::Bytes(bytes) => hash.update(bytes),
        ModelIdentity::File(path) => {
            let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
            hash.update(path.as_os_str().as_encoded_bytes());
            if let Ok(meta) = path.metadata() {
                hash.update(meta.len().to_le_bytes());
                let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
                hash.update(changed.unwrap_or_default().as_nanos().to_le_bytes());
            }
        }
    }
    let digest: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    options.insert("trt_engine_cache_prefix".to_string(), format!("crdiff_{digest}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_prefix(options: &[(&str, &str)], model: &[u8]) -> Option<String> {
        let mut options = options.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        separate_engine_cache(&mut options, &ModelIdentity::Bytes(model));
        options.remove("trt_engine_cache_prefix")
    }

    #[test]
    fn cached_engines_of_two_models_never_share_a_name() {
        let cached = [("trt_engine_cache_enable", "1")];
        assert_ne!(cache_prefix(&cached, b"dense"), cache_prefix(&cached, b"pruned"));
        assert_eq!(cache_prefix(&cached, b"dense"), cache_prefix(&cached, b"dense"));
        assert_eq!(cache_prefix(&[], b"dense"), None);
        let own = [("trt_engine_cache_enable", "1"), ("trt_engine_cache_prefix", "mine")];
        assert_eq!(cache_prefix(&own, b"dense").as_deref(), Some("mine"));
    }

    #[test]
    fn names_are_read_in_both_spellings() {
        for kind in ProviderKind::ALL {
            assert_eq!(kind.to_string().parse::<ProviderKind>().unwrap(), kind);
            assert_eq!(kind.ort_name().parse::<ProviderKind>().unwrap(), kind);
        }
        assert!("gpu".parse::<ProviderKind>().unwrap_err().to_string().contains("tensorrt"));
    }
}
