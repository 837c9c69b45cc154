//! The models of the ONNX backend tests, out of the onnx package's wheel.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

const WHEEL: &str = "onnx==1.23.2";

/// Every `.onnx` file of the wheel, fetched once into the build folder.
///
/// # Panics
/// If the wheel cannot be fetched or holds fewer models than it should.
pub fn models() -> &'static [PathBuf] {
    super::not_quick();
    static MODELS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    MODELS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(WHEEL.replace("==", "-"));
        if !folder.is_dir() {
            fetch(&folder);
        }
        let mut models = Vec::new();
        find_onnx(&folder, &mut models);
        assert!(models.len() >= 140, "only {} models in {}", models.len(), folder.display());
        models
    })
}

/// Adds every `.onnx` file below `folder`, sorted.
pub fn find_onnx(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            find_onnx(&path, found);
        } else if path.extension().is_some_and(|e| e == "onnx") {
            found.push(path);
        }
    }
}

fn fetch(folder: &Path) {
    let parent = folder.parent().unwrap();
    fs::create_dir_all(parent).unwrap();
    let work = tempfile::tempdir_in(parent).unwrap();
    let python = env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let status = Command::new(python)
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"])
        .arg(work.path())
        .arg(WHEEL)
        .status()
        .expect("pip runs");
    assert!(status.success(), "pip cannot download {WHEEL}: {status}");
    let wheel = fs::read_dir(work.path()).unwrap().next().expect("a wheel").unwrap().path();
    let mut archive = zip::ZipArchive::new(fs::File::open(wheel).unwrap()).unwrap();
    let unpacked = work.path().join("models");
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).unwrap();
        let name = file.enclosed_name().unwrap();
        if let (Ok(name), true) =
            (name.strip_prefix("onnx/backend/test/data"), name.extension() == Some("onnx".as_ref()))
        {
            let path = unpacked.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            io::copy(&mut file, &mut fs::File::create(path).unwrap()).unwrap();
        }
    }
    // Another test process may have been faster.
    if fs::rename(&unpacked, folder).is_err() {
        assert!(folder.is_dir());
    }
}
