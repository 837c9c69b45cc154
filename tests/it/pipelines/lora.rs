//! A LoRA for UNet and text encoder, against diffusers with `fuse_lora`.

use std::{fs, path::Path, sync::Mutex};

use crdiff::{
    diffusion::{
        Pipeline,
        pipeline::{Folder, Request, Unets},
    },
    engine::SessionOptions,
    observer::Event,
    passes::MaskForm,
    plan,
    plan_cache::{Place, PlanCache},
};

use crate::{
    common::observer::Hears,
    pipelines::support::{Golden, Runner, pipelines, prepare},
};

#[test]
fn latents_are_those_of_diffusers() {
    let fixtures = pipelines().parent().unwrap().join("lora");
    let (golden, dense) = (Golden::in_folder(&fixtures), Golden::open("sd15"));
    let prepared = prepare("sd15");
    for (file, name) in [("pipeline", "style"), ("kohya-text", "text")] {
        let (file, name) = (format!("{file}.safetensors"), format!("{name}.safetensors"));
        fs::copy(fixtures.join(file), prepared.pipeline.join(name)).unwrap();
    }
    let latents = |rules: &str| -> Vec<f32> {
        let path = prepared.pipeline.join("plan.yaml");
        fs::write(&path, format!("version: 1\n{rules}")).unwrap();
        let plan = plan::load(&path).unwrap();
        draw(&prepared.pipeline, &plan, &dense)
    };
    let apart = |latents: &[f32], name: &str| {
        let expected = golden.tensor(name).to_f32();
        let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
        latents.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs() / largest))
    };
    let merged = latents("always: [{ lora: { file: style.safetensors, scale: 0.8 } }]");
    let both = "pipeline/latents";
    assert!(apart(&merged, both) <= 1e-5, "{}", apart(&merged, both));
    // Of this file the UNet gets nothing.
    let text = latents("always: [{ lora: { file: text.safetensors, scale: 0.8 } }]");
    let (alone, dense) = ("text_encoder/latents", latents(""));
    assert!(apart(&text, alone) <= 1e-5 && apart(&dense, alone) > 1e-2, "{}", apart(&text, alone));
    // Under `rules`, with w = 1, the UNet alone has it.
    let unet =
        latents("rules: [{ lora: { file: style.safetensors, scale: 0.8 } }]\namplify: { weight: 1.0 }");
    assert!(apart(&unet, both) > 1e-3, "{}", apart(&unet, both));
}

/// Draws the goldens' image with DDIM, compiled as `crdiff run` compiles.
fn draw(pipeline: &Path, plan: &plan::Plan, golden: &Golden) -> Vec<f32> {
    let folder = Folder::open(pipeline).unwrap();
    let cache = PlanCache { place: Place::Beside, masks: MaskForm::Stored, observer: &() };
    let unets = cache.networks(&folder.unet(), plan).unwrap().unets;
    let texts = cache.text_encoders(&folder.text_encoders(), plan).unwrap();
    let engine = Runner::OnnxRuntime.engine();
    let mut drawing = Pipeline::open(pipeline, engine, SessionOptions::default(), unets).unwrap();
    texts.into_iter().for_each(|(index, path)| drawing.set_text_encoder(index, path));
    let defaults = &golden.index["defaults"];
    let mut request = Request::new(defaults["prompt"].as_str().unwrap(), 48, 64);
    request.negative_prompts = defaults["negative"].as_str().map(str::to_string).into_iter().collect();
    request.steps = defaults["steps"].as_u64().unwrap() as usize;
    request.guidance = defaults["guidance"].as_f64().unwrap();
    request.seeds = vec![defaults["seeds"][0].as_u64().unwrap()];
    request.scheduler = Some("DDIMScheduler".parse().unwrap());
    request.scheduler_config.push(("clip_sample".into(), false.into()));
    request.amplify = plan.amplify.clone();
    drawing.run(&request, &()).unwrap().latents.to_f32()
}

/// A LoRA for text encoders alone is merged there, and the UNet is the one that other plans have.
#[test]
fn text_encoders_alone() {
    let prepared = prepare("sd15");
    let text = pipelines().parent().unwrap().join("lora/kohya-text.safetensors");
    fs::copy(text, prepared.pipeline.join("text.safetensors")).unwrap();
    let folder = Folder::open(&prepared.pipeline).unwrap();
    let cache = PlanCache { place: Place::Beside, masks: MaskForm::Stored, observer: &() };
    let compiled = |rules: &str| {
        let path = prepared.pipeline.join("plan.yaml");
        fs::write(&path, format!("version: 1\n{rules}")).unwrap();
        let plan = plan::load(&path).unwrap();
        let texts = cache.text_encoders(&folder.text_encoders(), &plan).unwrap();
        (cache.networks(&folder.unet(), &plan).unwrap().unets, texts.len())
    };
    let lora = "always: [{ lora: { file: text.safetensors } }]\n";
    assert_eq!(compiled(lora), (Unets::Dense, 1));
    let (masked, _) = compiled("crdiff: { mid: 0.2 }");
    assert_eq!(compiled(&format!("{lora}crdiff: {{ mid: 0.2 }}")), (masked, 1));
}

/// Layers that a file has for other networks are a note of each rule that has it, and of each graph of a pair.
#[test]
fn a_note_is_told_once() {
    let prepared = prepare("sd15");
    let style = pipelines().parent().unwrap().join("lora/pipeline.safetensors");
    fs::copy(style, prepared.pipeline.join("style.safetensors")).unwrap();
    let path = prepared.pipeline.join("plan.yaml");
    let rule = |scale| format!("[{{ lora: {{ file: style.safetensors, scale: {scale} }} }}]");
    fs::write(&path, format!("version: 1\nalways: {}\nrules: {}", rule(0.5), rule(0.25))).unwrap();
    let told = Mutex::new(Vec::new());
    let observer = Hears::new(|event| {
        if let Event::Warning(note) = event {
            told.lock().unwrap().push(note.to_string());
        }
        false
    });
    let cache = PlanCache { place: Place::Beside, masks: MaskForm::Stored, observer: &observer };
    let networks = cache.networks(&prepared.pipeline.join("unet/model.onnx"), &plan::load(&path).unwrap());
    assert!(matches!(networks.unwrap().unets, Unets::Pair { .. }));
    assert_eq!(
        told.into_inner().unwrap(),
        ["`style.safetensors`: 9 layers of the first text encoder are left out"]
    );
}
