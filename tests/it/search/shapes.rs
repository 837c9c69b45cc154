//! The trained pipeline's scorer, on images that are drawn here, and its spaces.

use std::{
    collections::HashMap,
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::search::{command::repository, python::python};

const HEIGHT: i32 = 32;
const WIDTH: i32 = 48;
const RED: [u8; 3] = [219, 38, 38];
const GREEN: [u8; 3] = [33, 158, 64];
const BLUE: [u8; 3] = [38, 77, 217];
const BACKGROUND: [u8; 3] = [237, 237, 237];

/// A shape with its middle in column and row.
struct Object(&'static str, [u8; 3], (i32, i32));

impl Object {
    fn covers(&self, x: i32, y: i32) -> bool {
        let (x, y) = (x - self.2.0, y - self.2.1);
        match self.0 {
            "circle" => x * x + y * y <= 30,
            "square" => x.abs() <= 4 && y.abs() <= 4,
            // Twelve rows, as wide at the bottom as an equilateral one.
            "triangle" => (-6..6).contains(&y) && 12 * x.abs() <= 7 * (y + 6),
            other => panic!("{other}"),
        }
    }
}

fn scorer() -> PathBuf {
    python("shapes", "fixtures/shapes/scorer-requirements.txt")
}

fn folder() -> PathBuf {
    repository().join("fixtures/shapes")
}

fn draw(objects: &[Object], path: &Path) {
    let pixels = (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| (x, y)));
    let colour = |(x, y)| objects.iter().find(|o| o.covers(x, y)).map_or(BACKGROUND, |o| o.1);
    let bytes: Vec<u8> = pixels.flat_map(colour).collect();
    let file = File::create(path).unwrap();
    let mut encoder = png::Encoder::new(file, WIDTH.unsigned_abs(), HEIGHT.unsigned_abs());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().unwrap().write_image_data(&bytes).unwrap();
}

#[test]
fn the_scorer_counts_objects() {
    let python = scorer();
    let circle = || Object("circle", RED, (8, 9));
    let square = || Object("square", BLUE, (36, 20));
    let asked = "a red circle and a blue square";
    let cases: Vec<(&str, Vec<Object>, f64)> = vec![
        (asked, vec![circle(), square()], 1.0),
        ("a blue square and a red circle", vec![circle(), square()], 1.0),
        // Doubled: two of three are asked for.
        (asked, vec![circle(), square(), Object("circle", RED, (22, 22))], 2.0 / 3.0),
        // The right colour in another shape is half of it.
        (asked, vec![circle(), Object("circle", BLUE, (36, 20))], 0.75),
        (asked, vec![circle()], 0.5),
        (asked, vec![circle(), Object("square", GREEN, (36, 20))], 0.5),
        (asked, vec![], 0.0),
        ("a green triangle", vec![Object("triangle", GREEN, (20, 16))], 1.0),
        ("a green circle", vec![Object("triangle", GREEN, (20, 16))], 0.5),
    ];
    let scratch = tempfile::tempdir().unwrap();
    let script = folder().join("score.py");
    let mut server = Command::new(&python)
        .arg("-u")
        .arg(&script)
        .arg("--serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = BufReader::new(server.stdout.take().unwrap()).lines();
    for (number, (prompt, objects, expected)) in cases.iter().enumerate() {
        let path = scratch.path().join(format!("{number}.png"));
        draw(objects, &path);
        let question = json!({ "image": path, "prompt": prompt });
        writeln!(server.stdin.as_ref().unwrap(), "{question}").unwrap();
        let score: f64 = answers.next().unwrap().unwrap().parse().unwrap();
        assert!((score - expected).abs() < 1e-9, "case {number}: {score}, not {expected}");
    }
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
    let one =
        Command::new(&python).arg(&script).arg(scratch.path().join("2.png")).arg(asked).output().unwrap();
    let score: f64 = String::from_utf8(one.stdout).unwrap().trim().parse().unwrap();
    assert!((score - 2.0 / 3.0).abs() < 1e-9);
}

#[test]
fn the_page_has_its_results() {
    let page = fs::read_to_string(repository().join("docs/notes/crdiff-on-shapes.md")).unwrap();
    let table = ["evaluate.py", "table", "sweep-results.json"];
    let output = Command::new(scorer()).args(table).current_dir(folder()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().count() > 20, "{lines}");
    for line in lines.lines() {
        assert!(page.lines().any(|of_page| of_page == line), "{line}");
    }
}

#[test]
fn its_spaces_search() {
    let programs = scorer();
    let path = env::var_os("PATH").unwrap_or_default();
    let path = [programs.parent().unwrap().to_path_buf()].into_iter().chain(env::split_paths(&path));
    let path = env::join_paths(path).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
        command.current_dir(scratch.path()).env("PATH", &path).arg("search").arg(folder().join("pipeline"));
        let output = command.args(arguments).args(["--engine", "rten"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let space = |name: &str| folder().join(name).to_str().unwrap().to_string();
    let said = run(&[&space("modules.yaml"), "--dry-run"]);
    assert!(said.contains("a trial: 32 images"), "{said}");
    assert!(said.contains("30 trials"), "fifteen modules, twice each: {said}");
    let said = run(&[&space("below.yaml"), "--dry-run"]);
    assert!(said.contains("60 trials"), "{said}");
    run(&[&space("ratios.yaml"), "--trials", "2", "--prompt", "a red circle", "-o", "plan.yaml"]);
    let journal = fs::read_to_string(scratch.path().join("plan.journal.jsonl")).unwrap();
    let lines: Vec<HashMap<String, Value>> =
        journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    for trial in &lines[2..] {
        assert!((0.0..=1.0).contains(&trial["score"].as_f64().unwrap()), "{trial:?}");
    }
}
