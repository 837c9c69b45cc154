//! Packages as people install them: the wheel in a fresh environment, completions in a shell, manual pages.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

use crate::common::node;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the output of a command, which must succeed.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run: {e}"));
    let [text, errors] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Builds the wheel as `maturin build` does, but neither optimised nor compressed.
fn wheel(folder: &Path) -> PathBuf {
    // Crates that the tests were built from are taken from their build folder, and files that maturin moves or packs
    // lie elsewhere.
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    said(
        Command::new(node::python_packages().join("bin/maturin"))
            .args([
                "build",
                "--locked",
                "--profile",
                "dev",
                "--compression-method",
                "stored",
                "--quiet",
                "--out",
            ])
            .arg(folder)
            .args(if cfg!(feature = "tract") { &["--features", "tract"][..] } else { &[] })
            .env("CARGO_TARGET_DIR", built.join("wheel"))
            .env("CARGO_BUILD_BUILD_DIR", built.parent().unwrap())
            .env("CARGO_INCREMENTAL", "0")
            .current_dir(root()),
    );
    let mut wheels = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    wheels.find(|path| path.extension().is_some_and(|e| e == "whl")).unwrap()
}

/// The interpreter of a fresh environment with the wheel and nothing else, made once.
pub fn environment() -> PathBuf {
    static MADE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, python) = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel(folder.path());
        let environment = folder.path().join("venv");
        said(Command::new(node::python()).args(["-m", "venv", "--without-pip"]).arg(&environment));
        let python = environment.join("bin/python");
        said(
            Command::new(node::python())
                .args(["-m", "pip", "--disable-pip-version-check", "--python"])
                .arg(&python)
                .args(["install", "--quiet", "--no-input", "--no-index"])
                .arg(&wheel),
        );
        (folder, python)
    });
    python.clone()
}

/// For PYTHONPATH: numpy, onnxruntime, and what other environments have, given their interpreters.
pub fn packages(others: &[&Path]) -> OsString {
    let packages = |python: &Path| {
        let place = "import sysconfig; print(sysconfig.get_path('purelib'))";
        PathBuf::from(said(Command::new(python).args(["-c", place])).trim())
    };
    let others = others.iter().map(|python| packages(python));
    env::join_paths(others.chain([node::python_packages().to_path_buf()])).unwrap()
}

#[test]
fn the_wheel_in_a_fresh_environment() {
    let python = environment();
    let ask = |what: &str| {
        let asked = said(Command::new(&python).args(["-c", &format!("import crdiff; print(crdiff.{what})")]));
        asked.trim().to_string()
    };
    assert_eq!(ask("__version__"), env!("CARGO_PKG_VERSION"));
    let libraries = fs::read_dir(ask("__path__[0]")).unwrap().filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.extension().is_some_and(|e| e == "so" || e == "dylib")
    });
    assert_eq!(libraries.count(), 1, "one library is the module and both programs");

    // Its tests, where there is no Rust.
    let tests = crate::search::python::python("python-tests", "python/tests/requirements.txt");
    let path = [python.parent().unwrap(), Path::new("/usr/bin"), Path::new("/bin")];
    said(
        Command::new(&python)
            .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
            .arg(root().join("python/tests"))
            .env("PYTHONPATH", packages(&[&tests]))
            .env("PATH", env::join_paths(path).unwrap())
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    );
}

#[test]
fn bash_completes_subcommands_and_flags() {
    let complete = |program: &str, words: &[&str]| {
        let script =
            said(Command::new(env!("CARGO_BIN_EXE_crdiff")).args(["completions", "bash", "--of", program]));
        let list = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let last = words.len() - 1;
        let (word, before) = (words[last], words[last - 1]);
        let ask = format!(
            "{script}\nasked=$(complete -p {program}); asked=${{asked#*-F }}; COMP_WORDS=({list}); COMP_CWORD={last}; \
             ${{asked%% *}} '{program}' '{word}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        said(Command::new("bash").args(["-c", &ask]))
    };
    let subcommands = complete("crdiff", &["crdiff", "comp"]);
    assert_eq!(subcommands.lines().collect::<Vec<_>>(), ["compile", "compare", "completions"]);
    let flags = complete("crdiff", &["crdiff", "run", "--neg"]);
    assert_eq!(flags.trim(), "--negative-prompt");
    let values = complete("crdiff-compile", &["crdiff-compile", "unet.onnx", "plan.yaml", "--emit", ""]);
    let forms = ["pruned", "fused", "amplified", "dense"];
    let cached = ["cached", "cached-fused", "cached-amplified", "cached-dense"];
    assert_eq!(values.lines().collect::<Vec<_>>(), [forms, cached].concat());
}

#[test]
fn a_manual_page_for_each_subcommand() {
    let folder = tempfile::tempdir().unwrap();
    let crdiff = || Command::new(env!("CARGO_BIN_EXE_crdiff"));
    said(crdiff().args(["man", "-o"]).arg(folder.path()));
    let help = said(crdiff().arg("--help"));
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = listed
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|n| !n.is_empty());
    let mut pages = 0;
    for name in names.filter(|name| *name != "help") {
        let page = fs::read_to_string(folder.path().join(format!("crdiff-{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH crdiff-{name} 1")), "{name}");
        for flag in said(crdiff().args([name, "--help"])).split_whitespace().filter(|w| w.starts_with("--")) {
            let flag = flag.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            assert!(page.contains(&flag.replace('-', "\\-")), "{name}: {flag}");
        }
        pages += 1;
    }
    assert!(pages >= 12, "{pages}");
}
