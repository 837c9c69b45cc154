//! `crdiff run --refine`: the w that an objective likes best for this prompt, and ratios near the plan's.

use std::path::Path;

use serde_json::{Value, json};

use super::{Failure, Run, done, image_file, output};
use crate::{
    cli::{
        DONE,
        image_file::{Tile, sheet},
        progress::interruptible,
    },
    diffusion::{
        Pipeline,
        pipeline::{Folder, Request},
    },
    engine::SessionOptions,
    plan::{AmplifyWeight, Plan, Runtime},
    search::{
        compile::Compiler,
        objective::{open, open_graph},
        refine::{Drawing, Moved, Tried, best, check_moves, climb, sweep, weights},
        space::{self, OnnxSpec},
    },
};

/// Images in a row of the contact sheet.
const COLUMNS: usize = 4;

/// Reads `--refine-ratios`.
pub(super) fn step(text: &str) -> Result<f64, String> {
    let step = text.parse().ok().filter(|step: &f64| (0.000_001..1.0).contains(step));
    step.ok_or_else(|| "a step is above 0 and below 1, such as 0.05".to_string())
}

/// Draws the images of a sweep, and keeps the best one with a contact sheet of all.
pub(super) fn run(
    run: &Run<'_>,
    (count, objective): (usize, &Path),
    pipeline: &mut Pipeline,
    request: &Request,
) -> Result<u8, Failure> {
    let Run { args, settings, plan, reporter, .. } = *run;
    let AmplifyWeight::Constant(center) = request.amplify.weight.value else {
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
    let scratch = tempfile::tempdir().map_err(|e| Failure::Message(format!("no place for images: {e}")))?;
    let image = scratch.path().join("image.png");
    let weights = weights(center, count);
    let mut drawing = Drawing { pipeline, request, objective: &mut *objective, scratch: &image };
    let mut tried = run.drawn(sweep(&mut drawing, &weights, run))?;
    if let Some((step, plan)) = moving {
        // The dense network's image has no ratios.
        let pruned = tried.get(1..).unwrap_or_default();
        let from = best(pruned).and_then(|index| pruned.get(index)).ok_or_else(nothing)?;
        let mut compiler = Compiler::open(&Folder::open(&settings.pipeline)?.unet())?;
        compiler.masks = args.engine.masks();
        let mut compile = |plan: &Plan| compiler.compile(plan, interruptible());
        let moved = run.drawn(climb(&mut drawing, plan, from, step, &mut compile, run))?;
        tried.extend(moved);
    }
    reporter.finish();
    let Some((index, kept)) = best(&tried).and_then(|index| Some((index, tried.get(index)?))) else {
        return Err(nothing());
    };
    let plan = kept.moved.as_ref().map(|moved| &moved.plan).or(plan);
    let mut settings = settings.clone();
    settings.weight = Some(kept.weight);
    if let Some(moved) = &kept.moved {
        settings.set_plan(&moved.plan);
    }
    run.files.save_latents(&kept.output)?;
    let all = json!(tried.iter().map(told).collect::<Vec<_>>());
    for (path, i) in run.files.images.iter().zip(settings.drawn()) {
        let mut texts = settings.texts(i, run.made, plan, Some(&kept.output))?;
        texts.others.push(("refined", all.to_string()));
        let tiles: Vec<Tile<'_>> = tried
            .iter()
            .enumerate()
            .filter_map(|(at, tried)| {
                let image = tried.output.images.get(i)?;
                Some(Tile { label: label(tried), image, is_best: at == index })
            })
            .collect();
        let Some(image) = kept.output.images.get(i) else { continue };
        image_file::write(path, image, &texts)?;
        let sheet_path = output::sheet(path);
        image_file::write(&sheet_path, &sheet(&tiles, COLUMNS), &texts)?;
        let seed = settings.seed(i);
        reporter
            .tell(&json!({ "event": "image", "path": path, "sheet": sheet_path, "seed": seed, "index": i }));
        run.say_written(path)?;
        run.say_written(&sheet_path)?;
    }
    if !args.quiet && !args.json.is_asked() {
        out!("{}", table(&tried, index));
    }
    let mut event = told(kept);
    event["event"] = "refined".into();
    event["tried"] = all;
    reporter.tell(&event);
    tried.iter().for_each(|tried| reporter.tell(&done(&tried.output)));
    Ok(DONE)
}

/// Returns the lines below an image of the contact sheet.
fn label(tried: &Tried) -> Vec<String> {
    let name = if tried.weight == 0.0 { "dense".to_string() } else { format!("w {:.3}", tried.weight) };
    let moved = tried.moved.as_ref().map(|Moved { of, to, .. }| format!("{of} {}", short(*to)));
    let mut label = vec![name, format!("{:.4}", tried.score)];
    label.extend(moved);
    label
}

/// Returns a ratio without the digits that nobody reads.
fn short(ratio: f64) -> f64 {
    (ratio * 1e4).round() / 1e4
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
        let moved = moved
            .map(|Moved { of, from, to, .. }| format!("  {of} {} -> {}", short(*from), short(*to)))
            .unwrap_or_default();
        let mark = if index == best { "  kept" } else { "" };
        let name = if tried.weight == 0.0 { "dense".to_string() } else { format!("{:.3}", tried.weight) };
        format!("{name:>8}  {:>9.4}{moved}{mark}\n", tried.score)
    };
    let rows: String = tried.iter().enumerate().map(row).collect();
    format!("{:>8}  {:>9}\n{rows}", "w", "score")
}
