//! How pictures are scored, as a space says it.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

/// How a picture gets its number; higher is better.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectiveSpec {
    /// A program that is run for each picture.
    Command(CommandSpec),
    /// A program that is started once and reads a line for each picture.
    Serve(CommandSpec),
    /// A graph.
    Onnx(Box<OnnxSpec>),
    /// The weighted mean of several.
    Mean(Vec<Part>),
    /// The least of several.
    Min(Vec<Part>),
}

/// How the scores of a trial's pictures become the trial's.
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
    /// The program, then its arguments; `{image}` and `{prompt}` in them stand for the picture's path and its prompt.
    pub args: Vec<String>,
    /// How long a picture may take.
    pub timeout: Duration,
}

/// One of several objectives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// What it is called where it is logged.
    pub name: String,
    /// Its share in a mean; a factor before the least is taken.
    pub weight: f64,
    /// How it scores.
    pub objective: ObjectiveSpec,
}

/// A graph that scores a picture, or a picture and its prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OnnxSpec {
    /// The graph.
    pub model: PathBuf,
    /// How a picture becomes its input.
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

/// How a picture becomes a tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageSpec {
    /// The graph's input; the only one with four dimensions if it is `None`.
    pub input: Option<String>,
    /// Its size.
    pub resize: Resize,
    /// How it is resized.
    pub resample: Resample,
    /// What is cut out of it then.
    pub crop: Crop,
    /// Taken from each channel, of values from 0 to 1.
    pub mean: [f32; 3],
    /// What each channel is divided by then.
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

/// What size a picture gets.
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

/// How a picture is resized: Pillow's filters of these names.
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

/// What is cut out of a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// Nothing.
    #[default]
    None,
    /// This height and width in the middle.
    Center(usize, usize),
}

/// Where the channels of a picture are.
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
