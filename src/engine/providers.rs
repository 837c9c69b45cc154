//! ONNX Runtime's execution providers: names, options, and what each needs to work.

use std::{collections::BTreeMap, fmt, str::FromStr};

use ort::{
    ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, ExecutionProviderDispatch},
    session::builder::SessionBuilder,
};

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
    /// CPUs, and Intel's GPUs and NPUs, by OpenVINO.
    OpenVino,
    /// GPUs of any vendor by WebGPU.
    WebGpu,
}

impl ProviderKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Cpu, Self::Cuda, Self::TensorRt, Self::NvTensorRtRtx, Self::OpenVino, Self::WebGpu];

    /// Returns ONNX Runtime's name: `CUDAExecutionProvider`.
    pub fn ort_name(self) -> &'static str {
        match self {
            Self::Cpu => "CPUExecutionProvider",
            Self::Cuda => "CUDAExecutionProvider",
            Self::TensorRt => "TensorrtExecutionProvider",
            Self::NvTensorRtRtx => "NvTensorRTRTXExecutionProvider",
            Self::OpenVino => "OpenVINOExecutionProvider",
            Self::WebGpu => "WebGpuExecutionProvider",
        }
    }

    /// Returns the requirements of the provider on a machine.
    pub fn needs(self) -> &'static str {
        match self {
            Self::Cpu => "nothing more",
            Self::Cuda => {
                "a CUDA build of ONNX Runtime (PyPI: onnxruntime-gpu, its libonnxruntime_providers_*.so in one folder \
                 with libonnxruntime), an NVIDIA driver, and CUDA 13 (cublas, cudart, curand) and cuDNN 9 on the \
                 library path or, from PyPI, in the same Python environment"
            }
            Self::TensorRt => {
                "a CUDA build of ONNX Runtime (PyPI: onnxruntime-gpu), an NVIDIA driver, and TensorRT 10 \
                 (libnvinfer.so.10, libnvonnxparser.so.10; PyPI: tensorrt-cu13<11), CUDA 13 and cuDNN 9 on the \
                 library path or in the same Python environment"
            }
            Self::NvTensorRtRtx => {
                "a build of ONNX Runtime with the NvTensorRtRtx provider, or NVIDIA's plug-in library of it \
                 (`--provider-library NvTensorRTRTXExecutionProvider=PATH`), an NVIDIA RTX GPU, and TensorRT for RTX \
                 on the library path"
            }
            Self::OpenVino => {
                "an OpenVINO build of ONNX Runtime (PyPI: onnxruntime-openvino, which has OpenVINO beside it); for \
                 `device_type` GPU and NPU, Intel's drivers"
            }
            Self::WebGpu => {
                "a WebGPU build of ONNX Runtime (PyPI: onnxruntime-webgpu); on Linux the Vulkan loader (libvulkan.so.1) \
                 and a Vulkan driver"
            }
        }
    }

    /// Returns whether the loaded ONNX Runtime was built with it; it may still lack libraries or a device.
    pub(super) fn is_built_in(self) -> bool {
        match self {
            Self::Cpu => Ok(true),
            Self::Cuda => ep::CUDA::is_available(),
            Self::TensorRt => ep::TensorRT::is_available(),
            Self::NvTensorRtRtx => ep::NVRTX::is_available(),
            Self::OpenVino => ep::OpenVINO::is_available(),
            Self::WebGpu => ep::WebGPU::is_available(),
        }
        .unwrap_or(false)
    }

    /// Returns whether it computes in memory of its own, apart from the host's.
    pub fn has_own_memory(self) -> bool {
        match self {
            Self::Cpu | Self::OpenVino => false,
            Self::Cuda | Self::TensorRt | Self::NvTensorRtRtx | Self::WebGpu => true,
        }
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::NvTensorRtRtx => "nvtensorrtrtx",
            Self::OpenVino => "openvino",
            Self::WebGpu => "webgpu",
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

impl Provider {
    /// Checks the names of the options. Their values are ONNX Runtime's to judge.
    ///
    /// # Errors
    /// [`EngineError::ProviderOption`] for a name that the provider doesn't have, or that a text cannot give.
    pub fn check(&self) -> Result<(), EngineError> {
        let known = self.kind.options();
        let wrong = |name: &str, what: String| EngineError::ProviderOption {
            provider: self.kind,
            name: name.to_string(),
            what,
        };
        for (name, value) in &self.options {
            if name.contains('\0') || value.contains('\0') {
                return Err(wrong(name, "a NUL character cannot be in an option".to_string()));
            }
            if ADDRESSES.contains(&name.as_str()) {
                return Err(wrong(
                    name,
                    "it is the address of something in memory, which no text can give".to_string(),
                ));
            }
            if known.is_empty() {
                return Err(wrong(
                    name,
                    "there is none of this name; this provider has no options".to_string(),
                ));
            }
            if !known.contains(&name.as_str()) {
                let near = known
                    .iter()
                    .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
                let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                return Err(wrong(name, format!("there is none of this name{near}")));
            }
        }
        Ok(())
    }

    /// Returns whether an option is given and switched on.
    pub(super) fn is_on(&self, option: &str) -> bool {
        self.options.get(option).is_some_and(|value| ["1", "True", "true"].contains(&value.as_str()))
    }

    /// Returns whether its options ask for CUDA graphs.
    pub fn captures_cuda_graphs(&self) -> bool {
        self.kind.cuda_graph_option().is_some_and(|option| self.is_on(option))
    }

    /// Returns the same provider without CUDA graphs, for models that are not run from and into device memory.
    #[must_use]
    pub fn without_cuda_graphs(mut self) -> Self {
        if let Some(option) = self.kind.cuda_graph_option() {
            self.options.remove(option);
        }
        self
    }

    /// Returns the provider for graphs of a few operators that are fed what this provider's models give. TensorRT and
    /// OpenVINO would build an engine for each, so that CUDA and the CPU, whose memory they use, run them.
    pub fn for_small_graphs(&self) -> Self {
        let kind = match self.kind {
            ProviderKind::TensorRt => ProviderKind::Cuda,
            ProviderKind::OpenVino => ProviderKind::Cpu,
            kind => kind,
        };
        let mut small = Self::from(kind);
        let device = kind.device_option().and_then(|option| self.options.get_key_value(option));
        small.options.extend(device.map(|(key, value)| (key.clone(), value.clone())));
        if kind == ProviderKind::Cuda {
            small.options.insert("arena_extend_strategy".to_string(), "kSameAsRequested".to_string());
        }
        small
    }
}

/// Options that are pointers of a caller of ONNX Runtime's C interface.
const ADDRESSES: [&str; 15] = [
    "context",
    "dawnProcTable",
    "webgpuDevice",
    "webgpuInstance",
    "user_compute_stream",
    "has_user_compute_stream",
    "gpu_external_alloc",
    "gpu_external_free",
    "gpu_external_empty_cache",
    "trt_onnx_bytestream",
    "trt_onnx_bytestream_size",
    "trt_external_data_bytestream",
    "trt_external_data_bytestream_size",
    "nv_onnx_bytestream",
    "nv_onnx_bytestream_size",
];

impl ProviderKind {
    /// Returns the option that says by number on which device it runs.
    pub fn device_option(self) -> Option<&'static str> {
        match self {
            // OpenVINO's is a name.
            Self::Cpu | Self::OpenVino => None,
            Self::Cuda | Self::TensorRt | Self::NvTensorRtRtx => Some("device_id"),
            Self::WebGpu => Some("deviceId"),
        }
    }

    /// Returns the option that switches CUDA graphs on.
    pub(super) fn cuda_graph_option(self) -> Option<&'static str> {
        match self {
            Self::Cpu | Self::OpenVino | Self::WebGpu => None,
            Self::Cuda | Self::NvTensorRtRtx => Some("enable_cuda_graph"),
            Self::TensorRt => Some("trt_cuda_graph_enable"),
        }
    }

    /// Returns the names of its options in ONNX Runtime 1.31 (OpenVINO's in 1.24, WebGPU's in 1.27, the last releases that
    /// have a package of each; NvTensorRtRtx's in its plug-in), without the ones that are pointers.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Cpu => &[],
            Self::Cuda => &[
                "arena_extend_strategy",
                "cudnn_conv1d_pad_to_nc1d",
                "cudnn_conv_algo_search",
                "cudnn_conv_use_max_workspace",
                "device_id",
                "do_copy_in_default_stream",
                "enable_cuda_graph",
                "enable_cudnn",
                "enable_skip_layer_norm_strict_mode",
                "external_data_loader_reading_threads",
                "fuse_conv_bias",
                "gpu_mem_limit",
                "prefer_nhwc",
                "sdpa_kernel",
                "tunable_op_enable",
                "tunable_op_max_tuning_duration_ms",
                "tunable_op_tuning_enable",
                "use_ep_level_unified_stream",
                "use_tf32",
            ],
            Self::TensorRt => &[
                "device_id",
                "trt_auxiliary_streams",
                "trt_bf16_enable",
                "trt_build_heuristics_enable",
                "trt_builder_optimization_level",
                "trt_context_memory_sharing_enable",
                "trt_cuda_graph_enable",
                "trt_detailed_build_log",
                "trt_dla_core",
                "trt_dla_enable",
                "trt_dump_ep_context_model",
                "trt_dump_subgraphs",
                "trt_engine_cache_enable",
                "trt_engine_cache_path",
                "trt_engine_cache_prefix",
                "trt_engine_decryption_enable",
                "trt_engine_decryption_lib_path",
                "trt_engine_hw_compatible",
                "trt_ep_context_embed_mode",
                "trt_ep_context_file_path",
                "trt_extra_plugin_lib_paths",
                "trt_force_sequential_engine_build",
                "trt_force_timing_cache",
                "trt_fp16_enable",
                "trt_int8_calibration_table_name",
                "trt_int8_enable",
                "trt_int8_use_native_calibration_table",
                "trt_layer_norm_fp32_fallback",
                "trt_load_user_initializer",
                "trt_max_partition_iterations",
                "trt_max_workspace_size",
                "trt_min_subgraph_size",
                "trt_onnx_model_folder_path",
                "trt_op_types_to_exclude",
                "trt_preview_features",
                "trt_profile_max_shapes",
                "trt_profile_min_shapes",
                "trt_profile_opt_shapes",
                "trt_sparsity_enable",
                "trt_tactic_sources",
                "trt_timing_cache_enable",
                "trt_timing_cache_path",
                "trt_weight_stripped_engine_enable",
            ],
            Self::NvTensorRtRtx => &[
                "device_id",
                "enable_cuda_graph",
                "nv_detailed_build_log",
                "nv_dump_subgraphs",
                "nv_enable_profiling",
                "nv_length_aux_stream_array",
                "nv_max_shared_mem_size",
                "nv_max_workspace_size",
                "nv_multi_profile_enable",
                "nv_multi_rotary_cache_concat_offset",
                "nv_op_types_to_exclude",
                "nv_persistent_context_memory",
                "nv_profile_max_shapes",
                "nv_profile_min_shapes",
                "nv_profile_opt_shapes",
                "nv_profiling_output_file",
                "nv_runtime_cache_path",
                "nv_target_sm",
                "nv_use_external_data_initializer",
                "nv_use_sync_gpu_allocator",
                "nv_weight_streaming_budget",
                "nv_weight_stripped_engine_enable_experimental",
            ],
            Self::OpenVino => &[
                "cache_dir",
                "device_id",
                "device_luid",
                "device_type",
                "disable_dynamic_shapes",
                "enable_causallm",
                "enable_opencl_throttling",
                "enable_qdq_optimizer",
                "layout",
                "load_config",
                "model_priority",
                "num_of_threads",
                "num_streams",
                "precision",
                "reshape_input",
            ],
            Self::WebGpu => &[
                "dawnBackendType",
                "defaultBufferCacheMode",
                "deviceId",
                "enableGraphCapture",
                "enableInt64",
                "enablePIXCapture",
                "forceCpuNodeNames",
                "maxStorageBufferBindingSize",
                "multiRotaryCacheConcatOffset",
                "powerPreference",
                "preferredLayout",
                "preserveDevice",
                "queryResolveBufferCacheMode",
                "storageBufferCacheMode",
                "uniformBufferCacheMode",
                "validationMode",
            ],
        }
    }
}

/// Registers one provider, whose options are complete, with a session that is being made.
pub(super) fn register(provider: &Provider, builder: &mut SessionBuilder) -> Result<(), String> {
    let options = &provider.options;
    let dispatch: ExecutionProviderDispatch = match provider.kind {
        ProviderKind::Cpu => ep::CPU::default().with_arena_allocator(true).build(),
        ProviderKind::Cuda => with_options(ep::CUDA::default(), options).build(),
        ProviderKind::TensorRt => with_options(ep::TensorRT::default(), options).build(),
        ProviderKind::NvTensorRtRtx => with_options(ep::NVRTX::default(), options).build(),
        ProviderKind::OpenVino => with_options(ep::OpenVINO::default(), options).build(),
        ProviderKind::WebGpu => {
            // Timesteps are int64 in most exports; without it the arithmetic on them would go to the CPU.
            let with_int64 = ep::WebGPU::default().with_arbitrary_config("enableInt64", "1");
            with_options(with_int64, options).build()
        }
    };
    dispatch.register(builder).map_err(|e| e.message().to_string())
}

fn with_options<P: ArbitrarilyConfigurableExecutionProvider>(
    provider: P,
    options: &BTreeMap<String, String>,
) -> P {
    options.iter().fold(provider, |p, (key, value)| p.with_arbitrary_config(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(kind: ProviderKind, options: &[(&str, &str)]) -> Provider {
        Provider { kind, options: options.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect() }
    }

    #[test]
    fn options_are_known_by_provider() {
        let error = |kind, option| provider(kind, &[option]).check().unwrap_err().to_string();
        assert_eq!(
            error(ProviderKind::Cuda, ("device", "0")),
            "option `device` of the cuda provider: there is none of this name; did you mean `device_id`?"
        );
        assert!(error(ProviderKind::TensorRt, ("fp16_enable", "1")).contains("of the tensorrt provider"));
        assert!(
            error(ProviderKind::NvTensorRtRtx, ("trt_fp16_enable", "1")).contains("nvtensorrtrtx provider")
        );
        assert!(error(ProviderKind::Cpu, ("device_id", "0")).contains("this provider has no options"));
        assert!(error(ProviderKind::Cuda, ("user_compute_stream", "4096")).contains("address"));
        assert!(error(ProviderKind::Cuda, ("device_id", "0\0")).contains("NUL"));
        provider(ProviderKind::Cuda, &[("device_id", "1"), ("use_tf32", "0")]).check().unwrap();
        for kind in ProviderKind::ALL {
            assert!(kind.options().is_sorted(), "{kind}");
            assert!(kind.cuda_graph_option().is_none_or(|option| kind.options().contains(&option)), "{kind}");
        }
    }

    #[test]
    fn small_graphs_run_beside_the_network_without_its_options() {
        let cuda = provider(ProviderKind::Cuda, &[("device_id", "1"), ("enable_cuda_graph", "1")]);
        assert!(cuda.captures_cuda_graphs());
        assert!(!cuda.clone().without_cuda_graphs().captures_cuda_graphs());
        let same = [("arena_extend_strategy", "kSameAsRequested"), ("device_id", "1")];
        assert_eq!(cuda.for_small_graphs(), provider(ProviderKind::Cuda, &same));
        let tensorrt = provider(ProviderKind::TensorRt, &[("device_id", "1"), ("trt_fp16_enable", "1")]);
        assert_eq!(tensorrt.for_small_graphs(), provider(ProviderKind::Cuda, &same));
        let rtx = provider(ProviderKind::NvTensorRtRtx, &[("nv_max_workspace_size", "1")]);
        assert_eq!(rtx.for_small_graphs(), Provider::from(ProviderKind::NvTensorRtRtx));
        let cpu = Provider::from(ProviderKind::Cpu);
        assert_eq!(cpu.for_small_graphs(), cpu);
        let openvino = provider(ProviderKind::OpenVino, &[("device_id", "GPU"), ("precision", "FP32")]);
        assert_eq!(openvino.for_small_graphs(), cpu);
        let webgpu = provider(ProviderKind::WebGpu, &[("deviceId", "1"), ("preferredLayout", "NCHW")]);
        assert_eq!(webgpu.for_small_graphs(), provider(ProviderKind::WebGpu, &[("deviceId", "1")]));
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
