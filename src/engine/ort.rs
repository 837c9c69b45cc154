//! ONNX Runtime, by a library that is loaded at run time.

mod device;
mod log;
mod nvidia;
mod values;

use std::{
    collections::BTreeMap,
    ffi::CStr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use ort::{
    environment::Environment,
    logging::LogLevel,
    session::{
        OutputSelector, RunOptions,
        builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder},
    },
};

use self::{
    device::Memory,
    log::{Messages, plain},
    values::{owned, tensor_info, view},
};
use super::{
    CpuFallback, DeviceSession, Engine, EngineError, EngineKind, HostTensor, MemoryMode, Optimization,
    Placement, Provider, ProviderKind, Session, SessionOptions, Signature, TensorInfo,
    doctor::ProviderDevice,
    providers,
    signature::{match_inputs, match_outputs, named_dims},
    tensorrt,
};
use crate::{lock::lock, onnx};

/// The oldest release whose interface this crate speaks.
pub const OLDEST_MINOR: u32 = ort::MINOR_VERSION;

/// ONNX Runtime. One library serves the whole process; clones share it.
#[derive(Clone)]
pub struct OrtEngine {
    path: PathBuf,
    version: String,
    environment: Environment,
    messages: Messages,
    /// Plug-in libraries of providers, by name.
    libraries: Arc<Mutex<BTreeMap<String, PathBuf>>>,
}

/// The library of this process. It stays loaded: ONNX Runtime's threads and static state don't survive unloading.
static LOADED: Mutex<Option<OrtEngine>> = Mutex::new(None);

impl OrtEngine {
    /// Loads the library at `path`, or gives the one that is loaded if it is the same file.
    ///
    /// # Errors
    /// [`EngineError::LibraryUnusable`] if it is no ONNX Runtime or too old, [`EngineError::LibraryAlreadyLoaded`] if
    /// this process runs another one.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let unusable = |what: String| EngineError::LibraryUnusable { path: path.to_path_buf(), what };
        let path = path.canonicalize().map_err(|e| unusable(e.to_string()))?;
        let mut loaded = lock(&LOADED);
        if let Some(engine) = loaded.as_ref() {
            return match engine.path == path {
                true => Ok(engine.clone()),
                false => {
                    Err(EngineError::LibraryAlreadyLoaded { loaded: engine.path.clone(), requested: path })
                }
            };
        }
        let version = library_version(&path).map_err(unusable)?;
        if minor(&version).is_none_or(|minor| minor < OLDEST_MINOR) {
            return Err(unusable(format!("it is version {version}; 1.{OLDEST_MINOR} or later is needed")));
        }
        let messages = Messages::default();
        let environment = ort::init_from(&path)
            .map_err(|e| unusable(e.to_string()))?
            .with_name("crdiff")
            .with_telemetry(false)
            .with_logger(messages.logger())
            .build()
            .map_err(|e| unusable(e.to_string()))?;
        environment.set_log_level(LogLevel::Warning);
        let engine = Self { path, version, environment, messages, libraries: Arc::default() };
        *loaded = Some(engine.clone());
        Ok(engine)
    }

    /// Returns the library.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the devices that providers with an interface for plug-ins run on, the CPU among them.
    pub(super) fn devices(&self) -> Vec<ProviderDevice> {
        let device = |device: ort::device::Device<'_>| {
            let hardware = device.hardware_device();
            Some(ProviderDevice {
                provider: device.ep().ok()?.to_string(),
                hardware: format!("{:?} ({})", hardware.ty(), hardware.vendor().unwrap_or("unknown maker")),
            })
        };
        self.environment.devices().filter_map(device).collect()
    }

    /// Returns whether a plug-in library brought this provider and found a device for it.
    fn is_plugged_in(&self, provider: ProviderKind) -> bool {
        self.environment.devices().any(|device| device.ep().is_ok_and(|name| name == provider.ort_name()))
    }

    /// Registers a provider of a plug-in library, on the device that its options name, with a session that is being
    /// made.
    fn plug_in(&self, provider: &Provider, builder: &mut SessionBuilder) -> Result<(), String> {
        let name = provider.kind.ort_name();
        let option = provider.kind.device_option();
        let given = option.and_then(|option| provider.options.get(option)).map_or("0", String::as_str);
        let number: usize = given.parse().map_err(|_| format!("`{given}` is no number of a device"))?;
        let mut devices = self.environment.devices().filter(|d| d.ep().is_ok_and(|ep| ep == name));
        let device = devices.nth(number).ok_or_else(|| format!("its library knows no device {number}"))?;
        let prefixed = |(key, value): (&String, &String)| (format!("{name}.{key}"), value.clone());
        let options: Vec<(String, String)> = provider.options.iter().map(prefixed).collect();
        let made = builder.clone().with_devices([device], Some(&options));
        *builder = made.map_err(|e| e.message().to_string())?;
        Ok(())
    }

    fn create(
        &self,
        model: &str,
        source: &onnx::Source,
        from: Origin<'_>,
        options: &SessionOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let failed =
            |what: String| EngineError::Load { engine: EngineKind::Ort, model: model.to_string(), what };
        let refused = |provider: ProviderKind, what: String| EngineError::Provider {
            engine: EngineKind::Ort,
            model: model.to_string(),
            provider,
            what,
        };
        options.providers.iter().try_for_each(Provider::check)?;
        let signature = Signature::of(source)
            .map_err(|source| EngineError::Model { model: model.to_string(), source })?;
        let setting = |e: ort::Error<SessionBuilder>| failed(e.message().to_string());
        let mut builder = builder(&self.environment, options).map_err(|e| failed(e.message().to_string()))?;
        for (name, size) in named_dims(model, &signature.inputs, &options.fixed_dims)? {
            builder = builder.with_dimension_override(name, size).map_err(setting)?;
        }
        for provider in &options.providers {
            let needs = provider.kind.needs();
            let cannot = |reason: &str, said: &str| {
                refused(provider.kind, format!("{reason}{said}\nit needs {needs}"))
            };
            if !self.has_provider(provider.kind) {
                let reason = match lock(&self.libraries).is_empty() {
                    true => "this build of ONNX Runtime doesn't have it",
                    false => {
                        "neither this build of ONNX Runtime has it nor a plug-in library that found a device for it"
                    }
                };
                return Err(cannot(reason, &format!(" ({})", self.path.display())));
            }
            let mut provider = provider.clone();
            let cache = options.engine_cache.as_deref();
            tensorrt::complete(
                &mut provider,
                source,
                &signature.inputs,
                &options.profile,
                cache,
                &self.version,
            )
            .map_err(|what| refused(provider.kind, what))?;
            nvidia::preload(provider.kind, &self.path);
            self.messages.clear();
            let registered = match provider.kind.is_built_in() {
                true => providers::register(&provider, &mut builder),
                false => self.plug_in(&provider, &mut builder),
            };
            registered.map_err(|reason| {
                cannot(&plain(&reason), &format!("{}{}", given(&provider), self.messages.joined()))
            })?;
        }
        let accelerators: Vec<_> =
            options.providers.iter().map(|p| p.kind).filter(|kind| *kind != ProviderKind::Cpu).collect();
        let log = Messages::default();
        if !options.providers.is_empty() {
            // Only the log tells where nodes went (interface 1.22).
            builder = builder.with_log_level(LogLevel::Verbose).map_err(setting)?;
            builder = builder.with_logger(log.placement_logger()).map_err(setting)?;
        }
        let session = match from {
            Origin::File(path) => builder.commit_from_file(path),
            Origin::Memory(bytes) => builder.commit_from_memory(bytes),
        }
        .map_err(|e| match accelerators.first() {
            Some(provider) => refused(*provider, explained(&plain(e.message()), &log)),
            None => failed(plain(e.message())),
        })?;
        let placement = log.placement();
        for kind in accelerators {
            if !placement.is_empty() && !placement.iter().any(|p| p.provider == kind.ort_name()) {
                return Err(refused(kind, "it took none of the graph's nodes".to_string()));
            }
        }
        let describe = |outlets: &[ort::value::Outlet]| -> Result<Vec<TensorInfo>, EngineError> {
            outlets.iter().map(|o| tensor_info(o.name(), o.dtype()).map_err(failed)).collect()
        };
        let (inputs, outputs) = (describe(session.inputs())?, describe(session.outputs())?);
        let memory = Memory::of(&options.providers).map_err(failed)?;
        let captures = options.providers.iter().any(Provider::captures_cuda_graphs);
        let model = model.to_string();
        let gives_back = options.memory == MemoryMode::Low && !options.runs_on_a_device();
        Ok(Box::new(OrtSession { model, session, inputs, outputs, placement, memory, captures, gives_back }))
    }
}

/// Says which options a provider was given: ONNX Runtime does not say which value it refuses.
fn given(provider: &Provider) -> String {
    let options: Vec<String> =
        provider.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if options.is_empty() { String::new() } else { format!("\nits options are {}", options.join(", ")) }
}

impl Engine for OrtEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Ort
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn load(&self, path: &Path, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let model = path.display().to_string();
        let source = onnx::open_with_weights(path)
            .map_err(|source| EngineError::Model { model: model.clone(), source })?;
        self.create(&model, &source, Origin::File(path), options)
    }

    fn load_bytes(&self, bytes: Bytes, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let model = "a model in memory";
        let source = onnx::open_bytes(bytes.clone(), ".")
            .map_err(|source| EngineError::Model { model: model.to_string(), source })?;
        self.create(model, &source, Origin::Memory(&bytes), options)
    }

    fn has_provider(&self, provider: ProviderKind) -> bool {
        provider.is_built_in() || self.is_plugged_in(provider)
    }

    fn add_provider_library(&self, name: &str, path: &Path) -> Result<(), EngineError> {
        let refused = |what: String| EngineError::ProviderLibrary {
            name: name.to_string(),
            path: path.to_path_buf(),
            what,
        };
        let mut known = lock(&self.libraries);
        let path = path.canonicalize().map_err(|e| refused(e.to_string()))?;
        match known.get(name) {
            Some(other) if *other == path => return Ok(()),
            Some(other) => return Err(refused(format!("{name} is {} already", other.display()))),
            None => {}
        }
        nvidia::preload_beside(&path);
        let added = self.environment.register_ep_library(name, &path);
        added.map_err(|e| refused(plain(e.message())))?;
        known.insert(name.to_string(), path);
        Ok(())
    }
}

/// Where ONNX Runtime reads a model from.
enum Origin<'a> {
    File(&'a Path),
    Memory(&'a [u8]),
}

fn builder(environment: &Environment, options: &SessionOptions) -> ort::Result<SessionBuilder> {
    let mut builder =
        ort::session::Session::builder(environment)?.with_optimization_level(match options.optimization {
            Optimization::Disabled => GraphOptimizationLevel::Disable,
            Optimization::Basic => GraphOptimizationLevel::Level1,
            Optimization::Extended => GraphOptimizationLevel::Level2,
            Optimization::All => GraphOptimizationLevel::All,
        })?;
    if let Some(threads) = options.intra_threads {
        builder = builder.with_intra_threads(threads.get())?;
    }
    if options.memory == MemoryMode::Low {
        // All three make weights of their own, which no two sessions can share.
        let copying = "NchwcTransformer;ConstantFolding";
        builder = builder.with_disabled_optimizers(copying)?.with_prepacking(false)?;
    }
    if !options.runs_on_a_device() {
        // A pattern is one block as large as all that lives at once, beside the arena of the first run: twice the
        // memory, and no faster. Threads that wait for work by spinning would take the processor from the other
        // networks, which run in turn.
        builder =
            builder.with_memory_pattern(false)?.with_config_entry("session.force_spinning_stop", "1")?;
    }
    if options.providers.is_empty() {
        // The crate asks for the most efficient device otherwise, whatever that is.
        builder = builder.with_auto_device(AutoDevicePolicy::PreferCPU)?;
    }
    if options.cpu_fallback == CpuFallback::Refuse {
        builder = builder.with_disable_cpu_fallback()?;
    }
    for (key, value) in &options.config {
        builder = builder.with_config_entry(key, value)?;
    }
    Ok(builder)
}

struct OrtSession {
    model: String,
    session: ort::session::Session,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    placement: Vec<Placement>,
    memory: Memory,
    /// Whether runs are captured as CUDA graphs where they say what is to be replayed.
    captures: bool,
    /// Whether the host's memory is given back after each run, so that sessions that run in turn need it once.
    gives_back: bool,
}

impl Session for OrtSession {
    fn kind(&self) -> EngineKind {
        EngineKind::Ort
    }

    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(
        &mut self,
        inputs: &[(&str, &HostTensor)],
        outputs: Option<&[&str]>,
    ) -> Result<Vec<(String, HostTensor)>, EngineError> {
        let fed = match_inputs(&self.model, &self.inputs, inputs)?;
        let wanted = match_outputs(&self.model, &self.outputs, outputs)?;
        let failed =
            |what: String| EngineError::Run { engine: EngineKind::Ort, model: self.model.clone(), what };
        let message = |e: ort::Error| failed(plain(e.message()));
        let mut values = Vec::with_capacity(fed.len());
        for (info, tensor) in self.inputs.iter().zip(fed) {
            values.push((info.name.as_str(), view(tensor).map_err(message)?));
        }
        let names: Vec<&str> =
            wanted.iter().filter_map(|i| self.outputs.get(*i)).map(|o| o.name.as_str()).collect();
        let mut selected: Vec<&str> = Vec::with_capacity(names.len());
        for name in &names {
            if !selected.contains(name) {
                selected.push(name);
            }
        }
        let selector = selected.iter().fold(OutputSelector::no_default(), |s, name| s.with(*name));
        let mut options = RunOptions::new().map_err(message)?;
        if self.captures {
            // Inputs and outputs lie elsewhere in each run: nothing to replay.
            for key in GRAPH_IDS {
                options.set(key, "-1").map_err(message)?;
            }
        }
        if self.gives_back {
            options.set("memory.enable_memory_arena_shrinkage", "cpu:0").map_err(message)?;
        }
        let options = options.with_outputs(selector);
        let results = self.session.run_with_options(values, &options).map_err(message)?;
        let mut tensors = Vec::with_capacity(names.len());
        for name in names {
            let value = results.get(name).ok_or_else(|| failed(format!("it gave no output `{name}`")))?;
            let tensor = owned(value).map_err(|what| failed(format!("output `{name}`: {what}")))?;
            tensors.push((name.to_string(), tensor));
        }
        Ok(tensors)
    }

    fn placement(&self) -> &[Placement] {
        &self.placement
    }

    fn device(&mut self) -> Option<&mut dyn DeviceSession> {
        Some(self)
    }
}

/// The run options with the number of a CUDA graph: of ONNX Runtime's own providers, and of NVIDIA's plug-in.
const GRAPH_IDS: [&str; 2] = ["gpu_graph_id", "cuda_graph_annotation_id"];

/// Returns ONNX Runtime's reason for refusing a model: with the nodes that would go to the CPU where none may, and with what
/// to do where CUDA graphs are the reason.
fn explained(reason: &str, log: &Messages) -> String {
    let without_kernel = log.without_kernel();
    if reason.contains("assigned to the default CPU EP") && !without_kernel.is_empty() {
        return format!("{reason}\nit has no kernels for {}", without_kernel.join(", "));
    }
    if !reason.contains("graph capture") {
        return reason.to_string();
    }
    let placement = log.placement();
    let nodes: Vec<_> = placement.iter().map(|p| format!("{} of {}", p.nodes, p.provider)).collect();
    let nodes =
        if nodes.is_empty() { String::new() } else { format!("\nnodes by provider: {}", nodes.join(", ")) };
    format!(
        "{}{nodes}\na CUDA graph can be captured only if no node runs on the CPU: leave the option for CUDA graphs out, or \
         export the network with torch's dynamo exporter, which leaves no arithmetic on shapes in the graph",
        reason.trim()
    )
}

/// Returns the version that a library calls itself.
fn library_version(path: &Path) -> Result<String, String> {
    // SAFETY: loading runs the library's initialisers. The file is one that the user named, or is called
    // libonnxruntime in a place where ONNX Runtime is installed; it is about to be run anyway.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
    // SAFETY: this is the signature of the one symbol that every release of ONNX Runtime exports.
    let api_base =
        unsafe { library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase\0") }
            .map_err(|_| "it is no ONNX Runtime: it does not export OrtGetApiBase".to_string())?;
    // SAFETY: the function takes nothing and returns a pointer to a static, whose layout never changes; the version
    // is a static string.
    let version = unsafe {
        let base = api_base().as_ref().ok_or("OrtGetApiBase returned nothing")?;
        CStr::from_ptr((base.GetVersionString)())
    };
    Ok(version.to_string_lossy().into_owned())
}

/// Returns the `22` of `1.22.0`.
pub(super) fn minor(version: &str) -> Option<u32> {
    let mut parts = version.split('.');
    match (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse().ok()?) {
        (1, minor) => Some(minor),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_explained() {
        let log = Messages::default();
        let kept = log.placement_logger();
        for line in [
            "Node(s) placed on [CPUExecutionProvider]. Number of nodes: 17",
            "Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 400",
            "webgpu kernel not found in registries for Op type: Max node name: n1",
            "webgpu kernel not found in registries for Op type: Max node name: n1",
        ] {
            kept(LogLevel::Info, "", "", "", line);
        }
        let said = "This session cannot use the graph capture feature as requested by the user\n";
        let cuda_graphs = explained(said, &log);
        assert!(cuda_graphs.contains("17 of CPUExecutionProvider, 400 of CUDA"), "{cuda_graphs}");
        assert!(cuda_graphs.contains("dynamo"), "{cuda_graphs}");
        let said = "This session contains graph nodes that are assigned to the default CPU EP, but ...";
        assert_eq!(explained(said, &log), format!("{said}\nit has no kernels for Max `n1`"));
        assert_eq!(explained("out of memory", &log), "out of memory");
    }

    #[test]
    fn versions() {
        assert_eq!(minor("1.31.1"), Some(31));
        assert_eq!(minor("1.22.0-dev"), Some(22));
        assert_eq!(minor("2.0"), None);
        assert_eq!(minor("onnx"), None);
    }

    #[test]
    fn a_file_that_is_no_library() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = OrtEngine::open(file.path()).map(|_| ()).unwrap_err();
        assert!(matches!(error, EngineError::LibraryUnusable { .. }), "{error}");
        let error = OrtEngine::open(Path::new("/nowhere/libonnxruntime.so")).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/libonnxruntime.so: cannot be used"), "{error}");
    }
}
