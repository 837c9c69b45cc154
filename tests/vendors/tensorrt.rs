//! TensorRT for RTX, whose parser and builder need no GPU: it builds engines for the shapes that `export trtexec` prints.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crdiff::{
    compile::{Job, Target, compile_file},
    onnx::WeightPolicy,
    plan,
};
use serde_json::{Value, json};

use super::{common::node, packages, printed, root};

const PLAN: &str =
    "version: 1\ncrdiff: { down: 0.3, mid: 0.3, up: 0.3 }\nrules:\n  - bypass: mid_block.attentions.0";

fn read(models: &[Value], folder: &Path) -> Vec<Value> {
    let packages = packages("tensorrt");
    let request = folder.join("request.json");
    fs::write(&request, Value::from(models).to_string()).unwrap();
    let mut command = Command::new(node::python());
    command
        .env("PYTHONPATH", &packages)
        .env("LD_LIBRARY_PATH", packages.join("tensorrt_rtx_libs"))
        .arg(root().join("tests/vendors/tensorrt.py"))
        .arg(&request);
    let found: Vec<Value> =
        printed(&mut command).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found.len(), models.len());
    found
}

fn copied(fixture: &str, folder: &Path) -> PathBuf {
    let to = folder.join(fixture.replace('/', "-"));
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(root().join("fixtures").join(fixture)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
    to.join("unet.onnx")
}

#[test]
fn its_builder_takes_the_shapes_of_trtexec() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan::parse("plan.yaml", PLAN).unwrap();
    let model = copied("sd15-mini/torchscript", folder.path());
    let mut asked = Vec::new();
    for target in [None, Some(Target::Pruned), Some(Target::Fused)] {
        let path = target.map_or(model.clone(), |target| {
            let output = model.with_file_name(format!("{target:?}.onnx"));
            let job = Job::new(&model, &plan).target(target).output(&output).weights(WeightPolicy::Copy);
            compile_file(&job, &()).unwrap();
            output
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
        command.args(["export", "trtexec"]).arg(&path).args([
            "--sizes",
            "128x128,192x128",
            "--batch",
            "1..2",
        ]);
        let text = printed(&mut command);
        let shapes = ["min", "opt", "max"].map(|which| {
            let rest = text.split_once(&format!("--{which}Shapes=")).unwrap().1;
            rest.split_whitespace().next().unwrap().to_string()
        });
        assert!(shapes[2].contains("sample:2x4x24x16"), "{text}");
        asked.push(json!({ "model": path, "shapes": shapes }));
    }
    let found = read(&asked, folder.path());
    let sizes: Vec<u64> = found.iter().map(|one| one["engine"].as_u64().unwrap()).collect();
    let [dense, pruned, fused] = sizes[..] else { unreachable!() };
    // A bypass shrinks an engine, and a fused graph takes less than both.
    assert!(pruned < dense && dense < fused && fused < dense + pruned, "{sizes:?}");
}
