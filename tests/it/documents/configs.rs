//! The plans in `configs/` on the graphs that they are for: real exports at full size, without their weights.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::Value;

use crate::documents::root;

/// Plans, the networks that each is for, and the network that is left where it has a name of its own.
const PLANS: [(&str, &[&str], Option<&str>); 38] = [
    ("attention-shapes", &["shapes"], None),
    ("bk-sdm-base", &["sd15"], Some("bk-sdm-base")),
    ("bk-sdm-small", &["sd15"], Some("bk-sdm-small")),
    ("bk-sdm-tiny", &["sd15"], None),
    ("bypass-mid", &["sd15", "sd21", "sdxl"], None),
    ("crdiff-0.2", &["sd15", "sd21", "sdxl"], None),
    ("crdiff-attention-shapes", &["shapes"], None),
    ("crdiff-sd15", &["sd15"], None),
    ("crdiff-sd21", &["sd21"], None),
    ("crdiff-sdxl", &["sdxl"], None),
    ("crdiff-shapes", &["shapes"], None),
    ("crdiff-shrink-24x24-shapes", &["shapes"], None),
    ("deep-shrink-sd15", &["sd15"], None),
    ("deep-shrink-sdxl", &["sdxl"], None),
    ("deepcache-sd15", &["sd15", "sd21"], None),
    ("dilate-attention-48x48-shapes", &["shapes"], None),
    ("dilate-attention-64x64-shapes", &["shapes"], None),
    ("dilate-shapes", &["shapes"], None),
    ("freeu-sd15", &["sd15"], None),
    ("freeu-sd21", &["sd21"], None),
    ("freeu-sdxl", &["sdxl"], None),
    ("hidiffusion-sd15", &["sd15"], None),
    ("hidiffusion-sdxl", &["sdxl"], None),
    ("infoscale-sd15", &["sd15"], None),
    ("infoscale-sdxl", &["sdxl"], None),
    ("pag-sd15", &["sd15"], None),
    ("scalecrafter-sd15", &["sd15"], None),
    ("scalecrafter-sd15-1280", &["sd15"], None),
    ("scalecrafter-sd21", &["sd21"], None),
    ("scalecrafter-sdxl", &["sdxl"], None),
    ("scalecrafter-sdxl-2560", &["sdxl"], None),
    ("seg-sdxl", &["sdxl"], None),
    ("shrink-shapes", &["shapes"], None),
    ("skip-layer", &["sd15", "sd21", "sdxl"], None),
    ("temperature-sd15", &["sd15"], None),
    ("temperature-sdxl", &["sdxl"], None),
    ("window-sd15", &["sd15"], None),
    ("window-sdxl", &["sdxl"], None),
];

fn facts() -> &'static Value {
    static FACTS: OnceLock<Value> = OnceLock::new();
    FACTS.get_or_init(|| {
        let text = fs::read_to_string(root().join("fixtures/full_size/full_size.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["networks"].take()
    })
}

/// The graph of a network, beside a file of zeros as long as its weights that takes no room.
fn network(name: &str, folder: &Path) -> PathBuf {
    let archive = fs::File::open(root().join(format!("fixtures/full_size/{name}.zip"))).unwrap();
    let mut archive = zip::ZipArchive::new(archive).unwrap();
    let mut graph = Vec::new();
    archive.by_name("model.onnx").unwrap().read_to_end(&mut graph).unwrap();
    let path = folder.join("model.onnx");
    fs::write(&path, graph).unwrap();
    let data = fs::File::create(folder.join("model.onnx_data")).unwrap();
    data.set_len(facts()[name]["data_bytes"].as_u64().unwrap()).unwrap();
    path
}

/// Returns the compiler's report of a plan on a model, without writing a graph.
fn report(model: &Path, plan: &str) -> Value {
    let path = model.with_file_name("report.json");
    let compiled = Command::new(env!("CARGO_BIN_EXE_crdiff-compile"))
        .arg(model)
        .arg(root().join(format!("configs/{plan}.yaml")))
        .args(["--dry-run", "--quiet", "--report"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{plan}: {}", String::from_utf8_lossy(&compiled.stderr));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_plan_is_listed() {
    let mut names: Vec<String> = fs::read_dir(root().join("configs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    names.sort();
    assert_eq!(names, PLANS.map(|(name, ..)| name));
}

#[test]
fn every_plan_fits_the_networks_that_it_is_for() {
    for name in ["sd15", "sd21", "sdxl"] {
        let folder = tempfile::tempdir().unwrap();
        let model = network(name, folder.path());
        for (plan, _, leaves) in PLANS.iter().filter(|(_, networks, _)| networks.contains(&name)) {
            let report = report(&model, plan);
            if plan.starts_with("crdiff") {
                check_groups(&report, name, plan);
            }
            if plan.starts_with("scalecrafter") {
                // As many as the lists of its authors have.
                let count = match name {
                    "sdxl" => 11,
                    _ if plan.ends_with("1280") => 35,
                    _ => 39,
                };
                assert_eq!(report["dilate"].as_array().unwrap().len(), count, "{plan}");
            }
            if ["deep-shrink", "hidiffusion"].iter().any(|method| plan.starts_with(method)) {
                let shrinks = report["shrink"].as_array().unwrap();
                assert_eq!(shrinks.len(), 1, "{plan}");
                // Stages that halve the size, one more of the part, and those before it.
                let divisor = if name == "sdxl" { 8 } else { 16 };
                let note = shrinks[0]["note"].as_str().unwrap();
                assert!(note.ends_with(&format!("divisible by {divisor}")), "{plan}: {note}");
            }
            if plan.starts_with("freeu") {
                // The resnets of two up blocks.
                assert_eq!(report["freeu"].as_array().unwrap().len(), 6, "{plan}");
            }
            if plan.starts_with("window") {
                let count = if name == "sdxl" { 10 } else { 5 };
                assert_eq!(report["attention"].as_array().unwrap().len(), count, "{plan}");
            }
            if ["pag", "seg"].iter().any(|method| plan.starts_with(method)) {
                let count = if name == "sdxl" { 10 } else { 1 };
                assert_eq!(report["attention"].as_array().unwrap().len(), count, "{plan}");
            }
            if ["temperature", "infoscale"].iter().any(|method| plan.starts_with(method)) {
                // Self-attentions, and InfoScale's cross-attentions.
                let attentions = if name == "sdxl" { 70 } else { 16 };
                let count = attentions * if plan.starts_with("infoscale") { 2 } else { 1 };
                assert_eq!(report["temperature"].as_array().unwrap().len(), count, "{plan}");
            }
            if let Some(left) = leaves {
                let count = |what: &str| report["graph"][what].as_u64().unwrap();
                let parameters = |of: &str| facts()[of]["parameters"].as_u64().unwrap();
                assert_eq!(
                    count("parameters_before") - count("parameters_after"),
                    parameters(name) - parameters(left),
                    "{plan}"
                );
            }
        }
    }
}

/// The network that was really trained.
#[test]
fn the_plan_for_shapes_fits_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    fs::copy(root().join("fixtures/shapes/pipeline/unet/model.onnx"), &model).unwrap();
    let report = report(&model, "crdiff-shapes");
    let weights: Vec<_> = report["prune"].as_array().unwrap().iter().map(|rule| &rule["weights"]).collect();
    assert_eq!(weights, [466_944, 401_408, 933_888], "as torch counts them");
}

/// Of the trained network's deep stage: a resnet on the way down, two in the middle and two on the way up; all attentions.
#[test]
fn the_plans_for_larger_and_smaller_shapes_fit_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    fs::copy(root().join("fixtures/shapes/pipeline/unet/model.onnx"), &model).unwrap();
    let temperatures = &report(&model, "crdiff-attention-shapes")["temperature"];
    assert_eq!(temperatures.as_array().unwrap().len(), 2 * 11, "as many attentions of each kind");
    for (plan, resnets, factors) in [
        ("attention-shapes", 0, 2 * 11),
        ("dilate-shapes", 1 + 2 + 2, 0),
        ("dilate-attention-48x48-shapes", 1 + 2, 2 * 11),
        ("dilate-attention-64x64-shapes", 1 + 2 + 2, 2 * 11),
    ] {
        let report = report(&model, plan);
        let count = |rule: &str| report[rule].as_array().map_or(0, Vec::len);
        assert_eq!((count("dilate"), count("temperature")), (2 * resnets, factors), "{plan}");
    }
}

/// The weights of each group are as many as torch counts.
fn check_groups(report: &Value, network: &str, plan: &str) {
    let expected = &facts()[network]["crdiff"];
    let rules = report["prune"].as_array().unwrap();
    assert_eq!(rules.len(), 3, "{plan} on {network}");
    for (rule, group) in rules.iter().zip(["down_blocks", "mid_block", "up_blocks"]) {
        assert_eq!(rule["weights"], expected[group], "{plan} on {network}: {group}");
    }
}
