//! Arrows between the modules of `src` point one way: a `use` that runs back up fails here.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each module and those that it may use, the lower ones first. `onnx/write` stands above `ir`: it writes graphs.
const LAYERS: [(&str, &[&str]); 21] = [
    ("hex", &[]),
    ("lock", &[]),
    ("observer", &[]),
    ("onnx", &["hex", "lock", "observer"]),
    ("ir", &["hex", "onnx"]),
    ("onnx/write", &["hex", "ir", "observer", "onnx"]),
    ("analysis", &["ir", "lock", "observer", "onnx"]),
    ("plan", &["analysis", "hex", "ir", "onnx", "rules"]),
    ("rules", &["analysis", "hex", "ir", "onnx", "plan"]),
    ("passes", &["analysis", "ir", "observer", "onnx", "plan", "rules"]),
    ("verify", &["analysis", "hex", "ir", "observer", "onnx", "plan", "rules"]),
    ("engine", &["hex", "lock", "onnx"]),
    ("diffusion", &["analysis", "engine", "hex", "ir", "lock", "observer", "onnx", "plan"]),
    ("numeric", &["analysis", "diffusion", "engine", "ir", "observer", "onnx", "verify"]),
    ("report", &["analysis", "ir", "numeric", "onnx", "passes", "plan", "rules", "verify"]),
    ("compile", &["analysis", "ir", "observer", "onnx", "passes", "plan", "report", "rules"]),
    (
        "plan_cache",
        &["compile", "engine", "hex", "ir", "observer", "onnx", "passes", "plan", "report", "verify"],
    ),
    ("deploy", &["analysis", "diffusion", "engine", "hex", "ir", "observer", "onnx", "passes", "plan"]),
    (
        "search",
        &[
            "analysis",
            "compile",
            "diffusion",
            "engine",
            "hex",
            "ir",
            "lock",
            "observer",
            "onnx",
            "passes",
            "plan",
            "plan_cache",
            "rules",
        ],
    ),
    (
        "cli",
        &[
            "analysis",
            "compile",
            "deploy",
            "diffusion",
            "engine",
            "hex",
            "ir",
            "lock",
            "numeric",
            "observer",
            "onnx",
            "passes",
            "plan",
            "plan_cache",
            "report",
            "rules",
            "search",
            "verify",
        ],
    ),
    ("bin", &[]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            false => {}
        }
    }
}

/// The modules at the top of the crate that a source names after `crate::`, in a group or alone.
fn used(text: &str) -> BTreeSet<String> {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_string();
    let code = text.lines().map(code).collect::<Vec<_>>().join("\n");
    let mut items: Vec<String> = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            items.push(rest.to_string());
            continue;
        };
        let (mut depth, mut item) = (1, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => items.push(std::mem::take(&mut item)),
                c if depth == 1 => item.push(c),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        items.push(item);
    }
    let name = |item: &String| {
        let item = item.trim_start();
        let end = item.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(item.len());
        item.get(..end).unwrap_or_default().to_string()
    };
    items.iter().map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn use_lines_are_read() {
    let text = "use crate::{\n    analysis::{Analysis, shapes},\n    ir::Graph,\n    onnx,\n};\nuse crate::plan::Plan; // crate::cli\nfn f() { crate::hex::hex(&[]) }\n";
    assert_eq!(used(text).into_iter().collect::<Vec<_>>(), ["analysis", "hex", "ir", "onnx", "plan"]);
}

#[test]
fn arrows_point_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 200);
    let modules: BTreeSet<&str> = LAYERS.iter().map(|(module, _)| *module).collect();
    let mut back = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
        let top = path.split('/').next().unwrap().trim_end_matches(".rs");
        if top == "lib" {
            continue;
        }
        let module = if path.starts_with("onnx/write/") { "onnx/write" } else { top };
        let (_, may) = LAYERS
            .iter()
            .find(|(known, _)| *known == module)
            .unwrap_or_else(|| panic!("src/{path} is in a module that has no place in the layers yet"));
        // Tests of a file may use what they like.
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        if path.ends_with("/tests.rs") {
            continue;
        }
        for other in used(code) {
            if modules.contains(other.as_str()) && other != top && !may.contains(&other.as_str()) {
                back.push(format!("src/{path} uses crate::{other}"));
            }
        }
    }
    assert!(back.is_empty(), "these arrows run back:\n{}", back.join("\n"));
}

/// Nothing but `cli` prints.
#[test]
fn only_the_command_line_prints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut printing = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap().to_str().unwrap().to_string();
        let text = fs::read_to_string(&file).unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        let prints = |line: &str| {
            ["print!(", "println!(", "eprint!(", "eprintln!(", "dbg!("].iter().any(|m| line.contains(m))
        };
        if !path.starts_with("cli") && !path.starts_with("bin") && code.into_iter().any(prints) {
            printing.push(path);
        }
    }
    assert_eq!(printing, [""; 0]);
}

/// Returns the public items and fields of `code`, functions as far as their signatures, and the heads of `impl`.
fn public(code: &str) -> Vec<&str> {
    let starts = code.match_indices("pub ").chain(code.match_indices("impl")).filter(|(at, what)| {
        let line = code[..*at].rfind('\n').map_or(0, |end| end + 1);
        // Traits are implemented at the left.
        code[line..*at].trim().is_empty() && (*what == "pub " || line == *at)
    });
    let item = |(at, _): (usize, &str)| {
        let rest = &code[at..];
        let is_function =
            rest.starts_with("impl") || rest.lines().next().is_some_and(|line| line.contains("fn "));
        let ends: &[char] = if is_function { &['{', ';'] } else { &['\n'] };
        &rest[..rest.find(ends).unwrap_or(rest.len())]
    };
    starts.map(item).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// Returns the types that `code` takes from the crate prost, and from what it makes of the schema.
fn of_prost(code: &str) -> Vec<&str> {
    let uses = code.split("use prost::").skip(1).map(|rest| rest.split(';').next().unwrap());
    let uses = uses.filter(|list| !list.ends_with(" as _"));
    let made = code.split("proto::{").skip(1).map(|rest| rest.split('}').next().unwrap());
    let is_type = |word: &&str| word.starts_with(char::is_uppercase) || *word == "dimension";
    uses.chain(made).flat_map(words).filter(is_type).collect()
}

/// Returns whether an item names a message of protobuf or one of the types `of_prost`, other than in a field that only the
/// crate sees.
fn names_protobuf(item: &str, of_prost: &[&str]) -> bool {
    let item = item.split("pub(crate) ").next().unwrap();
    item.contains("proto::")
        || item.contains("prost::")
        || words(item).any(|word| word.ends_with("Proto") || of_prost.contains(&word))
}

#[test]
fn protobuf_in_signatures_is_found() {
    let text = "impl A {\n    pub fn f(\n        a: &[NodeProto],\n    ) {}\n    pub fn g() -> A {}\n}\npub struct A(pub(crate) NodeProto);\n// pub fn\npub type B = proto::Node;\n    pub c: Vec<GraphProto>,\nuse prost::{encoding::{WireType, encode_key}};\nuse prost::Message as _;\nuse crate::onnx::{\n    proto::{NodeProto, shape::dimension},\n    Dim,\n};\nimpl From<dimension::Value> for Dim {\n    pub w: WireType,\npub fn m(m: Message) {}\n";
    let prost = of_prost(text);
    assert_eq!(prost, ["WireType", "NodeProto", "dimension"]);
    let found: Vec<_> = public(text).into_iter().filter(|item| names_protobuf(item, &prost)).collect();
    assert_eq!(
        found,
        [
            "pub fn f(\n        a: &[NodeProto],\n    ) ",
            "pub type B = proto::Node;",
            "pub c: Vec<GraphProto>,",
            "pub w: WireType,",
            "impl From<dimension::Value> for Dim ",
        ]
    );
}

/// prost's types are no part of the API.
#[test]
fn protobuf_is_in_no_public_signature() {
    // Modules that are private, or hidden from the documentation.
    const UNSEEN: [&str; 6] = [
        "analysis/shapes/tensor.rs",
        "onnx/text/",
        "report/slice.rs",
        "verify/canonical.rs",
        "verify/conformance/",
        "verify/constant.rs",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut found = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
        if UNSEEN.iter().any(|unseen| path.starts_with(unseen)) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let prost = of_prost(&text);
        let items = public(&text).into_iter().filter(|item| names_protobuf(item, &prost));
        found.extend(items.map(|item| format!("src/{path}: {item}")));
    }
    assert!(found.is_empty(), "types of protobuf in public signatures:\n{}", found.join("\n"));
}
