//! Every golden case: latents within 1e-4 of the largest latent, pixels within 1 of diffusers'.

use crdiff::{
    compile::Target,
    diffusion::{
        Pipeline,
        pipeline::{Place, Request, Unets},
        vae::Tiling,
    },
    engine::SessionOptions,
    plan,
};
use serde_json::Value;

use crate::pipelines::support::{Golden, Runner, compile, pipelines, prepare, prepare_with};

/// A field of a case, or its default.
fn field<'a>(golden: &'a Golden, case: &'a Value, key: &str) -> &'a Value {
    case.get(key).unwrap_or(&golden.index["defaults"][key])
}

pub fn request(golden: &Golden, case: &Value) -> Request {
    let get = |key: &str| field(golden, case, key);
    let size = |key: &str| usize::try_from(get(key).as_u64().unwrap()).unwrap();
    let mut request = Request::new(get("prompt").as_str().unwrap_or_default(), size("height"), size("width"));
    request.negative_prompts = get("negative").as_str().map(str::to_string).into_iter().collect();
    request.steps = size("steps");
    request.guidance = get("guidance").as_f64().unwrap();
    request.guidance_rescale = get("guidance_rescale").as_f64().unwrap();
    request.batch = size("batch");
    request.seeds = get("seeds").as_array().unwrap().iter().map(|seed| seed.as_u64().unwrap()).collect();
    request.eta = get("eta").as_f64().unwrap();
    request.clip_skip = get("clip_skip").as_u64().map(|skip| usize::try_from(skip).unwrap());
    request.scheduler = Some(get("scheduler").as_str().unwrap().parse().unwrap());
    let config = get("config").as_object().unwrap();
    request.scheduler_config = config.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    if get("tiled") == true {
        request.tiling = Tiling::Tiles;
    }
    if let Some(amplify) = case.get("amplify") {
        request.amplify =
            plan::parse("plan.yaml", &format!("version: 1\namplify: {amplify}\nrules: []")).unwrap().amplify;
    }
    request
}

/// Runs all cases of a pipeline; the largest differences of latents (over the largest latent) and of pixels.
fn check(name: &str, runner: Runner, options: &SessionOptions, place: Place) {
    let golden = Golden::open(name);
    let prepared = prepare(name);
    let mut pipeline =
        Pipeline::open(&prepared.pipeline, runner.engine(), options.clone(), Unets::Dense).unwrap();
    let mut failures = Vec::new();
    // Those without amplification first, and those of a size together: networks are loaded for their sizes on a device.
    let mut cases: Vec<&Value> = golden.index["cases"].as_array().unwrap().iter().collect();
    cases.sort_by_cached_key(|case| {
        let request = request(&golden, case);
        (request.height, request.width, request.batch, request.guidance > 1.0)
    });
    for amplified in [false, true] {
        pipeline.set_unets(match amplified {
            false => Unets::Dense,
            true => Unets::WithPruned(prepared.pruned.clone()),
        });
        for case in cases.iter().filter(|case| case.get("amplify").is_some() == amplified) {
            let label = case["name"].as_str().unwrap();
            let mut request = request(&golden, case);
            request.place = place;
            let output = pipeline.run(&request, &()).unwrap_or_else(|e| panic!("{label}: {e}"));
            let expected = golden.tensor(&format!("{label}/latents"));
            assert_eq!(output.latents.dims(), expected.dims(), "{label}");
            let expected = expected.to_f32();
            let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
            let latents = output.latents.to_f32();
            let latents =
                latents.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs() / largest));
            let bytes = golden.tensor(&format!("{label}/image")).to_i64();
            let pixels: Vec<u8> = output.images.iter().flat_map(|image| image.pixels.clone()).collect();
            assert_eq!(pixels.len(), bytes.len(), "{label}");
            let pixels = pixels.iter().zip(&bytes).map(|(a, b)| (i64::from(*a) - b).abs()).max().unwrap();
            if !(latents <= 1e-4 && pixels <= 1) {
                failures.push(format!("{label}: latents {latents:.2e}, pixels {pixels}"));
            }
        }
    }
    assert!(cases.len() >= 4);
    for case in
        cases.iter().filter_map(|case| case["name"].as_str()).filter(|name| name.contains("amplified/"))
    {
        // Were the goldens alike, a runner that never amplifies would pass.
        let pair = [case.to_string(), case.replace("amplified/", "dense/")];
        let [amplified, dense] = pair.map(|name| golden.tensor(&format!("{name}/latents")).to_f32());
        assert!(amplified.iter().zip(&dense).any(|(a, b)| (a - b).abs() > 0.5), "{case}");
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn sd15_in_onnx_runtime() {
    check("sd15", Runner::OnnxRuntime, &SessionOptions::default(), Place::Automatic);
}

#[test]
fn sd15_in_rten() {
    check("sd15", Runner::Rten, &SessionOptions::default(), Place::Automatic);
}

#[test]
fn sdxl_in_onnx_runtime() {
    check("sdxl", Runner::OnnxRuntime, &SessionOptions::default(), Place::Automatic);
}

#[test]
fn sdxl_in_rten() {
    check("sdxl", Runner::Rten, &SessionOptions::default(), Place::Automatic);
}

#[test]
fn lcm_in_both() {
    check("lcm", Runner::OnnxRuntime, &SessionOptions::default(), Place::Automatic);
    check("lcm", Runner::Rten, &SessionOptions::default(), Place::Automatic);
}

#[test]
fn a_trained_pipeline_in_both() {
    check("../shapes/pipeline", Runner::OnnxRuntime, &SessionOptions::default(), Place::Automatic);
    check("../shapes/pipeline", Runner::Rten, &SessionOptions::default(), Place::Automatic);
}

/// As a GPU runs them: latents stay in the engine's memory.
#[test]
fn on_the_device() {
    for name in ["sd15", "sdxl", "lcm"] {
        check(name, Runner::OnnxRuntime, &SessionOptions::default(), Place::Device);
    }
}

/// Several prompts are one batch, in which those of a prompt follow each other. Without the VAE.
#[test]
fn several_prompts() {
    let golden = Golden::in_folder(&pipelines().join("sd15/golden-prompts"));
    let mut pipeline = Pipeline::open(
        &pipelines().join("sd15"),
        Runner::Rten.engine(),
        SessionOptions::default(),
        Unets::Dense,
    )
    .unwrap();
    for case in golden.index["cases"].as_array().unwrap() {
        let texts = |key: &str| -> Vec<String> { serde_json::from_value(case[key].clone()).unwrap() };
        let mut request = request(&golden, case);
        (request.prompts, request.negative_prompts) = (texts("prompts"), texts("negatives"));
        request.decode = false;
        let output = pipeline.run(&request, &()).unwrap();
        assert!(output.images.is_empty());
        let expected = golden.tensor(&format!("{}/latents", case["name"].as_str().unwrap()));
        assert_eq!(output.latents.dims(), expected.dims());
        let expected = expected.to_f32();
        let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
        for (a, b) in output.latents.to_f32().iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-4 * largest, "{}: {a} {b}", case["name"]);
        }
    }
}

/// Perturbed-attention guidance of diffusers' own pipeline: `noise + s (cond - perturbed)` on top of guidance g is w = -s/g
/// with the prompt.
#[test]
fn perturbed_attention_guidance() {
    let golden = Golden::in_folder(&pipelines().join("sd15/golden-pag"));
    let get = |key: &str| golden.index["defaults"][key].clone();
    let weight = -golden.index["scale"].as_f64().unwrap() / get("guidance").as_f64().unwrap();
    let plan = plan::parse(
        "pag.yaml",
        &format!(
            "version: 1\nrules: [{{ attention: {{ modules: 'mid_block.**.attn1', map: identity }} }}]\n\
             amplify: {{ weight: {weight}, on: cond }}\n"
        ),
    )
    .unwrap();
    let prepared = prepare_with("sd15", &plan);
    let cases = golden.index["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for place in [Place::Automatic, Place::Device] {
        let unets = Unets::WithPruned(prepared.pruned.clone());
        let mut pipeline = Pipeline::open(
            &prepared.pipeline,
            Runner::OnnxRuntime.engine(),
            SessionOptions::default(),
            unets,
        )
        .unwrap();
        for case in cases {
            let label = case["name"].as_str().unwrap();
            let mut request = request(&golden, case);
            request.place = place;
            request.amplify = plan.amplify.clone();
            let output = pipeline.run(&request, &()).unwrap_or_else(|e| panic!("{label}: {e}"));
            let expected = golden.tensor(&format!("{label}/latents")).to_f32();
            let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
            let latents = output.latents.to_f32();
            assert_eq!(latents.len(), expected.len(), "{label}");
            let off =
                latents.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs() / largest));
            assert!(off <= 1e-4, "{label}: off by {off:e}");
        }
    }
}

/// Changes of both networks are in the dense one too: two graphs that the runner mixes give what one fused graph
/// gives.
#[test]
fn both_networks_changed() {
    let golden = Golden::open("sd15");
    let text = "version: 1\nalways: [{ attention: { modules: 'down_blocks.0.**.attn1', map: identity } }]\n\
                rules: [{ prune: { weights: 'up_blocks.**.attn1.*', ratio: 0.5 } }]\namplify: { weight: 1.5 }\n";
    let plan = plan::parse("plan.yaml", text).unwrap();
    let prepared = prepare_with("sd15", &plan);
    let beside = |name: &str| prepared.pruned.with_file_name(name);
    let (dense, fused) = (beside("dense.onnx"), beside("fused.onnx"));
    compile(&prepared.pipeline, &plan, Target::Dense, &dense);
    compile(&prepared.pipeline, &plan, Target::Fused, &fused);
    let case =
        golden.index["cases"].as_array().unwrap().iter().find(|c| c["name"] == "ddim/dense/40x72").unwrap();
    let mut request = request(&golden, case);
    request.amplify = plan.amplify.clone();
    let latents = |unets: Unets| {
        let engine = Runner::OnnxRuntime.engine();
        let mut pipeline =
            Pipeline::open(&prepared.pipeline, engine, SessionOptions::default(), unets).unwrap();
        pipeline.run(&request, &()).unwrap().latents.to_f32()
    };
    let off = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    let one = latents(Unets::Instead(fused));
    let two = latents(Unets::Pair { dense, pruned: prepared.pruned.clone() });
    let largest = one.iter().fold(1f32, |most, value| most.max(value.abs()));
    assert!(off(&one, &two) <= 1e-4 * largest, "{}", off(&one, &two));
    // The pipeline's own network for the dense one gives something else.
    let other = latents(Unets::WithPruned(prepared.pruned.clone()));
    assert!(off(&one, &other) > 0.1, "{}", off(&one, &other));
}
