//! How images are scored: `objective:` and `metrics:`.

use std::{path::PathBuf, time::Duration};

use miette::SourceSpan;
use serde::Serialize;

use super::syntax::{Form, Key, Range, Reader, full, keys, section, text};
use crate::plan::{
    Problem,
    yaml::{Node, Value},
};

/// How an image gets its number; higher is better.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectiveSpec {
    /// A program that is run for each image.
    Command(CommandSpec),
    /// A program that is started once and reads a line for each image.
    Serve(CommandSpec),
    /// A graph.
    Onnx(Box<OnnxSpec>),
    /// The cosine of image and prompt by a CLIP: its export's folder, or the graph.
    Clip(PathBuf),
    /// The weighted mean of several.
    Mean(Vec<Part>),
    /// The least of several.
    Min(Vec<Part>),
}

/// How the scores of a trial's images become the trial's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// Their mean.
    #[default]
    Mean,
    /// The least.
    Min,
}

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CommandSpec {
    /// The program, then its arguments; `{image}` and `{prompt}` in them stand for the image's path and its prompt.
    pub args: Vec<String>,
    /// How long an image may take.
    pub timeout: Duration,
}

/// One of several objectives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// The name in the journal.
    pub name: String,
    /// Its share in a mean; a factor before the least is taken.
    pub weight: f64,
    /// How it scores.
    pub objective: ObjectiveSpec,
}

/// A graph that scores an image, or an image and its prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OnnxSpec {
    /// The graph.
    pub model: PathBuf,
    /// How an image becomes its input.
    pub image: ImageSpec,
    /// How the prompt becomes its inputs.
    pub text: Option<TextSpec>,
    /// The output that has the score; the only one if it is `None`.
    pub output: Option<String>,
    /// Two outputs whose cosine is the score, instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<[String; 2]>,
    /// The score is the output times this,
    pub scale: f64,
    /// plus this.
    pub offset: f64,
}

/// How an image becomes a tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageSpec {
    /// The graph's input; the only one with four dimensions if it is `None`.
    pub input: Option<String>,
    /// Its size.
    pub resize: Resize,
    /// How it is resized.
    pub resample: Resample,
    /// The part that is cut out of it then.
    pub crop: Crop,
    /// Taken from each channel, of values from 0 to 1.
    pub mean: [f32; 3],
    /// The divisor of each channel then.
    pub std: [f32; 3],
    /// Where the channels are.
    pub layout: ChannelOrder,
}

impl Default for ImageSpec {
    fn default() -> Self {
        Self {
            input: None,
            resize: Resize::None,
            resample: Resample::Bicubic,
            crop: Crop::None,
            mean: [0.0; 3],
            std: [1.0; 3],
            layout: ChannelOrder::Nchw,
        }
    }
}

/// The size that an image gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// It keeps its own.
    #[default]
    None,
    /// Its shorter side gets this long, and the other in proportion.
    Shorter(usize),
    /// This height and width.
    Exact(usize, usize),
}

/// How an image is resized: Pillow's filters of these names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resample {
    /// Cubic convolution, a = -0.5.
    #[default]
    Bicubic,
    /// Linear.
    Bilinear,
    /// Lanczos, three lobes.
    Lanczos,
    /// The nearest pixel.
    Nearest,
}

/// The part that is cut out of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// Nothing.
    #[default]
    None,
    /// This height and width in the middle.
    Center(usize, usize),
}

/// Where the channels of an image are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelOrder {
    /// Before the pixels.
    #[default]
    Nchw,
    /// After them.
    Nhwc,
}

/// How a prompt becomes token ids.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextSpec {
    /// The folder with the tokenizer's files.
    pub tokenizer: PathBuf,
    /// The input for the ids.
    pub input: String,
    /// The input for the attention mask, if there is one.
    pub mask: Option<String>,
    /// How many tokens; the tokenizer's own number if it is `None`.
    pub length: Option<usize>,
    /// Whether fewer are fed where the prompt has fewer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unpadded: bool,
}

const SECONDS: Range = Range::of("a number of seconds above 0", 0.001, 1e9);
const DEFAULT_TIMEOUT: f64 = 120.0;
const KINDS: [&str; 6] = ["command", "serve", "onnx", "clip", "mean", "min"];
const COMMAND: Form = Form::List(&Form::Text, "a program and its arguments");

static ANY: [Key; 7] = keys! {
    command: COMMAND,
        "A program that is run for each image and prints a number; `{image}` and `{prompt}` stand for the image's \
         path and its prompt.";
    serve: COMMAND,
        "A program that is started once; it reads {\"image\": ..., \"prompt\": ...} a line and answers each with a \
         number a line.";
    onnx: Mapping(&ONNX), "A graph that scores an image, or an image and its prompt.";
    clip: Text,
        "How well an image matches its prompt, and nothing else, by a CLIP exported to ONNX: the folder of the export, or \
         the graph in it.";
    mean: List(&Mapping(&PART), "a list of objectives"), "The weighted mean of several.";
    min: List(&Mapping(&PART), "a list of objectives"), "The least of several.";
    timeout: Number(SECONDS), "Seconds that an image may take, for `command` and `serve` [default: 120].";
};

section! {
    /// How images are scored, by one of `command`, `serve`, `onnx`, `clip`, `mean` and `min`.
    pub(super) OBJECTIVE = "Objective", "an objective", with ANY;
    over: Word(&["mean", "min"]), "The mean of the images' scores, or the least [default: mean].";
}

section! {
    /// A number beside the objective, by one of `command`, `serve`, `onnx`, `clip`, `mean` and `min`.
    pub(super) METRIC = "Metric", "a metric", with ANY;
}

section! {
    /// One of several objectives.
    PART = "Part", "an objective", with ANY;
    weight: Number(Range::ABOVE_0), "Its share in a mean; a factor before the least is taken [default: 1].";
    name: Text, "Its name in the journal [default: its number].";
}

section! {
    /// A graph that scores images.
    ONNX = "Onnx", "`onnx`";
    model or "": Text, "The graph (.onnx).";
    image: Mapping(&IMAGE), "How an image becomes its input.";
    text: Mapping(&TEXT), "How the prompt becomes its inputs.";
    output: Text, "The output that has the score [default: the only one].";
    cosine: Exactly(2, &Text), "Two outputs whose cosine is the score, instead of `output`.";
    scale: Number(Range::FINITE), "The score is the output times this [default: 1],";
    offset: Number(Range::FINITE), "plus this [default: 0].";
}

const SIDE: Form = Form::Number(Range::PIXELS);
const SIDES: Form = Form::OneOf(&[SIDE, Form::Exactly(2, &SIDE)]);

section! {
    /// How an image becomes a tensor.
    IMAGE = "Image", "`image`";
    input: Text, "The graph's input [default: the only one with four dimensions].";
    resize: SIDES, "A number for the shorter side, or height and width [default: as it is].";
    resample: Word(&["bicubic", "bilinear", "lanczos", "nearest"]), "Pillow's filter [default: bicubic].";
    crop: SIDES, "The height and width that are cut out of the middle [default: all].";
    mean: Exactly(3, &Number(Range::FINITE)), "Taken from each channel, of values from 0 to 1 [default: 0].";
    std: Exactly(3, &Number(Range::ABOVE_0)), "The divisor of each channel then [default: 1].";
    layout: Word(&["nchw", "nhwc"]), "Where the channels are [default: nchw].";
}

section! {
    /// How a prompt becomes token ids.
    TEXT = "Text", "`text`";
    tokenizer or "": Text, "The folder with the tokenizer's files: tokenizer.json, or vocab.json and merges.txt of CLIP.";
    input: Text, "The input for the ids [default: input_ids].";
    mask: Text, "The input for the attention mask, if there is one.";
    length: Number(Range::PIXELS), "How many tokens [default: the tokenizer's own].";
}

/// Reads `objective:` with its `over`.
pub(super) fn top(node: &Node, problems: &mut Vec<Problem>) -> Option<(ObjectiveSpec, Over)> {
    let reader = Reader::new(&OBJECTIVE, node, problems)?;
    let over = reader.word("over", &[Over::Mean, Over::Min], problems).unwrap_or_default();
    Some((objective(&reader, node.span, problems)?, over))
}

/// Reads one of `metrics:`.
pub(super) fn metric(node: &Node, problems: &mut Vec<Problem>) -> Option<ObjectiveSpec> {
    objective(&Reader::new(&METRIC, node, problems)?, node.span, problems)
}

fn objective(reader: &Reader<'_>, span: SourceSpan, problems: &mut Vec<Problem>) -> Option<ObjectiveSpec> {
    let helps = [Some("several objectives go into the list of one `mean` or `min`"), None];
    let (kind, ..) = reader.kind(&KINDS, helps, problems)?;
    let is_program = ["command", "serve"].contains(&kind);
    if let Some((key, _)) = reader.fields.entry("timeout").filter(|_| !is_program) {
        let message = format!("`timeout` is for `command` and `serve`, not for `{kind}`");
        problems.push(Problem::conflict(message, None, key.span, span));
    }
    if kind == "onnx" {
        return onnx(&reader.section("onnx", problems)?, problems)
            .map(|spec| ObjectiveSpec::Onnx(Box::new(spec)));
    }
    if kind == "clip" {
        return reader.text("clip", problems).map(|path| ObjectiveSpec::Clip(path.into()));
    }
    let items = reader.list(kind, problems)?;
    if is_program {
        let args = items.iter().map(|item| text(item, "an argument", problems)).collect::<Option<_>>()?;
        let timeout = reader.number("timeout", problems).unwrap_or(DEFAULT_TIMEOUT);
        let spec = CommandSpec { args, timeout: Duration::from_secs_f64(timeout) };
        return Some(if kind == "command" {
            ObjectiveSpec::Command(spec)
        } else {
            ObjectiveSpec::Serve(spec)
        });
    }
    let mut parts: Vec<Part> = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let reader = Reader::new(&PART, item, problems)?;
        let weight = reader.number("weight", problems).unwrap_or(1.0);
        let name = reader.text("name", problems).unwrap_or_else(|| (index + 1).to_string());
        if parts.iter().any(|part| part.name == name) {
            let expected = "a name that no other objective has".to_string();
            problems.push(Problem::OutOfRange { what: "`name`", expected, found: name, at: item.span });
            return None;
        }
        parts.push(Part { name, weight, objective: objective(&reader, item.span, problems)? });
    }
    Some(if kind == "mean" { ObjectiveSpec::Mean(parts) } else { ObjectiveSpec::Min(parts) })
}

fn onnx(reader: &Reader<'_>, problems: &mut Vec<Problem>) -> Option<OnnxSpec> {
    let image = reader.section("image", problems).map(|reader| image(&reader, problems)).unwrap_or_default();
    let text = reader.section("text", problems).and_then(|reader| {
        Some(TextSpec {
            tokenizer: reader.text("tokenizer", problems)?.into(),
            input: reader.text("input", problems).unwrap_or_else(|| "input_ids".to_string()),
            mask: reader.text("mask", problems),
            length: reader.count("length", problems),
            unpadded: false,
        })
    });
    Some(OnnxSpec {
        model: reader.text("model", problems)?.into(),
        image,
        text,
        output: reader.text("output", problems),
        cosine: cosine(reader, problems),
        scale: reader.number("scale", problems).unwrap_or(1.0),
        offset: reader.number("offset", problems).unwrap_or(0.0),
    })
}

/// Reads `cosine`, beside which there is no `output`.
fn cosine(reader: &Reader<'_>, problems: &mut Vec<Problem>) -> Option<[String; 2]> {
    let (key, node) = reader.fields.entry("cosine")?;
    if let Some((other, _)) = reader.fields.entry("output") {
        let message = "the score is `output` or `cosine`, not both".to_string();
        problems.push(Problem::conflict(message, None, key.span, other.span));
        return None;
    }
    let items: &[Node; 2] = of_length(node, "`cosine`", "two outputs", problems)?;
    let [first, second] = items;
    Some([text(first, "an output", problems)?, text(second, "an output", problems)?])
}

fn image(reader: &Reader<'_>, problems: &mut Vec<Problem>) -> ImageSpec {
    let default = ImageSpec::default();
    let filters = [Resample::Bicubic, Resample::Bilinear, Resample::Lanczos, Resample::Nearest];
    let mut channels = |name, what, of: Range| {
        let words = "a list of three numbers, for red, green and blue";
        let numbers = exactly::<3>(reader.get(name)?, what, words, of, problems)?;
        Some(numbers.map(|number| number as f32))
    };
    let mean = channels("mean", "`mean`", Range::FINITE).unwrap_or(default.mean);
    let std = channels("std", "`std`", Range::ABOVE_0).unwrap_or(default.std);
    // Height and width, or one number.
    let mut sides = |name, what| {
        let node = reader.get(name)?;
        match &node.value {
            Value::List(_) => {
                let [height, width] = exactly(node, what, "height and width", Range::PIXELS, problems)?;
                Some((height as usize, Some(width as usize)))
            }
            _ => Some((Range::PIXELS.read(node, what, problems)? as usize, None)),
        }
    };
    let resize = match sides("resize", "`resize`") {
        None => default.resize,
        Some((side, None)) => Resize::Shorter(side),
        Some((height, Some(width))) => Resize::Exact(height, width),
    };
    let crop = sides("crop", "`crop`");
    let crop = crop.map_or(default.crop, |(height, width)| Crop::Center(height, width.unwrap_or(height)));
    ImageSpec {
        input: reader.text("input", problems),
        resize,
        resample: reader.word("resample", &filters, problems).unwrap_or_default(),
        crop,
        mean,
        std,
        layout: reader
            .word("layout", &[ChannelOrder::Nchw, ChannelOrder::Nhwc], problems)
            .unwrap_or_default(),
    }
}

/// Reads a list of so many numbers.
fn exactly<const N: usize>(
    node: &Node,
    what: &'static str,
    words: &'static str,
    range: Range,
    problems: &mut Vec<Problem>,
) -> Option<[f64; N]> {
    let items: &[Node; N] = of_length(node, what, words, problems)?;
    let mut numbers = [0.0; N];
    for (number, item) in numbers.iter_mut().zip(items) {
        *number = range.read(item, what, problems)?;
    }
    Some(numbers)
}

/// Reads a list of so many items.
fn of_length<'a, const N: usize>(
    node: &'a Node,
    what: &'static str,
    words: &'static str,
    problems: &mut Vec<Problem>,
) -> Option<&'a [Node; N]> {
    let items = full(node, what, words, problems)?;
    let found = <&[Node; N]>::try_from(items).ok();
    if found.is_none() {
        let (expected, found) = (words.to_string(), format!("a list of {}", items.len()));
        problems.push(Problem::OutOfRange { what, expected, found, at: node.span });
    }
    found
}
