//! examples/optuna, as its readme says: two workers on one study.

use std::{fs, process::Command};

use serde_json::Value;

use crate::{
    packages,
    search::{
        command::{prepared, repository},
        python::python,
    },
};

const SPACE: &str = r#"version: 1
variables:
  down: { ratio: [0.1, 0.8] }
  w: { number: [1, 2] }
  out: { modules: [mid_block.attentions.0], choose: at-most-one }
plan: { version: 1, crdiff: { down: $down }, rules: [{ bypass: $out }], amplify: { weight: $w } }
prompts: [the cat]
sampling: { size: 32x32, steps: 2 }
objective: { command: [sh, -c, 'cksum < "$0" | awk "{print (\$1 % 1000) / 1000}"', "{image}"] }
"#;

#[test]
fn two_workers_share_a_journal() {
    two_workers("study.journal");
}

#[test]
fn two_workers_share_a_database() {
    two_workers("sqlite:///study.db");
}

fn two_workers(storage: &str) {
    const TRIALS: u64 = 6;
    let python = python("optuna", "examples/optuna/requirements.txt");
    let packages = packages::packages(&[&python]);
    let folder = prepared(SPACE);
    let worker = |arguments: &[&str]| {
        Command::new(packages::environment())
            .env("PYTHONPATH", &packages)
            .current_dir(folder.path())
            .arg(repository().join("examples/optuna/worker.py"))
            .args(["--storage", storage])
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let done = |worker: std::process::Child| -> Value {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(done(worker(&["--make-study"]))["trials"], 0);
    let trials = TRIALS.to_string();
    let run =
        |seed: &str| worker(&["--trials", &trials, "--seed", seed, "--engine", "rten", "sd15", "space.yaml"]);
    let workers = [run("0"), run("1")];
    let found = workers.map(done);
    // Each stops when the study has its trials, and knows the other's.
    let last = found.iter().max_by_key(|best| best["trials"].as_u64()).unwrap();
    assert!(last["trials"].as_u64().unwrap() >= TRIALS, "{last}");
    assert!(last["score"].as_f64().unwrap() >= 0.0, "{last}");
    let written = fs::read_to_string(folder.path().join("plan.yaml")).unwrap();
    let plans =
        [written, last["plan"].to_string()].map(|text| crdiff::plan::parse("plan.yaml", &text).unwrap());
    assert_eq!(plans[0].digest, plans[1].digest);
    assert_eq!(done(worker(&["--make-study"]))["trials"], last["trials"], "the study is still there");
}
