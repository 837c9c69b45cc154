//! A graph that scores an image, or an image and its prompt.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::{Drawn, Objective, Scored, resample::resize};
use crate::{
    diffusion::{text::ClipTokenizer, vae::Image},
    engine::{Engine, EngineKind, HostTensor, Session, SessionOptions, TensorInfo},
    search::{
        SearchError,
        space::{ChannelOrder, Crop, ImageSpec, OnnxSpec, Resize, TextSpec},
    },
};

/// Opens a scorer's graph and tokenizer; relative paths start from `folder`.
///
/// # Errors
/// [`SearchError`] if they cannot be opened, or the graph has not the inputs and outputs that the space names.
pub fn open_graph(
    spec: &OnnxSpec,
    folder: &Path,
    engine: &dyn Engine,
    options: &SessionOptions,
) -> Result<Box<dyn Objective>, SearchError> {
    let path = folder.join(&spec.model);
    let session = engine.load(&path, options)?;
    let failed = |what: String| SearchError::objective(&path.display().to_string(), what);
    let listed = |all: &[TensorInfo]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let input = |name: &str| {
        let found = session.inputs().iter().find(|input| input.name == name);
        found.cloned().ok_or_else(|| {
            failed(format!("it has no input `{name}`; its inputs are {}", listed(session.inputs())))
        })
    };
    let image = match &spec.image.input {
        Some(name) => input(name)?,
        None => {
            let images = session.inputs().iter();
            let mut images = images.filter(|info| info.dims.as_ref().is_some_and(|dims| dims.len() == 4));
            match (images.next(), images.next()) {
                (Some(one), None) => one.clone(),
                _ => {
                    let what = format!(
                        "which input is the image's? name one of {} in `image.input`",
                        listed(session.inputs())
                    );
                    return Err(failed(what));
                }
            }
        }
    };
    let text = spec.text.as_ref().map(|text| {
        let ids = input(&text.input)?;
        let mask = text.mask.as_deref().map(input).transpose()?;
        let is_padded = !text.unpadded || ids.fixed_dim(1).is_some();
        // CLIPs look for the end of a prompt with ArgMax, and padding is more of the same token. rten's ArgMax takes
        // the last of equal values.
        if text.unpadded && is_padded && engine.kind() == EngineKind::Rten {
            let what = "it takes one number of tokens, which rten cannot run; run it in ONNX Runtime, or export it with dynamic \
                        axes";
            return Err(failed(what.to_string()));
        }
        Ok::<_, SearchError>(Text { tokens: Tokens::open(text, folder)?, ids, mask, is_padded })
    });
    let text = text.transpose()?;
    let fed = 1 + text.as_ref().map_or(0, |text| 1 + usize::from(text.mask.is_some()));
    if session.inputs().len() != fed {
        let what =
            format!("the space feeds {fed} of its inputs; all of {} are needed", listed(session.inputs()));
        return Err(failed(what));
    }
    let outputs = session.outputs();
    let named = |key: &str, name: &String| match outputs.iter().any(|output| output.name == *name) {
        true => Ok(name.clone()),
        false => Err(failed(format!("`{key}` must name one of its outputs: {}", listed(outputs)))),
    };
    let score = match (&spec.cosine, &spec.output, outputs) {
        (Some(two), ..) => {
            Score::Cosine(two.iter().map(|name| named("cosine", name)).collect::<Result<_, _>>()?)
        }
        (None, Some(name), _) => Score::Output(named("output", name)?),
        (None, None, [one]) => Score::Output(one.name.clone()),
        (None, None, _) => {
            return Err(failed(format!("`output` must name one of its outputs: {}", listed(outputs))));
        }
    };
    Ok(Box::new(Graph { path, session, spec: spec.clone(), image, text, score }))
}

struct Graph {
    path: PathBuf,
    session: Box<dyn Session>,
    spec: OnnxSpec,
    image: TensorInfo,
    text: Option<Text>,
    score: Score,
}

/// The outputs that make the score.
enum Score {
    /// One that is the score.
    Output(String),
    /// Two whose cosine is it.
    Cosine(Vec<String>),
}

/// How the prompt is fed.
struct Text {
    tokens: Tokens,
    ids: TensorInfo,
    mask: Option<TensorInfo>,
    /// Whether padding is fed.
    is_padded: bool,
}

impl Objective for Graph {
    fn score(&mut self, drawn: &Drawn<'_>) -> Result<Scored, SearchError> {
        let name = self.path.display().to_string();
        let failed = |what: String| SearchError::objective(&name, what);
        let image =
            image_tensor(drawn.image, &self.spec.image).map_err(failed)?.cast(self.image.data_type)?;
        let mut fed = vec![(self.image.name.clone(), image)];
        if let Some(text) = &self.text {
            let (mut ids, mut mask) = text.tokens.encode(drawn.prompt).map_err(failed)?;
            if !text.is_padded {
                let real = mask.iter().take_while(|real| **real == 1).count();
                ids.truncate(real);
                mask.truncate(real);
            }
            let row = |values: Vec<i64>, info: &TensorInfo| -> Result<_, SearchError> {
                let tensor = HostTensor::new([1, values.len()], values)?.cast(info.data_type)?;
                Ok((info.name.clone(), tensor))
            };
            fed.push(row(ids, &text.ids)?);
            if let Some(info) = &text.mask {
                fed.push(row(mask, info)?);
            }
        }
        let inputs: Vec<(&str, &HostTensor)> =
            fed.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let names: Vec<&str> = match &self.score {
            Score::Output(name) => vec![name],
            Score::Cosine(names) => names.iter().map(String::as_str).collect(),
        };
        let outputs = self.session.run(&inputs, Some(&names))?;
        let values: Vec<_> = outputs.iter().map(|(_, output)| output.to_f32()).collect();
        let score = match (&self.score, values.as_slice(), outputs.first()) {
            (Score::Output(_), [one], _) if one.len() == 1 => {
                one.first().map_or(f64::NAN, |one| f64::from(*one))
            }
            (Score::Output(name), _, Some((_, output))) => {
                let dims = output.dims();
                return Err(failed(format!(
                    "output `{name}` has dimensions {dims:?}; a score is one number"
                )));
            }
            (Score::Cosine(_), [one, other], _) if one.len() == other.len() => cosine(one, other),
            (Score::Cosine(names), ..) => {
                let dims: Vec<_> = outputs.iter().map(|(_, output)| output.dims()).collect();
                let names = names.join("` and `");
                return Err(failed(format!(
                    "outputs `{names}` have dimensions {dims:?}; a cosine is of two vectors"
                )));
            }
            (Score::Output(_), ..) => return Err(failed("it gave no output".to_string())),
        };
        match score.is_finite() {
            true => Ok(Scored::of(score * self.spec.scale + self.spec.offset)),
            false => Err(failed(format!("its score is {score}"))),
        }
    }
}

/// Returns the cosine of the angle between two vectors.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Returns an image as a scorer sees it: resized, cut, scaled to 0..1, normalised.
fn image_tensor(image: &Image, spec: &ImageSpec) -> Result<HostTensor, String> {
    let (height, width) = match spec.resize {
        Resize::None => (image.height, image.width),
        Resize::Exact(height, width) => (height, width),
        Resize::Shorter(side) if image.height <= image.width => {
            (side, side * image.width / image.height.max(1))
        }
        Resize::Shorter(side) => (side * image.height / image.width.max(1), side),
    };
    let resized = resize(image, height, width, spec.resample);
    let (top, left, height, width) = match spec.crop {
        Crop::None => (0, 0, height, width),
        Crop::Center(h, w) if h <= height && w <= width => ((height - h) / 2, (width - w) / 2, h, w),
        Crop::Center(h, w) => {
            return Err(format!(
                "a crop of {h}x{w} is larger than the image, {height}x{width}; see `resize`"
            ));
        }
    };
    let mut values = Vec::with_capacity(3 * height * width);
    let at = |y: usize, x: usize, c: usize| {
        let value = resized.pixels.get(((top + y) * resized.width + left + x) * 3 + c).copied();
        (f32::from(value.unwrap_or_default()) / 255.0 - spec.mean[c]) / spec.std[c]
    };
    let dims = match spec.layout {
        ChannelOrder::Nchw => {
            for c in 0..3 {
                (0..height).for_each(|y| values.extend((0..width).map(|x| at(y, x, c))));
            }
            [1, 3, height, width]
        }
        ChannelOrder::Nhwc => {
            for y in 0..height {
                (0..width).for_each(|x| values.extend((0..3).map(|c| at(y, x, c))));
            }
            [1, height, width, 3]
        }
    };
    HostTensor::new(dims, values).map_err(|e| e.to_string())
}

/// Returns whether the tokenizer in `folder` is CLIP's, by its files or by its config.
fn is_clip(folder: &Path) -> bool {
    let config = std::fs::read_to_string(folder.join("tokenizer_config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap_or_default();
    let class = config.get("tokenizer_class").and_then(|class| class.as_str()).unwrap_or_default();
    class.starts_with("CLIPTokenizer")
        || folder.join("vocab.json").exists() && folder.join("merges.txt").exists()
}

/// A tokenizer.
enum Tokens {
    /// CLIP's.
    Clip(Box<ClipTokenizer>),
    /// Any other, cut or padded to a length.
    Other { tokenizer: Box<Tokenizer>, length: usize, pad: u32 },
}

impl Tokens {
    fn open(spec: &TextSpec, folder: &Path) -> Result<Self, SearchError> {
        let folder = folder.join(&spec.tokenizer);
        let failed = |what: String| SearchError::objective(&folder.display().to_string(), what);
        if is_clip(&folder) {
            let clip = ClipTokenizer::open(&folder)?;
            return match spec.length {
                Some(length) if length != clip.length() => Err(failed(format!(
                    "it makes {} tokens, not {length}; leave `length` out",
                    clip.length()
                ))),
                _ => Ok(Self::Clip(Box::new(clip))),
            };
        }
        let file = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&file).map_err(|e| failed(e.to_string()))?;
        let padding = tokenizer.get_padding().map(|padding| padding.pad_id);
        let known = ["[PAD]", "<pad>"].iter().find_map(|token| tokenizer.token_to_id(token));
        let pad = padding.or(known).unwrap_or(0);
        let length = spec.length.ok_or_else(|| failed("`length` must say how many tokens".to_string()))?;
        let truncation = tokenizers::TruncationParams { max_length: length, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| failed(e.to_string()))?;
        tokenizer.with_padding(None);
        Ok(Self::Other { tokenizer: Box::new(tokenizer), length, pad })
    }

    /// Returns the ids, and 1 for each that is not padding.
    fn encode(&self, prompt: &str) -> Result<(Vec<i64>, Vec<i64>), String> {
        match self {
            Self::Clip(clip) => {
                let ids = clip.encode(prompt).map_err(|e| e.to_string())?.ids;
                let empty = clip.encode("").map_err(|e| e.to_string())?.ids;
                let end = empty.get(1).copied();
                let real = ids.iter().position(|id| Some(*id) == end).map_or(ids.len(), |at| at + 1);
                let mask = (0..ids.len()).map(|at| i64::from(at < real)).collect();
                Ok((ids, mask))
            }
            Self::Other { tokenizer, length, pad } => {
                let encoding = tokenizer.encode(prompt, true).map_err(|e| e.to_string())?;
                let mut ids: Vec<i64> = encoding.get_ids().iter().map(|id| i64::from(*id)).collect();
                let mut mask = vec![1; ids.len()];
                ids.resize(*length, i64::from(*pad));
                mask.resize(*length, 0);
                Ok((ids, mask))
            }
        }
    }
}
