//! What README and docs print must work as printed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may end there; its tables are for people"
)]

use std::{fs, path::Path};

use assert_cmd::Command;
use crdiff::plan;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The contents of the fenced blocks of `language`.
fn blocks(file: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let mut blocks = Vec::new();
    let mut rest = text.as_str();
    while let Some((_, after)) = rest.split_once(&format!("```{language}\n")) {
        let (block, after) = after.split_once("```").unwrap();
        blocks.push(block.to_string());
        rest = after;
    }
    blocks
}

#[test]
fn the_first_command_of_the_readme_compiles_a_fixture() {
    let shell = blocks("README.md", "sh");
    let [main, tests] = &shell[..] else { panic!("{shell:?}") };
    assert_eq!(tests.trim(), "cargo test");
    let arguments = main.trim().strip_prefix("cargo run --release -- ").unwrap();
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let output = root().join(arguments.last().unwrap());
    fs::create_dir_all(output.parent().unwrap()).unwrap();
    Command::cargo_bin("crdiff-compile").unwrap().current_dir(root()).args(&arguments).assert().success();
    assert!(output.exists());
}

#[test]
fn every_plan_in_the_documents_is_one() {
    let mut plans = 0;
    for file in ["README.md", "docs/plan.md"] {
        for block in blocks(file, "yaml").iter().filter(|b| b.contains("version: 1")) {
            plan::parse(file, block).unwrap_or_else(|e| panic!("{file}: {e}\n{block}"));
            plans += 1;
        }
    }
    assert!(plans >= 5, "{plans}");
}

#[test]
fn every_config_fits_the_four_stage_fixture() {
    let mut configs = 0;
    for entry in fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            Command::cargo_bin("crdiff-compile")
                .unwrap()
                .arg(root().join("fixtures/sd15/torchscript/unet.onnx"))
                .arg(&path)
                .args(["--dry-run", "--quiet"])
                .assert()
                .success();
            configs += 1;
        }
    }
    assert!(configs >= 7, "{configs}");
}
