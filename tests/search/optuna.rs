//! examples/optuna, as its readme says: two workers on one study.

use std::{fs, path::PathBuf, process::Command};

use serde_json::Value;

use crate::command::{prepared, repository};

/// A Python with the example's pinned packages, made once in `target/tmp`.
fn python() -> PathBuf {
    let requirements = repository().join("examples/optuna/requirements.txt");
    let wanted = fs::read_to_string(&requirements).unwrap();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("optuna");
    let (python, installed) = (folder.join("bin/python"), folder.join("installed.txt"));
    if fs::read_to_string(&installed).is_ok_and(|known| known == wanted) {
        return python;
    }
    let run = |command: &mut Command| {
        let output = command.output().expect("this test needs python3 with venv and pip");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
    run(Command::new(&python).args(["-m", "pip", "install", "-q", "--no-deps", "-r"]).arg(&requirements));
    fs::write(installed, wanted).unwrap();
    python
}

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
    let python = python();
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
