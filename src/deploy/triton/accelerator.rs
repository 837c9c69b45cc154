//! Execution accelerators (CUDA, TensorRT) in the parameters of Triton's onnxruntime backend.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::Entry;
use crate::{
    deploy::{DeployError, Range, Sizes, profile},
    hex::hex,
    ir::Graph,
    onnx::{self, DataType},
};

/// The bytes of each tensor that go into the name of its engines in a cache: enough to tell two trainings apart, and
/// read at once.
const SAMPLE: usize = 4096;

/// The parameters that the backend knows for TensorRT; it refuses others.
const TENSORRT: [&str; 32] = [
    "int8_calibration_table_name",
    "int8_use_native_calibration_table",
    "max_workspace_size_bytes",
    "precision_mode",
    "trt_auxiliary_streams",
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
    "trt_ep_context_embed_mode",
    "trt_ep_context_file_path",
    "trt_extra_plugin_lib_paths",
    "trt_force_sequential_engine_build",
    "trt_force_timing_cache",
    "trt_layer_norm_fp32_fallback",
    "trt_max_partition_iterations",
    "trt_min_subgraph_size",
    "trt_profile_max_shapes",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_sparsity_enable",
    "trt_tactic_sources",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
];

/// An accelerator's name and its parameters.
pub(super) type Parameters = (&'static str, Vec<(String, String)>);

/// The accelerator that runs a model on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// ONNX Runtime's CUDA provider as it is, or the CPU.
    None,
    /// The CUDA provider with these options of it.
    Cuda(BTreeMap<String, String>),
    /// The TensorRT provider, with CUDA for what it doesn't run.
    TensorRt(TensorRt),
}

/// How TensorRT builds engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRt {
    /// In which precision; that of the graph unless said.
    pub precision: Option<Precision>,
    /// The most GPU memory that a layer may use for itself, in bytes.
    pub workspace: u64,
    /// A folder on the server where engines and timings are kept.
    pub cache: Option<String>,
    /// The sizes of inputs; without them an engine is built anew whenever a shape is larger than all before.
    pub sizes: Option<Sizes>,
    /// Further parameters of the backend.
    pub options: BTreeMap<String, String>,
}

/// The precision that TensorRT may compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Single.
    Fp32,
    /// Half, where that is faster.
    Fp16,
}

impl Accelerator {
    pub(super) fn check(&self) -> Result<(), DeployError> {
        let Self::TensorRt(tensorrt) = self else { return Ok(()) };
        match tensorrt.options.keys().find(|key| !TENSORRT.contains(&key.as_str())) {
            Some(key) => Err(DeployError::Request(format!(
                "Triton's onnxruntime backend knows no parameter `{key}` for TensorRT; it knows {}",
                TENSORRT.join(", ")
            ))),
            None => Ok(()),
        }
    }

    /// Returns the accelerator's name and parameters for one model.
    pub(super) fn parameters(
        &self,
        entry: &Entry,
        graph: &Graph,
        max_batch: u32,
        notes: &mut Vec<String>,
    ) -> Result<Option<Parameters>, DeployError> {
        match self {
            Self::None => Ok(None),
            Self::Cuda(options) => Ok(Some(("cuda", options.clone().into_iter().collect()))),
            Self::TensorRt(tensorrt) => {
                let parameters = tensorrt.parameters(entry, graph, max_batch, notes)?;
                Ok(Some(("tensorrt", parameters.into_iter().collect())))
            }
        }
    }
}

impl TensorRt {
    fn parameters(
        &self,
        entry: &Entry,
        graph: &Graph,
        max_batch: u32,
        notes: &mut Vec<String>,
    ) -> Result<BTreeMap<String, String>, DeployError> {
        let precision = self.precision.unwrap_or_else(|| match is_half(graph) {
            true => Precision::Fp16,
            false => Precision::Fp32,
        });
        let precision = match precision {
            Precision::Fp32 => "FP32",
            Precision::Fp16 => "FP16",
        };
        let mut parameters = BTreeMap::new();
        let mut set = |key: &str, value: &str| drop(parameters.insert(key.to_string(), value.to_string()));
        set("precision_mode", precision);
        set("max_workspace_size_bytes", &self.workspace.to_string());
        match &self.cache {
            Some(cache) => {
                set("trt_engine_cache_enable", "1");
                set("trt_engine_cache_path", cache);
                set("trt_engine_cache_prefix", &format!("crdiff_{}", key(graph)?));
                set("trt_timing_cache_enable", "1");
                set("trt_timing_cache_path", cache);
            }
            None => notes.push(
                "engines are built anew each time the server starts, which takes minutes; --engine-cache keeps them"
                    .to_string(),
            ),
        }
        match &self.sizes {
            Some(sizes) => {
                let mut sizes = sizes.clone();
                // Requests are joined up to the largest batch.
                sizes.batch = Range { min: sizes.batch.min, max: sizes.batch.max.max(max_batch.into()) };
                // The profile is tried on a graph of its own, in which sizes are then fixed.
                let mut probe = Graph::load(onnx::open(&entry.model)?)?;
                if max_batch > 0 {
                    crate::deploy::make_rows(&mut probe)?;
                }
                let profile = profile(&mut probe, &entry.model, &sizes)?;
                for (which, shapes) in [("min", profile.min), ("opt", profile.opt), ("max", profile.max)] {
                    if !shapes.is_empty() {
                        set(&format!("trt_profile_{which}_shapes"), &shapes);
                    }
                }
            }
            None => notes.push(
                "an engine is built anew for each shape that is larger than all before; --sizes builds one for all"
                    .to_string(),
            ),
        }
        parameters.extend(self.options.clone());
        Ok(parameters)
    }
}

fn is_half(graph: &Graph) -> bool {
    graph.initializers().any(|(_, initializer)| initializer.header.data_type == DataType::FLOAT16)
}

/// Returns the prefix of a graph's engines. ONNX Runtime names cached engines by the graph's names and structure alone,
/// so a graph with other weights would run the engine of this one: a name of its own for each graph, of its structure,
/// its name and a sample of each tensor.
fn key(graph: &Graph) -> Result<String, DeployError> {
    let mut hash = Sha256::new();
    hash.update(graph.structure_digest());
    hash.update(graph.name());
    for (_, initializer) in graph.initializers() {
        let Ok(reader) = graph.weight_reader(&initializer.header) else { continue };
        let length = usize::try_from(reader.len()).unwrap_or(SAMPLE).min(SAMPLE);
        let mut sample = vec![0; length];
        reader.read_at(0, &mut sample)?;
        hash.update(&sample);
    }
    Ok(hex(&hash.finalize()[..8]))
}
