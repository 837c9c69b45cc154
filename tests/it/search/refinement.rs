//! `crdiff run --refine-ratios`: which ratios stay where they were moved to.

use std::fs;

use tempfile::TempDir;

use crate::search::command::{SPACE, crdiff, done, files_beside_the_unet, pixels, prepared};

/// Refines two ratios with an objective that gives `sign` times the number of images that it was asked about. Gives
/// the lines that were printed, with single spaces.
fn refined_by_count(sign: &str) -> (TempDir, Vec<String>) {
    let folder = prepared(SPACE);
    let plan = "version: 1\ncrdiff: { down: 0.4, up: 0.15 }\namplify: { weight: 1.5 }\n";
    fs::write(folder.path().join("plan.yaml"), plan).unwrap();
    let objective =
        format!("objective: {{ command: [sh, -c, 'echo >> asked; echo {sign}$(wc -l < asked)'] }}\n");
    fs::write(folder.path().join("objective.yaml"), objective).unwrap();
    let what = "run sd15 --engine rten --plan plan.yaml --size 32x40 --steps 2 --seed 1 --prompt cat";
    let how = "--refine 1 --refine-ratios 0.1 --objective objective.yaml -o best.png";
    let said = done(crdiff(&folder, &format!("{what} {how}")).output().unwrap());
    let told = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    (folder, told)
}

#[test]
fn ratios_that_score_better_stay_moved() {
    let (folder, told) = refined_by_count("");
    let rows =
        ["dense 1.0000", "1.500 2.0000", "1.500 3.0000 down 0.4 -> 0.5", "1.500 4.0000 up 0.15 -> 0.25 kept"];
    assert!(told.ends_with(&rows.map(String::from)), "{told:?}");
    let best = pixels(&folder, "best.png");
    done(crdiff(&folder, "run --engine rten --replay best.png -o again.png").output().unwrap());
    assert_eq!(pixels(&folder, "again.png"), best, "the image carries the plan that was kept");
    // And it is the image of a plan that has these ratios from the start.
    let plan = "version: 1\ncrdiff: { down: 0.5, up: 0.25 }\namplify: { weight: 1.5 }\n";
    fs::write(folder.path().join("moved.yaml"), plan).unwrap();
    let what =
        "run sd15 --engine rten --plan moved.yaml --size 32x40 --steps 2 --seed 1 --prompt cat -o moved.png";
    done(crdiff(&folder, what).output().unwrap());
    assert_eq!(pixels(&folder, "moved.png"), best);
    assert!(!files_beside_the_unet(&folder).iter().any(|name| name.contains("trial")), "no trial stays");
}

#[test]
fn ratios_that_score_worse_do_not() {
    let (_folder, told) = refined_by_count("-");
    let rows = [
        "dense -1.0000 kept",
        "1.500 -2.0000",
        "1.500 -3.0000 down 0.4 -> 0.5",
        "1.500 -4.0000 down 0.4 -> 0.3",
        "1.500 -5.0000 up 0.15 -> 0.25",
        "1.500 -6.0000 up 0.15 -> 0.05",
    ];
    assert!(told.ends_with(&rows.map(String::from)), "{told:?}");
}
