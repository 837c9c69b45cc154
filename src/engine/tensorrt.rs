//! TensorRT: optimisation profiles, engine caches and their keys, for both of its providers.
//!
//! ONNX Runtime names a cached TensorRT engine by the graph's structure and names, never by its weights (its issues
//! 6455 and 21672): with one cache for both, a pruned graph would silently run the dense one's engine. So each engine
//! gets a folder and a prefix of its own, by a key of everything that decides it ([`EngineKey`]).

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Dim, Provider, ProviderKind, TensorInfo};
use crate::{
    hex::hex,
    onnx::{OnnxError, Payload, Source, TensorHeader, graph_field},
};

/// The dimensions that an input will be fed: TensorRT builds for all between `min` and `max`, and tunes for `opt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeRange {
    /// The smallest.
    pub min: Vec<usize>,
    /// The usual.
    pub opt: Vec<usize>,
    /// The largest.
    pub max: Vec<usize>,
}

/// The shapes of a model's inputs in TensorRT's words: `sample:1x4x64x64,encoder_hidden_states:1x77x768`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// For `trt_profile_min_shapes`.
    pub min: String,
    /// For `trt_profile_opt_shapes`.
    pub opt: String,
    /// For `trt_profile_max_shapes`.
    pub max: String,
}

impl Profile {
    /// Returns the profile of the inputs that have dimensions of any size; the others need none.
    ///
    /// # Errors
    /// Which input has no range, or one that its declaration doesn't allow, or a name that cannot be in a profile.
    pub fn of(inputs: &[TensorInfo], ranges: &BTreeMap<String, ShapeRange>) -> Result<Self, String> {
        let mut profile = Self::default();
        for input in inputs {
            let dims = input.dims.as_deref().unwrap_or_default();
            if dims.iter().all(|dim| matches!(dim, Dim::Fixed(_))) {
                continue;
            }
            if input.name.contains([':', ',']) {
                return Err(format!("input `{}`: a profile cannot name it", input.name));
            }
            let range = ranges
                .get(&input.name)
                .ok_or_else(|| format!("input {input}: nothing says which sizes it will be fed"))?;
            let steps = range.min.iter().zip(&range.opt).zip(&range.max);
            let ordered = steps.clone().all(|((min, opt), max)| min <= opt && opt <= max);
            let same_rank =
                [&range.min, &range.opt, &range.max].iter().all(|shape| shape.len() == dims.len());
            let fixed =
                dims.iter().zip(range.min.iter().zip(&range.max)).all(|(dim, (min, max))| match dim {
                    Dim::Fixed(size) => [min, max].iter().all(|n| i64::try_from(**n) == Ok(*size)),
                    Dim::Named(_) | Dim::Unknown => true,
                });
            if !(same_rank && ordered && fixed) {
                return Err(format!(
                    "input {input} cannot be fed {:?} to {:?}, {:?} as a rule",
                    range.min, range.max, range.opt
                ));
            }
            let shapes = [
                (&mut profile.min, &range.min),
                (&mut profile.opt, &range.opt),
                (&mut profile.max, &range.max),
            ];
            for (text, shape) in shapes {
                let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
                let comma = if text.is_empty() { "" } else { "," };
                *text = format!("{text}{comma}{}:{}", input.name, dims.join("x"));
            }
        }
        Ok(profile)
    }
}

/// All that decides a TensorRT engine. Two that differ in anything never share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineKey<'a> {
    /// Digest of the model file and the elements of its weights ([`weight_digest`]).
    pub model: &'a str,
    /// The GPUs, the driver, and which of them is used ([`gpu`]).
    pub gpu: &'a str,
    /// Versions of this program, ONNX Runtime and TensorRT.
    pub versions: &'a [String],
    /// The provider's options, the profile among them; not those that say where a cache is.
    pub options: &'a BTreeMap<String, String>,
}

impl EngineKey<'_> {
    /// Returns the key as 16 hexadecimal digits.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        part(self.model);
        part(self.gpu);
        part(&self.versions.len().to_string());
        self.versions.iter().for_each(|version| part(version));
        for (name, value) in self.options.iter().filter(|(name, _)| !name.contains("cache")) {
            part(name);
            part(value);
        }
        hex(&hash.finalize()[..8])
    }
}

/// Returns the digest of a model and all its weights, wherever they are.
///
/// # Errors
/// [`OnnxError`] if a weight cannot be read.
pub fn weight_digest(source: &Source) -> Result<String, OnnxError> {
    let initializers = source.graph.fields_of(graph_field::INITIALIZER);
    let headers =
        initializers.map(|field| TensorHeader::parse(field.value())).collect::<Result<Vec<_>, _>>()?;
    let digests =
        headers.par_iter().map(|header| external_digest(source, header)).collect::<Result<Vec<_>, _>>()?;
    let mut hash = Sha256::new();
    hash.update(Sha256::digest(&source.bytes));
    digests.into_iter().flatten().for_each(|digest| hash.update(digest));
    Ok(hex(&hash.finalize()))
}

fn external_digest(source: &Source, header: &TensorHeader) -> Result<Option<[u8; 32]>, OnnxError> {
    let Payload::External(range) = &header.payload else { return Ok(None) };
    let unknown = || OnnxError::invalid(format!("tensor `{}`", header.name), "its size is not known");
    let length = header.byte_len().ok_or_else(unknown)?;
    let file = source.data.locate(&header.name, range, length)?;
    let (mut hash, mut done) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    while done < length {
        let next = (length - done).min(buffer.len() as u64);
        let chunk = usize::try_from(next).ok().and_then(|next| buffer.get_mut(..next)).unwrap_or_default();
        file.read_at(range.offset + done, chunk)?;
        hash.update(&*chunk);
        done += next;
    }
    Ok(Some(hash.finalize().into()))
}

/// Returns NVIDIA's driver and GPUs as Linux reports them below `proc` (`/proc/driver/nvidia`), and which of them CUDA
/// sees and takes. Empty parts where the system doesn't say: ONNX Runtime still puts the compute capability into file
/// names.
pub fn gpu(proc: &Path, visible: Option<&str>, device: &str) -> String {
    let driver = fs::read_to_string(proc.join("version")).unwrap_or_default();
    let driver = driver.lines().next().unwrap_or_default().to_string();
    let folders = fs::read_dir(proc.join("gpus")).into_iter().flatten().flatten();
    let models = folders.filter_map(|folder| {
        let information = fs::read_to_string(folder.path().join("information")).ok()?;
        let model = information.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(format!("{} {}", folder.file_name().to_string_lossy(), model.trim()))
    });
    let mut models: Vec<String> = models.collect();
    models.sort_unstable();
    format!("{driver}\n{}\n{}\n{device}", models.join("\n"), visible.unwrap_or_default())
}

/// Returns the version of the TensorRT library that a provider will load; empty if there is none.
fn library_version(kind: ProviderKind) -> String {
    let name = match kind {
        ProviderKind::TensorRt => "libnvinfer.so.10",
        ProviderKind::NvTensorRtRtx => "libtensorrt_rtx.so.1",
        _ => return String::new(),
    };
    // SAFETY: loading runs the library's initialisers; the provider loads the same library by the same name next.
    let Ok(library) = (unsafe { libloading::Library::new(name) }) else { return String::new() };
    // SAFETY: this is the function's signature in NvInferRuntimeBase.h; it takes nothing and returns a number.
    let version =
        unsafe { library.get::<unsafe extern "C" fn() -> i32>(b"getInferLibVersion\0").map(|get| get()) };
    version.map(|version| version.to_string()).unwrap_or_default()
}

/// Completes the options of a TensorRT provider for one model: its profile, and caches of its own. The user's
/// settings stay. Other providers are left as they are.
///
/// # Errors
/// [`EngineError`] where the profile, the weights or the cache folder is wrong.
pub(super) fn complete(
    provider: &mut Provider,
    source: &Source,
    inputs: &[TensorInfo],
    ranges: &BTreeMap<String, ShapeRange>,
    cache: Option<&Path>,
    onnxruntime: &str,
) -> Result<(), String> {
    let prefix = match provider.kind {
        ProviderKind::TensorRt => "trt",
        ProviderKind::NvTensorRtRtx => "nv",
        _ => return Ok(()),
    };
    if provider.kind == ProviderKind::NvTensorRtRtx {
        // On by default there, though not every caller's tensors stay where they were.
        provider.options.entry("enable_cuda_graph".to_string()).or_insert_with(|| "0".to_string());
    }
    let own_profile = provider.options.keys().any(|name| name.starts_with(&format!("{prefix}_profile_")));
    if !own_profile && !ranges.is_empty() {
        let profile = Profile::of(inputs, ranges)?;
        for (which, shapes) in [("min", profile.min), ("opt", profile.opt), ("max", profile.max)] {
            if !shapes.is_empty() {
                provider.options.insert(format!("{prefix}_profile_{which}_shapes"), shapes);
            }
        }
    }
    if cache.is_none() && !provider.is_on("trt_engine_cache_enable") {
        return Ok(());
    }
    let visible = env::var("CUDA_VISIBLE_DEVICES").ok();
    let device = provider.options.get("device_id").map_or("0", String::as_str);
    let gpu = gpu(Path::new("/proc/driver/nvidia"), visible.as_deref(), device);
    let versions =
        [env!("CARGO_PKG_VERSION").to_string(), onnxruntime.to_string(), library_version(provider.kind)];
    let model = weight_digest(source).map_err(|e| e.to_string())?;
    let key =
        EngineKey { model: &model, gpu: &gpu, versions: &versions, options: &provider.options }.digest();
    caches(provider, cache, &key)
}

/// Sets the options that say where engines are kept, unless the user has set them.
fn caches(provider: &mut Provider, cache: Option<&Path>, key: &str) -> Result<(), String> {
    let folder = |name: &str| -> Option<PathBuf> { Some(cache?.join(provider.kind.to_string()).join(name)) };
    let (engines, timings) = (folder(key), folder("timings"));
    let mut set = Vec::new();
    match provider.kind {
        ProviderKind::TensorRt => {
            set.push(("trt_engine_cache_prefix", format!("crdiff_{key}"), None));
            if let (Some(engines), Some(timings)) = (engines, timings) {
                set.push(("trt_engine_cache_enable", "1".to_string(), None));
                set.push(("trt_engine_cache_path", engines.display().to_string(), Some(engines)));
                set.push(("trt_timing_cache_enable", "1".to_string(), None));
                set.push(("trt_timing_cache_path", timings.display().to_string(), Some(timings)));
            }
        }
        ProviderKind::NvTensorRtRtx => {
            set.extend(engines.map(|path| ("nv_runtime_cache_path", path.display().to_string(), Some(path))));
        }
        _ => {}
    }
    let off = ["trt_engine_cache_enable", "trt_timing_cache_enable"]
        .map(|option| provider.options.contains_key(option) && !provider.is_on(option));
    for (name, value, folder) in set {
        let unwanted = (name.starts_with("trt_engine_cache") && off[0])
            || (name.starts_with("trt_timing_cache") && off[1]);
        if unwanted || provider.options.contains_key(name) {
            continue;
        }
        if let Some(folder) = folder {
            fs::create_dir_all(&folder).map_err(|e| {
                let path = folder.display();
                format!(
                    "{path}: cannot create the folder for engines: {e}; name another by the option `{name}`"
                )
            })?;
        }
        provider.options.insert(name.to_string(), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{self, DataType};

    fn input(name: &str, dims: &[Option<i64>]) -> TensorInfo {
        let dims = dims.iter().map(|dim| dim.map_or(Dim::Unknown, Dim::Fixed)).collect();
        TensorInfo { name: name.to_string(), data_type: DataType::FLOAT, dims: Some(dims) }
    }

    fn range(name: &str, min: &[usize], max: &[usize]) -> (String, ShapeRange) {
        (name.to_string(), ShapeRange { min: min.to_vec(), opt: max.to_vec(), max: max.to_vec() })
    }

    #[test]
    fn profiles_name_the_inputs_of_any_size() {
        let sample = input("sample", &[None, Some(4), None, None]);
        let inputs = [sample.clone(), input("timestep", &[]), input("table", &[Some(3)])];
        let ranges = BTreeMap::from([range("sample", &[1, 4, 64, 64], &[2, 4, 64, 96])]);
        let profile = Profile::of(&inputs, &ranges).unwrap();
        assert_eq!(
            [profile.min, profile.opt, profile.max],
            ["sample:1x4x64x64", "sample:2x4x64x96", "sample:2x4x64x96"]
        );
        let error = |range| Profile::of(std::slice::from_ref(&sample), &BTreeMap::from([range])).unwrap_err();
        assert!(error(range("other", &[1], &[1])).contains("`sample` float32[?, 4, ?, ?]: nothing says"));
        for (min, max) in [
            (&[1, 4, 64, 64][..], &[1, 4, 32, 64][..]), // the smallest is the largest
            (&[1, 3, 64, 64], &[1, 3, 64, 64]),         // another number of channels
            (&[1, 64, 64], &[1, 64, 64]),               // another rank
        ] {
            assert!(error(range("sample", min, max)).contains("cannot be fed"));
        }
        let named = input("a:b", &[None]);
        assert!(Profile::of(&[named], &BTreeMap::from([range("a:b", &[1], &[1])])).is_err());
    }

    #[test]
    fn engines_differ_in_all_that_decides_them() {
        let versions = |ort: &str| ["0.1.0".to_string(), ort.to_string(), "101300".to_string()];
        let options = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
        };
        let shapes = options(&[("trt_profile_max_shapes", "sample:2x4x64x64")]);
        let wide = options(&[("trt_profile_max_shapes", "sample:2x4x64x96")]);
        let half = options(&[("trt_profile_max_shapes", "sample:2x4x64x64"), ("trt_fp16_enable", "1")]);
        let elsewhere =
            options(&[("trt_profile_max_shapes", "sample:2x4x64x64"), ("trt_engine_cache_path", "/a")]);
        let key = |model, gpu, ort, options: &BTreeMap<String, String>| {
            EngineKey { model, gpu, versions: &versions(ort), options }.digest()
        };
        let first = key("dense", "H100", "1.31.1", &shapes);
        assert_eq!(first.len(), 16);
        assert_eq!(key("dense", "H100", "1.31.1", &elsewhere), first, "where a cache is decides no engine");
        for other in [
            key("pruned", "H100", "1.31.1", &shapes),
            key("dense", "A100", "1.31.1", &shapes),
            key("dense", "H100", "1.32.0", &shapes),
            key("dense", "H100", "1.31.1", &wide),
            key("dense", "H100", "1.31.1", &half),
        ] {
            assert_ne!(other, first);
        }
    }

    #[test]
    fn models_that_differ_in_weights_alone_have_other_digests() {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sd15-mini/dynamo");
        let digest = || weight_digest(&onnx::open(folder.path().join("unet.onnx")).unwrap());
        fs::copy(fixture.join("unet.onnx"), folder.path().join("unet.onnx")).unwrap();
        assert!(digest().is_err(), "there are no weights yet");
        let data = folder.path().join("unet.onnx.data");
        fs::copy(fixture.join("unet.onnx.data"), &data).unwrap();
        let first = digest().unwrap();
        assert_eq!(digest().unwrap(), first);
        let mut bytes = fs::read(&data).unwrap();
        bytes[0] ^= 1;
        fs::write(&data, bytes).unwrap();
        assert_ne!(digest().unwrap(), first);
    }

    #[test]
    fn the_gpu_is_what_the_driver_says() {
        let proc = tempfile::tempdir().unwrap();
        let empty = gpu(proc.path(), None, "0");
        fs::write(proc.path().join("version"), "NVRM version: 580.65\nGCC\n").unwrap();
        let card = proc.path().join("gpus/0000:01:00.0");
        fs::create_dir_all(&card).unwrap();
        fs::write(card.join("information"), "Model: \t\t NVIDIA H100\nIRQ: 4\n").unwrap();
        let one = gpu(proc.path(), None, "0");
        assert_eq!(one, "NVRM version: 580.65\n0000:01:00.0 NVIDIA H100\n\n0");
        assert_ne!(one, empty);
        assert_ne!(one, gpu(proc.path(), None, "1"));
        assert_ne!(one, gpu(proc.path(), Some("1"), "0"));
    }

    fn provider(kind: ProviderKind, options: &[(&str, &str)]) -> Provider {
        Provider { kind, options: options.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect() }
    }

    #[test]
    fn each_engine_has_a_folder_and_a_prefix() {
        let cache = tempfile::tempdir().unwrap();
        let path = |name: &str| cache.path().join(name).display().to_string();
        let cached = |kind, options: &[(&str, &str)]| {
            let mut provider = provider(kind, options);
            caches(&mut provider, Some(cache.path()), "0123").unwrap();
            provider.options
        };
        let options = cached(ProviderKind::TensorRt, &[]);
        assert_eq!(options["trt_engine_cache_prefix"], "crdiff_0123");
        assert_eq!(options["trt_engine_cache_enable"], "1");
        assert_eq!(options["trt_engine_cache_path"], path("tensorrt/0123"));
        assert_eq!(options["trt_timing_cache_path"], path("tensorrt/timings"));
        assert!(cache.path().join("tensorrt/0123").is_dir());
        let options = cached(ProviderKind::NvTensorRtRtx, &[]);
        assert_eq!(options["nv_runtime_cache_path"], path("nvtensorrtrtx/0123"));
        // Options of the user's stay.
        let own = [("trt_engine_cache_path", "/mine"), ("trt_timing_cache_enable", "0")];
        let options = cached(ProviderKind::TensorRt, &own);
        assert_eq!(options["trt_engine_cache_path"], "/mine");
        assert!(!options.contains_key("trt_timing_cache_path"));
        let off = cached(ProviderKind::TensorRt, &[("trt_engine_cache_enable", "0")]);
        assert!(!off.contains_key("trt_engine_cache_prefix"));
        // A cache that cannot be made is an error with a way out.
        let file = cache.path().join("file");
        fs::write(&file, "").unwrap();
        let error = caches(&mut provider(ProviderKind::TensorRt, &[]), Some(&file), "0123").unwrap_err();
        assert!(error.contains("name another by the option `trt_engine_cache_path`"), "{error}");
    }

    #[test]
    fn options_are_completed_from_model_and_request() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sd15-mini/dynamo/unet.onnx");
        let source = onnx::open(path).unwrap();
        let inputs = [input("sample", &[None, Some(4), None, None])];
        let ranges = BTreeMap::from([range("sample", &[1, 4, 8, 8], &[2, 4, 8, 8])]);
        let completed = |kind, options: &[(&str, &str)]| {
            let mut provider = provider(kind, options);
            complete(&mut provider, &source, &inputs, &ranges, None, "1.31.1").unwrap();
            provider.options
        };
        let options = completed(ProviderKind::TensorRt, &[]);
        assert_eq!(options["trt_profile_min_shapes"], "sample:1x4x8x8");
        assert_eq!(options["trt_profile_opt_shapes"], "sample:2x4x8x8");
        assert!(!options.contains_key("trt_engine_cache_prefix"), "nothing is cached unless asked for");
        let options = completed(ProviderKind::TensorRt, &[("trt_engine_cache_enable", "1")]);
        assert!(options["trt_engine_cache_prefix"].starts_with("crdiff_"));
        let options = completed(ProviderKind::TensorRt, &[("trt_profile_min_shapes", "sample:1x4x4x4")]);
        assert_eq!(options.len(), 1, "a profile of the user's own is left alone");
        let options = completed(ProviderKind::NvTensorRtRtx, &[]);
        assert_eq!(options["nv_profile_max_shapes"], "sample:2x4x8x8");
        assert_eq!(options["enable_cuda_graph"], "0");
        assert!(completed(ProviderKind::Cuda, &[]).is_empty());
    }
}
