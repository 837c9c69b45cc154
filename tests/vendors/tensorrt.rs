//! TensorRT for RTX, whose parser and builder need no GPU: it reads every form of graph, the same weights however they are
//! stored, and builds for the shapes that `export trtexec` prints and `export triton` writes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crdiff::{
    compile::{Job, Target, cached_outputs, compile_file},
    onnx::WeightPolicy,
    passes::MaskForm,
    plan::{self, Plan},
};
use serde_json::{Value, json};

use super::{common::node, packages, printed, root};

const PLAN: &str =
    "version: 1\ncrdiff: { down: 0.3, mid: 0.3, up: 0.3 }\nrules:\n  - bypass: mid_block.attentions.0";
/// An amplified graph stands for prune rules only.
const MASKS: &str = "version: 1\ncrdiff: { down: 0.3, mid: 0.3, up: 0.3 }";
const CACHED: &str =
    "version: 1\ncrdiff: { down: 0.3, mid: 0.3, up: 0.3 }\ncache: { at: up_blocks.1.resnets.1 }";
const TRANSFORMER: &str = "version: 1\ncrdiff: { ratio: 0.3 }";

/// Returns what `tensorrt.py` finds in models, and in the engines of those with shapes.
fn read(models: &[(&Path, Option<[String; 3]>)], folder: &Path) -> Vec<Value> {
    let packages = packages("tensorrt");
    let request = folder.join("request.json");
    let asked: Vec<Value> =
        models.iter().map(|(model, shapes)| json!({ "model": model, "shapes": shapes })).collect();
    fs::write(&request, Value::from(asked).to_string()).unwrap();
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

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

/// A copy of an exported fixture, so that outputs can lie beside it and share its weights.
fn copied(export: &str, folder: &Path) -> PathBuf {
    let to = folder.join(export.replace('/', "-"));
    copy_folder(&root().join("fixtures").join(export), &to);
    to.join("unet.onnx")
}

/// Compiles `model` to a file beside it.
fn beside(
    model: &Path,
    plan: &Plan,
    target: Target,
    weights: WeightPolicy,
    masks: MaskForm,
    name: &str,
) -> PathBuf {
    let output = model.with_file_name(format!("{name}.onnx"));
    let job = Job::new(model, plan).target(target).output(&output).weights(weights).masks(masks);
    compile_file(&job, &()).unwrap_or_else(|error| panic!("{name} of {}: {error}", model.display()));
    output
}

#[test]
fn its_parser_takes_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let parsed = |text: &str| plan::parse("plan.yaml", text).unwrap();
    let (masks, cached) = (parsed(MASKS), parsed(CACHED));
    let mut models: Vec<PathBuf> = Vec::new();
    let mut equal = Vec::new();
    for (export, rules) in [
        ("sd15-mini/torchscript", PLAN),
        ("sd15-mini/dynamo", PLAN),
        ("sd15-mini/torchscript-fp16", PLAN),
        ("sd15-mini/dynamo-bf16", PLAN),
        ("sd15-mini/dynamo-opset21", PLAN),
        ("sd15-mini/dynamo-opset23", PLAN),
        ("sd15-mini/split", PLAN),
        ("sd21/torchscript", PLAN),
        ("sdxl/dynamo", PLAN),
        ("sd3/dynamo", TRANSFORMER),
    ] {
        let model = copied(export, folder.path());
        let plan = parsed(rules);
        models.push(model.clone());
        for target in [Target::Pruned, Target::Fused, Target::FusedWithInput, Target::Amplified] {
            let plan = if target == Target::Amplified && rules == PLAN { &masks } else { &plan };
            let make = |weights, masks, form: &str| {
                beside(&model, plan, target, weights, masks, &format!("{target:?}-{form}"))
            };
            let at = models.len();
            models.push(make(WeightPolicy::Share, MaskForm::Stored, "share"));
            models.push(make(WeightPolicy::Copy, MaskForm::Stored, "copy"));
            // The masks that nodes make are the same in each.
            if target == Target::Pruned {
                models.push(make(WeightPolicy::Share, MaskForm::Computed, "compact"));
            }
            equal.push(at);
        }
        if rules == PLAN && export.starts_with("sd15-mini") {
            let output = model.with_file_name("cached.onnx");
            let job = Job::new(&model, &cached).cached().target(Target::FusedWithInput).output(&output);
            compile_file(&job.weights(WeightPolicy::Share), &()).unwrap();
            models.extend(cached_outputs(&output));
        }
    }
    let asked: Vec<_> = models.iter().map(|model| (model.as_path(), None)).collect();
    let found = read(&asked, folder.path());
    for share in equal {
        let name = models[share].display();
        assert!(found[share]["constants"].as_u64().unwrap() > 50, "{name}: {}", found[share]);
        assert_eq!(found[share], found[share + 1], "{name}");
    }
    // The digests tell a mask: the original, and its weights times 1 - w.
    assert_ne!(found[0]["digest"], found[8]["digest"]);
    assert_eq!(found[0]["layers"], found[8]["layers"]);
}

/// Plans of each kind, as the goldens have them.
#[test]
fn its_parser_takes_every_kind_of_rule() {
    let folder = tempfile::tempdir().unwrap();
    let mut models: Vec<PathBuf> = Vec::new();
    for export in ["torchscript", "torchscript-fp16", "dynamo-bf16", "dynamo-opset23"] {
        let model = copied(&format!("sd15-mini/{export}"), folder.path());
        for golden in
            ["attention", "attention-mean", "attention-window", "dilation", "freeu", "shrink", "temperature"]
        {
            let index = root().join(format!("fixtures/sd15-mini/golden-{golden}/index.json"));
            let index: Value = serde_json::from_str(&fs::read_to_string(index).unwrap()).unwrap();
            let cases = index["cases"].as_array().unwrap().iter();
            // The others have these and masks, or the same in both networks.
            let alone = |case: &&Value| {
                let kind = case["kind"].as_str().unwrap();
                !kind.contains('_') && kind != "amplified" && case["plan"].get("rules").is_some()
            };
            let cases: Vec<&Value> = cases.filter(alone).collect();
            assert!(cases.len() >= 3, "{golden}");
            for (index, case) in cases.into_iter().enumerate() {
                let plan = plan::parse("plan.yaml", &case["plan"].to_string()).unwrap();
                let (share, stored) = (WeightPolicy::Share, MaskForm::Stored);
                let name = format!("{golden}-{index}");
                models.push(beside(&model, &plan, Target::Pruned, share, stored, &name));
            }
        }
    }
    let asked: Vec<_> = models.iter().map(|model| (model.as_path(), None)).collect();
    read(&asked, folder.path());
}

/// The shapes that `export trtexec` prints for `model`.
fn of_trtexec(model: &Path) -> [String; 3] {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
    command.args(["export", "trtexec"]).arg(model);
    command.args(["--sizes", "128x128,192x128", "--batch", "1..2"]);
    let text = printed(&mut command);
    ["min", "opt", "max"].map(|which| {
        let rest = text.split_once(&format!("--{which}Shapes=")).unwrap().1;
        rest.split_whitespace().next().unwrap().to_string()
    })
}

/// The model that `export triton` writes for TensorRT, and its profile.
fn of_triton(model: &Path, repository: &Path) -> (PathBuf, [String; 3]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
    command.args(["export", "triton", "--accelerator", "tensorrt", "--sizes", "128x128,192x128"]);
    command.args(["--max-batch", "2", "-o"]).arg(repository);
    printed(command.arg(format!("served={}", model.display())));
    let config = fs::read_to_string(repository.join("served/config.pbtxt")).unwrap();
    let shapes = ["min", "opt", "max"].map(|which| {
        let rest = config.split_once(&format!("\"trt_profile_{which}_shapes\"")).unwrap().1;
        rest.split('"').nth(1).unwrap().to_string()
    });
    (repository.join("served/1/model.onnx"), shapes)
}

#[test]
fn its_builder_takes_the_shapes_of_trtexec_and_triton() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan::parse("plan.yaml", PLAN).unwrap();
    let dense = copied("sd15-mini/torchscript", folder.path());
    let make = |target, name| beside(&dense, &plan, target, WeightPolicy::Copy, MaskForm::Stored, name);
    let pruned = make(Target::Pruned, "pruned");
    let (fused, triton) = of_triton(&make(Target::Fused, "fused"), &folder.path().join("models"));
    let trtexec = [&dense, &pruned].map(|model| of_trtexec(model));
    for shapes in trtexec.iter().chain([&triton]) {
        assert!(shapes[2].contains("sample:2x4x24x16"), "{shapes:?}");
    }
    let [of_dense, of_pruned] = trtexec;
    let asked = [(&*dense, Some(of_dense)), (&*pruned, Some(of_pruned)), (&*fused, Some(triton))];
    let found = read(&asked, folder.path());
    let sizes: Vec<u64> = found.iter().map(|one| one["engine"].as_u64().unwrap()).collect();
    let [dense, pruned, fused] = sizes[..] else { unreachable!() };
    // A bypass shrinks an engine, and a fused graph takes less than both.
    assert!(pruned < dense && dense < fused && fused < dense + pruned, "{sizes:?}");
}
