//! Tests that are one file each: `**/*.test` below this folder. `readme.test` explains the format. `BLESS=1` writes
//! what the code does now into the files, to be read in the diff before it is committed.

mod case;
mod kinds;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use case::Case;
use rayon::prelude::*;

#[test]
fn filetests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let mut files = Vec::new();
    find(&root, &mut files);
    assert!(!files.is_empty(), "there is no *.test file in {}", root.display());
    files.sort();
    let bless = std::env::var_os("BLESS").is_some_and(|value| value == "1");
    let failures: Vec<String> = files
        .par_iter()
        .filter_map(|file| {
            let name = file.strip_prefix(&root).unwrap_or(file).display();
            let failure = match catch_unwind(AssertUnwindSafe(|| run(file, bless))) {
                Ok(outcome) => outcome.err()?,
                Err(_) => "it panicked; the message is above".to_string(),
            };
            Some(format!("=== {name}\n{failure}\n"))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} files fail (BLESS=1 rewrites what they expect)\n\n{}",
        failures.len(),
        files.len(),
        failures.join("\n")
    );
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|e| e == "test") {
            files.push(path);
        }
    }
}

fn run(file: &Path, bless: bool) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|e| e.to_string())?;
    let case = Case::parse(&text)?;
    let kind = kinds::find(&case.kind)?;
    case.check_sections(kind.sections)?;
    let actual = (kind.run)(&case)?;
    let actual = actual.trim_end_matches('\n');
    let expected = case.section("expect").unwrap_or_default();
    if actual == expected {
        return Ok(());
    }
    if bless {
        return fs::write(file, case.with_expect(actual)?).map_err(|e| e.to_string());
    }
    Err(diff(expected, actual))
}

/// The lines from the first to the last that differ: `-` expected, `+` actual.
fn diff(expected: &str, actual: &str) -> String {
    let (expected, actual): (Vec<_>, Vec<_>) = (expected.lines().collect(), actual.lines().collect());
    let same = |(a, b): &(&&str, &&str)| a == b;
    let before = expected.iter().zip(&actual).take_while(same).count();
    let rest = expected.len().min(actual.len()) - before;
    let after = expected.iter().rev().zip(actual.iter().rev()).take(rest).take_while(same).count();
    let mut lines = vec![format!("from line {} of `expect`:", before + 1)];
    lines.extend(expected[before..expected.len() - after].iter().map(|line| format!("- {line}")));
    lines.extend(actual[before..actual.len() - after].iter().map(|line| format!("+ {line}")));
    lines.join("\n")
}

#[test]
fn a_file_that_does_not_hold_fails() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.test");
    let outcome = |text: &str, bless| {
        fs::write(&file, text).unwrap();
        run(&file, bless)
    };
    let graph = "--- input\ng () => () {}\n";
    let wrong = format!("test parse\n{graph}--- expect\n<\n   ir_version: 1,\n");
    let failure = outcome(&wrong, false).unwrap_err();
    assert!(
        failure.starts_with("from line 2 of `expect`:\n-    ir_version: 1,\n+    ir_version: 0,"),
        "{failure}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), wrong);

    outcome(&wrong, true).unwrap();
    let blessed = fs::read_to_string(&file).unwrap();
    assert!(
        blessed.starts_with(&format!("test parse\n{graph}--- expect\n<\n   ir_version: 0,\n")),
        "{blessed}"
    );
    assert_eq!(outcome(&blessed, false), Ok(()));

    for broken in ["parse", "test prase\n", "test parse\n", &format!("test parse\n{graph}--- plan\n")] {
        outcome(broken, true).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), broken);
    }
}
