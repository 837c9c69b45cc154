//! The plans in `configs/` on the modules of a network of the Stable Diffusion 1.x type.

use crdiff::plan::{self, Plan, Rule, Selector, Via};
use std::collections::BTreeSet;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shipped(name: &str) -> Plan {
    plan::load(root().join("configs").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The modules of the fixture that torch could do without, by what stands in for them there.
fn bypassable() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("fixtures/sd15/golden/index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&text).unwrap();
    let modules = index["bypassable"].as_array().unwrap().iter();
    modules.map(|module| module["module"].as_str().unwrap().to_owned()).collect()
}

fn bypassed(plan: &Plan) -> BTreeSet<(String, &'static str)> {
    let modules = bypassable();
    let mut bypassed = BTreeSet::new();
    for rule in &plan.rules {
        let Rule::Bypass(rule) = rule else { continue };
        let Selector::Globs(globs) = &rule.modules else { continue };
        let via = match rule.via {
            Via::Shortcut => "shortcut",
            Via::Input => "input",
            Via::Backbone => "backbone",
        };
        for glob in globs {
            let matched: Vec<_> = modules.iter().filter(|path| glob.matches(path)).collect();
            assert!(!matched.is_empty(), "{} matches nothing", glob.text());
            for path in matched {
                assert!(bypassed.insert((path.clone(), via)), "{path} is selected twice");
            }
        }
    }
    bypassed
}

#[test]
fn every_shipped_plan_parses_and_selects_something() {
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("configs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".yaml") {
            count += 1;
            let plan = shipped(&name);
            let changes = !plan.rules.is_empty() || !plan.always.is_empty() || plan.cache.is_some();
            assert!(changes, "{name} does nothing");
            bypassed(&plan);
        }
    }
    assert!(count >= 7);
}

/// The number of blocks that are left, as BK-SDM's own network configurations have them: `layers_per_block` 1
/// instead of 2, and no mid block in Small.
#[test]
fn bk_sdm_leaves_the_blocks_that_bk_sdm_has() {
    let stages = |side: &str, part: &str, via: &'static str, stages: std::ops::Range<u8>| {
        let path = |stage: u8| (format!("{side}_blocks.{stage}.{part}"), via);
        stages.map(path).collect::<Vec<_>>()
    };
    let mut base: BTreeSet<(String, &'static str)> = BTreeSet::new();
    base.extend(stages("down", "resnets.1", "shortcut", 0..4));
    base.extend(stages("down", "attentions.1", "shortcut", 0..3));
    base.extend(stages("up", "resnets.1", "backbone", 0..4));
    base.extend(stages("up", "attentions.1", "shortcut", 1..4));
    assert_eq!(bypassed(&shipped("bk-sdm-base.yaml")), base);

    let mut small = base.clone();
    small.insert(("mid_block".into(), "shortcut"));
    assert_eq!(bypassed(&shipped("bk-sdm-small.yaml")), small);

    let mut tiny = small;
    tiny.insert(("down_blocks.3.resnets.0".into(), "shortcut"));
    tiny.insert(("up_blocks.0.resnets.0".into(), "backbone"));
    tiny.insert(("up_blocks.0.resnets.2".into(), "backbone"));
    assert_eq!(bypassed(&shipped("bk-sdm-tiny.yaml")), tiny);
}
