//! Noises of each prompt's own.

use std::{fs, path::Path};

use crdiff::{
    diffusion::pipeline::Folder,
    search::{
        space,
        trial::{fresh_shots, shots},
    },
};
use serde_json::Value;

use crate::search::command::{crdiff, done, pixels, prepared, repository};

const SPACE: &str = r#"version: 1
variables: { w: { choice: [0, 1.5] } }
plan: { version: 1, crdiff: { down: 0.5 }, amplify: { weight: $w } }
prompts: [a cat, a cat]
sampling: { size: 32x40, steps: 1, noises: 2 }
strategy: grid
objective: { command: [sh, -c, 'cp "$0" last.png; cksum < "$0" | cut -d" " -f1', "{image}"], over: min }
"#;

#[test]
fn the_number_of_an_image_is_its_seed() {
    let folder = Folder::open(&repository().join("fixtures/pipelines/sd15")).unwrap();
    let text = SPACE.replace("a cat, a cat", "b, a").replace("size: 32x40", "sizes: [32, 40]");
    let drawn = |text: &str| -> Vec<(String, usize, u64)> {
        let space = space::parse("space.yaml", text, Path::new(".")).unwrap();
        shots(&space, &folder).into_iter().map(|shot| (shot.prompt, shot.width, shot.seed)).collect()
    };
    let expected = [("b", 32), ("b", 32), ("b", 40), ("b", 40), ("a", 32), ("a", 32), ("a", 40), ("a", 40)];
    let numbered = expected.iter().zip(0..).map(|((prompt, side), seed)| (prompt.to_string(), *side, seed));
    assert_eq!(drawn(&text), numbered.collect::<Vec<_>>());
    let shared = drawn(&text.replace("noises: 2", "seeds: [7, 5]"));
    assert_eq!(shared.iter().map(|shot| shot.2).collect::<Vec<_>>(), [7, 5, 7, 5, 7, 5, 7, 5]);
    // Those by which trials are confirmed go on above them.
    for (sampling, first) in [("noises: 2", 8), ("seeds: [7, 5]", 8), ("seeds: [2]", 3)] {
        let text = text.replace("noises: 2", sampling) + "confirm: { best: 1, noises: 1 }\n";
        let space = space::parse("space.yaml", &text, Path::new(".")).unwrap();
        let fresh: Vec<u64> = fresh_shots(&space, &folder).into_iter().map(|shot| shot.seed).collect();
        assert_eq!(fresh, [first, first + 1, first + 2, first + 3], "{sampling}");
    }
}

/// A trial with w = 0 is the dense network, so its images are the dense ones if its noises are.
#[test]
fn trials_share_noises_and_prompts_do_not() {
    let folder = prepared(SPACE);
    done(crdiff(&folder, "search sd15 space.yaml --engine rten -q").output().unwrap());
    let journal = fs::read_to_string(folder.path().join("plan.journal.jsonl")).unwrap();
    let lines: Vec<Value> = journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[2]["values"]["w"]), (4, &0.into()));
    let scores = |scores: &Value| -> Vec<u64> {
        scores["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap() as u64).collect()
    };
    let dense = scores(&lines[1]["dense"]);
    assert_eq!(dense, scores(&lines[2]));
    assert_eq!(lines[1]["dense"]["score"], lines[2]["score"], "both are the least of them");
    let mut different = dense.clone();
    different.extend(scores(&lines[3]));
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 8, "the prompt is the same, the noises are not: {journal}");
    // The last image is that of the seed 3.
    let run = "run sd15 --engine rten --size 32x40 --steps 1 --guidance 7.5 --seed 3 -o run.png";
    let plan = r#"{"version": 1, "crdiff": {"down": 0.5}, "amplify": {"weight": 1.5}}"#;
    fs::write(folder.path().join("last.yaml"), plan).unwrap();
    done(crdiff(&folder, run).args(["--plan", "last.yaml", "--prompt", "a cat"]).output().unwrap());
    assert_eq!(pixels(&folder, "run.png"), pixels(&folder, "last.png"));
}
