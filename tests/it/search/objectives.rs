//! Objectives: images resized as Pillow does, a scorer's graph as ONNX Runtime and transformers have it, programs.

use std::{fs, path::Path};

use crdiff::{
    diffusion::vae::Image,
    engine::{Engine, OrtEngine, RtenEngine, SessionOptions, TensorData, io::read_npz},
    onnx::proto::{ModelProto, tensor_shape_proto::dimension::Value::DimValue, type_proto},
    search::{
        objective::{self, Drawn, Objective, open_graph, resample::resize},
        space::{self, ObjectiveSpec, Resample, Space},
    },
};
use prost::Message;
use serde_json::Value;

use crate::common::ort::ort_library;

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The arrays of resized.npz as images.
fn images() -> Vec<(String, Image)> {
    let arrays = read_npz(&fixtures().join("search/resized.npz")).unwrap();
    let image = |(name, tensor): (String, crdiff::engine::HostTensor)| {
        let (height, width) = (tensor.dims()[0], tensor.dims()[1]);
        let TensorData::Uint8(pixels) = tensor.into_data() else { panic!("bytes") };
        (name, Image { height, width, pixels })
    };
    arrays.into_iter().map(image).collect()
}

#[test]
fn images_are_resized_as_pillow_does() {
    let images = images();
    let original = |name: &str| &images.iter().find(|(known, _)| known == name).unwrap().1;
    let mut compared = 0;
    for (name, expected) in images.iter().filter(|(name, _)| name.contains('/')) {
        let mut parts = name.split('/');
        let from = original(parts.next().unwrap());
        let filter = match parts.next().unwrap() {
            "bicubic" => Resample::Bicubic,
            "bilinear" => Resample::Bilinear,
            "lanczos" => Resample::Lanczos,
            _ => Resample::Nearest,
        };
        let resized = resize(from, expected.height, expected.width, filter);
        assert!(resized.pixels == expected.pixels, "{name} differs");
        compared += 1;
    }
    assert_eq!(compared, 32);
}

fn space(objective: &str, folder: &Path) -> Space {
    let text = format!(
        "version: 1\nvariables: {{ down: {{ ratio: [0.1, 0.8] }} }}\nplan: {{ version: 1, crdiff: {{ down: $down }} }}\n\
         prompts: [a]\nobjective: {objective}\n"
    );
    space::parse("space.yaml", &text, folder).unwrap()
}

fn opened(objective: &str, folder: &Path) -> Box<dyn Objective> {
    let space = space(objective, folder);
    let graph = |_: &_| panic!("no graph");
    objective::open(&space.objective, folder, &graph).unwrap()
}

const SCORER: &str = r#"
  onnx:
    model: search/scorer.onnx
    image:
      input: pixel_values
      resize: 24
      resample: bicubic
      crop: 24
      mean: [0.48145466, 0.4578275, 0.40821073]
      std: [0.26862954, 0.26130258, 0.27577711]
    text: { tokenizer: pipelines/sd15/tokenizer, mask: attention_mask }
    scale: 2
    offset: -1
"#;

#[test]
fn a_graph_scores_as_in_onnx_runtime() {
    let space = space(SCORER, &fixtures());
    let ObjectiveSpec::Onnx(spec) = &space.objective else { panic!("a graph") };
    let scores = fs::read_to_string(fixtures().join("search/scorer.json")).unwrap();
    let scores: Vec<Value> = serde_json::from_str(&scores).unwrap();
    assert_eq!(scores.len(), 4);
    let images = images();
    let engines: [Box<dyn Engine>; 2] =
        [Box::new(OrtEngine::open(&ort_library()).unwrap()), Box::new(RtenEngine)];
    for engine in engines {
        let mut scorer = open_graph(spec, &fixtures(), &*engine, &SessionOptions::default()).unwrap();
        for golden in &scores {
            let (_, image) = images.iter().find(|(name, _)| *name == golden["picture"]).unwrap();
            let prompt = golden["prompt"].as_str().unwrap();
            let scored = scorer.score(&Drawn::new(image, prompt, Path::new("unused.png"))).unwrap();
            let expected = 2.0 * golden["score"].as_f64().unwrap() - 1.0;
            assert!(
                (scored.score - expected).abs() < 1e-5,
                "{golden}: {} in {}",
                scored.score,
                engine.kind()
            );
        }
    }
}

#[test]
fn a_graph_must_have_what_the_space_names() {
    let refused = |from: &str, to: &str| {
        let space = space(&SCORER.replace(from, to), &fixtures());
        let ObjectiveSpec::Onnx(spec) = &space.objective else { panic!("a graph") };
        match open_graph(spec, &fixtures(), &RtenEngine, &SessionOptions::default()) {
            Ok(_) => panic!("{to} is accepted"),
            Err(error) => error.to_string(),
        }
    };
    assert!(refused("input: pixel_values", "input: pixels").contains("it has no input `pixels`"));
    assert!(refused(", mask: attention_mask", "").contains("the space feeds 2 of its inputs"));
    assert!(refused("scale: 2", "output: logits").contains("`output` must name one of its outputs: `score`"));
    assert!(refused("scorer.onnx", "none.onnx").contains("none.onnx"));
}

/// fixtures/clip as transformers saves it, and with the files of older releases, its graph in a folder of its own.
#[test]
fn a_clip_scores_as_in_transformers() {
    let cosines = fs::read_to_string(fixtures().join("clip/cosines.json")).unwrap();
    let cosines: Vec<Value> = serde_json::from_str(&cosines).unwrap();
    assert_eq!(cosines.len(), 6);
    let older = tempfile::tempdir().unwrap();
    let older = older.path();
    fs::create_dir_all(older.join("clip/onnx")).unwrap();
    for (from, to) in [
        ("clip/model.onnx", "clip/onnx/model.onnx"),
        ("clip/preprocessor_config.json", "clip/preprocessor_config.json"),
        ("pipelines/sd15/tokenizer/vocab.json", "clip/vocab.json"),
        ("pipelines/sd15/tokenizer/merges.txt", "clip/merges.txt"),
    ] {
        fs::copy(fixtures().join(from), older.join(to)).unwrap();
    }
    let fixed = older.join("fixed");
    fs::create_dir_all(fixed.join("clip")).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"] {
        fs::copy(fixtures().join("clip").join(name), fixed.join("clip").join(name)).unwrap();
    }
    fs::write(fixed.join("clip/model.onnx"), with_fixed_length(&fixtures().join("clip/model.onnx"))).unwrap();
    let graph = |spec: &_| open_graph(spec, &fixed, &RtenEngine, &SessionOptions::default());
    let refused = objective::check(&ObjectiveSpec::Clip("clip".into()), &fixed, &graph).unwrap_err();
    assert!(
        refused.to_string().contains("it takes one number of tokens, which rten cannot run"),
        "{refused}"
    );
    let images = images();
    let ort: Box<dyn Engine> = Box::new(OrtEngine::open(&ort_library()).unwrap());
    let here = fixtures();
    for (engine, folder, path) in [
        (&ort, here.as_path(), "clip"),
        (&ort, older, "clip"),
        (&(Box::new(RtenEngine) as Box<dyn Engine>), older, "clip/onnx/model.onnx"),
        // Exported for one number of tokens.
        (&ort, fixed.as_path(), "clip"),
    ] {
        let graph = |spec: &_| open_graph(spec, folder, &**engine, &SessionOptions::default());
        let spec = ObjectiveSpec::Clip(path.into());
        objective::check(&spec, folder, &graph).unwrap();
        let mut scorer = objective::open(&spec, folder, &graph).unwrap();
        for golden in &cosines {
            let (_, image) = images.iter().find(|(name, _)| *name == golden["picture"]).unwrap();
            let prompt = golden["prompt"].as_str().unwrap();
            let scored = scorer.score(&Drawn::new(image, prompt, Path::new("unused.png"))).unwrap().score;
            let expected = golden["cosine"].as_f64().unwrap();
            assert!((scored - expected).abs() < 2e-6, "{golden}: {scored} in {}", engine.kind());
        }
    }
}

/// Returns the model with inputs of 77 tokens, whatever it took before.
fn with_fixed_length(path: &Path) -> Vec<u8> {
    let mut model = ModelProto::decode(&*fs::read(path).unwrap()).unwrap();
    for input in &mut model.graph.as_mut().unwrap().input {
        let Some(type_proto::Value::TensorType(tensor)) =
            input.r#type.as_mut().and_then(|t| t.value.as_mut())
        else {
            panic!("a tensor")
        };
        if let [_, length] = tensor.shape.as_mut().unwrap().dim.as_mut_slice() {
            length.value = Some(DimValue(77));
        }
    }
    model.encode_to_vec()
}

#[test]
fn a_folder_that_is_no_clip_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ort = OrtEngine::open(&ort_library()).unwrap();
    let refused = |path: &str, folder: &Path| {
        let graph = |spec: &_| open_graph(spec, folder, &ort, &SessionOptions::default());
        objective::check(&ObjectiveSpec::Clip(path.into()), folder, &graph).unwrap_err().to_string()
    };
    assert!(refused(".", folder.path()).contains("there is no model.onnx in it"));
    fs::copy(fixtures().join("search/scorer.onnx"), folder.path().join("model.onnx")).unwrap();
    assert!(refused(".", folder.path()).contains("neither beside the graph nor above it is the tokenizer"));
    for name in ["vocab.json", "merges.txt"] {
        let from = fixtures().join("pipelines/sd15/tokenizer").join(name);
        fs::copy(from, folder.path().join(name)).unwrap();
    }
    let error = refused("model.onnx", folder.path());
    assert!(error.contains("`cosine` must name one of its outputs: `score`"), "{error}");
}

fn grey() -> Image {
    Image { height: 2, width: 3, pixels: vec![7; 18] }
}

#[cfg(unix)]
#[test]
fn programs_score_and_fail_with_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("image.png");
    let image = grey();
    let ask = |objective: &str| {
        let mut objective = opened(objective, folder.path());
        objective.score(&Drawn::new(&image, "a {image} of \"cats\"", &file))
    };
    let number = |objective: &str| ask(objective).unwrap().score;
    let reason = |objective: &str| ask(objective).unwrap_err().to_string();
    assert_eq!(number(r#"{ command: [sh, -c, "echo scoring; echo 0.25"] }"#), 0.25);
    assert_eq!(number(r#"{ command: [sh, -c, 'printf %s "$0" | wc -c', "{prompt}"] }"#), 19.0);
    assert_eq!(number(r#"{ command: [sh, -c, 'test -s "$0" && echo 1', "{image}"] }"#), 1.0);
    assert!(
        reason(r#"{ command: [sh, -c, "echo no"] }"#)
            .ends_with("its last line is \"no\"; it must be a number")
    );
    assert!(reason(r#"{ command: ["true"] }"#).ends_with("it must print a number as its last line"));
    assert!(reason(r#"{ command: [sh, -c, "echo nan"] }"#).contains("it printed NaN"));
    let failed = reason(r#"{ command: [sh, -c, "echo 1; echo broken >&2; exit 3"] }"#);
    assert!(failed.ends_with("exit status: 3: broken"), "{failed}");
    assert!(reason("{ command: [./no-such-program] }").contains("cannot start"));
    assert!(
        reason("{ command: [sleep, 60], timeout: 0.2 }").ends_with("no answer after 0.2 s, its `timeout`")
    );
}

#[cfg(unix)]
#[test]
fn a_served_program_answers_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("image.png");
    let image = grey();
    let mut objective = opened(
        r#"{ serve: [sh, -c, 'n=0; while read -r line; do n=$((n+1)); echo "$n"; [ $n -lt 2 ] || exit 4; done'] }"#,
        folder.path(),
    );
    let mut ask = || objective.score(&Drawn::new(&image, "a", &file));
    assert_eq!([ask().unwrap().score, ask().unwrap().score], [1.0, 2.0], "one process");
    let error = ask().unwrap_err().to_string();
    assert!(
        error.ends_with("it ended with exit status: 4; it must answer each line with a number"),
        "{error}"
    );
    assert_eq!(ask().unwrap().score, 1.0, "it is started again");
}

#[cfg(unix)]
#[test]
fn several_objectives_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("image.png");
    let image = grey();
    let parts = "[{ command: [echo, \"1\"], weight: 3, name: clip }, { command: [echo, \"0.2\"] }]";
    let scored = |how: &str| {
        let mut objective = opened(&format!("{{ {how}: {parts} }}"), folder.path());
        objective.score(&Drawn::new(&image, "a", &file)).unwrap()
    };
    let mean = scored("mean");
    assert!((mean.score - 0.8).abs() < 1e-12);
    assert_eq!(mean.parts, [("clip".to_string(), 1.0), ("2".to_string(), 0.2)]);
    assert_eq!(scored("min").score, 0.2);
}
