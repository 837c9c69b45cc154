//! Selections by globs and by CR-Diff's groups. The groups are held against the modules that the authors' rule selects
//! in torch, as stored with the fixtures.

use crdiff::plan::{BadGlob, Glob, Group, Selector, nearest};
use std::path::Path;

fn module(pattern: &str) -> Glob {
    Glob::module(pattern, 0.into()).unwrap()
}

fn weight(pattern: &str) -> Glob {
    Glob::weight(pattern, 0.into()).unwrap()
}

#[test]
fn globs_work_on_whole_segments() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("blocks.1", &["blocks.1"], &["blocks.10", "blocks.1.a", "a.blocks.1", "blocks", "xblocks.1"]),
        ("blocks.*", &["blocks.1", "blocks.10"], &["blocks", "blocks.1.a"]),
        ("*.*", &["a.b"], &["a", "a.b.c"]),
        ("res*.1", &["resnets.1", "res.1"], &["resnets.10", "a.resnets.1", "rest.a.1"]),
        ("*net*.*", &["resnets.0", "net.1"], &["nest.0"]),
        ("a.**", &["a", "a.b", "a.b.c"], &["ab", "b.a"]),
        ("**", &["a", "a.b.c"], &[]),
        ("**.b", &["b", "a.b", "a.a.b"], &["ab", "b.a"]),
        ("a.**.b", &["a.b", "a.x.b", "a.b.b", "a.x.y.b"], &["a", "b", "a.b.c"]),
        ("**.attn1.**", &["d.0.attn1.to_q", "attn1", "d.attn1.to_out.0"], &["d.0.attn10.to_q", "attn"]),
        ("**.a.**.a.**", &["a.a", "x.a.y.a.z"], &["a", "x.a.y"]),
        ("{a,b.c}.d", &["a.d", "b.c.d"], &["b.d", "c.d", "a.b.c.d"]),
        ("x{,1,2}", &["x", "x1", "x2"], &["x12", "x."]),
        ("{a,b{c,d}}e", &["ae", "bce", "bde"], &["be", "abe"]),
        ("**.ff.net.{0.proj,2}", &["t.ff.net.0.proj", "ff.net.2"], &["ff.net.0", "ff.net.1", "ff.net.proj"]),
        ("{**.a,b}", &["a", "x.a", "b"], &["x.b"]),
    ];
    for (pattern, matching, other) in cases {
        let glob = module(pattern);
        matching.iter().for_each(|path| assert!(glob.matches(path), "{pattern} should match {path}"));
        other.iter().for_each(|path| assert!(!glob.matches(path), "{pattern} shouldn't match {path}"));
    }
}

#[test]
fn weights_are_named_by_their_module() {
    for pattern in ["**.to_q", "**.to_q.weight", "**.{to_k.weight,to_q.weight}", "**.to_q.{weight,x}"] {
        assert!(weight(pattern).matches("a.attn1.to_q"), "{pattern}");
    }
    assert!(weight("weight").matches("weight"));
    for pattern in ["**.to_q.bias", "bias", "**.to_q.{weight,bias}"] {
        let error = Glob::weight(pattern, 0.into()).unwrap_err();
        assert!(error.reason.contains("biases aren't pruned"), "{}", error.reason);
    }
    assert!(Glob::module("**.to_q.bias", 0.into()).is_ok());
}

#[test]
fn what_is_no_glob_says_where() {
    let at = |pattern: &str| Glob::module(pattern, 0.into()).unwrap_err().at;
    assert_eq!(at(""), None);
    assert_eq!(at("a..b"), None);
    assert_eq!(at(".a"), None);
    assert_eq!(at("a."), None);
    assert_eq!(at("a.{b,}"), None);
    assert_eq!(at("a/b"), Some(1..2));
    assert_eq!(at("a b"), Some(1..2));
    assert_eq!(at("é[0]"), Some(2..3));
    assert_eq!(at("a,b"), Some(1..2));
    assert_eq!(at("a}"), Some(1..2));
    assert_eq!(at("a.{b,{c}"), Some(2..3));
    assert_eq!(at("a**"), Some(1..3));
    assert_eq!(at("***"), Some(0..2));
    assert_eq!(at(&"a".repeat(5000)), None);
    let BadGlob { reason, at, .. } = Glob::module(&"{a,b}".repeat(12), 0.into()).unwrap_err();
    assert_eq!((reason.as_str(), at), ("the braces stand for more than 1024 globs", Some(50..55)));
    assert!(Glob::module(&"{a,b}".repeat(10), 0.into()).is_ok());
}

#[test]
fn matching_doesn_t_explode() {
    let pattern = "**.a*a*a*a*a*b.".repeat(40) + "**.end";
    let path = ["aaaaaaaaaaaaaaaaaaaaaaaa"; 2000].join(".");
    assert!(!module(&pattern).matches(&path));
}

#[test]
fn near_names_are_compared_by_segments() {
    let unet = [
        "conv_in",
        "down_blocks.0.attentions.0",
        "down_blocks.0.attentions.1",
        "down_blocks.0.resnets.0",
        "down_blocks.1.attentions.0",
        "mid_block",
        "mid_block.attentions.0",
        "mid_block.attentions.0.norm",
        "mid_block.resnets.0",
        "mid_block.resnets.1",
        "up_blocks.0.resnets.0",
    ];
    let near = |pattern| nearest(pattern, unet);
    assert_eq!(near("mid_block.attention.0"), ["mid_block.attentions.0"]);
    assert_eq!(near("mid_blocks.attentions.0"), ["mid_block.attentions.0"]);
    assert_eq!(near("unet.mid_block.attentions.0")[0], "mid_block.attentions.0");
    assert_eq!(near("mid_block.resnets.2"), ["mid_block.resnets.0", "mid_block.resnets.1"]);
    assert_eq!(
        near("down_blocks.*.attention.*")[..2],
        ["down_blocks.0.attentions.0", "down_blocks.0.attentions.1"]
    );
    assert_eq!(near("**.{resnet,x}.1")[0], "mid_block.resnets.1");
    assert_eq!(near("down_block.**.attentions.1")[0], "down_blocks.0.attentions.1");
    assert_eq!(near("text_model.encoder.layers.3"), [""; 0]);
    assert_eq!(near("mid block.attentions.0"), ["mid_block.attentions.0"]);
    assert_eq!(near("a..b"), [""; 0]);
    assert_eq!(nearest("a", []), [""; 0]);
}

/// The modules of a fixture's network that the authors' rule prunes, by group, and all others that have a weight of
/// the kinds that it prunes.
fn reference(fixture: &str) -> Vec<(String, Option<String>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(fixture).join("golden");
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
    };
    let (index, modules) = (json("index.json"), json("modules.json"));
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let targets: Vec<(String, String)> = index["prune_targets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|target| (text(&target["module"]), text(&target["group"])))
        .collect();
    let prunable =
        |module: &&serde_json::Value| matches!(module["class"].as_str(), Some("Linear" | "Conv2d"));
    let modules = modules.as_array().unwrap().iter().filter(prunable).map(|module| text(&module["path"]));
    modules
        .map(|path| {
            let group = targets.iter().find(|(target, _)| *target == path).map(|(_, group)| group.clone());
            (path, group)
        })
        .collect()
}

#[test]
fn the_groups_are_those_of_the_authors() {
    for fixture in ["sd15", "sd15-mini"] {
        let modules = reference(fixture);
        assert!(
            modules.iter().any(|(_, group)| group.is_some())
                && modules.iter().any(|(_, group)| group.is_none())
        );
        for (path, expected) in modules {
            let groups =
                [Group::Down, Group::Mid, Group::Up].into_iter().filter(|group| group.targets(&path));
            let groups: Vec<&str> = groups.map(Group::name).collect();
            assert_eq!(groups, expected.iter().map(String::as_str).collect::<Vec<_>>(), "{fixture}: {path}");
        }
    }
}

#[test]
fn groups_know_the_ldm_names_and_the_transformer_form() {
    let selects = |group, path| Selector::CrDiff(group).matches(path);
    assert!(selects(Group::Down, "input_blocks.1.1.transformer_blocks.0.attn1.to_q"));
    assert!(selects(Group::Mid, "middle_block.1.transformer_blocks.0.ff.net.2"));
    assert!(selects(Group::Up, "output_blocks.3.1.transformer_blocks.0.attn1.to_out.0"));
    assert!(!selects(Group::Up, "output_blocks.3.1.transformer_blocks.0.attn2.to_q"));
    assert!(!selects(Group::Down, "input_blocks.1.1.proj_in"));
    assert!(!selects(Group::Down, "down_blocks.0.attentions.0.proj_in"));
    assert!(!selects(Group::Down, "down_blocks_extra.0.attn1.to_q"));
    assert!(selects(Group::All, "transformer_blocks.3.attn2.to_q"));
    assert!(selects(Group::All, "transformer_blocks.3.ff.net.2"));
    assert!(!selects(Group::All, "transformer_blocks.3.norm1.linear"));
}
