//! `crdiff run --refine`: the w that an objective likes best for this prompt, and ratios near the plan's.

use std::path::Path;

use serde_json::{Value, json};

use super::{Args, Failure, Reporter, Settings, done, paths, picture, save_latents, texts};
use crate::{
    cli::{DONE, progress::interruptible},
    diffusion::{
        Pipeline,
        pipeline::{Folder, Request},
        vae::Image,
    },
    engine::SessionOptions,
    plan::{Plan, Runtime, Weight},
    search::{
        compile::Compiler,
        objective::{open, open_graph},
        refine::{Drawing, Moved, Tried, best, check_moves, climb, contact_sheet, sweep, weights},
        space::{self, OnnxSpec},
    },
};

/// Pictures in a row of the contact sheet.
const COLUMNS: usize = 4;

/// Reads `--refine-ratios`.
pub(super) fn step(text: &str) -> Result<f64, String> {
    let step = text.parse().ok().filter(|step: &f64| (0.000_001..1.0).contains(step));
    step.ok_or_else(|| "a step is above 0 and below 1, such as 0.05".to_string())
}

/// Draws the pictures of a sweep, and keeps the best one with a contact sheet of all.
pub(super) fn run(
    args: &Args,
    (count, objective): (usize, &Path),
    settings: &Settings,
    plan: Option<&Plan>,
    pipeline: &mut Pipeline,
    (request, reporter): (&Request, &Reporter),
    versions: &Value,
) -> Result<u8, Failure> {
    let Weight::Constant(center) = request.amplify.weight.value else {
        let what =
            "--refine sweeps one w for all steps, but the plan changes it from step to step; give --weight";
        return Err(Failure::Message(what.to_string()));
    };
    let moving = args.refine_ratios.zip(plan);
    if let Some((step, plan)) = moving {
        check_moves(plan, step)?;
    }
    let (spec, folder) = space::load_objective(objective)?;
    let graph = |spec: &OnnxSpec| {
        let opened = args.engine.open(&Runtime::default());
        let (chosen, _) = opened.map_err(|e| crate::search::SearchError::Values(e.to_string()))?;
        open_graph(spec, &folder, &*chosen.engine, &SessionOptions::default())
    };
    let mut objective = open(&spec, &folder, &graph)?;
    let scratch = tempfile::tempdir().map_err(|e| Failure::Message(format!("no place for pictures: {e}")))?;
    let picture = scratch.path().join("picture.png");
    let weights = weights(center, count);
    let mut drawing = Drawing { pipeline, request, objective: &mut *objective, scratch: &picture };
    let mut tried = sweep(&mut drawing, &weights, &mut |event| reporter.event(&event))?;
    if let Some((step, plan)) = moving {
        // The dense network's picture has no ratios.
        let pruned = tried.get(1..).unwrap_or_default();
        let from = best(pruned).and_then(|index| pruned.get(index)).ok_or_else(nothing)?;
        let mut compiler = Compiler::open(&Folder::open(&settings.pipeline)?.unet())?;
        compiler.masks = args.engine.masks();
        let mut compile = |plan: &Plan| compiler.compile(plan, interruptible());
        let listener = &mut |event| reporter.event(&event);
        let moved = climb(&mut drawing, plan, from, step, &mut compile, listener)?;
        tried.extend(moved);
    }
    reporter.bar.finish_and_clear();
    let Some((index, kept)) = best(&tried).and_then(|index| Some((index, tried.get(index)?))) else {
        return Err(nothing());
    };
    let plan = kept.moved.as_ref().map(|moved| &moved.plan).or(plan);
    let mut settings = settings.clone();
    settings.weight = Some(kept.weight);
    if let Some(moved) = &kept.moved {
        settings.set_plan(&moved.plan);
    }
    if let Some(path) = &args.save_latents {
        save_latents(path, &kept.output)?;
    }
    let all = json!(tried.iter().map(told).collect::<Vec<_>>());
    let settings_json = settings.to_json(versions)?;
    for (i, path) in paths(&args.output, request.batch).iter().enumerate() {
        let seed =
            request.seeds.get(if request.seeds.len() == 1 { 0 } else { i }).copied().unwrap_or_default();
        let mut texts = texts(&settings, plan, std::slice::from_ref(&kept.output), seed);
        texts.push(("refined", all.to_string()));
        let images: Vec<&Image> = tried.iter().filter_map(|tried| tried.output.images.get(i)).collect();
        let Some(image) = images.get(index) else { continue };
        picture::write(path, image, &settings_json, &texts)?;
        let sheet = path.with_extension("sheet.png");
        picture::write(&sheet, &contact_sheet(&images, COLUMNS, Some(index)), &settings_json, &texts)?;
        reporter.tell(&json!({ "event": "picture", "path": path, "sheet": sheet, "seed": seed, "index": i }));
        if !args.quiet && !args.json {
            out!("{}\n{}\n", path.display(), sheet.display());
        }
    }
    if !args.quiet && !args.json {
        out!("{}", table(&tried, index));
    }
    let mut event = told(kept);
    event["event"] = "refined".into();
    event["tried"] = all;
    reporter.tell(&event);
    tried.iter().for_each(|tried| reporter.tell(&done(&tried.output)));
    Ok(DONE)
}

fn nothing() -> Failure {
    Failure::Message("nothing was drawn".to_string())
}

fn told(tried: &Tried) -> Value {
    let mut told = json!({ "w": tried.weight, "score": tried.score });
    if let Some(Moved { of, from, to, .. }) = &tried.moved {
        told["moved"] = json!({ "ratio": of, "from": from, "to": to });
    }
    told
}

fn table(tried: &[Tried], best: usize) -> String {
    let row = |(index, tried): (usize, &Tried)| {
        let moved = tried.moved.as_ref();
        let moved =
            moved.map(|Moved { of, from, to, .. }| format!("  {of} {from} -> {to}")).unwrap_or_default();
        let mark = if index == best { "  kept" } else { "" };
        let name = if tried.weight == 0.0 { "dense".to_string() } else { format!("{:.3}", tried.weight) };
        format!("{name:>8}  {:>9.4}{moved}{mark}\n", tried.score)
    };
    let rows: String = tried.iter().enumerate().map(row).collect();
    format!("{:>8}  {:>9}\n{rows}", "w", "score")
}
