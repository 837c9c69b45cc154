//! A graph that scores an image, or an image and its prompt.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::{Objective, Picture, Scored, resample::resize};
use crate::{
    diffusion::{text::ClipTokenizer, vae::Image},
    engine::{Engine, HostTensor, Session, SessionOptions, TensorInfo},
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
            let pictures = session.inputs().iter();
            let mut pictures = pictures.filter(|info| info.dims.as_ref().is_some_and(|dims| dims.len() == 4));
            match (pictures.next(), pictures.next()) {
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
        Ok::<_, SearchError>(Text { tokens: Tokens::open(text, folder)?, ids, mask })
    });
    let text = text.transpose()?;
    let fed = 1 + text.as_ref().map_or(0, |text| 1 + usize::from(text.mask.is_some()));
    if session.inputs().len() != fed {
        let what =
            format!("the space feeds {fed} of its inputs; all of {} are needed", listed(session.inputs()));
        return Err(failed(what));
    }
    let output = match (&spec.output, session.outputs()) {
        (Some(name), outputs) if outputs.iter().any(|output| output.name == *name) => name.clone(),
        (None, [one]) => one.name.clone(),
        (_, outputs) => {
            return Err(failed(format!("`output` must name one of its outputs: {}", listed(outputs))));
        }
    };
    Ok(Box::new(Graph { path, session, spec: spec.clone(), image, text, output }))
}

struct Graph {
    path: PathBuf,
    session: Box<dyn Session>,
    spec: OnnxSpec,
    image: TensorInfo,
    text: Option<Text>,
    output: String,
}

/// How the prompt is fed.
struct Text {
    tokens: Tokens,
    ids: TensorInfo,
    mask: Option<TensorInfo>,
}

impl Objective for Graph {
    fn score(&mut self, picture: &Picture<'_>) -> Result<Scored, SearchError> {
        let name = self.path.display().to_string();
        let failed = |what: String| SearchError::objective(&name, what);
        let image =
            image_tensor(picture.image, &self.spec.image).map_err(failed)?.cast(self.image.data_type)?;
        let mut fed = vec![(self.image.name.clone(), image)];
        if let Some(text) = &self.text {
            let (ids, mask) = text.tokens.encode(picture.prompt).map_err(failed)?;
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
        let outputs = self.session.run(&inputs, Some(&[&self.output]))?;
        let Some((_, output)) = outputs.first() else { return Err(failed("it gave no output".to_string())) };
        match output.to_f32().as_slice() {
            [score] if score.is_finite() => {
                Ok(Scored::of(f64::from(*score) * self.spec.scale + self.spec.offset))
            }
            [score] => Err(failed(format!("its score is {score}"))),
            _ => Err(failed(format!(
                "output `{}` has dimensions {:?}; a score is one number",
                self.output,
                output.dims()
            ))),
        }
    }
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
        if folder.join("vocab.json").exists() && folder.join("merges.txt").exists() {
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
