//! The committed corpus of `fuzz/`, run once.

use std::{fs, path::Path};

#[path = "../../fuzz/targets.rs"]
mod targets;

fn each(name: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut seeds: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    assert!(!seeds.is_empty());
    for seed in seeds {
        println!("{}", seed.display());
        run(&fs::read(seed).unwrap());
    }
}

#[test]
fn models() {
    each("model", targets::model);
}

#[test]
fn plans() {
    each("plan", targets::plan);
}

#[test]
fn compilations() {
    each("compile", targets::compile);
}
