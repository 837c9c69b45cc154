//! Python with pinned packages, made once in `target/tmp`.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
};

use crate::{
    common::{node, not_quick},
    search::command::repository,
};

/// Environments are made by one test at a time: several want the same one.
static MADE: Mutex<()> = Mutex::new(());

/// The interpreter of an environment called `name`, which has what a file of the repository requires.
pub fn python(name: &str, requirements: &str) -> PathBuf {
    not_quick();
    let _one = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let requirements = repository().join(requirements);
    let wanted = fs::read_to_string(&requirements).unwrap();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let (python, installed) = (folder.join("bin/python"), folder.join("installed.txt"));
    if fs::read_to_string(&installed).is_ok_and(|known| known == wanted) {
        return python;
    }
    let run = |command: &mut Command| {
        let output = command.output().expect("this test needs Python with pip");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    // Its own pip would take seconds, and some systems' Python cannot put it there; so would compiling all modules.
    run(Command::new(node::python()).args(["-m", "venv", "--clear", "--without-pip"]).arg(&folder));
    run(Command::new(node::python())
        .args(["-m", "pip", "--disable-pip-version-check", "--python"])
        .arg(&python)
        .args(["install", "--quiet", "--no-input", "--no-compile", "--no-deps", "--requirement"])
        .arg(&requirements));
    fs::write(installed, wanted).unwrap();
    python
}
