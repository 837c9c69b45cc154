//! `crdiff-compile --report FILE.html`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use onnx_protobuf::ModelProto;
use protobuf::Message;
use serde_json::{Value, json};

use crate::report::{
    browser::{column, look, look_at_all, number, strings},
    golden::{case, fixture, parameters},
};

const CASE: &str = "prune_bypass/adjacent-resnets+30-50-10";

fn compile(model: &Path, plan: &str, arguments: &[&str], folder: &Path) -> PathBuf {
    let page = folder.join("report.html");
    fs::write(folder.join("plan.yaml"), plan).unwrap();
    let mut command = Command::cargo_bin("crdiff-compile").unwrap();
    command.arg(model).arg(folder.join("plan.yaml")).args(arguments).arg("--report").arg(&page);
    command.arg("-o").arg(folder).assert().success();
    page
}

fn data(page: &Path) -> Value {
    let html = fs::read_to_string(page).unwrap();
    let (_, data) = html.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn a_page_shows_what_torch_did() {
    let golden = case("sd15", CASE);
    let model = fixture("sd15/torchscript/unet.onnx");
    let folder = tempfile::tempdir().unwrap();
    let plan = serde_json::to_string_pretty(&golden["plan"]).unwrap();
    let page = compile(&model, &plan, &["--emit", "pruned,fused", "--at", "64x64"], folder.path());
    let bypassed = "[aria-label^=\"down_blocks.3.resnets.0,\"]";
    let masked = "[aria-label^=\"down_blocks.1.attentions.0,\"]";
    let all_modules = "section:has(table[aria-label=\"Modules\"]) .more button";
    let all_weights = "section:has(table[aria-label=\"Masked weights\"]) .more button";
    let head = |n: usize| format!("table[aria-label=\"Modules\"] th:nth-child({n}) button");
    let answers = look(
        &page,
        &[
            json!({ "step": "texts", "selector": "[data-figure]" }),
            json!({ "step": "tab", "selector": masked, "limit": 60 }),
            json!({ "step": "click", "selector": bypassed }),
            json!({ "step": "texts", "selector": "#details h3, #done" }),
            json!({ "step": "press", "selector": masked, "key": "Enter" }),
            json!({ "step": "texts", "selector": "#chosen, #done, [data-value=Parameters]" }),
            json!({ "step": "table", "caption": "Rules" }),
            json!({ "step": "click", "selector": all_weights }),
            json!({ "step": "table", "caption": "Masked weights" }),
            json!({ "step": "click", "selector": all_modules }),
            json!({ "step": "click", "selector": head(4) }),
            json!({ "step": "table", "caption": "Modules" }),
            json!({ "step": "click", "selector": head(4) }),
            json!({ "step": "table", "caption": "Modules" }),
            json!({ "step": "attributes", "selector": "table[aria-label=\"Modules\"] th", "name": "aria-sort" }),
            json!({ "step": "attributes", "selector": ".rule svg", "name": "aria-label" }),
            json!({ "step": "click", "selector": ".choice:nth-child(2)" }),
            json!({ "step": "view", "width": 1280, "scheme": "light" }),
            json!({ "step": "attributes", "selector": "svg .part", "name": "aria-label" }),
        ],
    );
    let torch = parameters("sd15");
    let figures = strings(&answers[0]);
    assert!(figures[0].contains("56.4 k before"), "{figures:?}");
    assert_eq!(torch[""], 56440);

    let said = strings(&answers[3]);
    assert_eq!(said[0], "down_blocks.3.resnets.0");
    assert!(said[1].starts_with("Bypassed"), "{said:?}");
    let line = 1 + plan.lines().position(|line| line.contains("\"bypass\"")).unwrap();
    assert!(said[1].contains(&format!("plan line {line}")), "{said:?}\n{plan}");

    assert_eq!(answers[1], true, "the keyboard does not reach the boxes");
    let said = strings(&answers[5]);
    assert_eq!(said[0], "down_blocks.1.attentions.0");
    let layers = golden["prune"][0]["layers"].as_array().unwrap().iter();
    let inside: Vec<&Value> = layers
        .filter(|layer| layer["module"].as_str().unwrap().starts_with("down_blocks.1.attentions.0."))
        .collect();
    let sum = |key: &str| json!(inside.iter().map(|layer| layer[key].as_u64().unwrap()).sum::<u64>());
    let wanted = format!(
        "{} of the {} weights that prune rules name are masked",
        count(&sum("zeros")),
        count(&sum("numel"))
    );
    assert!(said[1].starts_with(&wanted), "{said:?}, not {wanted}");
    assert!(said[1].contains("threshold 1.780969e-1"), "{said:?}");
    assert_eq!(said[2].split(' ').next().map(number), Some(torch["down_blocks.1.attentions.0"]));

    rules(&answers[6], &golden);
    weights(&answers[8], &golden);
    modules(&answers[11], &torch);
    let rising: Vec<u64> = column(&answers[13], "Parameters").into_iter().map(number).collect();
    assert!(rising.is_sorted() && rising.last() > rising.first());
    assert_eq!(answers[14][3], "ascending");

    let labels = strings(&answers[15]);
    for (label, rule) in labels.iter().zip(golden["prune"].as_array().unwrap()) {
        let masked = format!("{} of {} masked", count(&rule["zeros"]), count(&rule["n"]));
        assert!(label.contains("threshold 0.") && label.ends_with(&masked), "{label}\n{masked}");
    }
    assert_eq!(labels.len(), 3);
    magnitudes(&data(&page), &model);

    let boxes = strings(&answers[18]);
    let said = |path: &str| {
        let start = format!("{path},");
        let label =
            boxes.iter().find(|label| label.starts_with(&start)).unwrap_or_else(|| panic!("{boxes:?}"));
        label.rsplit(", ").next().unwrap()
    };
    // Nothing before the first masked weight differs between the branches, everything after it does.
    assert_eq!(said("conv_in"), "computed once for both branches");
    assert_eq!(said("time_embedding"), "computed once for both branches");
    assert_eq!(said("down_blocks.0.resnets.0"), "computed once for both branches");
    assert_eq!(said("down_blocks.0.resnets.1"), "computed in each branch");
    assert_eq!(said("down_blocks.3.resnets.1"), "bypassed");
    assert_eq!(said("conv_out"), "computed in each branch");
}

#[test]
fn every_kind_of_rule_has_its_histogram() {
    let names = ["prune/threshold", "prune/tensor-20", "prune/2-4", "prune/mixed"];
    let model = fixture("sd15/torchscript/unet.onnx");
    let folders = names.map(|_| tempfile::tempdir().unwrap());
    let pages: Vec<PathBuf> = names
        .iter()
        .zip(&folders)
        .map(|(name, folder)| {
            let plan = case("sd15", name)["plan"].to_string();
            compile(&model, &plan, &["--dry-run", "--quiet"], folder.path())
        })
        .collect();
    let steps = [
        json!({ "step": "attributes", "selector": ".rule svg", "name": "aria-label" }),
        json!({ "step": "table", "caption": "Rules" }),
    ];
    for ((name, page), answers) in names.iter().zip(&pages).zip(look_at_all(&pages, &steps)) {
        let golden = case("sd15", name);
        magnitudes(&data(page), &model);
        let rules = golden["prune"].as_array().unwrap();
        let zeros = |rule: &Value| rule["zeros"].as_u64().unwrap();
        let mut torch: Vec<u64> = rules.iter().map(zeros).collect();
        let mut shown: Vec<u64> = column(&answers[1], "Masked").into_iter().map(number).collect();
        torch.sort_unstable();
        shown.sort_unstable();
        assert_eq!(shown, torch, "{name}");
        assert_eq!(strings(&answers[0]).len(), rules.len(), "{name}");
    }
}

#[test]
fn a_lora_is_a_rule_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = fixture("lora/kohya.safetensors");
    let plan = json!({
        "version": 1, "always": [{ "lora": { "file": file, "scale": 0.8 } }], "crdiff": { "mid": 0.2 }
    });
    let model = fixture("sd15-mini/torchscript/unet.onnx");
    let page =
        compile(&model, &plan.to_string(), &["--dry-run", "--quiet", "--emit", "fused"], folder.path());
    let module = "down_blocks.0.attentions.0";
    let merged = "section:has(table[aria-label=\"Merged weights\"])";
    let answers = look(
        &page,
        &[
            json!({ "step": "table", "caption": "Rules" }),
            json!({ "step": "click", "selector": format!("[aria-label^=\"{module},\"]") }),
            json!({ "step": "texts", "selector": "#done" }),
            json!({ "step": "texts", "selector": "[data-figure]" }),
            json!({ "step": "table", "caption": "Merged weights" }),
            json!({ "step": "click", "selector": format!("{merged} tbody button") }),
            json!({ "step": "texts", "selector": "#chosen, #done" }),
        ],
    );
    let changes = &data(&page)["views"][0]["report"]["lora"][0];
    let shown = column(&answers[4], "Module").into_iter().zip(column(&answers[4], "Change"));
    let shown: Vec<(String, String)> = shown.map(|(module, change)| (module.into(), change.into())).collect();
    let percent = |change: &Value| format!("{:.2} %", 100.0 * change.as_f64().unwrap());
    let tensors = changes["per_tensor"].as_array().unwrap().iter();
    let expected =
        tensors.map(|tensor| (tensor["module"].as_str().unwrap().to_string(), percent(&tensor["change"])));
    assert_eq!(shown, expected.collect::<Vec<_>>());
    // In a fused graph too, a merged module is marked as changed.
    let said = strings(&answers[6]);
    assert!(
        said[1].contains("A LoRA is merged into its weight")
            && said[1].contains(&format!("{} of its norm", shown[0].1)),
        "{said:?}"
    );
    let rows = column(&answers[0], "Rule");
    let index = rows.iter().position(|rule| *rule == "lora, × 0.8").unwrap_or_else(|| panic!("{rows:?}"));
    assert_eq!(column(&answers[0], "Selects")[index], file.display().to_string());
    assert_eq!(column(&answers[0], "Items")[index], "12 weight tensors");
    assert_eq!(column(&answers[0], "Share")[index], "–");
    assert!(strings(&answers[2])[0].starts_with("6 modules in it changed."), "{:?}", answers[2]);
    assert!(strings(&answers[3]).iter().any(|figure| figure.contains("12 weights")), "{:?}", answers[3]);
}

/// The rules' numbers are torch's.
fn rules(table: &Value, golden: &Value) {
    let pruned: Vec<usize> =
        (0..).zip(column(table, "Rule")).filter(|(_, rule)| *rule == "prune").map(|(i, _)| i).collect();
    for (row, rule) in pruned.iter().zip(golden["prune"].as_array().unwrap()) {
        let cell = |name: &str| column(table, name)[*row];
        assert_eq!(cell("Selects"), format!("crdiff.{}", rule["group"].as_str().unwrap()));
        for (name, key) in [("n", "n"), ("k", "k"), ("Masked", "zeros")] {
            assert_eq!(number(cell(name)), rule[key], "{name}");
        }
        let threshold: f64 = cell("Threshold").parse().unwrap();
        let torch = rule["threshold"]["value"].as_f64().unwrap();
        assert!((threshold / torch - 1.0).abs() < 1e-6, "{threshold} is not {torch}");
    }
    assert_eq!(pruned.len(), 3);
    let bypass = (0..).zip(column(table, "Rule")).find(|(_, rule)| *rule == "bypass").unwrap().0;
    assert_eq!(column(table, "Selects")[bypass], "down_blocks.3.resnets.0, down_blocks.3.resnets.1");
}

/// Each layer's numbers are torch's.
fn weights(table: &Value, golden: &Value) {
    let mut torch = BTreeMap::new();
    for rule in golden["prune"].as_array().unwrap() {
        for layer in rule["layers"].as_array().unwrap() {
            let numbers = (layer["numel"].as_u64().unwrap(), layer["zeros"].as_u64().unwrap());
            let k = format!("pool: {}", count(&rule["k"]));
            torch.insert(layer["module"].as_str().unwrap(), (numbers, k));
        }
    }
    let numbers =
        column(table, "n").into_iter().map(number).zip(column(table, "Masked").into_iter().map(number));
    let numbers = numbers.zip(column(table, "k").into_iter().map(str::to_string));
    let shown: BTreeMap<_, _> = column(table, "Module").into_iter().zip(numbers).collect();
    assert_eq!(shown, torch);
}

/// Each module's parameters are torch's, and the multiply-accumulates of a convolution are what its shape says; the
/// table is sorted by parameters.
fn modules(table: &Value, torch: &BTreeMap<String, u64>) {
    let parameters: Vec<u64> = column(table, "Parameters").into_iter().map(number).collect();
    assert!(parameters.is_sorted_by(|a, b| a >= b));
    let paths = column(table, "Module");
    for (path, shown) in paths.iter().zip(&parameters) {
        assert_eq!(*shown, torch[*path], "{path}");
    }
    assert!(paths.len() > 300, "{}", paths.len());
    let at = paths.iter().position(|path| *path == "conv_in").unwrap();
    assert_eq!(number(column(table, "MACs")[at]), 64 * 64 * 4 * 4 * 3 * 3);
    assert_eq!(column(table, "Output")[at], "[1, 4, 64, 64]");
}

/// The bins of the histograms hold as many weights as there are between their edges.
fn magnitudes(data: &Value, model: &Path) {
    let decoded = ModelProto::parse_from_bytes(&fs::read(model).unwrap()).unwrap();
    for rule in data["views"][0]["report"]["prune"].as_array().unwrap() {
        let tensors = rule["per_tensor"].as_array().unwrap().iter();
        let names: Vec<&str> = tensors.map(|tensor| tensor["tensor"].as_str().unwrap()).collect();
        let weights = decoded.graph.initializer.iter().filter(|weight| names.contains(&weight.name.as_str()));
        let elements = weights.flat_map(|weight| weight.raw_data.as_chunks().0);
        let values: Vec<f32> = elements.map(|bytes| f32::from_le_bytes(*bytes).abs()).collect();
        let shown = &rule["magnitudes"];
        let edges: Vec<f32> =
            shown["edges"].as_array().unwrap().iter().map(|edge| edge.as_f64().unwrap() as f32).collect();
        let counted: Vec<usize> =
            edges.windows(2).map(|e| values.iter().filter(|v| (e[0]..e[1]).contains(*v)).count()).collect();
        assert_eq!(shown["counts"], json!(counted));
        assert_eq!(counted.iter().sum::<usize>() as u64, rule["weights"].as_u64().unwrap());
    }
}

fn count(number: &Value) -> String {
    let text = number.as_u64().unwrap().to_string();
    match text.len() {
        4.. => format!("{},{}", &text[..text.len() - 3], &text[text.len() - 3..]),
        _ => text,
    }
}
