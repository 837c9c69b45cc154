//! Exit codes and what is printed.

use std::{path::Path, process::Output};

use assert_cmd::Command;
use serde_json::Value;

use crate::{
    common::edit::{changed, fixture, nudge},
    diff::rearrange::node,
};

fn crdiff(args: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::cargo_bin("crdiff").unwrap().current_dir(root).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const MODEL: &str = "fixtures/sd15-mini/torchscript/unet.onnx";

#[test]
fn same_models() {
    let found = crdiff(&["diff", MODEL, "fixtures/sd15-mini/split/unet.onnx"]);
    assert_eq!(found.status.code(), Some(0));
    let expected = format!("same: {MODEL} -> fixtures/sd15-mini/split/unet.onnx\nnodes: 839\n");
    assert_eq!(text(&found.stdout), expected);
}

/// The output for a changed weight, a changed attribute and a rewired operand, grouped by module and without
/// colours in a pipe.
#[test]
fn different_models() {
    let folder = tempfile::tempdir().unwrap();
    let other = changed(&fixture("sd15-mini/torchscript"), folder.path(), |graph| {
        nudge(graph, "conv_in.weight", 3, 0.5);
        nudge(graph, "conv_in.weight", 7, -0.25);
        let conv = node(graph, "/conv_out/Conv");
        conv.attribute.iter_mut().find(|a| a.name() == "pads").unwrap().ints = vec![0, 0, 2, 2];
        node(graph, "/mid_block/resnets.1/Add_1").input[0] = "/mid_block/resnets.0/Div_output_0".into();
    });
    let other = other.display().to_string();
    let found = crdiff(&["diff", MODEL, &other]);
    assert_eq!(found.status.code(), Some(1));
    let expected = format!(
        "different: {MODEL} -> {other}
conv_in
  ~ tensor `conv_in.weight` float32[8, 4, 3, 3]: 2 of 288 elements differ, max 5.000e-1, mean 2.604e-3
mid_block.resnets.1
  ~ Add node `/mid_block/resnets.1/Add_1`: operand 0 was Add `/mid_block/attentions.0/Add`, is Div \
         `/mid_block/resnets.0/Div`
conv_out
  ~ Conv node `/conv_out/Conv`: attribute `pads` was [1, 1, 1, 1], is [0, 0, 2, 2]
nodes: 839
attributes changed: 1
operands rewired: 1
tensors changed: 1
"
    );
    assert_eq!(text(&found.stdout), expected);

    let structure = crdiff(&["diff", MODEL, &other, "--structure"]);
    assert_eq!(structure.status.code(), Some(1));
    assert!(!text(&structure.stdout).contains("conv_in"));

    let json: Value =
        serde_json::from_slice(&crdiff(&["diff", MODEL, &other, "--format", "json"]).stdout).unwrap();
    assert_eq!((&json["holds"], &json["verdict"]), (&false.into(), &"different".into()));
    assert_eq!(json["findings"].as_array().unwrap().len(), 3);
    assert_eq!(json["findings"][0]["tensor"], "conv_in.weight");
    let junit = text(&crdiff(&["diff", MODEL, &other, "--format", "junit"]).stdout);
    assert!(junit.contains(r#"tests="3" failures="3""#), "{junit}");
    let sarif: Value =
        serde_json::from_slice(&crdiff(&["diff", MODEL, &other, "--format", "sarif"]).stdout).unwrap();
    assert_eq!(sarif["runs"][0]["results"].as_array().unwrap().len(), 3);
}

#[test]
fn bad_use() {
    let missing = crdiff(&["diff", MODEL, "none.onnx"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).starts_with("error: none.onnx: cannot open"), "{}", text(&missing.stderr));
    let no_model = crdiff(&["digest", "Cargo.toml"]);
    assert_eq!(no_model.status.code(), Some(2));
    assert!(text(&no_model.stderr).starts_with("error: Cargo.toml: "), "{}", text(&no_model.stderr));
    assert_eq!(crdiff(&["diff", MODEL]).status.code(), Some(2));
}

#[test]
fn digests() {
    let found = crdiff(&["digest", MODEL]);
    assert_eq!(found.status.code(), Some(0));
    let lines = text(&found.stdout);
    let [structure, weights] = lines.lines().collect::<Vec<_>>()[..] else { panic!("{lines}") };
    let json: Value = serde_json::from_slice(&crdiff(&["digest", MODEL, "--json"]).stdout).unwrap();
    for (line, what, key) in
        [(structure, "structure ", "structure"), (weights, "structure + weights ", "weights")]
    {
        let hex = line.strip_prefix(what).unwrap().trim();
        assert!(hex.len() == 64 && hex.chars().all(|c| c.is_ascii_hexdigit()), "{line}");
        assert_eq!(json[key], hex);
    }
}
