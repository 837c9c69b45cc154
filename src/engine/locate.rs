//! Finding libonnxruntime.

use std::{
    env::{self, consts},
    fmt, fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use super::{EngineError, fetch, ort::OLDEST_MINOR, ort::minor};

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The library.
    pub path: PathBuf,
    /// How it was found.
    pub origin: Origin,
}

/// How a library was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The user named it.
    Given,
    /// ORT_DYLIB_PATH names it.
    Environment,
    /// `crdiff doctor --fetch` put it into the cache.
    Cache,
    /// It belongs to a Python package.
    Python,
    /// It is installed in the system.
    System,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given => "as given",
            Self::Environment => "from ORT_DYLIB_PATH",
            Self::Cache => "fetched",
            Self::Python => "from Python's onnxruntime package",
            Self::System => "installed in the system",
        })
    }
}

/// Where to look, in this order.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The library that the user named, or the folder that it is in. No other place is searched then.
    pub given: Option<PathBuf>,
    /// The value of ORT_DYLIB_PATH. No other place is searched then.
    pub environment: Option<PathBuf>,
    /// Folders that a fetched library lies in.
    pub cache: Vec<PathBuf>,
    /// The folder of Python packages that `onnxruntime` is in, where a Python runs this library.
    pub packages: Option<PathBuf>,
    /// Python environments: the folders that hold `lib/python3.x`, those that VIRTUAL_ENV and CONDA_PREFIX name.
    pub python_prefixes: Vec<PathBuf>,
    /// The Python to ask for its onnxruntime package.
    pub python: Option<PathBuf>,
    /// Folders of system libraries.
    pub system: Vec<PathBuf>,
}

impl Places {
    /// Returns the places that this process's environment names.
    pub fn from_environment(given: Option<PathBuf>) -> Self {
        let variable = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let system = match consts::OS {
            "macos" => vec!["/opt/homebrew/lib".into(), "/usr/local/lib".into()],
            _ => vec![
                "/usr/local/lib".into(),
                "/usr/lib".into(),
                "/usr/lib64".into(),
                format!("/usr/lib/{}-linux-gnu", consts::ARCH).into(),
            ],
        };
        Self {
            given,
            environment: variable("ORT_DYLIB_PATH"),
            cache: fetch::cache_folder().into_iter().collect(),
            packages: PACKAGES.get().cloned(),
            python_prefixes: ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect(),
            python: Some("python3".into()),
            system,
        }
    }
}

static PACKAGES: OnceLock<PathBuf> = OnceLock::new();

/// Has every [`Places::from_environment`] look in a folder of Python packages: that of the Python that runs this library.
/// The first call counts.
pub fn set_packages(folder: PathBuf) {
    PACKAGES.get_or_init(|| folder);
}

/// Finds a libonnxruntime that this crate can speak to: the newest in the first place that has one.
///
/// # Errors
/// [`EngineError::LibraryUnusable`] if a named library is not there, [`EngineError::LibraryNotFound`] if there is none
/// anywhere; it lists the places.
pub fn locate(places: &Places) -> Result<Located, EngineError> {
    for (named, origin) in [(&places.given, Origin::Given), (&places.environment, Origin::Environment)] {
        if let Some(path) = named {
            return named_library(path).map(|path| Located { path, origin });
        }
    }
    let mut tried = Vec::new();
    let capi = |package: &Path| package.join("onnxruntime/capi");
    for folder in &places.cache {
        if let Some(path) = newest(folder, &mut tried) {
            return Ok(Located { path, origin: Origin::Cache });
        }
    }
    if let Some(path) = places.packages.as_deref().and_then(|packages| newest(&capi(packages), &mut tried)) {
        return Ok(Located { path, origin: Origin::Python });
    }
    for prefix in &places.python_prefixes {
        let packages = site_packages(prefix);
        if packages.is_empty() {
            tried.push(format!("{}: no lib/python3.*/site-packages in it", prefix.display()));
        }
        for package in packages {
            if let Some(path) = newest(&capi(&package), &mut tried) {
                return Ok(Located { path, origin: Origin::Python });
            }
        }
    }
    if let Some(python) = &places.python {
        match ask_python(python) {
            Ok(packages) => {
                if let Some(path) = newest(&capi(&packages), &mut tried) {
                    return Ok(Located { path, origin: Origin::Python });
                }
            }
            Err(why) => tried.push(format!("{}: {why}", python.display())),
        }
    }
    for folder in &places.system {
        if let Some(path) = newest(folder, &mut tried) {
            return Ok(Located { path, origin: Origin::System });
        }
    }
    Err(EngineError::LibraryNotFound { tried })
}

/// Returns the library that `path` names: itself, or the newest one in the folder.
fn named_library(path: &Path) -> Result<PathBuf, EngineError> {
    if path.is_dir() {
        let mut tried = Vec::new();
        return newest(path, &mut tried).ok_or_else(|| EngineError::LibraryUnusable {
            path: path.to_path_buf(),
            what: tried.join("; "),
        });
    }
    match fs::metadata(path) {
        Ok(_) => Ok(path.to_path_buf()),
        Err(e) => Err(EngineError::LibraryUnusable { path: path.to_path_buf(), what: e.to_string() }),
    }
}

/// Returns the newest usable libonnxruntime in a folder; without one, `tried` gets the reason.
fn newest(folder: &Path, tried: &mut Vec<String>) -> Option<PathBuf> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) => {
            tried.push(format!("{}: {e}", folder.display()));
            return None;
        }
    };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let mut libraries: Vec<(Vec<u32>, String)> =
        names.filter_map(|name| Some((library_version(&name)?, name))).collect();
    libraries.sort();
    let Some((version, name)) = libraries.pop() else {
        tried.push(format!("{}: no libonnxruntime in it", folder.display()));
        return None;
    };
    let text = version.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
    // A name without a minor version tells nothing: the library is asked when it is opened.
    if minor(&text).is_some_and(|minor| minor < OLDEST_MINOR) {
        tried.push(format!("{}: 1.{OLDEST_MINOR} or later is needed", folder.join(name).display()));
        return None;
    }
    Some(folder.join(name))
}

/// Returns the version in a library's file name, empty if there is none; `None` if it is not libonnxruntime.
fn library_version(name: &str) -> Option<Vec<u32>> {
    let version = match consts::OS {
        "macos" => name.strip_prefix("libonnxruntime")?.strip_suffix(".dylib")?,
        _ => name.strip_prefix("libonnxruntime.so")?,
    };
    if version.is_empty() {
        return Some(Vec::new());
    }
    version.strip_prefix('.')?.split('.').map(|part| part.parse().ok()).collect()
}

/// Returns `lib/python3.x/site-packages` of a Python environment, the newest Python first.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(prefix.join("lib")) else { return Vec::new() };
    let mut pythons: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let minor = entry.file_name().to_str()?.strip_prefix("python3.")?.parse().ok()?;
            Some((minor, entry.path().join("site-packages")))
        })
        .filter(|(_, packages)| packages.is_dir())
        .collect();
    pythons.sort();
    pythons.into_iter().rev().map(|(_, packages)| packages).collect()
}

/// Where a Python has its onnxruntime package, without importing it. The working folder is not searched.
const FIND_PACKAGE: &str = "
import sys
sys.path[:] = [p for p in sys.path if p]
from importlib.util import find_spec
spec = find_spec('onnxruntime')
if spec and spec.origin: sys.stdout.write(spec.origin)
";

/// Returns the folder of packages that holds `python`'s onnxruntime.
fn ask_python(python: &Path) -> Result<PathBuf, String> {
    let mut child = Command::new(python)
        .args(["-c", FIND_PACKAGE])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot be run: {e}"))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break status,
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            None => {
                // It may have ended by itself just now; either way it is gone.
                let _ = child.kill();
                let _ = child.wait();
                return Err("gave no answer within 10 seconds".to_string());
            }
        }
    };
    let mut origin = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut origin).map_err(|e| e.to_string())?;
    }
    if !status.success() {
        return Err(format!("looking for its onnxruntime package failed ({status})"));
    }
    // .../site-packages/onnxruntime/__init__.py
    match Path::new(&origin).ancestors().nth(2) {
        Some(packages) if !origin.is_empty() => Ok(packages.to_path_buf()),
        _ => Err("it has no onnxruntime package".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn name(version: &str) -> String {
        match consts::OS {
            "macos" if version.is_empty() => "libonnxruntime.dylib".to_string(),
            "macos" => format!("libonnxruntime.{version}.dylib"),
            _ if version.is_empty() => "libonnxruntime.so".to_string(),
            _ => format!("libonnxruntime.so.{version}"),
        }
    }

    #[test]
    fn the_newest_usable_library_of_the_first_place() {
        let old = folder_with(&[&name("1.21.0")]);
        let new = folder_with(&[
            &name("1.9.0"),
            &name("1.31.1"),
            &name("1.22.0"),
            "libonnxruntime_providers_shared.so",
        ]);
        let places = Places {
            cache: vec![PathBuf::from("/nowhere"), old.path().into()],
            system: vec![new.path().into()],
            ..Places::default()
        };
        let located = locate(&places).unwrap();
        assert_eq!(located, Located { path: new.path().join(name("1.31.1")), origin: Origin::System });
    }

    #[test]
    fn python_environments_are_searched_without_running_python() {
        let environment =
            folder_with(&[&format!("lib/python3.12/site-packages/onnxruntime/capi/{}", name("1.31.1"))]);
        let places = Places { python_prefixes: vec![environment.path().into()], ..Places::default() };
        assert_eq!(locate(&places).unwrap().origin, Origin::Python);
    }

    #[test]
    fn the_error_lists_every_place_and_what_to_do() {
        let old = folder_with(&[&name("1.21.0")]);
        let empty = folder_with(&["libonnxruntime_providers_cuda.so"]);
        let places = Places {
            cache: vec![old.path().into()],
            python: Some("no-such-python".into()),
            system: vec![empty.path().into()],
            ..Places::default()
        };
        let error = locate(&places).unwrap_err().to_string();
        for part in [
            &format!("{}: 1.{OLDEST_MINOR} or later is needed", old.path().join(name("1.21.0")).display()),
            "no-such-python: cannot be run",
            &format!("{}: no libonnxruntime in it", empty.path().display()),
            "crdiff doctor --fetch",
        ] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }

    #[test]
    fn a_named_library_is_never_replaced() {
        let other = folder_with(&[&name("1.31.1")]);
        let places = Places {
            given: Some("/nowhere/libonnxruntime.so".into()),
            system: vec![other.path().into()],
            ..Places::default()
        };
        assert!(matches!(locate(&places), Err(EngineError::LibraryUnusable { .. })));
        let places = Places { given: Some(other.path().into()), ..Places::default() };
        assert_eq!(locate(&places).unwrap().path, other.path().join(name("1.31.1")));
    }
}
