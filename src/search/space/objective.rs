//! How images are scored, as a space says it.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

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
}
