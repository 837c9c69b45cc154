//! What people install: the wheel in a fresh environment, completions in a shell, manual pages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::node;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a command prints, if it succeeds.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Builds the wheel as `maturin build` does, but without optimisation.
fn wheel(folder: &Path) -> PathBuf {
    // What the tests were built from is taken from their build folder. The programs go elsewhere: other tests run the
    // ones there, and maturin moves those that it packs.
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    said(
        Command::new(node::python_packages().join("bin/maturin"))
            .args(["build", "--locked", "--profile", "dev", "--quiet", "--out"])
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

#[test]
fn the_wheel_in_a_fresh_environment() {
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

    let version = said(Command::new(environment.join("bin/crdiff")).arg("-V"));
    assert_eq!(version.trim(), concat!("crdiff ", env!("CARGO_PKG_VERSION")));
    let module = |arguments: &[&str]| {
        let mut command = Command::new(&python);
        command.args(["-m", "crdiff"]).args(arguments).current_dir(folder.path());
        command
    };
    assert_eq!(said(&mut module(&["-V"])), version);
    let asked = said(Command::new(&python).args(["-c", "import crdiff; print(crdiff.__version__)"]));
    assert_eq!(asked.trim(), env!("CARGO_PKG_VERSION"));

    // Exit codes and both programs come through.
    let code = module(&["inspect", "no-such.onnx"]).output().unwrap().status.code();
    assert_eq!(code, Some(2));
    let model = folder.path().join("unet.onnx");
    fs::copy(root().join("fixtures/sd15/torchscript/unet.onnx"), &model).unwrap();
    said(
        Command::new(environment.join("bin/crdiff-compile"))
            .arg(&model)
            .arg(root().join("configs/crdiff-0.2.yaml"))
            .args(["--quiet", "-o", "pruned.onnx"])
            .current_dir(folder.path()),
    );
    let plan = root().join("configs/crdiff-0.2.yaml");
    said(&mut module(&["verify", "unet.onnx", "pruned.onnx", "--plan", plan.to_str().unwrap()]));
}

#[test]
fn a_wheel_finds_the_onnxruntime_beside_it() {
    // As pip lays them out: PREFIX/bin/crdiff and PREFIX/lib/python3.x/site-packages/onnxruntime.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("bin/crdiff");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_crdiff"), &program).unwrap();
    let packages = folder.path().join("lib/python3.11/site-packages");
    fs::create_dir_all(&packages).unwrap();
    let installed = node::python_packages().join("onnxruntime");
    std::os::unix::fs::symlink(&installed, packages.join("onnxruntime")).unwrap();
    let report = said(
        Command::new(&program)
            .args(["doctor", "--json"])
            .env_remove("ORT_DYLIB_PATH")
            .env_remove("VIRTUAL_ENV")
            .env("XDG_CACHE_HOME", folder.path()),
    );
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let library = Path::new(report["library"]["path"].as_str().unwrap());
    assert!(library.starts_with(installed.canonicalize().unwrap()), "{}", library.display());
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
    assert_eq!(values.lines().collect::<Vec<_>>(), ["pruned", "fused", "amplified", "dense"]);
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
