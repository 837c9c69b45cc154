//! The language of spaces: what they mean, and errors as they are shown (`errors/NAME.yaml` gives `errors/NAME.txt`;
//! `BLESS=1` rewrites).

use std::{
    fs,
    path::{Path, PathBuf},
};

use crdiff::search::{
    compile::Compiler,
    space::{self, Bound, SpaceError},
    strategy::Coordinate,
};
use miette::{GraphicalReportHandler, GraphicalTheme};
use serde_json::json;

fn rendered(error: &SpaceError) -> String {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .with_links(false)
        .without_syntax_highlighting();
    let mut text = String::new();
    handler.render_report(&mut text, error).unwrap();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned() + "\n"
}

fn compiler() -> Compiler {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pipelines/sd15/unet/model.onnx");
    Compiler::open(&model).unwrap()
}

/// Returns the fault of a space, by itself or for the model.
fn mistake(name: &str, text: &str, compiler: &Compiler) -> SpaceError {
    let space = match space::parse(name, text, Path::new(".")) {
        Ok(space) => space,
        Err(error) => return error,
    };
    let bound = match Bound::new(&space, &compiler.analysis()) {
        Ok(bound) => bound,
        Err(error) => return error,
    };
    for probe in bound.probes() {
        let plan = bound.plan(&bound.settings(&probe)).unwrap();
        if let Err(error) = compiler.resolve(&plan) {
            return error.into();
        }
    }
    panic!("{name} has no mistake");
}

#[test]
fn each_mistake_is_shown_where_it_is() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/search/errors");
    let compiler = compiler();
    let mut cases: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    cases.sort();
    assert!(cases.len() >= 12, "the cases are gone");
    for path in cases {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = rendered(&mistake(name, &fs::read_to_string(&path).unwrap(), &compiler));
        let golden = path.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert!(expected == text, "{name}: expected\n{expected}\nbut got\n{text}");
    }
}

const SPACE: &str = r#"
version: 1
variables:
  down: { ratio: [0.1, 0.8] }
  w: { number: [1, 3], start: 1.5 }
  on: { choice: [both, cond] }
  out: { modules: ["mid_block.attentions.*", ["down_blocks.0.resnets.0", "up_blocks.*.resnets.0"]] }
  one: { modules: ["down_blocks.*.resnets.0"], choose: at-most-one }
plan:
  version: 1
  crdiff: { down: $down }
  rules:
    - bypass: [$out, $one]
  amplify: { weight: $w, on: $on }
prompts: [a, b]
objective: { command: ["true"] }
"#;

/// Each scale of a LoRA is a plan of its own, whose digest is that of the file and the scale.
#[test]
fn the_scale_of_a_lora_is_a_variable() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lora");
    let text = "version: 1
variables:
  scale: { number: [0.2, 1] }
plan:
  version: 1
  always: [{ lora: { file: pipeline.safetensors, scale: $scale } }]
  rules: [{ prune: { weights: \"**.attn1.to_q\", ratio: 0.5 } }]
prompts: [a, b]
objective: { command: [\"true\"] }
";
    let space = space::parse("space.yaml", text, &fixtures).unwrap();
    let compiler = compiler();
    let bound = Bound::new(&space, &compiler.analysis()).unwrap();
    let merged = |scale: f64| {
        let settings = bound.settings_from_json(&json!({ "scale": scale })).unwrap();
        let plan = bound.plan(&settings).unwrap();
        let edits = compiler.resolve(&plan).unwrap();
        let merges: Vec<f64> = edits.always.merges().map(|merge| merge.scale).collect();
        assert!(merges.len() > 1 && merges.iter().all(|found| *found == scale), "{merges:?}");
        plan.digest
    };
    assert_ne!(merged(0.4), merged(0.8));
}

#[test]
fn variables_go_into_the_plan() {
    let space = space::parse("space.yaml", SPACE, Path::new(".")).unwrap();
    let compiler = compiler();
    let bound = Bound::new(&space, &compiler.analysis()).unwrap();
    let start = bound.settings(&bound.start());
    assert_eq!(
        bound.plan_json(&start),
        json!({
            "version": 1, "crdiff": { "down": 0.3 }, "rules": [], "amplify": { "weight": 1.5, "on": "both" }
        }),
        "a rule whose sets are empty is left out"
    );
    let mut point = bound.start();
    let last = point.len() - 1;
    point[3] = Coordinate::Choice(1);
    point[4] = Coordinate::Choice(1);
    point[last] = Coordinate::Choice(1);
    let rules = bound.plan_json(&bound.settings(&point))["rules"].clone();
    let modules = rules[0]["bypass"].as_array().unwrap();
    assert_eq!(modules[0], "mid_block.attentions.0");
    assert_eq!(modules[1], "down_blocks.0.resnets.0");
    assert!(modules[2].as_str().unwrap().starts_with("up_blocks."), "members go together: {rules}");
    assert_eq!(*modules.last().unwrap(), "down_blocks.0.resnets.0");
    bound.plan(&bound.settings(&point)).unwrap();

    let values = json!({
        "down": 0.25, "w": 2, "on": "cond", "out": ["mid_block.attentions.0"], "one": []
    });
    let settings = bound.settings_from_json(&values).unwrap();
    assert_eq!(bound.plan_json(&settings)["amplify"], json!({ "weight": 2.0, "on": "cond" }));
    let wrong = |key: &str, value| {
        let mut values = values.clone();
        values[key] = value;
        bound.settings_from_json(&values).unwrap_err().to_string()
    };
    assert_eq!(wrong("down", json!(0.9)), "`down` must be a number from 0.1 to 0.8, not 0.9");
    assert!(wrong("ups", json!(0.9)).starts_with("there is no variable `ups`; the space has `down`"));
    assert!(
        wrong("out", json!(["down_blocks.0.resnets.0"])).contains("has no member `down_blocks.0.resnets.0`")
    );
    let two = wrong("one", json!(["down_blocks.0.resnets.0", "down_blocks.1.resnets.0"]));
    assert_eq!(two, "`one` takes one member or none, not 2");
}

/// Sets hold what the rules take in which they stand, and the ends of a window are in order.
#[test]
fn every_kind_of_rule_is_searched_in_both_sets() {
    let text = r#"
version: 1
variables:
  far: { modules: ["mid_block.resnets.*.*", "down_blocks.1.resnets.0.*"] }
  by: { choice: [2, 3] }
  self: { modules: ["down_blocks.0.**.attn1"], choose: at-most-one }
  map: { choice: [identity] }
  pruned: { modules: ["mid_block.attentions.0.**.attn2.*"], choose: one }
  a: { number: [0, 1], start: 0.7 }
  b: { number: [0, 1], start: 0.2 }
plan:
  version: 1
  always:
    - dilate: { modules: $far, by: $by }
  rules:
    - attention: { modules: $self, map: $map }
    - prune: { weights: $pruned, ratio: 0.5 }
  amplify: { weight: 1, during: [$a, $b] }
prompts: [a]
objective: { command: ["true"] }
"#;
    let space = space::parse("space.yaml", text, Path::new(".")).unwrap();
    let compiler = compiler();
    let bound = Bound::new(&space, &compiler.analysis()).unwrap();
    let members = |name: &str| bound.describe().into_iter().find(|(known, _)| known == name).unwrap().1;
    let convolutions = "any of mid_block.resnets.0.conv1, mid_block.resnets.0.conv2, \
                        mid_block.resnets.1.conv1, mid_block.resnets.1.conv2, \
                        down_blocks.1.resnets.0.conv1, down_blocks.1.resnets.0.conv2";
    assert_eq!(members("far"), convolutions, "no norms, and no shortcut of 1x1");
    assert_eq!(members("self"), "one or none of down_blocks.0.attentions.0.transformer_blocks.0.attn1");
    assert!(members("pruned").contains("attn2.to_q, ") && !members("pruned").contains("attn2,"));
    for probe in bound.probes() {
        let settings = bound.settings(&probe);
        compiler.resolve(&bound.plan(&settings).unwrap()).unwrap();
        assert_eq!(bound.plan_json(&settings)["amplify"]["during"], json!([0.2, 0.7]));
    }
    let values = json!({
        "far": ["mid_block.resnets.0.conv1"], "by": 3, "self": [], "map": "identity",
        "pruned": ["mid_block.attentions.0.transformer_blocks.0.attn2.to_q"], "a": 0.1, "b": 0.4
    });
    let settings = bound.settings_from_json(&values).unwrap();
    let plan = bound.plan(&settings).unwrap();
    assert_eq!((plan.always.len(), plan.rules.len()), (1, 1), "an empty set leaves its rule out");
    compiler.resolve(&plan).unwrap();
}

/// A part, how much smaller it is and by which filter; every point can be compiled.
#[test]
fn parts_at_another_size_are_searched() {
    let text = r#"
version: 1
variables:
  part: { modules: ["mid_block.*.*"], choose: one }
  much: { number: [1.5, 3] }
  size: { choice: [4x4, 8x8] }
  filter: { choice: [linear, nearest] }
  reach: { number: [1.2, 3] }
plan:
  version: 1
  rules:
    - shrink: { within: $part, by: $much, filter: $filter }
    - shrink: { after: down_blocks.0.downsamplers.0, to: $size, filter: $filter, back: cubic }
    - dilate: { modules: "up_blocks.0.resnets.0.conv1", by: $reach }
prompts: [a]
objective: { command: ["true"] }
"#;
    let space = space::parse("space.yaml", text, Path::new(".")).unwrap();
    let compiler = compiler();
    let bound = Bound::new(&space, &compiler.analysis()).unwrap();
    let part = bound.describe().into_iter().find(|(known, _)| known == "part").unwrap().1;
    assert_eq!(
        part, "one of mid_block.resnets.0, mid_block.attentions.0, mid_block.resnets.1",
        "what gives an image"
    );
    let probes: Vec<_> = bound.probes();
    assert!(probes.len() >= 3);
    for probe in probes {
        compiler.resolve(&bound.plan(&bound.settings(&probe)).unwrap()).unwrap();
    }
    let values = json!({
        "part": ["mid_block.resnets.1"], "much": 2.3456789, "size": "4x4", "filter": "nearest", "reach": 2.5
    });
    let plan = bound.plan(&bound.settings_from_json(&values).unwrap()).unwrap();
    let changes = compiler.resolve(&plan).unwrap();
    assert_eq!(changes.other.changes.len(), 3);
}

#[test]
fn the_digest_is_of_the_meaning() {
    let digest = |text: &str| space::parse("space.yaml", text, Path::new(".")).unwrap().digest();
    let known = digest(SPACE);
    // Journals hold it, so a release that gives another one reads no older journals: `journal::FORMAT` counts these.
    assert_eq!(known, "760f6db6f10cd1041705ea6d7cbc0ac937a3598f07b50f3c6e936254c27ecf9c");
    assert_eq!(digest(&format!("# a comment\n{SPACE}")), known);
    assert_eq!(digest(&SPACE.replace("[1, 3]", "[1.0, 3.0]")), known);
    assert_eq!(
        digest(&format!("{SPACE}confirm: {{ best: 2, noises: 3 }}\n")),
        known,
        "it goes on from a journal"
    );
    for (from, to) in [
        ("[0.1, 0.8]", "[0.1, 0.7]"),
        ("prompts: [a, b]", "prompts: [a]"),
        ("on: $on", "on: $on, every: 2"),
        ("\"true\"", "\"false\""),
        ("choose: at-most-one", "choose: one"),
        ("prompts:", "seed: 1\nprompts:"),
        ("prompts:", "strategy: random\nprompts:"),
        ("prompts:", "sampling: { steps: 4 }\nprompts:"),
        ("prompts:", "sampling: { noises: 1 }\nprompts:"),
    ] {
        assert_ne!(digest(&SPACE.replace(from, to)), known, "{to}");
    }
}

#[test]
fn prompts_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("prompts.txt"), "# for the test\na cat\n\n  two dogs  \n").unwrap();
    let text = SPACE.replace("prompts: [a, b]", "prompts: prompts.txt");
    fs::write(folder.path().join("space.yaml"), &text).unwrap();
    assert_eq!(space::load(&folder.path().join("space.yaml")).unwrap().prompts, ["a cat", "two dogs"]);
    let error = space::parse("space.yaml", &text, Path::new("/nowhere")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/prompts.txt: cannot read the prompts"), "{error}");
}

/// The JSON Schema in `configs/` is the one that the types give. `BLESS=1` writes it.
#[test]
fn the_schema_in_configs_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/search.schema.json");
    let schema = serde_json::to_string_pretty(&space::json_schema()).unwrap() + "\n";
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &schema).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == schema, "configs/search.schema.json is stale: run this test with BLESS=1");
}

/// The blocks of YAML in docs/search.md that are spaces, or objectives of one.
#[test]
fn what_the_page_shows_is_read() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/search.md");
    let page = fs::read_to_string(page).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("prompts.txt"), "a cat\n").unwrap();
    let (mut spaces, mut objectives) = (0, 0);
    for block in page.split("```yaml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        let file = folder.path().join("shown.yaml");
        fs::write(&file, text).unwrap();
        if text.starts_with("version:") {
            space::load(&file).map_err(|error| rendered(&error)).unwrap();
            spaces += 1;
        } else {
            space::load_objective(&file).map_err(|error| rendered(&error)).unwrap();
            objectives += 1;
        }
    }
    assert_eq!((spaces, objectives), (1, 3));
}

/// The objective that ships, and the one without a file.
#[test]
fn clip_is_an_objective_by_its_folder() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let shipped = space::load_objective(&configs.join("objectives/clip.yaml")).unwrap();
    assert_eq!(shipped, (space::ObjectiveSpec::Clip("../../clip".into()), configs.join("objectives")));
    let named = space::load_objective(Path::new("clip:exports/clip")).unwrap();
    assert_eq!(named, (space::ObjectiveSpec::Clip("exports/clip".into()), ".".into()));
}
