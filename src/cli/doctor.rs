//! `crdiff doctor`: tries each engine on this machine; fetches ONNX Runtime if asked.

use std::{fmt::Write, path::PathBuf};

use super::{DONE, Failure, Json, engine_args::ProviderLibrary};
use crate::engine::{
    EngineError, EngineKind,
    doctor::{Report, examine},
    fetch::{self, ONNXRUNTIME_VERSION},
    locate::Places,
};

/// Show which engines and execution providers work here, and why the others don't.
///
/// Each one runs a small model. The exit code is 0 if at least one engine works, 1 if none does, 2 if ONNX Runtime
/// could not be fetched.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crdiff doctor                               what there is
  crdiff doctor --fetch                       also get ONNX Runtime into the cache folder (needs python3 with pip)
  crdiff doctor --ort-lib /opt/ort/lib        try this libonnxruntime
  crdiff doctor --json | jq .providers")]
pub struct Args {
    /// The ONNX Runtime library, or the folder that it is in.
    #[arg(long, value_name = "PATH")]
    pub ort_lib: Option<PathBuf>,
    /// A plug-in library of execution providers, and a name for it.
    #[arg(long, value_name = "NAME=PATH")]
    pub provider_library: Vec<ProviderLibrary>,
    /// First fetch ONNX Runtime from PyPI into the cache folder; its checksum is pinned.
    #[arg(long, conflicts_with = "ort_lib")]
    pub fetch: bool,
    #[command(flatten)]
    json: Json,
}

/// Exit code: no engine works.
const NONE_WORKS: u8 = 1;

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Message(error.to_string())
    }
}

/// Runs `crdiff doctor`.
///
/// # Errors
/// [`Failure::Message`] if ONNX Runtime was to be fetched and could not.
pub fn run(args: &Args) -> Result<u8, Failure> {
    if args.fetch {
        let folder = fetch::cache_folder().ok_or_else(|| EngineError::Fetch {
            version: ONNXRUNTIME_VERSION,
            what: "neither XDG_CACHE_HOME nor HOME names a folder to put it in".to_string(),
        })?;
        let library = fetch::fetch(&folder)?;
        anstream::eprintln!("ONNX Runtime {ONNXRUNTIME_VERSION} is in {}", library.display());
    }
    let libraries: Vec<_> =
        args.provider_library.iter().map(|library| (library.name.as_str(), library.path.as_path())).collect();
    let report = examine(&Places::from_environment(args.ort_lib.clone()), &libraries);
    if args.json.is_asked() {
        let json = serde_json::to_string_pretty(&report).map_err(|e| Failure::Message(e.to_string()))?;
        out!("{json}\n");
    } else {
        out!("{}", text(&report));
    }
    Ok(if report.preferred().is_some() { DONE } else { NONE_WORKS })
}

fn text(report: &Report) -> String {
    let mut out = String::from("Engines\n");
    for engine in &report.engines {
        let name = engine.engine.to_string();
        let version = engine.version.as_deref().unwrap_or("-");
        line(&mut out, engine.works, &format!("{name:<14} {version}"), engine.problem.as_deref());
        if let (EngineKind::Ort, Some(library)) = (engine.engine, &report.library) {
            let _ = writeln!(out, "       {} ({})", library.path.display(), library.origin);
        }
    }
    if !report.provider_libraries.is_empty() {
        out.push_str("\nPlug-in libraries of execution providers\n");
    }
    for library in &report.provider_libraries {
        let devices = library.devices.iter();
        let devices = devices.map(|device| format!("{} on {}", device.provider, device.hardware));
        let said: Vec<String> = devices.chain(library.problem.clone()).collect();
        let title = format!("{:<14} {}", library.name, library.path.display());
        line(&mut out, library.problem.is_none(), &title, Some(&said.join("\n")));
    }
    if !report.providers.is_empty() {
        out.push_str("\nONNX Runtime's execution providers\n");
        for provider in &report.providers {
            line(&mut out, provider.works, &provider.provider.to_string(), provider.problem.as_deref());
        }
    }
    let taken = report.preferred().map_or("none".to_string(), |e| e.engine.to_string());
    let _ = writeln!(out, "\nTaken unless --engine says otherwise: {taken}");
    out
}

fn line(out: &mut String, works: bool, name: &str, problem: Option<&str>) {
    let mark = if works { "ok" } else { "no" };
    let _ = writeln!(out, "  {mark}   {}", name.trim_end());
    for problem in problem.into_iter().flat_map(str::lines) {
        let _ = writeln!(out, "       {problem}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        ProviderKind,
        doctor::{EngineReport, ProviderReport},
    };

    #[test]
    fn problems_stand_under_what_they_belong_to() {
        let report = Report {
            engines: vec![
                EngineReport {
                    engine: EngineKind::Ort,
                    version: None,
                    works: false,
                    problem: Some("no library\nfetch one".to_string()),
                },
                EngineReport {
                    engine: EngineKind::Rten,
                    version: Some("0.27".to_string()),
                    works: true,
                    problem: None,
                },
            ],
            library: None,
            provider_libraries: Vec::new(),
            providers: vec![ProviderReport {
                provider: ProviderKind::Cuda,
                works: false,
                problem: Some("no driver".to_string()),
                placement: Vec::new(),
            }],
        };
        let expected = "\
Engines
  no   ort            -
       no library
       fetch one
  ok   rten           0.27

ONNX Runtime's execution providers
  no   cuda
       no driver

Taken unless --engine says otherwise: rten
";
        assert_eq!(text(&report), expected);
    }
}
