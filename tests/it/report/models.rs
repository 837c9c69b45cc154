//! `crdiff inspect --html` and `crdiff diff --html`, and what a page does with names that mean it ill.

use std::{collections::BTreeSet, fs, path::Path};

use assert_cmd::Command;
use prost::Message;
use serde_json::json;

use crate::common::onnx_text::parse_model;
use crate::report::{
    browser::{column, look, number, strings},
    golden::{bypassable, case, fixture, parameters},
};

fn crdiff(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::cargo_bin("crdiff").unwrap();
    command.current_dir(folder).args(arguments);
    command
}

#[test]
fn a_model_without_a_plan() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("sdxl/torchscript/unet.onnx");
    let arguments = ["inspect", model.to_str().unwrap(), "--html", "page.html", "--at", "32x48"];
    crdiff(&arguments, folder.path()).assert().success().stdout("");
    let chosen = "[aria-label^=\"up_blocks.0.attentions.1,\"]";
    let answers = look(
        &folder.path().join("page.html"),
        &[
            json!({ "step": "click", "selector": "section:has(table[aria-label=Modules]) .more button" }),
            json!({ "step": "table", "caption": "Modules" }),
            json!({ "step": "click", "selector": chosen }),
            json!({ "step": "texts", "selector": "#chosen, [data-value=Parameters], [data-value=Output], [data-value=Skips]" }),
            json!({ "step": "attributes", "selector": ".skip[data-ends]", "name": "class" }),
            json!({ "step": "type", "selector": "input[type=search]", "text": "mid_block.attentions" }),
            json!({ "step": "table", "caption": "Modules" }),
        ],
    );
    let torch = parameters("sdxl");
    let paths = column(&answers[1], "Module");
    for (path, shown) in paths.iter().zip(column(&answers[1], "Parameters")) {
        assert_eq!(number(shown), torch[*path], "{path}");
    }
    assert!(paths.len() > 200, "{}", paths.len());
    let possible = paths.iter().zip(column(&answers[1], "Bypass")).filter(|(_, bypass)| *bypass == "yes");
    let possible: BTreeSet<String> = possible.map(|(path, _)| path.to_string()).collect();
    assert_eq!(possible, bypassable("sdxl").into_iter().collect());

    let said = strings(&answers[3]);
    assert_eq!(said[0], "up_blocks.0.attentions.1");
    assert_eq!(number(said[1].split(' ').next().unwrap()), torch["up_blocks.0.attentions.1"]);
    // The third of three stages is a quarter as high and wide.
    assert!(said[2].ends_with(", 8, 12]"), "{said:?}");
    // One for each resnet on the way up.
    let is_resnet = |path: &&String| {
        let segments: Vec<&str> = path.split('.').collect();
        matches!(segments[..], ["up_blocks", _, "resnets", _])
    };
    assert_eq!(answers[4].as_array().unwrap().len(), torch.keys().filter(is_resnet).count());
    let found = column(&answers[6], "Module");
    assert!(
        !found.is_empty() && found.iter().all(|path| path.starts_with("mid_block.attentions")),
        "{found:?}"
    );
}

#[test]
fn a_network_that_is_no_u() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("sd3/torchscript/unet.onnx");
    crdiff(&["inspect", model.to_str().unwrap(), "--html", "page.HTM"], folder.path()).assert().success();
    let chosen = "[aria-label^=\"transformer_blocks.1.ff,\"]";
    let answers = look(
        &folder.path().join("page.HTM"),
        &[
            json!({ "step": "press", "selector": chosen, "key": "Enter" }),
            json!({ "step": "texts", "selector": "#chosen, [data-value=Parameters]" }),
            json!({ "step": "attributes", "selector": chosen, "name": "aria-pressed" }),
        ],
    );
    let said = strings(&answers[1]);
    assert_eq!(said[0], "transformer_blocks.1.ff");
    assert_eq!(number(said[1].split(' ').next().unwrap()), parameters("sd3")["transformer_blocks.1.ff"]);
    assert_eq!(answers[2], json!(["true"]));
}

#[test]
fn two_models() {
    let golden = case("sd15", "prune_bypass/adjacent-resnets+30-50-10");
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("sd15/torchscript/unet.onnx");
    let model = model.to_str().unwrap();
    fs::write(folder.path().join("plan.json"), golden["plan"].to_string()).unwrap();
    crdiff(&["compile", model, "plan.json", "-o", "out.onnx", "--quiet"], folder.path()).assert().success();
    let arguments = ["diff", model, "out.onnx", "--html", "page.html"];
    crdiff(&arguments, folder.path()).assert().code(1);
    let removed = "[aria-label^=\"down_blocks.3.resnets.1,\"]";
    let answers = look(
        &folder.path().join("page.html"),
        &[
            json!({ "step": "click", "selector": "section:has(table[aria-label=Differences]) .more button" }),
            json!({ "step": "table", "caption": "Differences" }),
            json!({ "step": "click", "selector": removed }),
            json!({ "step": "texts", "selector": "#chosen, #done" }),
            json!({ "step": "click", "selector": ".choice:nth-child(2)" }),
            json!({ "step": "view", "width": 1280, "scheme": "light" }),
            json!({ "step": "attributes", "selector": "svg .part", "name": "aria-label" }),
        ],
    );
    let rows: Vec<(&str, &str)> =
        column(&answers[1], "Module").into_iter().zip(column(&answers[1], "Difference")).collect();
    let mut masked = 0;
    for layer in
        golden["prune"].as_array().unwrap().iter().flat_map(|rule| rule["layers"].as_array().unwrap())
    {
        let (module, zeros) = (layer["module"].as_str().unwrap(), &layer["zeros"]);
        let said = format!(": {zeros} of {} elements differ", layer["numel"]);
        let found = rows.iter().any(|(path, text)| *path == module && text.contains(&said));
        assert_eq!(found, *zeros != 0, "{module}: {said}");
        masked += usize::from(found);
    }
    assert!(masked > 50, "{masked}");
    let said = strings(&answers[3]);
    assert_eq!(said, ["down_blocks.3.resnets.1", "Only the first model has it."]);
    let second = strings(&answers[6]);
    assert!(second.iter().any(|label| label.starts_with("down_blocks.2,")));
    assert!(!second.iter().any(|label| label.starts_with("down_blocks.3")), "{second:?}");
}

#[test]
fn names_stay_text() {
    let folder = tempfile::tempdir().unwrap();
    let evil = "<img src=x onerror=alert(1)>";
    let text = format!(
        r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4,H,W] sample) => (float[1,4,H,W] out)
{{
  ["/{evil}/Relu"] y = Relu(sample)
  ["/<!--<script>/Relu"] x = Relu(y)
  ["/mid_block/resnets.0/Add"] out = Add(x, sample)
}}"#
    );
    fs::write(folder.path().join("unet.onnx"), parse_model(&text).unwrap().encode_to_vec()).unwrap();
    let plan = format!("version: 1 # </script>{evil}\nrules: []\n");
    fs::write(folder.path().join("plan.yaml"), plan).unwrap();
    let arguments = ["compile", "unet.onnx", "plan.yaml", "--dry-run", "--report", "page.html"];
    crdiff(&arguments, folder.path()).assert().success();
    let answers = look(
        &folder.path().join("page.html"),
        &[
            json!({ "step": "texts", "selector": "#plan-1" }),
            json!({ "step": "texts", "selector": ".box-of b" }),
            json!({ "step": "texts", "selector": "img, main script" }),
        ],
    );
    assert_eq!(strings(&answers[0]), [format!("version: 1 # </script>{evil}")]);
    assert_eq!(strings(&answers[1])[..2], [evil, "<!--<script>"]);
    assert_eq!(answers[2], json!([]));
}

#[test]
fn a_page_that_cannot_be_written_is_known_before_anything_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("sd15-mini/torchscript/unet.onnx");
    let model = model.to_str().unwrap();
    fs::write(folder.path().join("plan.yaml"), "version: 1\nrules: [{ bypass: mid_block.attentions.0 }]\n")
        .unwrap();
    let compile = ["compile", model, "plan.yaml", "-o", "out.onnx", "--report", "nowhere/page.html"];
    crdiff(&compile, folder.path()).assert().code(2);
    crdiff(&["diff", model, model, "--html", "nowhere/page.html"], folder.path()).assert().code(2);
    let missing = ["inspect", "missing.onnx", "--html", "page.html"];
    crdiff(&missing, folder.path()).assert().code(2);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["plan.yaml"]);
}
