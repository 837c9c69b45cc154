//! The shapes that an engine is built for, from sizes of images.

use std::{collections::BTreeMap, fmt, path::Path, str::FromStr};

use super::DeployError;
use crate::{
    analysis::shapes,
    engine::{Dim, ShapeRange, TensorInfo, tensorrt::Profile},
    ir::Graph,
    onnx::Dimension,
};

/// A range from one number to another, both included: `1..2`, or `2` for only that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The smallest.
    pub min: i64,
    /// The largest.
    pub max: i64,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.parse::<i64>().ok().filter(|n| (1..=1 << 20).contains(n));
        let (min, max) = text.split_once("..").unwrap_or((text, text));
        match (number(min), number(max)) {
            (Some(min), Some(max)) if min <= max => Ok(Self { min, max }),
            _ => Err(format!("`{text}` is not a range: write MIN..MAX, such as 1..2, or one number")),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "{}..{}", self.min, self.max),
        }
    }
}

/// The sizes of an engine's inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Height and width of the images, in pixels. The engine is tuned for the first.
    pub images: Vec<(i64, i64)>,
    /// Rows of a batch; the engine is tuned for most.
    pub batch: Range,
    /// Tokens of a prompt.
    pub tokens: i64,
    /// Pixels for each latent, in each direction: 8 for the VAEs of Stable Diffusion, 1 for a network that takes
    /// images.
    pub factor: i64,
    /// Sizes of further dimensions, by their name in the model (`<input>.<axis>` for one without a name).
    pub named: BTreeMap<String, Range>,
}

/// Returns the shapes of every input of `graph` that has dimensions of any size, for TensorRT. Every size is tried on
/// the graph's shapes first, with the smallest and the largest batch.
///
/// # Errors
/// [`DeployError::Model`] for `model` if a size is impossible: not divisible by `factor`, not what the graph fixes, or
/// such that two operands don't fit; or if nothing says how large a dimension will be.
pub fn profile(graph: &mut Graph, model: &Path, sizes: &Sizes) -> Result<Profile, DeployError> {
    let fail = |what: String| DeployError::model(model, what);
    let signature = super::signature(graph)?;
    let mut ranges: BTreeMap<String, ShapeRange> = BTreeMap::new();
    for (index, (height, width)) in sizes.images.iter().enumerate() {
        if *height % sizes.factor != 0 || *width % sizes.factor != 0 {
            let nearest = |n: i64| (n.saturating_add(sizes.factor - 1) / sizes.factor).max(1) * sizes.factor;
            return Err(fail(format!(
                "the size {height}x{width} is not divisible by {}, the pixels of a latent; try {}x{}",
                sizes.factor,
                nearest(*height),
                nearest(*width)
            )));
        }
        let latent = (height / sizes.factor, width / sizes.factor);
        for (batch, which) in [(sizes.batch.min, Which::Smallest), (sizes.batch.max, Which::Largest)] {
            let fed = Fed { latent, batch, which, sizes };
            let shapes = fed.shapes(&signature.inputs).map_err(fail)?;
            check(graph, &shapes).map_err(|why| {
                fail(format!("it cannot run at {height}x{width} with a batch of {batch}: {why}"))
            })?;
            for (name, shape) in shapes {
                let shape: Vec<usize> =
                    shape.iter().map(|n| usize::try_from(*n).unwrap_or_default()).collect();
                let range = ranges.entry(name).or_insert_with(|| ShapeRange {
                    min: shape.clone(),
                    opt: shape.clone(),
                    max: shape.clone(),
                });
                if index == 0 {
                    range.opt = shape.clone();
                }
                for ((min, max), size) in range.min.iter_mut().zip(&mut range.max).zip(&shape) {
                    *min = (*min).min(*size);
                    *max = (*max).max(*size);
                }
            }
        }
    }
    Profile::of(&signature.inputs, &ranges).map_err(fail)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Smallest,
    Largest,
}

/// One image size and batch.
struct Fed<'a> {
    latent: (i64, i64),
    batch: i64,
    which: Which,
    sizes: &'a Sizes,
}

impl Fed<'_> {
    /// Returns the shape of every input.
    fn shapes(&self, inputs: &[TensorInfo]) -> Result<Vec<(String, Vec<i64>)>, String> {
        let rank = |input: &TensorInfo| input.dims.as_ref().map_or(0, Vec::len);
        let latents = inputs
            .iter()
            .position(|input| input.name == "sample" && rank(input) == 4)
            .or_else(|| inputs.iter().position(|input| rank(input) == 4));
        let mut known: BTreeMap<String, i64> = BTreeMap::new();
        let mut shapes = Vec::new();
        // The latents first: their names mean the same wherever they come up.
        let order = latents.into_iter().chain((0..inputs.len()).filter(|index| Some(*index) != latents));
        for input in order.filter_map(|index| inputs.get(index).map(|input| (Some(index) == latents, input)))
        {
            let (is_latents, input) = input;
            let dims = input
                .dims
                .as_ref()
                .ok_or_else(|| format!("input {input}: the model doesn't say how many dimensions it has"))?;
            let mut shape = Vec::with_capacity(dims.len());
            for (axis, dim) in dims.iter().enumerate() {
                let name = match dim {
                    Dim::Named(name) => name.clone(),
                    Dim::Fixed(_) | Dim::Unknown => format!("{}.{axis}", input.name),
                };
                let given = self.sizes.named.get(&name).map(|range| match self.which {
                    Which::Smallest => range.min,
                    Which::Largest => range.max,
                });
                let meant = given.or_else(|| self.meant(input, axis, dims.len(), is_latents));
                let size = match (dim, meant.or_else(|| known.get(&name).copied())) {
                    (Dim::Fixed(fixed), Some(meant)) if *fixed != meant => {
                        return Err(format!(
                            "input {input}: dimension {axis} is fixed to {fixed} and cannot be {meant}"
                        ));
                    }
                    (Dim::Fixed(fixed), _) => *fixed,
                    (_, Some(size)) => size,
                    (_, None) => {
                        return Err(format!(
                            "input {input}: nothing says how large dimension {axis} (`{name}`) will be; say it \
                             with --dim {name}=MIN..MAX"
                        ));
                    }
                };
                known.entry(name).or_insert(size);
                shape.push(size);
            }
            shapes.push((input.name.clone(), shape));
        }
        Ok(shapes)
    }

    /// Returns the meaning of a dimension in a diffusion model, where names and ranks show it.
    fn meant(&self, input: &TensorInfo, axis: usize, rank: usize, is_latents: bool) -> Option<i64> {
        let (height, width) = self.latent;
        match (axis, rank) {
            (2, 4) if is_latents => Some(height),
            (3, 4) if is_latents => Some(width),
            // A model with one timestep for all rows, of one dimension.
            (0, 1) if input.dims.as_deref() == Some(&[Dim::Fixed(1)]) => None,
            (0, _) => Some(self.batch),
            (1, 3) => Some(self.sizes.tokens),
            (1, 2) if matches!(input.name.as_str(), "input_ids" | "attention_mask" | "position_ids") => {
                Some(self.sizes.tokens)
            }
            (1, 2) if input.name == "time_ids" => Some(6),
            _ => None,
        }
    }
}

/// Checks that the graph's shapes come out for inputs of these shapes.
fn check(graph: &mut Graph, fed: &[(String, Vec<i64>)]) -> Result<(), String> {
    for (name, shape) in fed {
        let dims = shape.iter().map(|size| Some(Dimension::Size(*size))).collect();
        let value = graph.value_named(name).ok_or_else(|| format!("there is no input `{name}`"))?;
        graph.edit().set_input_shape(value, dims).map_err(|e| e.to_string())?;
    }
    match shapes::shapes(graph).problems().next() {
        Some(note) => Err(note.what.clone()),
        None => Ok(()),
    }
}
