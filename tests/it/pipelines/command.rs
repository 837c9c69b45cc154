//! `crdiff run` and `crdiff bench` as a user runs them.

mod failures;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crdiff::{
    diffusion::{
        Pipeline,
        pipeline::{Request, Unets},
    },
    engine::{SessionOptions, io::read_npy},
};
use serde_json::Value;

use crate::pipelines::support::{Golden, Prepared, Runner, prepare};

fn crdiff(prepared: &Prepared) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
    let folder = prepared.pipeline.parent().unwrap();
    command.current_dir(folder).env("XDG_CACHE_HOME", folder.join("cache"));
    command
}

fn run(prepared: &Prepared, arguments: &str) -> Output {
    let mut command = crdiff(prepared);
    command.args([
        "run", "pipeline", "--engine", "rten", "--prompt", "the cat", "--size", "32x40", "--steps", "3",
    ]);
    command.args(arguments.split_whitespace()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn done(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}

/// A prepared pipeline with `plan.yaml` beside it.
fn planned() -> Prepared {
    let prepared = prepare("sd15");
    let ratios = Golden::open("sd15").index["prune"].to_string();
    let plan = format!("version: 1\ncrdiff: {ratios}\namplify: {{weight: 1.5}}\n");
    fs::write(prepared.pipeline.with_file_name("plan.yaml"), plan).unwrap();
    prepared
}

pub struct Png {
    width: u32,
    height: u32,
    pub pixels: Vec<u8>,
    texts: Vec<(String, String)>,
}

impl Png {
    pub fn open(path: &Path) -> Self {
        let file = std::io::BufReader::new(fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        reader.finish().unwrap();
        let texts = &reader.info().utf8_text;
        let texts = texts.iter().map(|text| (text.keyword.clone(), text.get_text().unwrap())).collect();
        Self { width: info.width, height: info.height, pixels, texts }
    }

    fn text(&self, key: &str) -> &str {
        self.texts.iter().find(|(known, _)| known == key).map(|(_, text)| text.as_str()).unwrap()
    }
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_plan_a_prompt_an_image_and_the_same_again() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    done(&run(&prepared, "--plan plan.yaml --seed 7 --negative-prompt dog --save-latents l.npy -o a.png"));
    let png = Png::open(&folder.join("a.png"));
    assert_eq!((png.height, png.width), (32, 40));
    assert_eq!(png.text("prompt"), "the cat");
    assert_eq!(png.text("seed"), "7");
    assert_eq!(png.text("sampler"), "PNDMScheduler");
    assert_eq!(png.text("plan_digest").len(), 64);
    assert!(png.text("Software").starts_with("crdiff "));

    // The library makes the same.
    let unets = Unets::WithPruned(prepared.pruned.clone());
    let mut pipeline =
        Pipeline::open(&prepared.pipeline, Runner::Rten.engine(), SessionOptions::default(), unets).unwrap();
    let mut request = Request::new("the cat", 32, 40);
    (request.steps, request.seeds, request.negative_prompts) = (3, vec![7], vec!["dog".to_string()]);
    let output = pipeline.run(&request, &()).unwrap();
    assert_eq!(output.images[0].pixels, png.pixels);
    assert_eq!(output.latents, read_npy(&folder.join("l.npy")).unwrap());

    // The pruned graph is compiled once, into the cache.
    assert_eq!(files(&prepared.pipeline.join("unet")), ["config.json", "model.onnx"]);
    let kept = compiled(folder);
    let before = times(&kept);

    // The plan itself is in the image.
    fs::remove_file(folder.join("plan.yaml")).unwrap();
    done(&replay(&prepared, &["a.png", "-o", "b.png"]));
    let repeated = Png::open(&folder.join("b.png"));
    assert_eq!((repeated.pixels, repeated.texts), (png.pixels, png.texts));
    assert_eq!(times(&compiled(folder)), before);
}

/// The files of compiled plans, and of the model that they share weights with.
fn compiled(folder: &Path) -> Vec<std::path::PathBuf> {
    let models = folder.join("cache/crdiff/compiled");
    let models = files(&models).into_iter().map(|name| models.join(name));
    models.flat_map(|model| files(&model).into_iter().map(move |name| model.join(name))).collect()
}

fn times(files: &[std::path::PathBuf]) -> Vec<std::time::SystemTime> {
    files.iter().map(|file| fs::metadata(file).unwrap().modified().unwrap()).collect()
}

fn replay(prepared: &Prepared, arguments: &[&str]) -> Output {
    crdiff(prepared).args(["run", "--engine", "rten", "--replay"]).args(arguments).output().unwrap()
}

#[test]
fn plans_are_kept_by_what_they_do_to_the_weights() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    done(&run(&prepared, "--plan plan.yaml"));
    let kept = compiled(folder);
    assert_eq!(kept.len(), 4, "about.json, the model, the plan's graph and weights: {kept:?}");
    let before = times(&kept);
    // Another amplification, another order, comments: nothing is written.
    let text = fs::read_to_string(folder.join("plan.yaml")).unwrap();
    let other =
        text.replace("weight: 1.5", "weight: [0, 1.2, 1.4], on: cond").replace("version", "# mine\nversion");
    fs::write(folder.join("other.yaml"), other).unwrap();
    done(&run(&prepared, "--plan other.yaml"));
    assert_eq!((compiled(folder), times(&kept)), (kept.clone(), before));
    // Another ratio, or w within the weights: another graph beside the same copy of the model.
    fs::write(folder.join("ratio.yaml"), "version: 1\ncrdiff: {down: 0.11}\n").unwrap();
    done(&run(&prepared, "--plan ratio.yaml"));
    assert_eq!(compiled(folder).len(), 6);

    let cache = |arguments: &[&str]| -> Value {
        let output = crdiff(&prepared).arg("cache").args(arguments).output().unwrap();
        done(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let listed = cache(&["--json"]);
    let entry = &listed["entries"][0];
    let model = prepared.pipeline.join("unet/model.onnx").canonicalize().unwrap();
    assert_eq!((entry["plans"].as_u64(), entry["model"].as_str()), (Some(2), model.to_str()));
    assert!(entry["bytes"].as_u64().unwrap() > fs::metadata(&model).unwrap().len());
    let cleared = cache(&["--json", "clear"]);
    assert_eq!((&cleared["cleared"], &cleared["entries"][0]["plans"]), (&true.into(), &2.into()));
    assert_eq!(compiled(folder).len(), 0);
    assert_eq!(
        cache(&["--json"])["entries"][0]["model"],
        Value::Null,
        "digests stay: {}",
        cache(&["--json"])
    );
    cache(&["--json", "clear", "--all"]);
    assert_eq!(cache(&["--json"])["entries"], Value::Array(Vec::new()));

    // Beside the model it shares the model's weights.
    done(&run(&prepared, "--plan plan.yaml --compiled beside"));
    let beside = files(&prepared.pipeline.join("unet"));
    assert!(
        beside.iter().any(|name| name.starts_with("model.crdiff-") && name.ends_with(".onnx")),
        "{beside:?}"
    );
    assert_eq!(compiled(folder).len(), 0);
}

#[test]
fn a_replay_works_from_anywhere_and_takes_other_settings() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    done(&run(&prepared, "--plan plan.yaml --seed 3,4,5 -o a.png"));
    // One image of three, from another folder, by another name.
    let elsewhere = folder.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::rename(folder.join("a-2.png"), elsewhere.join("second.png")).unwrap();
    let mut command = crdiff(&prepared);
    command.current_dir(&elsewhere).args([
        "run",
        "--engine",
        "rten",
        "--replay",
        "second.png",
        "-o",
        "again.png",
    ]);
    done(&command.output().unwrap());
    assert_eq!(files(&elsewhere), ["again.png", "second.png"]);
    let [first, again] = ["second.png", "again.png"].map(|name| Png::open(&elsewhere.join(name)));
    assert_eq!(again.text("seed"), "4");
    let difference = first.pixels.iter().zip(&again.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(difference <= 1, "a batch of one computes in another order: {difference}");

    // With one seed for all, the whole batch is drawn, and one image is written.
    done(&run(&prepared, "--plan plan.yaml --seed 3 --batch 2 -o b.png"));
    done(&replay(&prepared, &["b-2.png", "-o", "b-again.png"]));
    assert!(Png::open(&folder.join("b-again.png")).pixels == Png::open(&folder.join("b-2.png")).pixels);
    assert!(!folder.join("b-again-1.png").exists());

    // Other settings have the last word, and are what a run of their own makes.
    let other =
        ["elsewhere/second.png", "--steps", "2", "--size", "40x32", "--seed", "9", "--scheduler", "euler_a"];
    done(&replay(&prepared, &[&other[..], &["--prompt", "a dog", "--dense", "-o", "c.png"]].concat()));
    let mut own = crdiff(&prepared);
    own.args(["run", "pipeline", "--engine", "rten", "--prompt", "a dog", "--size", "40x32", "--steps", "2"]);
    done(&own.args(["--seed", "9", "--scheduler", "Euler a", "--dense", "-o", "d.png"]).output().unwrap());
    let [changed, own] = ["c.png", "d.png"].map(|name| Png::open(&folder.join(name)));
    assert!(changed.pixels == own.pixels);
    assert_eq!(changed.text("sampler"), "EulerAncestralDiscreteScheduler");

    // JPEG and WebP carry as much.
    done(&run(&prepared, "--plan plan.yaml --seed 4 -o e.webp"));
    done(&replay(&prepared, &["e.webp", "-o", "e.png"]));
    assert!(Png::open(&folder.join("e.png")).pixels == again.pixels);

    // Another UNet is refused, unless asked for; so is a pipeline that is gone.
    let unet = prepared.pipeline.join("unet/model.onnx");
    let graph = crdiff::ir::Graph::load(crdiff::onnx::open(&unet).unwrap()).unwrap();
    let bias = graph.initializers().find(|(_, weight)| weight.header.name == "conv_in.bias").unwrap().1;
    let mut bytes = fs::read(&unet).unwrap();
    let crdiff::onnx::Payload::Raw(raw) = &bias.header.payload else { panic!("{:?}", bias.header.payload) };
    let at = bytes.windows(raw.len()).position(|window| window == &raw[..]).unwrap();
    bytes[at] ^= 1;
    fs::write(&unet, bytes).unwrap();
    let refused = replay(&prepared, &["e.webp", "-o", "f.png"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("its unet is not the one that drew the image"), "{}", stderr(&refused));
    done(&replay(&prepared, &["e.webp", "-o", "f.png", "--other-model"]));
    let moved = folder.join("moved");
    fs::rename(&prepared.pipeline, &moved).unwrap();
    let gone = replay(&prepared, &["f.png", "-o", "g.png"]);
    assert!(stderr(&gone).contains("crdiff run PIPELINE --replay f.png"), "{}", stderr(&gone));
    let mut found = crdiff(&prepared);
    done(
        &found
            .args(["run", "moved", "--engine", "rten", "--replay", "f.png", "-o", "g.png"])
            .output()
            .unwrap(),
    );
    fs::rename(moved, &prepared.pipeline).unwrap();
}

/// The field of the web interfaces, read as they do: the prompt, a negative prompt, and a last line of `key: value`.
#[test]
fn an_image_carries_the_parameters_that_viewers_read() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    done(&run(
        &prepared,
        "--plan plan.yaml --seed 7 --scheduler dpm++_2m_karras --negative-prompt dog -o a.png",
    ));
    let png = Png::open(&folder.join("a.png"));
    let lines: Vec<&str> = png.text("parameters").lines().collect();
    let [prompt, negative, settings] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((*prompt, *negative), ("the cat", "Negative prompt: dog"));
    let fields: Vec<(&str, &str)> =
        settings.split(", ").map(|field| field.split_once(": ").unwrap()).collect();
    let field = |key: &str| fields.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
    for (key, value) in [
        ("Steps", "3"),
        ("Sampler", "DPM++ 2M"),
        ("CFG scale", "7.5"),
        ("Seed", "7"),
        ("Size", "40x32"),
        ("Model", "pipeline"),
        ("CR-Diff w", "1.5"),
    ] {
        assert_eq!(field(key), Some(value), "{settings}");
    }
    assert_eq!(field("Model hash").map(str::len), Some(10));
}

#[test]
fn images_side_by_side_and_several_seeds() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    done(&run(&prepared, "--plan plan.yaml --compare --seed 1 --seed 2 -o c.png"));
    let [first, second] = ["c-1.png", "c-2.png"].map(|name| Png::open(&folder.join(name)));
    // Each below its label, `amplified` above `w 1.5` the longest, and so twice as large.
    let (cell, strip) = (2 * 40 + 8, 36_usize);
    assert_eq!((first.height as usize, first.width as usize), (strip + 2 * 32 + 8, 3 * cell + 8));
    assert_eq!((first.text("seed"), second.text("seed")), ("1", "2"));
    assert_ne!(first.pixels, second.pixels);
    // Each part is what a run of its own makes.
    let part = |left: usize| -> Vec<u8> {
        let lines = first.pixels.chunks_exact(3 * first.width as usize).skip(strip).step_by(2).take(32);
        let pixels = lines.flat_map(|line| line[3 * left..3 * (left + 80)].chunks_exact(3).step_by(2));
        pixels.flatten().copied().collect()
    };
    for (left, arguments) in [
        (8, "--dense -o d.png"),
        (8 + cell, "--pruned pruned.onnx --weight 1 -o d.png --force"),
        (8 + 2 * cell, "--pruned pruned.onnx --weight 1.5 -o d.png --force"),
    ] {
        done(&run(&prepared, &format!("{arguments} --seed 1 --seed 2")));
        assert_eq!(part(left), Png::open(&folder.join("d-1.png")).pixels, "{arguments}");
    }
}

/// A preview is written in the middle, beside the image, and is an image that can be replayed.
#[test]
fn previews_are_written_beside_the_image() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    let output = run(&prepared, "--plan plan.yaml --scheduler euler --seed 1,2 -o a.png --preview 3 --json");
    done(&output);
    let events = String::from_utf8(output.stdout).unwrap();
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let previews: Vec<_> = events.filter(|event| event["event"] == "preview").collect();
    let told: Vec<_> =
        previews.iter().map(|e| (e["path"].as_str().unwrap(), e["step"].as_u64().unwrap())).collect();
    assert_eq!(told, [("a-1.preview.png", 2), ("a-2.preview.png", 2)]);
    let [preview, image] = ["a-2.preview.png", "a-2.png"].map(|name| Png::open(&folder.join(name)));
    let off = preview.pixels.iter().zip(&image.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(
        off <= 1 && preview.pixels.len() == image.pixels.len(),
        "{off}: the last step ends where the preview is"
    );
    // Like an image, it is not written over.
    let refused = run(&prepared, "--dense -o a-1.preview.png");
    assert!(stderr(&refused).contains("a-1.preview.png is there already"), "{}", stderr(&refused));
    done(&replay(&prepared, &["a-1.preview.png", "-o", "again.png"]));
    assert!(Png::open(&folder.join("again.png")).pixels == Png::open(&folder.join("a-1.png")).pixels);
}

#[test]
fn weights_amplified_in_one_network_are_near_the_outputs() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    let ratios = Golden::open("sd15").index["prune"].to_string();
    let plan = format!("version: 1\ncrdiff: {ratios}\namplify: {{mode: weights, weight: 1.5}}\n");
    fs::write(folder.join("weights.yaml"), plan).unwrap();
    let latents = |arguments: &str| {
        let output = run(&prepared, &format!("{arguments} --json --guidance 1 --save-latents l.npy --force"));
        done(&output);
        (read_npy(&folder.join("l.npy")).unwrap().to_f32(), String::from_utf8(output.stdout).unwrap())
    };
    let (dense, _) = latents("--dense");
    let (outputs, _) = latents("--plan plan.yaml");
    let (weights, events) = latents("--plan weights.yaml");
    assert!(events.contains(r#""runs":{"dense":4,"pruned":0}"#), "one network runs: {events}");
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    let change = distance(&dense, &outputs);
    assert!(
        change > 0.1 && distance(&weights, &outputs) < 0.4 * change,
        "{} of {change}",
        distance(&weights, &outputs)
    );
}

#[test]
fn events_are_json() {
    let prepared = prepare("sd15");
    let output = run(&prepared, "--dense --json -o a.png");
    done(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    let expected = ["stage", "stage", "stage", "call", "call", "call", "call", "stage", "image", "done"];
    assert_eq!(names, expected);
    assert_eq!(events[3]["timestep"], 667.0);
    assert!(events.last().unwrap()["ms"]["sampling"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_fused_graph_makes_what_two_networks_make() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    let compile = ["compile", "pipeline/unet/model.onnx", "plan.yaml", "--emit", "fused", "-o", "fused.onnx"];
    done(&crdiff(&prepared).args(compile).output().unwrap());
    let latents = |arguments: &str| {
        let output = run(&prepared, &format!("{arguments} --json --save-latents l.npy --force"));
        done(&output);
        let events = String::from_utf8(output.stdout).unwrap();
        (read_npy(&folder.join("l.npy")).unwrap().to_f32(), events)
    };
    let (separate, events) = latents("--plan plan.yaml");
    assert!(events.contains(r#""runs":{"dense":4,"pruned":4}"#), "{events}");
    let (fused, events) = latents("--fused fused.onnx");
    assert!(events.contains(r#""runs":{"dense":4,"pruned":0}"#), "{events}");
    let (dense, _) = latents("--dense");
    let difference =
        |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    let largest = separate.iter().fold(1f32, |most, value| most.max(value.abs()));
    assert!(difference(&separate, &fused) <= 1e-4 * largest, "{}", difference(&separate, &fused));
    assert!(difference(&separate, &dense) > 0.1);
}

#[test]
fn bench_times_each_kind() {
    let prepared = planned();
    let output = crdiff(&prepared)
        .args(["bench", "pipeline", "--engine", "rten", "--plan", "plan.yaml", "--fused", "pruned.onnx"])
        .args(["--size", "32x32", "--steps", "2", "--runs", "1", "--json"])
        .output()
        .unwrap();
    done(&output);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kinds = report["kinds"].as_array().unwrap();
    let runs: Vec<_> = kinds
        .iter()
        .map(|kind| {
            (kind["name"].as_str().unwrap(), kind["dense_runs"].as_u64(), kind["pruned_runs"].as_u64())
        })
        .collect();
    let expected = [("dense", 3, 0), ("pruned", 0, 3), ("amplified", 3, 3), ("fused", 3, 0)];
    assert_eq!(runs, expected.map(|(name, dense, pruned)| (name, Some(dense), Some(pruned))));
    assert!(kinds.iter().all(|kind| kind["steps_per_second"].as_f64().unwrap() > 0.0));
}

/// The authors' result for a network without a middle block: the rest of it is done, and a note says so.
#[test]
fn the_authors_result_without_a_middle() {
    let prepared = prepare("sd15");
    let folder = prepared.pipeline.parent().unwrap();
    let unet = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bk-sdm/torchscript/unet.onnx");
    fs::copy(unet, prepared.pipeline.join("unet/model.onnx")).unwrap();
    let ratios = r#"{ "down_ratio": 0.3, "mid_ratio": 0.4, "up_ratio": 0.2 }"#;
    fs::write(folder.join("config.json"), format!("{{ \"best_global_params_ratio\": {ratios} }}")).unwrap();
    let done = run(&prepared, "--plan config.json -o image.png");
    assert!(done.status.success(), "{}", stderr(&done));
    let note = "note: `crdiff.mid`: the network has no attention or feed-forward in `mid`";
    assert!(stderr(&done).contains(note), "{}", stderr(&done));
    assert!(folder.join("image.png").is_file());
}
