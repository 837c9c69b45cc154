//! The command line: exit codes and formats.

use assert_cmd::Command;

use super::support::{Model, Weights, plan};

const PLAN: &str = "version: 1\nrules:\n  - bypass: mid_block.attentions.0\n";

fn crdiff(model: &Model, compiled: &str, plan: &str, format: &str) -> Command {
    let mut command = Command::cargo_bin("crdiff").unwrap();
    command.current_dir(model.folder()).args([
        "verify",
        "unet.onnx",
        compiled,
        "--plan",
        plan,
        "--format",
        format,
    ]);
    command
}

#[test]
fn exit_codes_and_formats() {
    let model = Model::copy("sd15-mini/torchscript");
    std::fs::write(model.folder().join("plan.yaml"), PLAN).unwrap();
    model.compile(&plan(PLAN), Weights::Share).unwrap();
    let output = |compiled: &str, plan: &str, format: &str, code: i32| {
        let assert = crdiff(&model, compiled, plan, format).assert().code(code);
        String::from_utf8(assert.get_output().stdout.clone()).unwrap()
    };
    let proven = output("compiled.onnx", "plan.yaml", "text", 0);
    assert!(proven.starts_with("proven: compiled.onnx\n") && proven.contains("\nform: pruned\n"), "{proven}");
    for format in ["json", "junit", "sarif"] {
        let text = output("compiled.onnx", "plan.yaml", format, 0);
        assert!(text.contains("form") && text.contains("pruned"), "{format}: {text}");
    }
    let required = |emit: &[&str]| crdiff(&model, "compiled.onnx", "plan.yaml", "text").args(emit).assert();
    required(&["--emit", "pruned"]).code(0);
    required(&["--emit", "fused"]).code(1);
    required(&["--emit", "fused", "--poa-weight", "input"]).code(1);
    required(&["--emit", "amplified"]).code(1);
    required(&["--emit", "pruned", "--poa-weight", "input"]).code(2);
    required(&["--emit", "pruned", "--per-row"]).code(1);
    required(&["--per-row"]).code(2);
    let not = output("unet.onnx", "plan.yaml", "text", 1);
    assert!(not.starts_with("not proven: unet.onnx\nerror: the plan was not applied"), "{not}");
    assert!(not.contains("\nerror: `mid_block.attentions.0` is not bypassed"), "{not}");
    assert!(not.contains("plan plan.yaml:3:5"), "{not}");
    let sarif: serde_json::Value =
        serde_json::from_str(&output("unet.onnx", "plan.yaml", "sarif", 1)).unwrap();
    let region = &sarif["runs"][0]["results"][1]["locations"][0]["physicalLocation"]["region"];
    assert_eq!(region["startLine"], 3, "{sarif}");
    assert!(output("unet.onnx", "plan.yaml", "junit", 1).contains("failures=\"2\""));
    assert!(output("unet.onnx", "plan.yaml", "json", 1).contains("\"holds\": false"));
    output("missing.onnx", "plan.yaml", "text", 2);
    output("compiled.onnx", "missing.yaml", "text", 2);
    crdiff(&model, "compiled.onnx", "plan.yaml", "text").arg("--quiet").assert().code(0).stdout("");
}
