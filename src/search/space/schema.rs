//! The language of spaces as types, for the JSON Schema in `configs/search.schema.json`.
//!
//! Reading goes through the spanned tree instead, so that errors can point at the text; the tests hold the two
//! together.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::Value;

/// Returns the JSON Schema of spaces.
pub fn json_schema() -> Schema {
    SchemaGenerator::default().into_root_schema_for::<SpaceFile>()
}

/// A space as it is written.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "crdiff search space")]
struct SpaceFile {
    /// The version of the language: 1.
    #[schemars(extend("const" = 1))]
    version: u32,
    /// The variables, by name. In the plan, `$name` stands for one.
    variables: BTreeMap<String, VariableFile>,
    /// A plan (plan.schema.json) in which a value may be `$name`. A set of modules that stands in a list becomes a part
    /// of it; a rule whose target is an empty set is left out.
    plan: serde_json::Map<String, Value>,
    /// A list of prompts, or a file with a prompt a line (empty lines and lines that start with # are left out).
    prompts: PromptsFile,
    /// How images are drawn.
    sampling: Option<SamplingFile>,
    /// When the search ends: at the first of these [default: 120 trials; a grid has all its points].
    budget: Option<BudgetFile>,
    /// How points are chosen [default: annealing].
    strategy: Option<StrategyFile>,
    /// The seed of the strategy [default: 0].
    seed: Option<u32>,
    /// How an image is scored; higher is better.
    objective: TopObjectiveFile,
    /// The measurements beside the objective, by name.
    metrics: Option<BTreeMap<String, ObjectiveFile>>,
}

/// A variable.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum VariableFile {
    Ratio(RatioFile),
    Number(NumberFile),
    Choice(ChoiceFile),
    Modules(ModulesFile),
}

/// A share of weights.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RatioFile {
    /// The least and the greatest, at least 0 and below 1.
    ratio: [f64; 2],
    /// Where the search begins [default: 0.3].
    start: Option<f64>,
    /// How far annealing moves it at most [default: 0.1].
    step: Option<f64>,
    /// How many values a grid has [default: 5].
    points: Option<u32>,
}

/// A number.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NumberFile {
    /// The least and the greatest.
    number: [f64; 2],
    /// Where the search begins [default: the middle].
    start: Option<f64>,
    /// How far annealing moves it at most [default: a seventh of the range].
    step: Option<f64>,
    /// How many values a grid has [default: 5].
    points: Option<u32>,
}

/// One of several values.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ChoiceFile {
    /// Words, numbers, true or false.
    #[schemars(length(min = 1))]
    choice: Vec<Value>,
    /// The one that the search begins with [default: the first].
    start: Option<Value>,
}

/// Modules of the model.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ModulesFile {
    /// Globs: each module that one matches can be chosen on its own. What a list in the list matches is chosen together.
    #[schemars(length(min = 1))]
    modules: Vec<MemberFile>,
    /// How many are chosen [default: any].
    choose: Option<ChooseFile>,
}

/// A glob, or several whose modules are chosen together.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum MemberFile {
    Each(String),
    Together(Vec<String>),
}

/// How many members of a set are chosen.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(dead_code, reason = "only its schema is used")]
enum ChooseFile {
    Any,
    One,
    AtMostOne,
}

/// A list, or a file.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum PromptsFile {
    File(String),
    List(#[schemars(length(min = 1))] Vec<String>),
}

/// How images are drawn.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SamplingFile {
    /// Height x width in pixels, such as 96x128 [default: what the pipeline was made for].
    size: Option<SizeFile>,
    /// Several sizes: an image of each for every prompt.
    sizes: Option<Vec<SizeFile>>,
    /// Steps of the sampler [default: 30].
    steps: Option<u32>,
    /// Classifier-free guidance [default: 7.5].
    guidance: Option<f64>,
    /// The negative prompt.
    negative_prompt: Option<String>,
    /// An image for each of them, of each prompt and size [default: 0].
    seeds: Option<Vec<u64>>,
    /// A scheduler of diffusers [default: the pipeline's].
    scheduler: Option<String>,
    /// Settings of the scheduler to change.
    scheduler_options: Option<BTreeMap<String, Value>>,
}

/// `96x128`, `[96, 128]`, or a number for a square.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum SizeFile {
    Text(String),
    Square(u32),
    Sides([u32; 2]),
}

/// When a search ends.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BudgetFile {
    /// After so many trials.
    trials: Option<u64>,
    /// After so much time in trials: 90s, 45m, 2h.
    time: Option<TimeFile>,
}

/// A number of seconds, or one with a unit.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum TimeFile {
    Seconds(f64),
    Text(String),
}

/// How points are chosen.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum StrategyFile {
    Name(StrategyName),
    Annealing(AnnealingFile),
}

/// A strategy.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its schema is used")]
enum StrategyName {
    Annealing,
    Random,
    Grid,
}

/// Annealing with another schedule.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AnnealingFile {
    annealing: ScheduleFile,
}

/// Changes of the schedule.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ScheduleFile {
    /// T at the start [default: 0.1].
    temperature: Option<f64>,
    /// The factor on T after each iteration [default: 0.95].
    cooling: Option<f64>,
    /// How many iterations without a new best are borne [default: 20 % of the trials].
    patience: Option<u64>,
    /// The factor on T to reheat [default: 1.5].
    reheat: Option<f64>,
    /// How often at most [default: 3].
    reheats: Option<u32>,
    /// Only once the best score is above this [default: 0.8].
    reheat_above: Option<f64>,
    /// How many restarts from a perturbed best at most [default: 2].
    restarts: Option<u32>,
}

/// An objective, and how the scores of a trial's images become the trial's.
#[derive(Debug, Serialize, JsonSchema)]
struct TopObjectiveFile {
    #[serde(flatten)]
    objective: ObjectiveFile,
    /// The mean of the images' scores, or the least [default: mean].
    over: Option<OverFile>,
}

/// How scores become one.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its schema is used")]
enum OverFile {
    Mean,
    Min,
}

/// How an image is scored: one of `command`, `serve`, `onnx`, `mean` and `min`.
#[derive(Debug, Serialize, JsonSchema)]
struct ObjectiveFile {
    /// A program that is run for each image and prints a number; `{image}` and `{prompt}` stand for the image's path
    /// and its prompt.
    #[schemars(length(min = 1))]
    command: Option<Vec<String>>,
    /// A program that is started once; it reads {"image": ..., "prompt": ...} a line and answers each with a number a
    /// line.
    #[schemars(length(min = 1))]
    serve: Option<Vec<String>>,
    /// A graph that scores an image, or an image and its prompt.
    onnx: Option<OnnxFile>,
    /// The weighted mean of several.
    #[schemars(length(min = 1))]
    mean: Option<Vec<PartFile>>,
    /// The least of several.
    #[schemars(length(min = 1))]
    min: Option<Vec<PartFile>>,
    /// Seconds that an image may take, for `command` and `serve` [default: 120].
    timeout: Option<f64>,
}

/// One of several objectives.
#[derive(Debug, Serialize, JsonSchema)]
struct PartFile {
    #[serde(flatten)]
    objective: Box<ObjectiveFile>,
    /// Its share in a mean; a factor before the least is taken [default: 1].
    weight: Option<f64>,
    /// The name in the journal [default: its number].
    name: Option<String>,
}

/// A graph that scores images.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OnnxFile {
    /// The graph (.onnx).
    model: String,
    /// How an image becomes its input.
    image: Option<ImageFile>,
    /// How the prompt becomes its inputs.
    text: Option<TextFile>,
    /// The output that has the score [default: the only one].
    output: Option<String>,
    /// The score is the output times this [default: 1],
    scale: Option<f64>,
    /// plus this [default: 0].
    offset: Option<f64>,
}

/// How an image becomes a tensor.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ImageFile {
    /// The graph's input [default: the only one with four dimensions].
    input: Option<String>,
    /// A number for the shorter side, or height and width [default: as it is].
    resize: Option<SidesFile>,
    /// Pillow's filter [default: bicubic].
    resample: Option<ResampleFile>,
    /// The size that is cut out of the middle [default: nothing].
    crop: Option<SidesFile>,
    /// Taken from each channel, of values from 0 to 1 [default: 0].
    mean: Option<[f64; 3]>,
    /// The divisor of each channel then [default: 1].
    std: Option<[f64; 3]>,
    /// Where the channels are [default: nchw].
    layout: Option<LayoutFile>,
}

/// One number of pixels, or height and width.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum SidesFile {
    One(u32),
    Both([u32; 2]),
}

/// Pillow's filters.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its schema is used")]
enum ResampleFile {
    Bicubic,
    Bilinear,
    Lanczos,
    Nearest,
}

/// Where channels are.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its schema is used")]
enum LayoutFile {
    Nchw,
    Nhwc,
}

/// How a prompt becomes token ids.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TextFile {
    /// The folder with the tokenizer's files: tokenizer.json, or vocab.json and merges.txt of CLIP.
    tokenizer: String,
    /// The input for the ids [default: input_ids].
    input: Option<String>,
    /// The input for the attention mask, if there is one.
    mask: Option<String>,
    /// How many tokens [default: the tokenizer's own].
    length: Option<u32>,
}
