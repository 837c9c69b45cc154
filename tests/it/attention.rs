//! Attentions that are found in the fixtures, against torch's modules and configurations.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crdiff::{
    analysis::{
        attention::{Attends, structure},
        modules::modules,
        shapes::shapes,
    },
    ir::Graph,
    onnx,
};
use serde_json::Value;

const FAMILIES: [&str; 6] = ["sd15", "sd15-mini", "sd21", "sdxl", "ldm", "sd3"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn load(path: &Path) -> Graph {
    Graph::load(onnx::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// The exports of a family, but the one that a transformer optimiser has fused.
fn exports(family: &str) -> Vec<(String, Graph)> {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(fixtures().join(family)).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    let models = folders.iter().map(|f| (f, f.join("unet.onnx")));
    let models = models.filter(|(f, model)| model.exists() && !f.ends_with("ort-fused"));
    models.map(|(f, model)| (f.display().to_string(), load(&model))).collect()
}

/// Paths of the modules that are attentions in torch.
fn expected(family: &str) -> Vec<String> {
    let modules = json(&fixtures().join(family).join("golden/modules.json"));
    let attentions = modules.as_array().unwrap().iter().filter(|m| {
        let class = m["class"].as_str().unwrap();
        class == "Attention" || class == "CrossAttention"
    });
    attentions.map(|m| m["path"].as_str().unwrap().to_string()).collect()
}

/// Heads and channels of the attention at `path`, as the configuration has them.
fn heads_and_channels(config: &Value, path: &str) -> (u64, u64) {
    if let Some(heads) = config.get("num_attention_heads") {
        let heads = heads.as_u64().unwrap();
        return (heads, heads * config["attention_head_dim"].as_u64().unwrap());
    }
    if let Some(channels) = config.get("model_channels") {
        let factor = if path.starts_with("middle_block") { 2 } else { 1 };
        return (config["num_heads"].as_u64().unwrap(), factor * channels.as_u64().unwrap());
    }
    let widths = config["block_out_channels"].as_array().unwrap();
    let number = |text: &str| text.split('.').nth(1).unwrap().parse::<usize>().unwrap();
    let stage = match path.split('.').next().unwrap() {
        "down_blocks" => number(path),
        "up_blocks" => widths.len() - 1 - number(path),
        _ => widths.len() - 1,
    };
    let heads = &config["attention_head_dim"];
    let heads = heads.as_array().map_or(heads, |stages| &stages[stage]);
    (heads.as_u64().unwrap(), widths[stage].as_u64().unwrap())
}

#[test]
fn each_attention_of_torch_is_found() {
    for family in FAMILIES {
        let config = json(&fixtures().join(family).join("golden/index.json"))["config"].clone();
        let expected = expected(family);
        let exports = exports(family);
        assert!(exports.len() >= 2);
        for (name, graph) in exports {
            let (modules, shapes) = (modules(&graph), shapes(&graph));
            let found = structure(&graph);
            let of_graph: BTreeMap<String, _> =
                found.all.iter().map(|a| (modules.get(a.module(&modules)).path.clone(), a)).collect();
            let mut paths = expected.clone();
            paths.sort();
            assert_eq!(of_graph.keys().cloned().collect::<Vec<_>>(), paths, "{name}");
            assert_eq!(found.all.len(), expected.len(), "{name}");
            assert!(found.strays.is_empty(), "{name}");
            for (path, attention) in of_graph {
                let leaf = |projections: &[crdiff::analysis::attention::Projection]| -> Vec<String> {
                    let module = |node| modules.get(modules.of_node(node)).path.clone();
                    projections.iter().map(|p| module(p.node).replace(&format!("{path}."), "")).collect()
                };
                let joint = family == "sd3" && path.ends_with(".attn");
                // Equal queries and keys of one layer are one multiplication there.
                let merged =
                    name.ends_with("merged") && path.starts_with("mid_block") && path.ends_with("attn1");
                let (queries, keys, values) = match (joint, merged) {
                    (true, _) => {
                        (vec!["to_q", "add_q_proj"], vec!["to_k", "add_k_proj"], vec!["to_v", "add_v_proj"])
                    }
                    (_, true) => (vec!["to_q"], vec!["to_q"], vec!["to_v"]),
                    _ => (vec!["to_q"], vec!["to_k"], vec!["to_v"]),
                };
                let mut out = vec!["to_out.0"];
                if joint && !path.contains(".2.") {
                    out.push("to_add_out");
                }
                let sorted = |mut names: Vec<String>| {
                    names.sort();
                    names
                };
                let wanted = |names: Vec<&str>| sorted(names.into_iter().map(String::from).collect());
                assert_eq!(sorted(leaf(&attention.query.projections)), wanted(queries), "{name} {path}");
                assert_eq!(sorted(leaf(&attention.key.projections)), wanted(keys), "{name} {path}");
                assert_eq!(sorted(leaf(&attention.value.projections)), wanted(values), "{name} {path}");
                assert_eq!(sorted(leaf(&attention.out)), wanted(out), "{name} {path}");
                let cross = path.ends_with("attn2") && family != "sd3";
                let attends = if cross { Attends::Other } else { Attends::Itself };
                assert_eq!(attention.attends, attends, "{name} {path}");
                let facts = attention.facts(&graph, &shapes);
                let (heads, channels) = heads_and_channels(&config, &path);
                assert_eq!(facts.heads, Some(heads), "{name} {path}");
                let scale = 1.0 / ((channels / heads) as f64).sqrt();
                // Half of the scale is on queries and half on keys, in the precision of the network.
                let close = |found: f64| (found / scale - 1.0).abs() < 1e-2;
                assert!(facts.scale.is_some_and(close), "{name} {path}: {:?}, not {scale}", facts.scale);
                let (queries, keys) = (facts.queries.unwrap(), facts.keys.unwrap());
                assert_eq!(queries == keys, !cross, "{name} {path}: {queries}, {keys}");
                let square = !cross && !joint && !name.ends_with("quantized");
                assert_eq!(attention.identity(&graph, &shapes).is_ok(), square, "{name} {path}");
            }
        }
    }
}
