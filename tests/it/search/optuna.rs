//! examples/optuna, as its readme says: two workers on one study.

use std::{fs, process::Command};

use serde_json::Value;

use crate::search::{
    command::{prepared, repository},
    python::python,
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
fn two_workers_share_a_study() {
    let python = python("optuna", "examples/optuna/requirements.txt");
    let folder = prepared(SPACE);
    let worker = |seed: &str| {
        Command::new(&python)
            .current_dir(folder.path())
            .arg(repository().join("examples/optuna/worker.py"))
            .args(["study.journal", "--trials", "6", "--seed", seed, "--", env!("CARGO_BIN_EXE_crdiff")])
            .args(["search", "trial", "sd15", "space.yaml", "--engine", "rten"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let workers = [worker("0"), worker("1")];
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let best: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(best["score"].as_f64().unwrap() >= 0.0, "{best}");
        crdiff::plan::parse("plan.json", &best["plan"].to_string()).unwrap();
    }
    let study = fs::read_to_string(folder.path().join("study.journal")).unwrap();
    let workers: std::collections::BTreeSet<String> = study
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["worker_id"].as_str().map(str::to_string)
        })
        .collect();
    assert_eq!(workers.len(), 2, "both workers wrote into the study");
}
