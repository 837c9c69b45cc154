//! `crdiff search` as a user runs it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use onnx_protobuf::ModelProto;
use protobuf::Message;
use serde_json::Value;
use tempfile::TempDir;

/// The space of most tests: what an image scores is as good as random, but always the same.
pub const SPACE: &str = r#"version: 1
variables:
  down: { ratio: [0.1, 0.8] }
  up: { ratio: [0.1, 0.8] }
  out: { modules: ["mid_block.attentions.*"] }
plan:
  version: 1
  crdiff: { down: $down, up: $up }
  rules: [{ bypass: $out }]
prompts: [the cat, a dog]
sampling: { size: 32x40, steps: 2 }
budget: { trials: 8 }
seed: 3
objective: { command: [sh, -c, 'sleep 0.02; cksum < "$0" | awk "{print (\$1 % 1000) / 1000}"', "{image}"] }
metrics: { bytes: { command: [sh, -c, 'wc -c < "$0"', "{image}"] } }
"#;

/// A pipeline and a space in a folder of their own.
pub fn prepared(space: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pipelines/sd15");
    copy(&pipeline, &folder.path().join("sd15"));
    fs::write(folder.path().join("space.yaml"), space).unwrap();
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

pub fn crdiff(folder: &TempDir, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
    command.current_dir(folder.path()).args(arguments.split_whitespace());
    command.env("XDG_CACHE_HOME", folder.path().join("cache"));
    command
}

const SEARCH: &str = "search sd15 space.yaml --engine rten";

fn run(folder: &TempDir, more: &str) -> Output {
    crdiff(folder, &format!("{SEARCH} {more}")).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn read(folder: &TempDir, name: &str) -> String {
    fs::read_to_string(folder.path().join(name)).unwrap()
}

pub fn files_beside_the_unet(folder: &TempDir) -> Vec<String> {
    let names = fs::read_dir(folder.path().join("sd15/unet")).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_search_writes_plan_journal_and_plot() {
    let folder = prepared(SPACE);
    let said = done(run(&folder, ""));
    assert!(said.contains("8 trials, 0 of them failed"), "{said}");
    assert!(said.contains("compiling trials") && said.contains("% beside its model runs"), "{said}");
    let journal: Vec<Value> =
        read(&folder, "plan.journal.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(journal.len(), 10, "the header, the dense pipeline, 8 trials");
    assert_eq!(journal[0]["images"], 2);
    assert_eq!(journal[1]["dense"]["scores"].as_array().unwrap().len(), 2);
    let best = journal[2..]
        .iter()
        .max_by(|a, b| a["score"].as_f64().unwrap().total_cmp(&b["score"].as_f64().unwrap()));
    let best = best.unwrap();
    let dense = journal[1]["dense"]["score"].as_f64().unwrap();
    let is_better = best["score"].as_f64().unwrap() > dense;
    assert_eq!(said.contains("no trial scores better than the dense network"), !is_better, "{said}");
    assert!(best["metrics"]["bytes"].as_f64().unwrap() > 100.0);
    let text = read(&folder, "plan.yaml");
    assert!(text.contains(&format!("# score: {} (trial ", best["score"])), "{text}");
    let plan = crdiff::plan::parse("plan.yaml", &text).unwrap();
    assert_eq!(plan.rules.len(), if best["values"]["out"] == serde_json::json!([]) { 2 } else { 3 });
    assert!(text.contains(&format!("down: {}", best["values"]["down"])), "{text}");
    let plot = read(&folder, "plan.svg");
    assert!(plot.starts_with("<svg") && plot.contains("score by trial") && plot.contains("score by out"));
    assert_eq!(files_beside_the_unet(&folder), ["config.json", "model.onnx"], "no trial stays");

    // Two workers: the same journal.
    done(run(&folder, "-o two.yaml --jobs 2 -q"));
    assert_eq!(read(&folder, "two.journal.jsonl"), read(&folder, "plan.journal.jsonl"));
}

#[test]
fn a_budget_of_time_counts_trials_that_run_side_by_side_once() {
    let timed = SPACE.replace("budget: { trials: 8 }", "budget: { time: 2s }\nstrategy: random");
    let folder = prepared(&timed);
    let began = Instant::now();
    done(run(&folder, "-q --jobs 2"));
    let elapsed = began.elapsed().as_secs_f64();
    let journal = read(&folder, "plan.journal.jsonl");
    let trials = journal.lines().skip(2).map(|line| serde_json::from_str::<Value>(line).unwrap());
    let seconds: Vec<f64> = trials.map(|trial| trial["seconds"].as_f64().unwrap()).collect();
    let spent: f64 = seconds.iter().sum();
    assert!((2.0..=elapsed).contains(&spent), "{spent} s of {elapsed} s: {seconds:?}");
}

#[cfg(unix)]
#[test]
fn a_killed_search_goes_on_to_the_same_end() {
    let (whole, killed) = (prepared(SPACE), prepared(SPACE));
    done(run(&whole, "-q"));
    let journal = killed.path().join("plan.journal.jsonl");
    for trials in [1, 4] {
        let mut search = crdiff(&killed, SEARCH).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let lines = || fs::read_to_string(&journal).unwrap_or_default().lines().count();
        let began = Instant::now();
        while lines() < 2 + trials {
            assert!(began.elapsed() < Duration::from_secs(300), "no trial ends");
            assert!(search.try_wait().unwrap().is_none(), "it ended before it could be killed");
            thread::sleep(Duration::from_millis(2));
        }
        // SIGKILL
        search.kill().unwrap();
        search.wait().unwrap();
        let known = lines();
        assert!(known < 10, "it was killed too late");
        let mut file = fs::OpenOptions::new().append(true).open(&journal).unwrap();
        file.write_all(br#"{"trial":7,"values":{"down":0."#).unwrap();
    }
    let said = done(run(&killed, ""));
    assert!(said.contains("8 trials"), "{said}");
    for name in ["plan.journal.jsonl", "plan.yaml", "plan.svg"] {
        assert_eq!(read(&killed, name), read(&whole, name), "{name}");
    }
}

#[test]
fn a_journal_belongs_to_its_search() {
    let folder = prepared(SPACE);
    done(run(&folder, "-q --trials 2"));
    done(run(&folder, "-q --trials 3"));
    assert_eq!(read(&folder, "plan.journal.jsonl").lines().count(), 5, "more trials go on");
    fs::write(folder.path().join("space.yaml"), SPACE.replace("seed: 3", "seed: 4")).unwrap();
    let refused = run(&folder, "-q --trials 3");
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("plan.journal.jsonl: its search has the seed 3, not 4"),
        "{}",
        stderr(&refused)
    );
    done(run(&folder, "-q --trials 1 --restart"));
    let journal = read(&folder, "plan.journal.jsonl");
    assert_eq!(journal.lines().count(), 3);
    let older = journal.replacen("\"journal\":2", "\"journal\":1", 1);
    assert_ne!(older, journal);
    fs::write(folder.path().join("plan.journal.jsonl"), older).unwrap();
    let refused = run(&folder, "-q --trials 1");
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("it is of format 1, which crdiff"), "{}", stderr(&refused));
    // Another training of the same network: one weight differs.
    fs::write(folder.path().join("plan.journal.jsonl"), journal).unwrap();
    let path = folder.path().join("sd15/unet/model.onnx");
    let mut model = ModelProto::parse_from_bytes(&fs::read(&path).unwrap()).unwrap();
    let weights = &mut model.graph.as_mut().unwrap().initializer;
    let weight = weights.iter_mut().find(|weight| weight.dims.len() == 2).unwrap();
    weight.raw_data[0] ^= 1;
    let original = fs::read(&path).unwrap();
    fs::write(&path, model.write_to_bytes().unwrap()).unwrap();
    let refused = run(&folder, "-q --trials 1");
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("plan.journal.jsonl: it is of a search with another model"),
        "{}",
        stderr(&refused)
    );
    fs::write(&path, original).unwrap();
    done(run(&folder, "-q --trials 1"));
    let one = done(run(&folder, "--trials 1 -o cat.yaml --prompt cat"));
    assert!(one.contains("cat.yaml"));
    assert!(read(&folder, "cat.journal.jsonl").contains("\"images\":1"));
}

#[test]
fn failed_trials_score_minus_two() {
    let space = SPACE.replace(
        r#"cksum < "$0" | awk "{print (\$1 % 1000) / 1000}""#,
        r#"n=$(ls "$0.n"* 2>/dev/null | wc -l); touch "$0.n$n"; test $n -ne 3 || { echo out of luck >&2; exit 1; }; echo $n"#,
    );
    let folder = prepared(&space);
    // The fourth image is the second of trial 0.
    let output = run(&folder, "--trials 2");
    let said = stderr(&output);
    done(output);
    let journal = read(&folder, "plan.journal.jsonl");
    let trial: Value = serde_json::from_str(journal.lines().nth(2).unwrap()).unwrap();
    assert_eq!(trial["score"], -2.0);
    assert!(trial["failed"].as_str().unwrap().contains("out of luck"), "{trial}");
    assert!(said.contains("warning: trial 0 failed") || said.is_empty(), "{said}");
    let plan = read(&folder, "plan.yaml");
    assert!(plan.contains("(trial 1 of 2"), "{plan}");

    fs::write(folder.path().join("space.yaml"), SPACE.replace("cksum", "no-such-program")).unwrap();
    let refused = run(&folder, "--restart -q");
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("all of the first 5 trials failed"), "{}", stderr(&refused));
}

#[test]
fn a_dry_run_counts() {
    let folder = prepared(SPACE);
    let said = done(run(&folder, "--dry-run"));
    assert!(said.contains("down: a number from 0.1 to 0.8\n"), "{said}");
    assert!(said.contains("out: any of mid_block.attentions.0\n"), "{said}");
    assert!(said.contains("a trial: 2 images (2 prompts, sizes 32x40, 1 seeds), 2 steps\n"), "{said}");
    assert!(said.contains("8 trials, with the dense pipeline 18 images\n"), "{said}");
    assert!(!folder.path().join("plan.journal.jsonl").exists());
}

/// Layers of a LoRA that a search leaves out are said, as a compilation says them.
#[test]
fn layers_that_are_left_out_are_said() {
    let space = SPACE.replace("rules: [", "always: [{ lora: { file: style.safetensors } }]\n  rules: [");
    let folder = prepared(&space);
    let lora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lora/pipeline.safetensors");
    fs::copy(lora, folder.path().join("style.safetensors")).unwrap();
    let note = "`style.safetensors`: 9 layers of the first text encoder are left out";
    // Once, though two rules have the file.
    let lora = |scale: &str| format!("[{{ lora: {{ file: style.safetensors, scale: {scale} }} }}]");
    let plan = format!("version: 1\nalways: {}\nrules: {}\n", lora("0.5"), lora("0.25"));
    fs::write(folder.path().join("plan.yaml"), plan).unwrap();
    let compiled = crdiff(&folder, "compile sd15/unet/model.onnx plan.yaml --dry-run").output();
    assert_eq!(done(compiled.unwrap()).matches(&format!("note: {note}\n")).count(), 1);
    let said = run(&folder, "--dry-run");
    assert_eq!(stderr(&said), format!("note: {note}\n"));
    assert_eq!(stderr(&run(&folder, "--dry-run -q")), "");
}

/// Places of the plan, its plot and the journal are looked at before anything is drawn, and a pipe is not waited for.
#[cfg(unix)]
#[test]
fn places_of_a_search_are_looked_at_first() {
    let folder = prepared(SPACE);
    assert!(Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
    for (more, expected) in [
        ("-o pipe --journal j.jsonl", "pipe: cannot write: it is a pipe or a device"),
        ("-o sd15", "sd15: cannot write: it is a folder"),
        ("-o missing/plan.yaml", "missing/plan.yaml: cannot write"),
        ("--plot missing/plot.svg", "missing/plot.svg: cannot write"),
        ("--journal pipe", "pipe: it is a folder, a pipe or a device; name a file"),
    ] {
        let output = run(&folder, more);
        assert_eq!(output.status.code(), Some(2), "{more}");
        assert!(stderr(&output).contains(expected), "{more}: {}", stderr(&output));
    }
    let mut left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.retain(|name| name != "cache");
    left.sort();
    assert_eq!(left, ["pipe", "sd15", "space.yaml"]);
}

#[test]
fn a_trial_that_waits_for_values_is_interrupted() {
    let folder = prepared(SPACE);
    let mut command = crdiff(&folder, "search trial sd15 space.yaml --engine rten");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"{\"down\": 0.3, \"up\": 0.3, \"out\": []}\n").unwrap();
    let mut answers = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(answers.next().unwrap().unwrap().contains("score"));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    drop(input);
}

#[test]
fn a_trial_alone_gives_what_the_search_gives() {
    let folder = prepared(SPACE);
    done(run(&folder, "-q --trials 2"));
    let journal = read(&folder, "plan.journal.jsonl");
    let known: Vec<Value> = journal.lines().skip(2).map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut command = crdiff(&folder, "search trial sd15 space.yaml --engine rten");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    {
        let mut input = child.stdin.take().unwrap();
        known.iter().for_each(|trial| writeln!(input, "{}", trial["values"]).unwrap());
    }
    let said = done(child.wait_with_output().unwrap());
    let answers: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    for (answer, trial) in answers.iter().zip(&known) {
        for key in ["values", "score", "scores", "metrics"] {
            assert_eq!(answer[key], trial[key], "{key}");
        }
        assert_eq!(answer["plan"]["crdiff"]["down"], trial["values"]["down"]);
    }
    let mut command = crdiff(&folder, "search trial sd15 space.yaml --engine rten");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"{\"down\": 0.3}\n").unwrap();
    let refused = child.wait_with_output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("the variable `up` has no value"), "{}", stderr(&refused));
}

#[test]
fn events_are_json_and_an_interrupt_is_one() {
    let folder = prepared(SPACE);
    let said = done(run(&folder, "--format json --trials 2"));
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["resumed", "dense", "trial", "trial", "done"]);
    let scores = [2, 3].map(|index: usize| events[index]["score"].as_f64().unwrap());
    assert_eq!(events[4]["score"].as_f64(), Some(scores[0].max(scores[1])));
    assert_eq!(
        (events[3]["best"].as_f64(), &events[4]["plan"]),
        (events[4]["score"].as_f64(), &"plan.yaml".into())
    );

    let mut command = crdiff(&folder, &format!("{SEARCH} -o long.yaml --trials 500 --json"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains(r#""trial""#)));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("the same command goes on from there"), "{}", stderr(&output));
}

#[test]
fn a_dry_run_looks_at_sizes_and_scorers() {
    for (from, to, expected) in [
        ("size: 32x40", "size: 33x40", "the size 33x40 is not divisible by 4"),
        (
            "command: [sh, -c, 'sleep",
            "command: [no-such-scorer, -c, 'sleep",
            "there is no program `no-such-scorer`",
        ),
        ("bytes: { command: [sh,", "bytes: { command: [./missing.sh,", "there is no program `./missing.sh`"),
    ] {
        let folder = prepared(&SPACE.replace(from, to));
        let refused = run(&folder, "--dry-run");
        assert_eq!(refused.status.code(), Some(2), "{to}");
        assert!(stderr(&refused).contains(expected), "{}", stderr(&refused));
    }
}

/// The folder of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_run_is_refined_by_an_objective() {
    let folder = prepared(SPACE);
    fs::write(folder.path().join("plan.yaml"), "version: 1\ncrdiff: { down: 0.4 }\n").unwrap();
    let refine =
        "run sd15 --engine rten --plan plan.yaml --size 32x40 --steps 2 --seed 1 --prompt cat --refine 3";
    let said =
        done(crdiff(&folder, &format!("{refine} --objective space.yaml -o best.png")).output().unwrap());
    let rows: Vec<(f64, bool)> = said
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (w, score) = (words.next()?, words.next()?.parse().ok()?);
            (w == "dense" || w.parse::<f64>().is_ok()).then(|| (score, words.next() == Some("kept")))
        })
        .collect();
    assert_eq!(rows.len(), 4, "dense and three weights: {said}");
    let best = rows.iter().map(|(score, _)| *score).fold(f64::MIN, f64::max);
    let kept: Vec<f64> = rows.iter().filter(|(_, kept)| *kept).map(|(score, _)| *score).collect();
    assert_eq!(kept, [best], "{said}");
    // Each of the four below its w and its score: seven letters, `w 1.250`, are wider than an image, which is drawn twice as
    // large.
    let (width, height, _) = pixels(&folder, "best.sheet.png");
    assert_eq!((width, height), (4 * (2 * 40 + 8) + 8, 8 + (2 * 10 + 8) + 2 * 32 + 8));
    done(crdiff(&folder, "run --engine rten --replay best.png -o again.png").output().unwrap());
    let again = pixels(&folder, "again.png");
    assert_eq!(again, pixels(&folder, "best.png"), "the image carries the w that was kept");
}

/// A CLIP by its folder scores runs and searches (its numbers: objectives.rs).
#[test]
fn a_clip_scores_runs_and_searches() {
    let clip = repository().join("fixtures/clip");
    let objective = format!("objective: {{ clip: {} }}", clip.display());
    let folder = prepared(SPACE.split("objective:").next().unwrap());
    let space = read(&folder, "space.yaml") + &objective;
    fs::write(folder.path().join("space.yaml"), space).unwrap();
    fs::write(folder.path().join("plan.yaml"), "version: 1\ncrdiff: { down: 0.4 }\n").unwrap();
    let refine = "run sd15 --engine rten --plan plan.yaml --size 32x40 --steps 1 --prompt cat --refine 1";
    let refine = format!("{refine} --json --objective clip:{} -o best.png", clip.display());
    let scores = |printed: &str, event: &str| -> Vec<f64> {
        let events = printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let of = events.filter(|told| told["event"] == event).flat_map(|told| match told.get("tried") {
            Some(tried) => tried.as_array().unwrap().clone(),
            None => vec![told],
        });
        of.map(|told| told["score"].as_f64().unwrap()).collect()
    };
    let refined = scores(&done(crdiff(&folder, &refine).output().unwrap()), "refined");
    let searched = scores(&done(run(&folder, "--trials 2 --json")), "trial");
    for found in [refined, searched] {
        assert!(found.len() == 2 && found[0] != found[1] && found.iter().all(|x| x.abs() < 1.0), "{found:?}");
    }
    assert!(done(run(&folder, "--dry-run")).contains("a trial: 2 images"));
}

pub fn pixels(folder: &TempDir, name: &str) -> (u32, u32, Vec<u8>) {
    let file = std::io::BufReader::new(fs::File::open(folder.path().join(name)).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width, info.height, pixels)
}

/// The image of a trial is that of its plan, whatever the trial shares with others.
#[test]
fn a_plan_with_rules_in_both_sets_draws_what_its_trial_drew() {
    let space = r#"version: 1
variables: { by: { choice: [2, 3] }, down: { ratio: [0.3, 0.6] } }
plan:
  version: 1
  always: [{ dilate: { modules: "mid_block.resnets.*.conv1", by: $by } }]
  crdiff: { down: $down, up: 0.3 }
  amplify: { weight: 1.5, during: [0.5, 1] }
prompts: [the cat]
sampling: { size: 32x40, steps: 4 }
strategy: random
seed: 1
objective: { command: [sh, -c, 'n=$(ls shot*.png 2>/dev/null | wc -l); cp "$0" shot$n.png; echo $n', "{image}"] }
"#;
    let folder = prepared(space);
    done(run(&folder, "-q --trials 4"));
    // The first image is the dense pipeline's, and the last trial scores best.
    let plan = read(&folder, "plan.yaml");
    assert!(plan.contains("(trial 3 of 4"), "{plan}");
    let what =
        "run sd15 --engine rten --plan plan.yaml --size 32x40 --steps 4 --guidance 7.5 --seed 0 -o plan.png";
    done(crdiff(&folder, what).args(["--prompt", "the cat"]).output().unwrap());
    let off = |name: &str| {
        let (drawn, trial) = (pixels(&folder, "plan.png"), pixels(&folder, name));
        assert_eq!((drawn.0, drawn.1), (trial.0, trial.1));
        drawn.2.iter().zip(&trial.2).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    };
    assert!(off("shot4.png") <= 1, "{}", off("shot4.png"));
    assert!(off("shot3.png") > 1, "trials draw different images");
}
