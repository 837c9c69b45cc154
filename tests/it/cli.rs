//! The command line as users see it: `cli/**/*.trycmd` are sessions with everything that is printed, run in a copy of
//! `cli/models`. `TRYCMD=overwrite` writes what is printed now into them.

use std::{fs, path::Path};

use crdiff::onnx::open;
use prost::Message;

use crate::common::onnx_text::parse_model;

#[test]
fn sessions() {
    let cases = trycmd::TestCases::new();
    cases.env("COLUMNS", "100").env("NO_COLOR", "1");
    for folder in ["help", "mistakes", "done"] {
        cases.case(format!("tests/cli/{folder}/*.trycmd"));
    }
    // Cases that only `crdiff` with the runner in it has, and its list of subcommands.
    if cfg!(feature = "runner") {
        cases.case("tests/cli/help/runner/*.trycmd");
    }
    if cfg!(target_os = "linux") {
        cases.case("tests/cli/linux/*.trycmd");
    }
}

/// The models of the sessions are what their texts say. `BLESS=1` writes them.
#[test]
fn models() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/models");
    for name in ["tiny", "split", "missing", "short", "outside"] {
        let text = fs::read_to_string(folder.join(name).with_extension("onnxtxt")).unwrap();
        let encoded = parse_model(&text).unwrap().encode_to_vec();
        let file = folder.join(name).with_extension("onnx");
        if std::env::var_os("BLESS").is_some_and(|value| value == "1") {
            fs::write(&file, &encoded).unwrap();
        }
        assert!(fs::read(&file).unwrap() == encoded, "{name}.onnx is not what {name}.onnxtxt says");
    }
}

#[test]
fn an_edited_model_says_where_it_comes_from() {
    let work = tempfile::tempdir().unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/models");
    let compiled = |plan: &str| {
        let output = work.path().join(plan).with_extension("onnx");
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_crdiff-compile"));
        command
            .arg(models.join("tiny.onnx"))
            .arg(models.join(plan))
            .arg("-o")
            .arg(&output)
            .assert()
            .success();
        let model = crdiff::onnx::proto::ModelProto::decode(open(&output).unwrap().bytes).unwrap();
        let metadata: Vec<_> =
            model.metadata_props.iter().map(|e| (e.key().to_string(), e.value().to_string())).collect();
        (model.graph.unwrap().name().to_string(), metadata)
    };
    let (bypassed, metadata) = compiled("bypass.yaml");
    let keys: Vec<_> = metadata.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["crdiff.version", "crdiff.emit", "crdiff.plan", "crdiff.source"]);
    assert_eq!(metadata[0].1, env!("CARGO_PKG_VERSION"));
    assert_eq!(metadata[1].1, "pruned");
    let is_digest = |text: &str| text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit());
    assert!(is_digest(&metadata[2].1) && is_digest(&metadata[3].1), "{metadata:?}");
    assert_eq!(bypassed, format!("tiny_crdiff_pruned_{}", &metadata[2].1[..12]));

    let (pruned, other) = compiled("prune.yaml");
    assert_ne!(pruned, bypassed);
    assert_ne!(other[2], metadata[2], "plans differ");
    assert_eq!(other[3], metadata[3], "the source is the same");

    assert_eq!(compiled("untouched.yaml"), ("tiny".to_string(), Vec::new()));
}
