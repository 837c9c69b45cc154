//! `crdiff export` as a command.

use std::{fs, path::Path};

use assert_cmd::Command;

use crate::deploy::support::{config, fixture, port, root};

fn crdiff(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("crdiff").unwrap();
    command.current_dir(folder).env_remove("RUST_BACKTRACE");
    command
}

fn said(output: &std::process::Output) -> (String, String) {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap()).into()
}

#[test]
fn triton() {
    let work = tempfile::tempdir().unwrap();
    let unet = fixture("sd15/torchscript/unet.onnx");
    let vae = fixture("pipelines/sd15/vae_decoder/model.onnx");
    let output = crdiff(work.path())
        .args(["export", "triton"])
        .arg(&unet)
        .arg(&vae)
        .arg(format!("other={}", vae.display()))
        .args(["-o", "models", "--gpus", "0,1", "--queue-delay", "100", "--max-batch", "2"])
        .output()
        .unwrap();
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(
        stdout,
        "models/unet  batches of up to 2; a row for each request: timestep\n\
         models/vae_decoder  batches of up to 2\n\
         models/other  batches of up to 2\n"
    );
    assert_eq!(stderr, "");
    for name in ["unet", "vae_decoder", "other"] {
        let config = config(&work.path().join("models"), name);
        assert_eq!(config["instanceGroup"][0]["gpus"], serde_json::json!([0, 1]));
    }
    let again =
        crdiff(work.path()).args(["export", "triton"]).arg(&unet).args(["-o", "models"]).output().unwrap();
    assert_eq!(again.status.code(), Some(2));
    assert!(said(&again).1.contains("models/unet: it is there already"), "{}", said(&again).1);
    for (arguments, what) in [
        (&["--cpu", "--accelerator", "tensorrt"][..], "leave out --cpu"),
        (&["--precision", "fp16"], "add --accelerator tensorrt"),
        (&["--option", "use_tf32=0"], "add --accelerator cuda or tensorrt"),
        (&["--accelerator", "tensorrt", "--option", "speed=1"], "knows no parameter `speed`"),
        (&["--accelerator", "tensorrt", "--sizes", "100x64"], "not divisible by 8"),
    ] {
        let mut command = crdiff(work.path());
        let output =
            command.args(["export", "triton", "-o", "more"]).arg(&unet).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(said(&output).1.contains(what), "{}", said(&output).1);
        assert!(!work.path().join("more").exists());
    }
    let notes = crdiff(work.path())
        .args(["export", "triton", "--accelerator", "tensorrt", "--quiet", "-o", "notes"])
        .arg(&unet)
        .output()
        .unwrap();
    let (stdout, stderr) = said(&notes);
    assert_eq!(stdout, "");
    assert!(stderr.contains("note: unet: engines are built anew"), "{stderr}");
}

#[test]
fn a_pipeline() {
    let work = tempfile::tempdir().unwrap();
    let export = |more: &[&str]| {
        let mut command = crdiff(work.path());
        command
            .args(["export", "triton", "--pipeline"])
            .arg(fixture("pipelines/sdxl"))
            .args(more)
            .output()
            .unwrap()
    };
    let output = export(&["-o", "models", "--name", "sdxl", "--max-batch", "4"]);
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stdout.lines().count(), 5, "{stdout}");
    assert!(
        stderr.contains("it samples with DDIM; the pipeline's own scheduler is EulerDiscrete"),
        "{stderr}"
    );
    let config = config(&work.path().join("models"), "sdxl");
    assert_eq!(config["backend"], "python");
    assert_eq!(port(&config, "input", "negative_input_ids_2")["optional"], true);
    assert!(port(&config, "input", "input_ids").get("optional").is_none());
    let two = export(&["-o", "two", "a.onnx", "b.onnx"]);
    assert!(said(&two).1.contains("one MODEL takes the place of the UNet"), "{}", said(&two).1);
}

#[test]
fn trtexec() {
    let work = tempfile::tempdir().unwrap();
    fs::copy(fixture("sd15/torchscript/unet.onnx"), work.path().join("unet.onnx")).unwrap();
    let export = |arguments: &[&str]| {
        let mut command = crdiff(work.path());
        command.args(["export", "trtexec", "unet.onnx"]).args(arguments).output().unwrap()
    };
    let output = export(&["--sizes", "512x512,768x512", "--batch", "1..2"]);
    let expected = "trtexec \\\n  --onnx=unet.onnx \\\n  \
        --minShapes=sample:1x4x64x64,encoder_hidden_states:1x77x16 \\\n  \
        --optShapes=sample:2x4x64x64,encoder_hidden_states:2x77x16 \\\n  \
        --maxShapes=sample:2x4x96x64,encoder_hidden_states:2x77x16 \\\n  \
        --saveEngine=unet.plan \\\n  --timingCacheFile=unet.timing.cache\n";
    assert_eq!(said(&output), (expected.to_string(), String::new()));
    // The authors' result files say for which size their ratios were found.
    let result = r#"{"model_config": {"name": "SD15", "width": 512, "height": 768}, "best_avg_score": 1.0,
        "best_global_params_ratio": {"down_ratio": 0.2, "up_ratio": 0.2, "mid_ratio": 0.2}}"#;
    fs::write(work.path().join("result.json"), result).unwrap();
    let output = export(&["--plan", "result.json", "--batch", "2", "-o", "build.sh"]);
    assert!(output.status.success(), "{}", said(&output).1);
    let script = fs::read_to_string(work.path().join("build.sh")).unwrap();
    assert!(script.starts_with("#!/bin/sh\ntrtexec"), "{script}");
    assert!(script.contains("--minShapes=sample:2x4x96x64,"), "{script}");
    fs::write(work.path().join("plan.yaml"), "version: 1\nrules: []").unwrap();
    for (arguments, what) in [
        (&[][..], "say which image sizes the engine is for"),
        (&["--plan", "plan.yaml"], "it has no image sizes"),
        (&["--sizes", "512x500"], "try 512x504"),
        (&["--sizes", "72x64"], "it cannot run at 72x64 with a batch of 1: "),
        (&["--sizes", "64x64", "--dim", "sample.1=5"], "is fixed to 4 and cannot be 5"),
    ] {
        let output = export(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(said(&output).1.contains(what), "{}", said(&output).1);
    }
}

#[test]
fn web() {
    let work = tempfile::tempdir().unwrap();
    let model = fixture("sd15-mini/dynamo/unet.onnx");
    let export = |arguments: &[&str]| {
        let mut command = crdiff(work.path());
        command.args(["export", "web"]).arg(&model).args(arguments).output().unwrap()
    };
    let output = export(&["-o", "bundle"]);
    let (stdout, stderr) = said(&output);
    let bytes = fs::metadata(work.path().join("bundle/unet.onnx")).unwrap().len();
    assert_eq!(stdout, format!("bundle/unet.onnx  {bytes} bytes\nbundle/load.js  loads them\n"));
    assert_eq!(stderr, "");
    let output = export(&["-o", "split", "--max-file", "810000"]);
    assert_eq!(said(&output).0.lines().count(), 3, "{}", said(&output).1);
    let refused = export(&["-o", "none", "--max-file", "4000000000"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(!work.path().join("none").exists());
}

/// Every command of docs/deploy.md, in its order, in a folder with what it starts from.
#[test]
fn the_documented_commands() {
    let work = tempfile::tempdir().unwrap();
    copy(&fixture("pipelines/sd15"), &work.path().join("sd15-onnx"));
    fs::write(work.path().join("plan.yaml"), "version: 1\ncrdiff: { down: 0.3, mid: 0.3, up: 0.3 }").unwrap();
    let result = r#"{"model_config": {"name": "SD15", "width": 512, "height": 768}, "best_avg_score": 1.0,
        "best_global_params_ratio": {"down_ratio": 0.2, "up_ratio": 0.2, "mid_ratio": 0.2}}"#;
    fs::write(work.path().join("result.json"), result).unwrap();
    fs::create_dir(work.path().join("public")).unwrap();
    let text = fs::read_to_string(root().join("docs/deploy.md")).unwrap();
    let blocks = |language: &str| -> Vec<String> {
        let fence = format!("```{language}\n");
        let parts = text.split(&fence).skip(1);
        parts.map(|part| part.split("```").next().unwrap().to_string()).collect()
    };
    let mut printed = Vec::new();
    for command in blocks("sh").iter().flat_map(|block| block.lines()) {
        let mut words = command.split_whitespace();
        let output = Command::cargo_bin(words.next().unwrap())
            .unwrap()
            .current_dir(work.path())
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {}", said(&output).1);
        printed.push(said(&output).0);
    }
    assert_eq!(printed.len(), 8);
    let [shown] = blocks("text").try_into().unwrap();
    assert!(printed.contains(&shown), "{shown}\nis not printed, but\n{}", printed.join("---\n"));
    for path in ["models/unet.crdiff/1/model.onnx", "pipeline-models/sd15/1/model.py", "public/unet/load.js"]
    {
        assert!(work.path().join(path).is_file(), "{path}");
    }
    assert!(
        text.contains(&crdiff::deploy::web::FILE_LIMIT.to_string().replace("2145386496", "2,145,386,496"))
    );
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}
