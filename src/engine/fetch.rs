//! Fetching libonnxruntime: one pinned wheel from PyPI, through pip, checked against its SHA-256.

use std::{
    env::{self, consts},
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use super::EngineError;
use crate::hex::hex;

/// The release that is fetched.
pub const ONNXRUNTIME_VERSION: &str = "1.31.1";

/// The wheel of one platform. All wheels of a platform hold the same library, so that one Python version will do.
struct Wheel {
    os: &'static str,
    arch: &'static str,
    /// The platform tag.
    platform: &'static str,
    sha256: &'static str,
}

/// The CPython 3.12 wheels of [`ONNXRUNTIME_VERSION`].
const WHEELS: [Wheel; 3] = [
    Wheel {
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536",
    },
    Wheel {
        os: "linux",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        sha256: "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc",
    },
    Wheel {
        os: "macos",
        arch: "aarch64",
        platform: "macosx_14_0_arm64",
        sha256: "96dd2564b10ea7153ad9c207e7cd8e5917cb3ba521e0e0a62ac03486fdc8d56c",
    },
];

/// Returns the folder of what this program keeps for the user, in `$XDG_CACHE_HOME` or `~/.cache`; `None` without a home.
pub fn user_cache() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("crdiff"))
}

/// Returns the folder that a fetched library lies in; `None` without a home.
pub fn cache_folder() -> Option<PathBuf> {
    Some(user_cache()?.join(format!("onnxruntime-{ONNXRUNTIME_VERSION}")))
}

/// Puts the libraries of the pinned wheel into `folder`, unless they are there, and returns libonnxruntime's path.
/// The folder appears at once and whole; several processes may do this at the same time.
///
/// # Errors
/// [`EngineError::Fetch`] if there is no wheel for this platform, no Python with pip, no network, or the wheel is not
/// the pinned one; [`EngineError::Io`] if the folder cannot be written.
pub fn fetch(folder: &Path) -> Result<PathBuf, EngineError> {
    let failed = |what: String| EngineError::Fetch { version: ONNXRUNTIME_VERSION, what };
    let wheel = WHEELS.iter().find(|w| w.os == consts::OS && w.arch == consts::ARCH).ok_or_else(|| {
        failed(format!(
            "there is no wheel for {} on {}; name a library of your own",
            consts::OS,
            consts::ARCH
        ))
    })?;
    let parent = folder.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| EngineError::io("create", parent, e))?;
    let lock_path = folder.with_added_extension("lock");
    let lock = File::create(&lock_path).map_err(|e| EngineError::io("create", &lock_path, e))?;
    lock.lock().map_err(|e| EngineError::io("lock", &lock_path, e))?;
    if let Some(library) = library_in(folder) {
        return Ok(library);
    }
    let work = tempfile::tempdir_in(parent).map_err(|e| EngineError::io("write to", parent, e))?;
    let file = download(wheel, work.path()).map_err(failed)?;
    check(&file, wheel.sha256)?;
    let unpacked = work.path().join("libraries");
    unpack(&file, &unpacked)?;
    if folder.exists() {
        // Left by something else: it holds no library.
        fs::remove_dir_all(folder).map_err(|e| EngineError::io("replace", folder, e))?;
    }
    fs::rename(&unpacked, folder).map_err(|e| EngineError::io("create", folder, e))?;
    library_in(folder).ok_or_else(|| failed("the wheel holds no libonnxruntime".to_string()))
}

fn library_in(folder: &Path) -> Option<PathBuf> {
    let name = match consts::OS {
        "macos" => format!("libonnxruntime.{ONNXRUNTIME_VERSION}.dylib"),
        _ => format!("libonnxruntime.so.{ONNXRUNTIME_VERSION}"),
    };
    Some(folder.join(name)).filter(|path| path.is_file())
}

/// Has pip download the wheel into `folder`.
fn download(wheel: &Wheel, folder: &Path) -> Result<PathBuf, String> {
    let requirement = format!("onnxruntime=={ONNXRUNTIME_VERSION}");
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"])
        .args(["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12", "--abi", "cp312"])
        .args(["--platform", wheel.platform, "--dest"])
        .arg(folder)
        .arg(&requirement)
        .output()
        .map_err(|e| format!("python3 cannot be run ({e}); pip is needed to download it"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`python3 -m pip download {requirement}` failed:\n{}", said.trim()));
    }
    let wheels = fs::read_dir(folder).map_err(|e| e.to_string())?;
    wheels
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| format!("`python3 -m pip download {requirement}` left no wheel"))
}

fn check(file: &Path, sha256: &str) -> Result<(), EngineError> {
    let bytes = fs::read(file).map_err(|e| EngineError::io("read", file, e))?;
    let found = hex(&Sha256::digest(bytes));
    if found == sha256 {
        return Ok(());
    }
    let name = file.file_name().unwrap_or_default().display();
    Err(EngineError::Fetch {
        version: ONNXRUNTIME_VERSION,
        what: format!("{name} has the SHA-256 {found}, but the pinned one is {sha256}; it was not used"),
    })
}

/// Unpacks the wheel's `libonnxruntime*` into `folder`.
fn unpack(wheel: &Path, folder: &Path) -> Result<(), EngineError> {
    let failed = |e: zip::result::ZipError| EngineError::Fetch {
        version: ONNXRUNTIME_VERSION,
        what: format!("the wheel cannot be unpacked: {e}"),
    };
    let file = File::open(wheel).map_err(|e| EngineError::io("open", wheel, e))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(failed)?;
    fs::create_dir(folder).map_err(|e| EngineError::io("create", folder, e))?;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(failed)?;
        let Some(name) = entry.name().strip_prefix("onnxruntime/capi/") else { continue };
        if !name.starts_with("libonnxruntime") || name.contains(['/', '\\']) {
            continue;
        }
        let path = folder.join(name);
        let mut out = File::create(&path).map_err(|e| EngineError::io("write", &path, e))?;
        io::copy(&mut entry, &mut out).map_err(|e| EngineError::io("write", &path, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_wheel_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("onnxruntime.whl");
        fs::write(&wheel, "abc").unwrap();
        check(&wheel, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").unwrap();
        let error = check(&wheel, WHEELS[0].sha256).unwrap_err().to_string();
        assert!(error.contains("onnxruntime.whl has the SHA-256 ba7816bf"), "{error}");
    }
}
