//! Requests to a pipeline, and those that are refused.

use std::{
    fs,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use crdiff::{
    diffusion::{
        Pipeline, PipelineError,
        interleave::Batching,
        pipeline::{Output, Place, Random, Request, Unets},
    },
    engine::{Engine, HostTensor, MemoryMode, RtenEngine, SessionOptions},
    observer::Event,
};

use onnx_protobuf::{Message, ModelProto};
use serde_json::Value;

use crate::{
    common::observer::Hears,
    pipelines::support::{Prepared, Runner, prepare},
};

fn open(prepared: &Prepared, runner: Runner, unets: Unets) -> Pipeline {
    Pipeline::open(&prepared.pipeline, runner.engine(), SessionOptions::default(), unets).unwrap()
}

fn small() -> Request {
    let mut request = Request::new("the cat", 32, 40);
    request.steps = 3;
    request.guidance = 4.0;
    request
}

fn refused(pipeline: &mut Pipeline, change: impl FnOnce(&mut Request)) -> String {
    let mut request = small();
    change(&mut request);
    pipeline.run(&request, &()).unwrap_err().to_string()
}

fn largest_difference(a: &Output, b: &Output) -> f32 {
    let (a, b) = (a.latents.to_f32(), b.latents.to_f32());
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

#[test]
fn what_does_not_fit_is_refused() {
    let prepared = prepare("sd15");
    let mut pipeline = open(&prepared, Runner::Rten, Unets::WithPruned(prepared.pruned.clone()));
    let mut refused = |change: &dyn Fn(&mut Request)| refused(&mut pipeline, change);
    assert_eq!(
        refused(&|r| r.height = 33),
        "the size 33x40 is not divisible by 4, the pixels of a latent; try 36x40"
    );
    assert_eq!(refused(&|r| r.batch = 0), "a batch has at least one image");
    assert!(refused(&|r| r.batch = usize::MAX / 2).ends_with("are too many"));
    assert_eq!(refused(&|r| r.prompts.clear()), "a batch has at least one image");
    let negative = |r: &mut Request| r.negative_prompts = vec![String::new(); 3];
    assert_eq!(refused(&negative), "3 negative prompts for 1 prompts; give one, or one for each");
    assert!(refused(&|r| r.seeds = vec![1, 2, 3]).starts_with("3 seeds for 1 images"));
    assert!(refused(&|r| (r.random, r.seeds) = (Random::Numpy, vec![1 << 40])).contains("NumPy's seeds"));
    assert!(refused(&|r| r.steps = 0).contains("cannot take 0 steps"));
    assert!(refused(&|r| r.clip_skip = Some(1)).contains("clip_skip"));
    let wrong = HostTensor::new([1, 4, 8, 9], vec![0f32; 288]).unwrap();
    assert!(refused(&|r| r.latents = Some(wrong.clone())).contains("expected [1, 4, 8, 10]"));
    let few = HostTensor::new([2, 1, 4, 8, 10], vec![0f32; 640]).unwrap();
    let ancestral = |r: &mut Request| {
        r.scheduler = Some("EulerAncestralDiscreteScheduler".parse().unwrap());
        r.noise = Some(few.clone());
    };
    assert_eq!(refused(&ancestral), "the noise has 2 draws; the sampler makes 3");
    let listed = |r: &mut Request| r.amplify.weight.value = crdiff::plan::AmplifyWeight::Steps(vec![1.0]);
    assert!(refused(&listed).contains("lists 1 steps, but 3 are run"));
}

#[test]
fn a_size_that_the_export_cannot_take_is_explained() {
    let prepared = prepare("sd15");
    // 36 pixels are 9 latents, an odd number that comes back from the UNet's lower half as 10.
    for place in [Place::Host, Place::Device] {
        let mut pipeline = open(&prepared, Runner::Rten, Unets::Dense);
        let error = refused(&mut pipeline, |r| (r.height, r.place) = (36, place));
        assert!(error.contains("unet/model.onnx: it cannot run at 36x40 pixels: Concat node"), "{error}");
        assert!(error.ends_with("; try 40x40 pixels"), "{error}");
    }
}

#[test]
fn an_engine_without_device_memory_is_named() {
    let prepared = prepare("sd15");
    type Make = fn() -> Box<dyn Engine>;
    let engines: &[(Make, &str)] = &[
        (|| Box::new(RtenEngine), "rten failed to run"),
        #[cfg(feature = "tract")]
        (|| Box::new(crdiff::engine::TractEngine), "tract"),
    ];
    for (engine, named) in engines {
        let pipeline = Pipeline::open(&prepared.pipeline, engine(), SessionOptions::default(), Unets::Dense);
        let error = refused(&mut pipeline.unwrap(), |r| r.place = Place::Device);
        assert!(error.contains(named) && (named.starts_with("rten") || !error.contains("rten")), "{error}");
    }
}

#[test]
fn given_latents_and_noise_are_used() {
    let prepared = prepare("sd15");
    let mut pipeline = open(&prepared, Runner::Rten, Unets::Dense);
    let mut request = small();
    request.scheduler = Some("EulerAncestralDiscreteScheduler".parse().unwrap());
    request.seeds = vec![5];
    let drawn = pipeline.run(&request, &()).unwrap();
    // The same numbers from the generator, given as files would give them.
    let mut generator = crdiff::diffusion::random::TorchGenerator::new(5);
    let mut draws = vec![vec![0f32; 320]; 4];
    draws.iter_mut().for_each(|draw| generator.randn(draw));
    request.seeds = vec![6];
    request.latents = Some(HostTensor::new([1, 4, 8, 10], draws.remove(0)).unwrap());
    request.noise = Some(HostTensor::new([3, 1, 4, 8, 10], draws.concat()).unwrap());
    let given = pipeline.run(&request, &()).unwrap();
    assert_eq!(drawn.latents, given.latents);
    request.noise = None;
    assert_ne!(drawn.latents, pipeline.run(&request, &()).unwrap().latents);
}

#[test]
fn branches_in_turn_and_low_memory_change_nothing_but_the_last_bits() {
    let prepared = prepare("sdxl");
    let run = |memory: MemoryMode, batching: Batching| {
        let options = SessionOptions::default().memory(memory);
        let unets = Unets::WithPruned(prepared.pruned.clone());
        let engine = Runner::OnnxRuntime.engine();
        let mut pipeline = Pipeline::open(&prepared.pipeline, engine, options, unets).unwrap();
        let mut request = small();
        request.batching = batching;
        request.batch = 2;
        pipeline.run(&request, &()).unwrap()
    };
    let together = run(MemoryMode::Fast, Batching::Together);
    assert!(largest_difference(&together, &run(MemoryMode::Fast, Batching::InTurn)) < 1e-4);
    assert!(largest_difference(&together, &run(MemoryMode::Low, Batching::InTurn)) < 1e-4);
}

#[test]
fn events_come_in_order_and_can_stop_the_run() {
    let prepared = prepare("sd15");
    let mut pipeline = open(&prepared, Runner::Rten, Unets::Dense);
    let mut request = small();
    request.prompts = vec!["the ".repeat(90)];
    let heard = Mutex::new(Vec::new());
    pipeline
        .run(
            &request,
            &Hears::new(|event| {
                heard.lock().unwrap().push(match event {
                    Event::Begun(stage) => format!("{stage:?}"),
                    Event::Call { call, calls, step, steps, .. } => format!("{call}/{calls} {step}/{steps}"),
                    Event::Warning(text) => text.chars().take(30).collect(),
                    other => panic!("{other:?}"),
                });
                false
            }),
        )
        .unwrap();
    let expected = [
        "Loading",
        "Text",
        "a prompt is longer than 77 tok",
        "Sampling",
        "0/4 0/3",
        "1/4 0/3",
        "2/4 1/3",
        "3/4 2/3",
        "Decoding",
    ];
    assert_eq!(heard.into_inner().unwrap(), expected);

    let calls = AtomicUsize::new(0);
    let second =
        Hears::new(|event| matches!(event, Event::Call { .. }) && calls.fetch_add(1, Ordering::Relaxed) == 1);
    let stopped = pipeline.run(&request, &second);
    assert!(matches!(stopped, Err(PipelineError::Stopped)));
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    // The pipeline can be used again.
    pipeline.run(&small(), &()).unwrap();
}

#[test]
fn broken_folders_are_errors_that_name_the_file() {
    let prepared = prepare("sd15");
    let fails = |runner: Runner| {
        let options = SessionOptions::default();
        Pipeline::open(&prepared.pipeline, runner.engine(), options, Unets::Dense)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let index = prepared.pipeline.join("model_index.json");
    fs::write(&index, r#"{"_class_name": "FluxPipeline"}"#).unwrap();
    assert!(fails(Runner::Rten).contains("`FluxPipeline` is not supported"));
    fs::write(&index, "{}").unwrap();
    assert!(fails(Runner::Rten).contains("model_index.json: it has no `_class_name`"));
    fs::write(&index, r#"{"_class_name": "StableDiffusionXLPipeline"}"#).unwrap();
    assert!(fails(Runner::Rten).contains("tokenizer_2"));
    fs::remove_file(&index).unwrap();
    assert!(fails(Runner::Rten).contains("there is no model_index.json in it"));
}

#[test]
fn a_model_that_is_no_unet_is_refused() {
    let prepared = prepare("sd15");
    let decoder = prepared.pipeline.join("vae_decoder/model.onnx");
    let mut pipeline = open(&prepared, Runner::Rten, Unets::Instead(decoder));
    let error = pipeline.run(&small(), &()).unwrap_err().to_string();
    assert!(error.contains("no input `sample`, so it is no UNet"), "{error}");
    let xl = prepare("sdxl");
    let mut pipeline = open(&prepared, Runner::Rten, Unets::Instead(xl.pipeline.join("unet/model.onnx")));
    let error = pipeline.run(&small(), &()).unwrap_err().to_string();
    assert!(
        error.contains("`text_embeds`") && error.contains("this kind of pipeline doesn't have"),
        "{error}"
    );
}

/// A copy of the decoder at `path` that returns NaN.
fn break_decoder(path: &Path) {
    let mut model = ModelProto::parse_from_bytes(&fs::read(path).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let bias = graph.initializer.iter_mut().find(|tensor| tensor.name.ends_with("conv_out.bias")).unwrap();
    bias.raw_data = f32::NAN.to_le_bytes().repeat(3);
    fs::write(path, model.write_to_bytes().unwrap()).unwrap();
}

#[test]
fn a_decoder_that_overflows_is_replaced_by_the_one_in_single_precision() {
    let prepared = prepare("sd15");
    let mut whole = open(&prepared, Runner::Rten, Unets::Dense);
    let expected = whole.run(&small(), &()).unwrap();
    let decoder = prepared.pipeline.join("vae_decoder/model.onnx");
    let single = prepared.pipeline.join("vae_decoder_fp32/model.onnx");
    let saved = fs::read(&decoder).unwrap();
    break_decoder(&decoder);
    let mut broken = open(&prepared, Runner::Rten, Unets::Dense);
    let error = broken.run(&small(), &()).unwrap_err().to_string();
    assert!(error.starts_with("the VAE gave values that are not finite"), "{error}");
    assert!(error.contains("vae_decoder_fp32/model.onnx"), "{error}");
    fs::create_dir(single.parent().unwrap()).unwrap();
    fs::write(&single, saved).unwrap();
    let warnings = AtomicUsize::new(0);
    let count = Hears::new(|event| {
        warnings.fetch_add(usize::from(matches!(event, Event::Warning(_))), Ordering::Relaxed);
        false
    });
    let output = broken.run(&small(), &count).unwrap();
    assert_eq!((output.images, warnings.into_inner()), (expected.images, 1));
}

/// In the last step these samplers go to what the network takes for the clean latents, so that the last preview, which the
/// VAE decodes here, is the image.
#[test]
fn previews_come_every_so_many_steps_and_end_in_the_image() {
    let prepared = prepare("sd15");
    let predict = |kind: &str| vec![("prediction_type", Value::from(kind))];
    let unclipped = vec![("set_alpha_to_one", true.into()), ("clip_sample", false.into())];
    for (scheduler, settings, runner, place) in [
        ("euler", predict("epsilon"), Runner::Rten, Place::Host),
        ("euler", predict("v_prediction"), Runner::OnnxRuntime, Place::Device),
        ("ddim", unclipped, Runner::OnnxRuntime, Place::Device),
        ("dpm++_2m", predict("sample"), Runner::Rten, Place::Host),
        ("heun", predict("v_prediction"), Runner::Rten, Place::Host),
    ] {
        let mut pipeline = open(&prepared, runner, Unets::Dense);
        let mut request = small();
        (request.steps, request.batch, request.preview) = (4, 2, NonZeroUsize::new(2));
        (request.seeds, request.place) = (vec![1, 2], place);
        request.set_scheduler(scheduler.parse().unwrap());
        request.scheduler_config.extend(settings.into_iter().map(|(key, value)| (key.to_string(), value)));
        let previews = Mutex::new(Vec::new());
        let keep = Hears::new(|event| {
            if let Event::Preview { step, index, pixels, .. } = event {
                previews.lock().unwrap().push((step, index, pixels.to_vec()));
            }
            false
        });
        let output = pipeline.run(&request, &keep).unwrap();
        let previews = previews.into_inner().unwrap();
        let told: Vec<_> = previews.iter().map(|(step, index, _)| (*step, *index)).collect();
        assert_eq!(told, [(1, 0), (1, 1), (3, 0), (3, 1)], "{scheduler}");
        let off = |preview: usize| {
            let (_, index, pixels) = &previews[preview];
            let image = &output.images[*index].pixels;
            assert_eq!(pixels.len(), image.len());
            pixels.iter().zip(image).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
        };
        assert!(off(2) <= 1 && off(3) <= 1, "{scheduler}: {} and {}", off(2), off(3));
        assert!(off(0) > 1 && off(1) > 1, "{scheduler}: the first preview is not the image yet");
    }
}
