//! Torch's numbers of a fixture; `fixtures/README.md` says what is where.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn read(family: &str, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(fixture(family).join("golden").join(name)).unwrap()).unwrap()
}

/// A case of a family.
pub fn case(family: &str, name: &str) -> Value {
    let index = read(family, "index.json");
    index["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap().clone()
}

/// The modules that torch could leave out.
pub fn bypassable(family: &str) -> Vec<String> {
    let index = read(family, "index.json");
    let modules = index["bypassable"].as_array().unwrap().iter();
    modules.map(|entry| entry["module"].as_str().unwrap().to_string()).collect()
}

/// The number of parameters in each module.
pub fn parameters(family: &str) -> BTreeMap<String, u64> {
    let modules = read(family, "modules.json");
    let entry = |module: &Value| {
        (module["path"].as_str().unwrap().to_string(), module["parameter_count"].as_u64().unwrap())
    };
    modules.as_array().unwrap().iter().map(entry).collect()
}
