//! `objective:` and `metrics:`.

use std::time::Duration;

use miette::SourceSpan;

use super::text;
use crate::{
    plan::{
        Problem,
        read::{Fields, choice, fields, finite, list, number},
        yaml::{Node, Value},
    },
    search::space::{
        ChannelOrder, CommandSpec, Crop, ImageSpec, ObjectiveSpec, OnnxSpec, Over, Part, Resample, Resize,
        TextSpec,
    },
};

const KINDS: [&str; 5] = ["command", "serve", "onnx", "mean", "min"];
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// Reads `objective:` with its `over`.
pub(super) fn top(node: &Node, problems: &mut Vec<Problem>) -> Option<(ObjectiveSpec, Over)> {
    let keys: Vec<&str> = KINDS.iter().copied().chain(["timeout", "over"]).collect();
    let section = fields(node, "`objective`", &keys, problems)?;
    let words = [("mean", Over::Mean), ("min", Over::Min)];
    let over = section.get("over").map_or(Some(Over::Mean), |node| choice(node, "`over`", &words, problems));
    Some((objective(&section, node.span, problems)?, over?))
}

/// Reads one of `metrics:`.
pub(super) fn metric(node: &Node, problems: &mut Vec<Problem>) -> Option<ObjectiveSpec> {
    let keys: Vec<&str> = KINDS.iter().copied().chain(["timeout"]).collect();
    let section = fields(node, "a metric", &keys, problems)?;
    objective(&section, node.span, problems)
}

fn objective(section: &Fields<'_>, span: SourceSpan, problems: &mut Vec<Problem>) -> Option<ObjectiveSpec> {
    let given: Vec<_> = KINDS.iter().filter_map(|kind| Some((*kind, section.entry(kind)?))).collect();
    let (kind, node) = match given.as_slice() {
        [(kind, (_, node))] => (*kind, *node),
        [(one, (first, _)), (other, (second, _)), ..] => {
            let message = format!("an objective is one of these, not `{one}` and `{other}`");
            let help = Some("several objectives go into the list of one `mean` or `min`");
            problems.push(Problem::conflict(message, help, first.span, second.span));
            return None;
        }
        [] => {
            section.report_missing(&KINDS, None, problems);
            return None;
        }
    };
    let timeout = match section.entry("timeout") {
        None => DEFAULT_TIMEOUT,
        Some((_, node)) if ["command", "serve"].contains(&kind) => {
            let allowed = |seconds: f64| (0.001..=1e9).contains(&seconds);
            let what = "a number of seconds above 0";
            Duration::from_secs_f64(number(node, "`timeout`", what, allowed, problems)?.value)
        }
        Some((key, _)) => {
            let message = format!("`timeout` is for `command` and `serve`, not for `{kind}`");
            problems.push(Problem::conflict(message, None, key.span, span));
            return None;
        }
    };
    match kind {
        "command" => Some(ObjectiveSpec::Command(CommandSpec { args: args(node, problems)?, timeout })),
        "serve" => Some(ObjectiveSpec::Serve(CommandSpec { args: args(node, problems)?, timeout })),
        "onnx" => onnx(node, problems).map(|onnx| ObjectiveSpec::Onnx(Box::new(onnx))),
        "mean" => parts(node, "`mean`", problems).map(ObjectiveSpec::Mean),
        _ => parts(node, "`min`", problems).map(ObjectiveSpec::Min),
    }
}

fn args(node: &Node, problems: &mut Vec<Problem>) -> Option<Vec<String>> {
    let items = list(node, "the command", problems)?;
    if items.is_empty() {
        let (expected, found) = ("a program and its arguments".to_string(), "an empty list".to_string());
        problems.push(Problem::OutOfRange { what: "the command", expected, found, at: node.span });
        return None;
    }
    items.iter().map(|item| text(item, "an argument", problems)).collect()
}

fn parts(node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<Vec<Part>> {
    let items = list(node, what, problems)?;
    if items.is_empty() {
        let (expected, found) = ("a list of objectives".to_string(), "an empty one".to_string());
        problems.push(Problem::OutOfRange { what, expected, found, at: node.span });
        return None;
    }
    let keys: Vec<&str> = KINDS.iter().copied().chain(["timeout", "weight", "name"]).collect();
    let mut parts: Vec<Part> = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let section = fields(item, "an objective", &keys, problems)?;
        let allowed = |weight: f64| weight.is_finite() && weight > 0.0;
        let weight = match section.get("weight") {
            Some(node) => number(node, "`weight`", "a number above 0", allowed, problems)?.value,
            None => 1.0,
        };
        let name = match section.get("name") {
            Some(node) => text(node, "`name`", problems)?,
            None => (index + 1).to_string(),
        };
        if parts.iter().any(|part| part.name == name) {
            let expected = "a name that no other objective has".to_string();
            problems.push(Problem::OutOfRange { what: "`name`", expected, found: name, at: item.span });
            return None;
        }
        parts.push(Part { name, weight, objective: objective(&section, item.span, problems)? });
    }
    Some(parts)
}

const ONNX_KEYS: [&str; 6] = ["model", "image", "text", "output", "scale", "offset"];

fn onnx(node: &Node, problems: &mut Vec<Problem>) -> Option<OnnxSpec> {
    let section = fields(node, "`onnx`", &ONNX_KEYS, problems)?;
    let model = section.require("model", None, problems).and_then(|node| text(node, "`model`", problems));
    let image = match section.get("image") {
        Some(node) => image(node, problems),
        None => Some(ImageSpec::default()),
    };
    let text_spec = match section.get("text") {
        Some(node) => text_inputs(node, problems).map(Some),
        None => Some(None),
    };
    let output = optional(&section, "output", |node| text(node, "`output`", problems))?;
    let scale = optional(&section, "scale", |node| finite(node, "`scale`", problems))?;
    let offset = optional(&section, "offset", |node| finite(node, "`offset`", problems))?;
    Some(OnnxSpec {
        model: model?.into(),
        image: image?,
        text: text_spec?,
        output,
        scale: scale.map_or(1.0, |number| number.value),
        offset: offset.map_or(0.0, |number| number.value),
    })
}

const IMAGE_KEYS: [&str; 7] = ["input", "resize", "resample", "crop", "mean", "std", "layout"];

fn image(node: &Node, problems: &mut Vec<Problem>) -> Option<ImageSpec> {
    let section = fields(node, "`image`", &IMAGE_KEYS, problems)?;
    let input = optional(&section, "input", |node| text(node, "`input`", problems))?;
    let mut spec = ImageSpec { input, ..ImageSpec::default() };
    if let Some(node) = section.get("resize") {
        spec.resize = match &node.value {
            Value::List(_) => {
                let (height, width) = height_and_width(node, "`resize`", problems)?;
                Resize::Exact(height, width)
            }
            _ => Resize::Shorter(pixels(node, "`resize`", problems)?),
        };
    }
    let filters = [
        ("bicubic", Resample::Bicubic),
        ("bilinear", Resample::Bilinear),
        ("lanczos", Resample::Lanczos),
        ("nearest", Resample::Nearest),
    ];
    if let Some(node) = section.get("resample") {
        spec.resample = choice(node, "`resample`", &filters, problems)?;
    }
    if let Some(node) = section.get("crop") {
        let (height, width) = match &node.value {
            Value::List(_) => height_and_width(node, "`crop`", problems)?,
            _ => {
                let side = pixels(node, "`crop`", problems)?;
                (side, side)
            }
        };
        spec.crop = Crop::Center(height, width);
    }
    if let Some(node) = section.get("mean") {
        spec.mean = channels(node, "`mean`", f64::is_finite, problems)?;
    }
    if let Some(node) = section.get("std") {
        spec.std = channels(node, "`std`", |std| std.is_finite() && std > 0.0, problems)?;
    }
    if let Some(node) = section.get("layout") {
        let layouts = [("nchw", ChannelOrder::Nchw), ("nhwc", ChannelOrder::Nhwc)];
        spec.layout = choice(node, "`layout`", &layouts, problems)?;
    }
    Some(spec)
}

fn text_inputs(node: &Node, problems: &mut Vec<Problem>) -> Option<TextSpec> {
    let section = fields(node, "`text`", &["tokenizer", "input", "mask", "length"], problems)?;
    let tokenizer = section.require("tokenizer", None, problems);
    let tokenizer = tokenizer.and_then(|node| text(node, "`tokenizer`", problems));
    let input = optional(&section, "input", |node| text(node, "`input`", problems))?;
    let mask = optional(&section, "mask", |node| text(node, "`mask`", problems))?;
    let length = optional(&section, "length", |node| pixels(node, "`length`", problems))?;
    let input = input.unwrap_or_else(|| "input_ids".to_string());
    Some(TextSpec { tokenizer: tokenizer?.into(), input, mask, length })
}

/// Returns the value that `read` makes of a key's; the outer `None` if it is there and wrong.
fn optional<T>(section: &Fields<'_>, key: &str, read: impl FnOnce(&Node) -> Option<T>) -> Option<Option<T>> {
    match section.get(key) {
        Some(node) => read(node).map(Some),
        None => Some(None),
    }
}

fn channels(
    node: &Node,
    what: &'static str,
    allowed: fn(f64) -> bool,
    problems: &mut Vec<Problem>,
) -> Option<[f32; 3]> {
    let items = list(node, what, problems)?;
    let [red, green, blue] = items else {
        let found = format!("a list of {}", items.len());
        let expected = "a list of three numbers, for red, green and blue".to_string();
        problems.push(Problem::OutOfRange { what, expected, found, at: node.span });
        return None;
    };
    let mut one = |node| number(node, what, "a finite number; a `std` is above 0", allowed, problems);
    Some([one(red)?.value as f32, one(green)?.value as f32, one(blue)?.value as f32])
}

fn height_and_width(node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<(usize, usize)> {
    let items = list(node, what, problems)?;
    let [height, width] = items else {
        let (expected, found) = ("height and width".to_string(), format!("a list of {}", items.len()));
        problems.push(Problem::OutOfRange { what, expected, found, at: node.span });
        return None;
    };
    Some((pixels(height, what, problems)?, pixels(width, what, problems)?))
}

fn pixels(node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<usize> {
    let allowed = |n: f64| (1.0..=65536.0).contains(&n) && n.fract() == 0.0;
    number(node, what, "a whole number from 1 to 65536", allowed, problems).map(|n| n.value as usize)
}
