//! Licences, sources and versions of all dependencies, on every platform, against `deny.toml`.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use spdx::{Expression, Licensee, ParseMode};
use toml_edit::{DocumentMut, Item};

/// Returns the licences in an array of `deny.toml`.
fn licences(array: &Item) -> Vec<Licensee> {
    let entries = array.as_array().expect("an array of licences").iter();
    entries.map(|entry| Licensee::parse(entry.as_str().unwrap()).unwrap()).collect()
}

/// Returns what `rules`, a `deny.toml`, has against `packages`, as `cargo metadata` has them.
fn faults(rules: &DocumentMut, packages: &[Value]) -> Vec<String> {
    let allowed = licences(&rules["licenses"]["allow"]);
    let exceptions = rules["licenses"]["exceptions"].as_array().expect("an array of exceptions");
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let source = package["source"].as_str();
        // A package without a source is one of this workspace.
        let Some(source) = source else {
            for dependency in package["dependencies"].as_array().unwrap() {
                if dependency["req"] == "*" && dependency["path"].is_null() {
                    faults.push(format!("{name} takes any version of {}", dependency["name"]));
                }
            }
            continue;
        };
        if !source.starts_with("registry+") {
            faults.push(format!("{name} comes from {source}"));
        }
        let mut allowed = allowed.clone();
        for exception in exceptions.iter().filter_map(|e| e.as_inline_table()) {
            if exception["crate"].as_str() == Some(name) {
                allowed.extend(licences(&Item::Value(exception["allow"].clone())));
            }
        }
        let licence = package["license"].as_str().unwrap_or_default();
        let is_allowed = Expression::parse_mode(licence, ParseMode::LAX)
            .is_ok_and(|licence| licence.evaluate(|asked| allowed.iter().any(|l| l.satisfies(asked))));
        if !is_allowed {
            faults.push(format!("{name} has the licence `{licence}`"));
        }
    }
    faults
}

fn rules() -> DocumentMut {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    fs::read_to_string(path).unwrap().parse().unwrap()
}

#[test]
fn dependencies_are_as_deny_toml_has_them() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--all-features", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let direct = packages.iter().filter(|package| package["name"] == "ort").count();
    assert_eq!(direct, 1, "cargo metadata does not list the dependencies");
    assert_eq!(faults(&rules(), packages), Vec::<String>::new());
}

#[test]
fn what_deny_toml_forbids_is_found() {
    let package = |source: &str, licence: &str| json!({ "name": "some", "source": source, "license": licence, "dependencies": [] });
    let found = |package: Value| faults(&rules(), &[package]).len();
    assert_eq!(found(package("registry+somewhere", "MIT OR GPL-3.0-only")), 0);
    assert_eq!(found(package("registry+somewhere", "MIT AND GPL-3.0-only")), 1);
    assert_eq!(found(package("registry+somewhere", "MPL-2.0")), 1, "an exception of another package");
    assert_eq!(found(package("registry+somewhere", "")), 1);
    assert_eq!(found(package("git+somewhere", "MIT")), 1);
    let dependency = |path: Value| json!({ "name": "other", "req": "*", "path": path });
    let ours = |path| json!({ "name": "ours", "source": null, "dependencies": [dependency(path)] });
    assert_eq!(found(ours(Value::Null)), 1);
    assert_eq!(found(ours(json!("/beside"))), 0);
}
