//! Prompts and how they are drawn: `prompts:` and `sampling:`.

use std::{fs, path::Path};

use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::{
    SpaceError,
    syntax::{Form, Range, Reader, entries, full, scalar, section, text},
};
use crate::{
    diffusion::sampler::{Class, Preset},
    plan::{
        Problem,
        yaml::{Key as NameAt, Node, Value},
    },
};

/// How images are drawn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sampling {
    /// Heights and widths in pixels; empty for the pipeline's own.
    pub sizes: Vec<(usize, usize)>,
    /// Steps of the sampler.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance: f64,
    /// The negative prompt.
    pub negative_prompt: Option<String>,
    /// The noises that images begin with.
    #[serde(flatten)]
    pub noises: Noises,
    /// The scheduler, if it is not the pipeline's.
    #[serde(serialize_with = "name_of")]
    pub scheduler: Option<Class>,
    /// Settings of the scheduler to change.
    pub scheduler_options: Vec<(String, Json)>,
}

/// The noises that images begin with. In the search's digest they are a key of [`Sampling`], as in a space.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Noises {
    /// Noises of these seeds, the same for every prompt and size.
    #[serde(rename = "seeds")]
    Shared(Vec<u64>),
    /// So many for each prompt at each size, no two alike.
    #[serde(rename = "noises")]
    Own(usize),
}

fn name_of<S: Serializer>(class: &Option<Class>, serializer: S) -> Result<S::Ok, S::Error> {
    class.map(Class::name).serialize(serializer)
}

impl Default for Sampling {
    /// Returns 30 steps, guidance 7.5, seed 0: the authors' search, but for its prompts.
    fn default() -> Self {
        Self {
            sizes: Vec::new(),
            steps: 30,
            guidance: 7.5,
            negative_prompt: None,
            noises: Noises::Shared(vec![0]),
            scheduler: None,
            scheduler_options: Vec::new(),
        }
    }
}

const STEPS: Range = Range::whole("a whole number from 1", 1.0, 10_000.0);
/// The number of noises of a prompt.
pub(super) const NOISES: Range = Range::whole("a whole number from 1 to 10000", 1.0, 10_000.0);
const SEED: Range = Range::whole("a whole number from 0", 0.0, 9e15);
const SIDE: Form = Form::Number(Range::whole("a whole number from 1", 1.0, 1_048_576.0));
const SIZE: Form = Form::OneOf(&[Form::Text, SIDE, Form::Exactly(2, &SIDE)]);
/// The forms of `prompts:`.
pub(super) const PROMPTS: Form = Form::OneOf(&[Form::Text, Form::List(&Form::Text, "at least one prompt")]);

section! {
    /// How images are drawn.
    pub(super) SAMPLING = "Sampling", "`sampling`";
    size: SIZE,
        "Height x width in pixels, such as 96x128, [96, 128], or a number for a square [default: what the pipeline \
         was made for].";
    sizes: List(&SIZE, "at least one size"), "Several sizes: an image of each for every prompt.";
    steps: Number(STEPS), "Steps of the sampler [default: 30].";
    guidance: Number(Range::FINITE), "Classifier-free guidance [default: 7.5].";
    negative_prompt: Text, "The negative prompt.";
    seeds: List(&Number(SEED), "at least one seed"),
        "The noises that all prompts are drawn from, at each size [default: 0].";
    noises: Number(NOISES),
        "Instead of `seeds`: so many noises for each prompt at each size, no two alike. Images are numbered from 0 by \
         prompt, size and noise, and an image's number is its seed.";
    scheduler: Text, "A scheduler of diffusers [default: the pipeline's].";
    scheduler_options: Named(&Scalar), "Settings of the scheduler to change.";
}

/// Reads `prompts:`.
///
/// # Errors
/// [`SpaceError::File`] if a file of prompts cannot be read.
pub(super) fn prompts(
    node: &Node,
    folder: &Path,
    problems: &mut Vec<Problem>,
) -> Result<Vec<String>, SpaceError> {
    let Value::Text(file) = &node.value else {
        let items = full(node, "`prompts`", "at least one prompt", problems).unwrap_or_default();
        return Ok(items.iter().filter_map(|item| text(item, "a prompt", problems)).collect());
    };
    let path = folder.join(file);
    let file = fs::read_to_string(&path)
        .map_err(|e| SpaceError::File { path, what: format!("cannot read the prompts: {e}") })?;
    let lines = file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let prompts: Vec<String> = lines.map(str::to_string).collect();
    if prompts.is_empty() {
        let (expected, found) = ("at least one prompt".to_string(), "none".to_string());
        problems.push(Problem::OutOfRange { what: "`prompts`", expected, found, at: node.span });
    }
    Ok(prompts)
}

pub(super) fn sampling(reader: &Reader<'_>, problems: &mut Vec<Problem>) -> Sampling {
    let mut sampling = Sampling::default();
    let mut either = |one, other, message| {
        if let (Some((one, _)), Some((other, _))) = (reader.fields.entry(one), reader.fields.entry(other)) {
            problems.push(Problem::conflict(message, None, one.span, other.span));
        }
    };
    either("size", "sizes", "`size` is one size, `sizes` several: give one of the two");
    either("seeds", "noises", "`seeds` are for all prompts, `noises` for each its own: give one of the two");
    match reader.get("size") {
        Some(node) => sampling.sizes.extend(size(node, problems)),
        None => {
            let items = reader.list("sizes", problems).unwrap_or_default();
            sampling.sizes = items.iter().filter_map(|item| size(item, problems)).collect();
        }
    }
    sampling.steps = reader.count("steps", problems).unwrap_or(sampling.steps);
    sampling.guidance = reader.number("guidance", problems).unwrap_or(sampling.guidance);
    sampling.negative_prompt = reader.text("negative_prompt", problems);
    if let Some(items) = reader.list("seeds", problems) {
        let mut seed = |node| SEED.read(node, "a seed", problems).map(|seed| seed as u64);
        sampling.noises = Noises::Shared(items.iter().filter_map(&mut seed).collect());
    }
    if let Some(count) = reader.count("noises", problems) {
        sampling.noises = Noises::Own(count);
    }
    if let (Some(name), Some(node)) = (reader.text("scheduler", problems), reader.get("scheduler")) {
        match name.parse::<Preset>() {
            Ok(preset) => {
                sampling.scheduler = Some(preset.class);
                sampling.scheduler_options = preset.settings;
            }
            Err(_) => {
                let (expected, found) = (Preset::names().join(" or "), format!("`{name}`"));
                problems.push(Problem::OutOfRange { what: "`scheduler`", expected, found, at: node.span });
            }
        }
    }
    let options =
        reader.get("scheduler_options").and_then(|node| entries(node, "`scheduler_options`", problems));
    let option = |(key, node): &(NameAt, Node)| Some((key.name.clone(), scalar(node, problems)?));
    sampling.scheduler_options.extend(options.unwrap_or_default().iter().filter_map(option));
    sampling
}

/// Reads `96x128`, `[96, 128]` or `96`: height and width in pixels.
fn size(node: &Node, problems: &mut Vec<Problem>) -> Option<(usize, usize)> {
    let side = |n: i128| usize::try_from(n).ok().filter(|n| (1..=1 << 20).contains(n));
    let found = match &node.value {
        Value::Integer(both) => side(*both).map(|n| (n, n)),
        Value::Text(text) => text.split_once('x').and_then(|(height, width)| {
            side(height.trim().parse().ok()?).zip(side(width.trim().parse().ok()?))
        }),
        Value::List(items) => match items.as_slice() {
            [Node { value: Value::Integer(height), .. }, Node { value: Value::Integer(width), .. }] => {
                side(*height).zip(side(*width))
            }
            _ => None,
        },
        _ => None,
    };
    if found.is_none() {
        let expected = "height x width in pixels, such as 96x128".to_string();
        let found = node.value.kind().to_string();
        problems.push(Problem::OutOfRange { what: "a size", expected, found, at: node.span });
    }
    found
}
