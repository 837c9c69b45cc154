//! A plug-in library of an execution provider, Microsoft's for WebGPU: it registers, and finds no device where there is no GPU.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use super::{onnxruntime, packages, root};

const LIBRARY: &str = "onnxruntime_ep_webgpu/libonnxruntime_providers_webgpu.so";

/// The report of `crdiff doctor`, which knows a library `name`.
fn doctor(packages: &Path, name: &str, library: &Path) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
    command.args(["doctor", "--json", "--ort-lib"]).arg(onnxruntime(packages));
    let output =
        command.arg("--provider-library").arg(format!("{name}={}", library.display())).output().unwrap();
    assert!(output.status.success(), "a plug-in is not the engine: {output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let engines = report["engines"].as_array().unwrap();
    assert!(engines.iter().any(|engine| engine["engine"] == "ort" && engine["works"] == true), "{report}");
    report
}

#[test]
fn the_doctor_says_what_a_plug_in_library_has() {
    let packages = packages("plugins");
    let library = packages.join(LIBRARY);
    // This provider has the name of its library.
    for name in ["WebGpuExecutionProvider", "another"] {
        let report = doctor(&packages, name, &library);
        let found = &report["provider_libraries"][0];
        assert_eq!((&found["name"], &found["path"]), (&name.into(), &library.to_str().unwrap().into()));
        let devices = found["devices"].as_array().unwrap();
        let problem = found["problem"].as_str().unwrap_or_default();
        match devices.as_slice() {
            [] => assert_eq!(problem, "it found no device here that it runs on"),
            devices => assert!(devices.iter().all(|one| one["hardware"].as_str().unwrap().contains("GPU"))),
        }
        let webgpu = report["providers"].as_array().unwrap().iter().find(|one| one["provider"] == "webgpu");
        assert!(!devices.is_empty() || webgpu.unwrap()["works"] == false, "{report}");
    }
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.so");
    fs::write(&text, "no library").unwrap();
    let libc = Path::new("/lib/x86_64-linux-gnu/libm.so.6");
    for (library, said) in
        [(&*text, "text.so"), (&folder.path().join("none.so"), "No such file"), (libc, "CreateEpFactories")]
    {
        if library == libc && !library.exists() {
            continue;
        }
        let report = doctor(&packages, "wrong", library);
        let problem = report["provider_libraries"][0]["problem"].as_str().unwrap();
        assert!(problem.contains(said), "{problem}");
    }
}

#[test]
fn a_plug_in_without_a_device_is_no_reason_to_run_elsewhere() {
    let packages = packages("plugins");
    let library = format!("WebGpuExecutionProvider={}", packages.join(LIBRARY).display());
    let report = doctor(&packages, "WebGpuExecutionProvider", &packages.join(LIBRARY));
    if !report["provider_libraries"][0]["devices"].as_array().unwrap().is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.png");
    let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
    command.arg("run").arg(root().join("fixtures/pipelines/sd15")).args(["--prompt", "the cat", "--dense"]);
    command.args(["--size", "32x32", "--steps", "1", "--device", "webgpu", "--ort-lib"]);
    command.arg(onnxruntime(&packages)).args(["--provider-library", &library, "-o"]).arg(&image);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !image.exists(), "{said}");
    assert!(
        said.contains("on webgpu: neither this build of ONNX Runtime has it nor a plug-in library"),
        "{said}"
    );
}
