//! Plans with a cache: final latents as DeepCache's own helper gives them, within 1e-4 of the largest.

use crdiff::{
    compile::{Job, Target, cached_outputs, compile_file},
    diffusion::{
        Pipeline,
        pipeline::{Output, Place, Unets},
    },
    engine::{HostTensor, SessionOptions},
    onnx::WeightPolicy,
    plan::{self, Plan},
};
use std::path::{Path, PathBuf};

use super::goldens::request;
use crate::pipelines::support::{Golden, Prepared, Runner, pipelines, prepare};

/// Compiles both graphs of `target`; returns the full one's file and the shallow one's.
fn compile(prepared: &Prepared, plan: &Plan, target: Target) -> (PathBuf, PathBuf) {
    let model = prepared.pipeline.join("unet/model.onnx");
    let output = prepared.pruned.with_file_name(format!("{}.onnx", target.name()));
    let job = Job::new(&model, plan).target(target).cached().output(&output).weights(WeightPolicy::Copy);
    compile_file(&job, &()).unwrap();
    let [full, shallow] = cached_outputs(&output);
    (full, shallow)
}

fn open(pipeline: &Path, runner: Runner, unets: Unets, pairs: &[(PathBuf, PathBuf)]) -> Pipeline {
    let mut pipeline = Pipeline::open(pipeline, runner.engine(), SessionOptions::default(), unets).unwrap();
    pipeline.set_shallow(pairs.iter().cloned().collect());
    pipeline
}

fn apart(latents: &HostTensor, expected: &HostTensor) -> f32 {
    let (latents, expected) = (latents.to_f32(), expected.to_f32());
    assert_eq!(latents.len(), expected.len());
    let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
    latents.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs() / largest))
}

#[test]
fn latents_are_those_of_the_authors_helper() {
    let golden = Golden::in_folder(&pipelines().join("sd15/golden-deep-cache"));
    let cases = golden.index["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    let prepared = prepare("sd15");
    for case in cases {
        let label = case["name"].as_str().unwrap();
        let text = format!("version: 1\ncache: {{ at: {}, every: {} }}\n", case["at"], golden.index["every"]);
        let plan = plan::parse("plan.yaml", &text).unwrap();
        let pair = compile(&prepared, &plan, Target::Pruned);
        let places = [
            (Runner::OnnxRuntime, Place::Automatic),
            (Runner::OnnxRuntime, Place::Device),
            (Runner::Rten, Place::Automatic),
        ];
        for (runner, place) in places {
            let unets = Unets::Instead(pair.0.clone());
            let mut pipeline = open(&prepared.pipeline, runner, unets, std::slice::from_ref(&pair));
            let mut request = request(&golden, case);
            (request.place, request.cache) = (place, plan.cache.clone());
            let output = pipeline.run(&request, &()).unwrap_or_else(|e| panic!("{label}: {e}"));
            let off = apart(&output.latents, golden.tensor(&format!("{label}/latents")));
            assert!(off <= 1e-4, "{label} {runner:?} {place:?}: off by {off:e}");
            let times = output.timings.networks;
            assert!(times.dense_shallow_runs * 5 >= times.dense_runs * 2, "{label}: {times:?}");
        }
    }
}

/// A network that is run as a whole in each call gives what it gives without a cache, which diffusers' goldens say; then
/// with most calls shallow, both loops agree, and each network keeps features of its own.
#[test]
fn both_networks_of_an_amplified_plan_have_their_own() {
    let golden = Golden::open("sd15");
    let prepared = prepare("sd15");
    let plan_of = |every: u32| {
        let text = format!(
            "version: 1\ncrdiff: {}\ncache: {{ at: up_blocks.1.resnets.1, every: {every} }}\n",
            golden.index["prune"]
        );
        plan::parse("plan.yaml", &text).unwrap()
    };
    let pairs = [Target::Dense, Target::Pruned].map(|target| compile(&prepared, &plan_of(3), target));
    let unets = Unets::Pair { dense: pairs[0].0.clone(), pruned: pairs[1].0.clone() };
    let mut pipeline = open(&prepared.pipeline, Runner::OnnxRuntime, unets, &pairs);
    for name in ["amplify/during", "amplify/every", "amplify/cond"] {
        let cases = golden.index["cases"].as_array().unwrap();
        let case = cases.iter().find(|case| case["name"] == name).unwrap();
        let mut run = |every: u32, place: Place| -> Output {
            let mut request = request(&golden, case);
            (request.place, request.cache) = (place, plan_of(every).cache);
            pipeline.run(&request, &()).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let expected = golden.tensor(&format!("{name}/latents"));
        let mut cached = Vec::new();
        for place in [Place::Host, Place::Device] {
            let whole = run(1, place);
            let off = apart(&whole.latents, expected);
            assert!(off <= 1e-4, "{name} {place:?}: off by {off:e}");
            assert_eq!(whole.timings.networks.dense_shallow_runs, 0);
            cached.push(run(3, place));
        }
        let [host, device] = &cached[..] else { unreachable!("two places") };
        assert!(apart(&host.latents, &device.latents) <= 1e-4, "{name}");
        assert!(apart(&host.latents, expected) > 1e-3, "{name}: nothing was cached");
        let times = host.timings.networks;
        // Steps 0, 3 and 6 are whole.
        assert_eq!((times.dense_runs, times.dense_shallow_runs), (8, 5), "{name}");
        let pruned = match name {
            // Steps 2 to 6, of which 2 has nothing kept and 3 and 6 are whole.
            "amplify/during" => (5, 2),
            // Steps 0, 3 and 6.
            "amplify/every" => (3, 0),
            _ => (8, 5),
        };
        assert_eq!((times.pruned_runs, times.pruned_shallow_runs), pruned, "{name}");
    }
}

#[test]
fn a_cache_without_its_graph_is_refused() {
    let golden = Golden::open("sd15");
    let prepared = prepare("sd15");
    let mut pipeline = open(&prepared.pipeline, Runner::Rten, Unets::Dense, &[]);
    let mut request = request(&golden, &golden.index["cases"][0]);
    let plan = plan::parse("plan", "version: 1\ncache: { at: up_blocks.1.resnets.1 }").unwrap();
    request.cache = plan.cache.clone();
    let error = pipeline.run(&request, &()).unwrap_err();
    assert!(error.to_string().contains("there is no shallow graph beside this one"), "{error}");
    // The shallow graph of another model.
    let (full, _) = compile(&prepared, &plan, Target::Pruned);
    let dense = prepared.pipeline.join("unet/model.onnx");
    let mut pipeline = open(&prepared.pipeline, Runner::Rten, Unets::Instead(full.clone()), &[(full, dense)]);
    let error = pipeline.run(&request, &()).unwrap_err();
    assert!(error.to_string().contains("it is not the shallow graph beside"), "{error}");
}
