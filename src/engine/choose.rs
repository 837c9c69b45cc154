//! Choosing an engine, and saying why.

use std::path::PathBuf;

use super::{
    Engine, EngineError, EngineKind, OrtEngine, RtenEngine,
    locate::{Places, locate},
};

/// The engine that the user asked for.
#[derive(Clone, Debug, Default)]
pub struct EngineRequest {
    /// The engine; `None` to choose.
    pub kind: Option<EngineKind>,
    /// The ONNX Runtime library, or the folder that it is in.
    pub library: Option<PathBuf>,
    /// Plug-in libraries of providers to add to it, each with a name.
    pub provider_libraries: Vec<(String, PathBuf)>,
}

/// The engine that was taken.
pub struct Chosen {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// Which it is and why, in a line or more for the user: `ONNX Runtime 1.31.1 (/usr/lib/libonnxruntime.so)`.
    pub why: String,
}

/// Takes the engine that was asked for; without one, ONNX Runtime where a library is found, else rten.
///
/// Whatever was named (an engine, a library, ORT_DYLIB_PATH) is used or is an error, never replaced by something else.
///
/// # Errors
/// [`EngineError`] if what was named cannot be had.
pub fn choose(request: &EngineRequest) -> Result<Chosen, EngineError> {
    let chosen = choose_among(request.kind, &Places::from_environment(request.library.clone()))?;
    for (name, path) in &request.provider_libraries {
        chosen.engine.add_provider_library(name, path)?;
    }
    Ok(chosen)
}

/// Chooses as [`choose`] does, with the places to look for ONNX Runtime spelled out.
///
/// # Errors
/// As [`choose`].
pub fn choose_among(kind: Option<EngineKind>, places: &Places) -> Result<Chosen, EngineError> {
    match kind {
        Some(EngineKind::Ort) => ort(places),
        Some(EngineKind::Rten) if places.given.is_some() => Err(EngineError::LibraryUnusable {
            path: places.given.clone().unwrap_or_default(),
            what: "an ONNX Runtime library was named, but so was engine `rten`".to_string(),
        }),
        Some(EngineKind::Rten) => Ok(rten("as asked")),
        Some(EngineKind::Tract) => tract(),
        None => match ort(places) {
            Ok(chosen) => Ok(chosen),
            Err(error) if places.given.is_some() || places.environment.is_some() => Err(error),
            Err(error) => Ok(rten(&format!("slower than ONNX Runtime; {error}"))),
        },
    }
}

fn ort(places: &Places) -> Result<Chosen, EngineError> {
    let located = locate(places)?;
    let engine = OrtEngine::open(&located.path)?;
    let why = format!("ONNX Runtime {} ({}, {})", engine.version(), engine.path().display(), located.origin);
    Ok(Chosen { engine: Box::new(engine), why })
}

fn rten(reason: &str) -> Chosen {
    let engine = RtenEngine;
    let why = format!("rten {} (compiled in): {reason}", engine.version());
    Chosen { engine: Box::new(engine), why }
}

#[cfg(feature = "tract")]
fn tract() -> Result<Chosen, EngineError> {
    let engine = super::TractEngine;
    let why = format!("tract {} (compiled in): as asked", engine.version());
    Ok(Chosen { engine: Box::new(engine), why })
}

#[cfg(not(feature = "tract"))]
fn tract() -> Result<Chosen, EngineError> {
    Err(EngineError::NotBuilt { engine: EngineKind::Tract })
}
