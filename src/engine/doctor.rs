//! Diagnosis of engines: which of them run models on this machine, found by trying.

use std::path::{Path, PathBuf};

use prost::Message;

use super::{
    CpuFallback, Engine, EngineError, EngineKind, HostTensor, OrtEngine, Placement, Provider, ProviderKind,
    RtenEngine, SessionOptions,
    locate::{Origin, Places, locate},
};
use crate::onnx::{DataType, Dimension, ValueInfo, proto};

/// The diagnosis.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// The engines, the preferred one first.
    pub engines: Vec<EngineReport>,
    /// The ONNX Runtime library; `None` if there is none that loads.
    pub library: Option<LibraryReport>,
    /// The plug-in libraries of providers that were named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub provider_libraries: Vec<ProviderLibraryReport>,
    /// ONNX Runtime's execution providers; empty without a library.
    pub providers: Vec<ProviderReport>,
}

/// An engine.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EngineReport {
    /// Which.
    pub engine: EngineKind,
    /// Its version, if it is there.
    pub version: Option<String>,
    /// Whether it ran a small model right.
    pub works: bool,
    /// Why not, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The ONNX Runtime library.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LibraryReport {
    /// Where it is.
    pub path: PathBuf,
    /// How it was found.
    pub origin: Origin,
}

/// A plug-in library of execution providers.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProviderLibraryReport {
    /// The name that it was given.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The devices that it found.
    pub devices: Vec<ProviderDevice>,
    /// Why nothing can run by it, and what would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A device that a provider runs on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ProviderDevice {
    /// The provider's name in ONNX Runtime.
    pub provider: String,
    /// The kind of device, and who made it: `GPU (NVIDIA)`.
    pub hardware: String,
}

/// An execution provider.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProviderReport {
    /// Which.
    pub provider: ProviderKind,
    /// Whether it ran a small model right, on its own.
    pub works: bool,
    /// Why not, and what it needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Where the small model's nodes ran.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub placement: Vec<Placement>,
}

impl Report {
    /// Returns the engine that [`super::choose`] takes when none is named.
    pub fn preferred(&self) -> Option<&EngineReport> {
        self.engines.iter().find(|e| e.works)
    }
}

/// Looks for the engines and has each one, and each of ONNX Runtime's execution providers, run a small model.
/// `libraries` are plug-in libraries of providers, each with its name.
pub fn examine(places: &Places, libraries: &[(&str, &Path)]) -> Report {
    let mut report =
        Report { engines: Vec::new(), library: None, provider_libraries: Vec::new(), providers: Vec::new() };
    let opened = locate(places)
        .and_then(|located| OrtEngine::open(&located.path).map(|engine| (located.origin, engine)));
    match opened {
        Ok((origin, engine)) => {
            report.engines.push(examine_engine(&engine));
            let libraries = libraries.iter();
            report.provider_libraries =
                libraries.map(|(name, path)| examine_provider_library(&engine, name, path)).collect();
            report.library = Some(LibraryReport { path: engine.path().to_path_buf(), origin });
            report.providers = ProviderKind::ALL.map(|kind| examine_provider(&engine, kind)).into();
        }
        Err(error) => report.engines.push(missing(EngineKind::Ort, error.to_string())),
    }
    report.engines.push(examine_engine(&RtenEngine));
    #[cfg(feature = "tract")]
    report.engines.push(examine_engine(&super::TractEngine));
    #[cfg(not(feature = "tract"))]
    report.engines.push(missing(EngineKind::Tract, "not in this build: `--features tract`".to_string()));
    report
}

fn missing(engine: EngineKind, problem: String) -> EngineReport {
    EngineReport { engine, version: None, works: false, problem: Some(problem) }
}

fn examine_engine(engine: &dyn Engine) -> EngineReport {
    let problem = try_out(engine, &SessionOptions::default()).err();
    EngineReport {
        engine: engine.kind(),
        version: Some(engine.version().to_string()),
        works: problem.is_none(),
        problem,
    }
}

fn examine_provider_library(engine: &OrtEngine, name: &str, path: &Path) -> ProviderLibraryReport {
    let before = engine.devices();
    let added = engine.add_provider_library(name, path);
    let mut devices = engine.devices();
    devices.retain(|device| !before.contains(device));
    let is_known =
        |device: &ProviderDevice| ProviderKind::ALL.iter().any(|kind| kind.ort_name() == device.provider);
    let problem = match added {
        Err(EngineError::ProviderLibrary { what, .. }) => Some(what),
        Err(error) => Some(error.to_string()),
        Ok(()) if devices.is_empty() => Some("it found no device here that it runs on".to_string()),
        Ok(()) if !devices.iter().any(is_known) => {
            let known = ProviderKind::ALL.map(ProviderKind::ort_name).join(", ");
            let takes_the_name = devices.iter().any(|device| device.provider == name);
            let hint = match takes_the_name {
                true => "; this one has the name of its library: if it is one of these, name the library so",
                false => "",
            };
            Some(format!("crdiff runs no provider of this name; it runs {known}{hint}"))
        }
        Ok(()) => None,
    };
    ProviderLibraryReport { name: name.to_string(), path: path.to_path_buf(), devices, problem }
}

fn examine_provider(engine: &OrtEngine, provider: ProviderKind) -> ProviderReport {
    let failed =
        |problem| ProviderReport { provider, works: false, problem: Some(problem), placement: Vec::new() };
    if !engine.has_provider(provider) {
        return failed(format!("not in this build of ONNX Runtime; it needs {}", provider.needs()));
    }
    let mut options =
        SessionOptions { providers: vec![Provider::from(provider)], ..SessionOptions::default() };
    if provider != ProviderKind::Cpu {
        options.cpu_fallback = CpuFallback::Refuse;
    }
    match try_out(engine, &options) {
        Ok(placement) => ProviderReport { provider, works: true, problem: None, placement },
        Err(problem) => failed(problem),
    }
}

/// Runs `y = x + x` and checks the result.
fn try_out(engine: &dyn Engine, options: &SessionOptions) -> Result<Vec<Placement>, String> {
    let mut session = engine.load_bytes(doubling_model().into(), options).map_err(|e| match e {
        EngineError::Provider { what, .. } => what,
        other => other.to_string(),
    })?;
    let x = HostTensor::new([1, 2], vec![1.5f32, -2.0]).map_err(|e| e.to_string())?;
    let results = session.run(&[("x", &x)], None).map_err(|e| e.to_string())?;
    match results.first().and_then(|(_, y)| y.as_f32()) {
        Some([3.0, -4.0]) => Ok(session.placement().to_vec()),
        other => Err(format!("it computed 2 * [1.5, -2] = {other:?}")),
    }
}

/// Returns the model `y = x + x` for a float `x [1, 2]`: IR 8, opset 17.
fn doubling_model() -> Vec<u8> {
    use proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
    let value = |name| ValueInfo::tensor(name, DataType::FLOAT, Some([1, 2].map(Dimension::Size).into())).0;
    let add = NodeProto {
        op_type: Some("Add".to_string()),
        input: vec!["x".to_string(), "x".to_string()],
        output: vec!["y".to_string()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("doubling".to_string()),
        node: vec![add],
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    model.encode_to_vec()
}
