//! Confirmation of the best trials from fresh noises.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::search::command::{SPACE, crdiff, done, prepared};

const SEARCH: &str = "search sd15 space.yaml --engine rten";

fn read(folder: &TempDir, name: &str) -> String {
    fs::read_to_string(folder.path().join(name)).unwrap()
}

fn lines(journal: &str) -> Vec<Value> {
    journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The scorer counts: 2 images of the dense network, 6 of three trials of which the second is the best, then fresh ones. The
/// first 8 of those, the dense network's and the second trial's in any order, score alike. The last 4 are the third's.
#[test]
fn the_plan_is_the_best_of_the_fresh_images() {
    let space = r#"version: 1
variables: { w: { choice: [1, 1.5, 2] } }
plan: { version: 1, crdiff: { down: 0.5 }, amplify: { weight: $w } }
prompts: [a cat, a dog]
sampling: { size: 32x40, steps: 1, noises: 1 }
strategy: grid
confirm: { best: 2, noises: 2 }
objective:
  serve:
    - sh
    - -c
    - |
      set -- .5 .5 .6 .6 .9 .8 .7 .7 .4 .4 .4 .4 .4 .4 .4 .4 .5 .7 .6 1
      while read -r asked; do echo $1; shift; done
"#;
    let folder = prepared(space);
    let said = done(crdiff(&folder, &format!("{SEARCH} --dry-run")).output().unwrap());
    let images = "then the best 2 and the dense pipeline, from 2 fresh noises each: 12 images\n";
    assert!(said.contains(images), "{said}");
    let said = done(crdiff(&folder, SEARCH).output().unwrap());
    // Prompts' differences of .2 and .4: their mean .3, their standard error .1.
    for line in [
        "confirmed; fresh noises for each prompt: 2",
        "      1    0.8500    0.4000  +0.0000 +- 0.0000",
        "      2    0.7000    0.7000  +0.3000 +- 0.1000",
        "  dense    0.5000    0.4000",
        "the plan is that of trial 2",
        "over dense: +0.3000 on fresh noises, +0.2000 in the search",
        "standard error over 2 prompts: 0.1000",
    ] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
    let mut tables = said.lines().take_while(|line| !line.starts_with("dense network"));
    assert!(!said.contains("chance") && tables.all(|line| line.len() <= 80), "{said}");
    let plan = read(&folder, "plan.yaml");
    for line in
        ["# score: 0.7 (trial 2 of 3; dense: 0.5)", "# standard error over 2 prompts: 0.1000", "  weight: 2"]
    {
        assert!(plan.lines().any(|written| written == line), "{line}: {plan}");
    }
    let journal = lines(&read(&folder, "plan.journal.jsonl"));
    let confirmed: Vec<_> = journal[5..].iter().map(|line| line["confirmed"].clone()).collect();
    assert_eq!(confirmed, [json!("dense"), json!({ "trial": 1 }), json!({ "trial": 2 })]);
    assert_eq!(journal[7]["scores"], json!([0.5, 0.7, 0.6, 1.0]));
    let plot = read(&folder, "plan.svg");
    assert!(
        plot.contains("dense, fresh noises") && plot.contains("trial 2 on fresh noises: 0.7000"),
        "{plot}"
    );

    // All of it is in the journal: nothing is scored again.
    let said = done(crdiff(&folder, &format!("{SEARCH} --json")).output().unwrap());
    let events = lines(&said);
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["resumed", "dense", "confirming", "done"]);
    let found = &events[3]["confirmed"];
    assert_eq!(
        (&found["trial"], &found["score"], &found["is_clear"]),
        (&2.into(), &0.7.into(), &true.into())
    );
    assert!((found["standard_error"].as_f64().unwrap() - 0.1).abs() < 1e-12, "{found}");
    assert_eq!(read(&folder, "plan.yaml"), plan);
}

/// Whether it was killed, or `confirm` was added afterwards.
#[cfg(unix)]
#[test]
fn a_killed_confirmation_goes_on_to_the_same_end() {
    let short = SPACE
        .replace("trials: 8", "trials: 3")
        .replace("the cat, a dog", "a cat")
        .replace("steps: 2", "steps: 1");
    let space = format!("{short}confirm: {{ best: 3, noises: 1 }}\n");
    let (later, killed) = (prepared(&short), prepared(&space));
    done(crdiff(&later, &format!("{SEARCH} -q")).output().unwrap());
    fs::write(later.path().join("space.yaml"), &space).unwrap();
    done(crdiff(&later, &format!("{SEARCH} -q --jobs 2")).output().unwrap());
    let path = killed.path().join("plan.journal.jsonl");
    let mut search = crdiff(&killed, SEARCH).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let count = || fs::read_to_string(&path).unwrap_or_default().lines().count();
    let began = Instant::now();
    while count() < 6 {
        assert!(began.elapsed() < Duration::from_secs(300), "nothing ends");
        assert!(search.try_wait().unwrap().is_none(), "it ended before it could be killed");
        thread::sleep(Duration::from_millis(2));
    }
    // SIGKILL
    search.kill().unwrap();
    search.wait().unwrap();
    assert!(count() < 9, "it was killed too late");
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(br#"{"confirmed":{"trial":1},"noi"#).unwrap();
    done(crdiff(&killed, &format!("{SEARCH} -q")).output().unwrap());
    for name in ["plan.journal.jsonl", "plan.yaml", "plan.svg"] {
        assert_eq!(read(&killed, name), read(&later, name), "{name}");
    }

    // More trials: those of the best that were not confirmed are.
    let before = read(&killed, "plan.journal.jsonl");
    done(crdiff(&killed, &format!("{SEARCH} -q --trials 5")).output().unwrap());
    let journal = read(&killed, "plan.journal.jsonl");
    assert!(journal.starts_with(&before), "{journal}");
    let (added, all) = (lines(&journal[before.len()..]), lines(&journal));
    assert_eq!((&added[0]["trial"], &added[1]["trial"]), (&3.into(), &4.into()));
    let score = |line: &&Value| line["score"].as_f64().unwrap();
    let mut trials: Vec<&Value> = all.iter().filter(|line| line.get("trial").is_some()).collect();
    trials.sort_by(|a, b| score(b).total_cmp(&score(a)));
    let best: BTreeSet<u64> = trials[..3].iter().map(|trial| trial["trial"].as_u64().unwrap()).collect();
    let confirmed: Vec<&Value> = all.iter().filter(|line| line.get("confirmed").is_some()).collect();
    let number = |line: &Value| line["confirmed"]["trial"].as_u64();
    let numbers: Vec<u64> = confirmed.iter().filter_map(|line| number(line)).collect();
    assert_eq!(numbers.len(), BTreeSet::from_iter(&numbers).len(), "none twice: {journal}");
    assert!(best.iter().all(|trial| numbers.contains(trial)), "{journal}");
    let of_the_best = confirmed.iter().filter(|line| number(line).is_some_and(|trial| best.contains(&trial)));
    let winner = of_the_best.max_by(|a, b| score(a).total_cmp(&score(b))).unwrap();
    let plan = read(&killed, "plan.yaml");
    assert!(plan.contains(&format!("(trial {} of 5;", number(winner).unwrap())), "{plan}\n{journal}");
}

#[test]
fn a_failed_confirmation_is_no_winner() {
    // Three images, then fresh ones.
    let scorer = r#"set -- .5 .6 .7; while read -r asked; do echo "${1:-none}"; [ $# -eq 0 ] || shift; done"#;
    let space = format!(
        "version: 1\nvariables: {{ w: {{ choice: [1, 2] }} }}\nplan: {{ version: 1, crdiff: {{ down: 0.5 }}, amplify: \
         {{ weight: $w }} }}\nprompts: [a cat]\nsampling: {{ size: 32x40, steps: 1 }}\nstrategy: grid\nconfirm: {{ best: 1, \
         noises: 1 }}\nobjective: {{ serve: [sh, -c, {}] }}\n",
        json!(scorer)
    );
    let folder = prepared(&space);
    let refused = crdiff(&folder, SEARCH).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("none of the best 1 trials could be drawn from fresh noises"), "{said}");
    assert!(!folder.path().join("plan.yaml").exists());
    let journal = lines(&read(&folder, "plan.journal.jsonl"));
    assert!(journal.len() == 6 && journal[5]["failed"].is_string(), "{journal:?}");
}
