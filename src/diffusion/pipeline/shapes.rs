//! The sizes that a request's UNets are fed on a device. They are loaded for these.

use std::{collections::BTreeMap, path::Path};

use crate::{
    diffusion::{PipelineError, amplify::Mix, feature_cache::FeatureShapes, interleave::Batching},
    engine::{Dim, EngineError, Provider, ProviderKind, SessionOptions, ShapeRange, Signature, TensorInfo},
    onnx,
    plan::{CACHE_NAMES, On},
};

/// The sizes from which the dimensions of a UNet's inputs follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The batch of latents, `[batch, channels, height, width]`.
    pub(super) sample: [usize; 4],
    /// Tokens of a prompt.
    pub(super) tokens: usize,
    /// Whether there are two branches, which may run together.
    pub(super) guided: bool,
    /// How the branches run.
    pub(super) batching: Batching,
    /// The branches that the pruned network runs on.
    pub(super) on: On,
    /// Whether the pruned network takes the dense one's place in some call.
    pub(super) replaces: bool,
}

/// A UNet's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The dense network, or the only one.
    Dense,
    /// The pruned network beside the dense one.
    Pruned,
}

impl Sizes {
    /// Returns whether some call runs the pruned network alone.
    pub(super) fn replaces(mixes: &[Mix]) -> bool {
        mixes.contains(&Mix::Pruned)
    }

    /// Returns the batch that a network always runs on; `None` if it runs on one branch in some calls and on both in
    /// others.
    fn batch(&self, part: Part) -> Option<usize> {
        let [batch, ..] = self.sample;
        let together = self.guided && self.batching == Batching::Together;
        match (together, self.on, part) {
            (false, ..) | (true, On::Cond, Part::Pruned) => Some(batch),
            (true, On::Cond, Part::Dense) if self.replaces => None,
            (true, ..) => Some(2 * batch),
        }
    }
}

/// Adds the sizes of the UNet at `path` to the options that it is loaded with: a profile for TensorRT's engines, fixed
/// dimensions for others. With fixed dimensions ONNX Runtime folds the arithmetic on shapes that TorchScript's exporter
/// leaves in a graph. It runs on the CPU otherwise, which costs time beside a GPU and rules out CUDA graphs. A shallow graph
/// has the inputs that the full one at `full` keeps for it, too.
pub(super) fn fit(
    path: &Path,
    part: Part,
    sizes: &Sizes,
    full: Option<&Path>,
    options: &mut SessionOptions,
) -> Result<(), PipelineError> {
    let model = || path.display().to_string();
    let signature = onnx::open(path)
        .and_then(|source| Signature::of(&source))
        .map_err(|source| EngineError::Model { model: model(), source })?;
    let tensorrt =
        |provider: &Provider| matches!(provider.kind, ProviderKind::TensorRt | ProviderKind::NvTensorRtRtx);
    match options.providers.iter().any(tensorrt) {
        true => options.profile = ranges(&signature.inputs, sizes),
        false => options.fixed_dims = fixed(&signature.inputs, part, sizes),
    }
    let Some(full) = full else { return Ok(()) };
    let shapes = FeatureShapes::of(full)?;
    let features = |batch: Option<&usize>| -> Result<Vec<(String, Vec<usize>)>, PipelineError> {
        let [_, channels, height, width] = sizes.sample;
        let Some(batch) = batch else { return Ok(Vec::new()) };
        let sample = [*batch, channels, height, width];
        let kept = signature.inputs.iter().filter(|input| CACHE_NAMES.contains(&input.name.as_str()));
        kept.map(|info| Ok((info.name.clone(), shapes.dims(&info.name, sample, sizes.tokens)?))).collect()
    };
    options.fixed_dims.extend(features(options.fixed_dims.get("sample").and_then(|dims| dims.first()))?);
    if let Some(ShapeRange { min, max, .. }) = options.profile.get("sample").cloned() {
        for ((name, min), (_, max)) in features(min.first())?.into_iter().zip(features(max.first())?) {
            options.profile.insert(name, ShapeRange { min, opt: max.clone(), max });
        }
    }
    Ok(())
}

/// Returns the dimensions of inputs that are the same in all calls.
fn fixed(inputs: &[TensorInfo], part: Part, sizes: &Sizes) -> BTreeMap<String, Vec<usize>> {
    // Distilled networks take the guidance scale and run without guidance.
    let distilled = inputs.iter().any(|input| input.name == "timestep_cond");
    let sizes = Sizes { guided: sizes.guided && !distilled, ..*sizes };
    let Some(batch) = sizes.batch(part) else { return BTreeMap::new() };
    inputs.iter().filter_map(|input| Some((input.name.clone(), dims(input, batch, &sizes)?))).collect()
}

/// Returns the range of batches, one branch at least, both at most. Both are the rule: what is alone (`on: cond` at w =
/// 1) or in turn is small
fn ranges(inputs: &[TensorInfo], sizes: &Sizes) -> BTreeMap<String, ShapeRange> {
    let batch = sizes.sample[0];
    let most = if sizes.guided { 2 * batch } else { batch };
    let range = |input: &TensorInfo| {
        let (min, max) = (dims(input, batch, sizes)?, dims(input, most, sizes)?);
        Some((input.name.clone(), ShapeRange { min, opt: max.clone(), max }))
    };
    inputs.iter().filter_map(range).collect()
}

/// Returns the dimensions of a UNet's input for a batch; `None` if it is none that is known. Sizes that the graph
/// declares stay.
fn dims(input: &TensorInfo, batch: usize, sizes: &Sizes) -> Option<Vec<usize>> {
    let [_, channels, height, width] = sizes.sample;
    let declared = input.dims.as_ref()?;
    // The last dimension of the others is the network's own.
    let fed: &[usize] = match (input.name.as_str(), declared.len()) {
        ("sample", 4) => &[batch, channels, height, width],
        ("timestep", 1) => &[batch],
        ("encoder_hidden_states", 3) => &[batch, sizes.tokens, 1],
        ("text_embeds" | "timestep_cond", 2) => &[batch, 1],
        ("time_ids", 2) => &[batch, 6],
        _ => return None,
    };
    let one = |(declared, fed): (&Dim, &usize)| match declared {
        Dim::Fixed(size) => usize::try_from(*size).unwrap_or(1),
        Dim::Named(_) | Dim::Unknown => *fed,
    };
    Some(declared.iter().zip(fed).map(one).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::tensorrt::Profile;

    fn signature(name: &str) -> Vec<TensorInfo> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pipelines").join(name);
        Signature::of(&onnx::open(path.join("unet/model.onnx")).unwrap()).unwrap().inputs
    }

    fn sizes() -> Sizes {
        Sizes {
            sample: [1, 4, 64, 96],
            tokens: 77,
            guided: true,
            batching: Batching::Together,
            on: On::Both,
            replaces: false,
        }
    }

    #[test]
    fn dimensions_are_fixed_where_all_calls_have_the_same() {
        let inputs = signature("sd15");
        let batch = |part, sizes: Sizes| {
            let fixed = fixed(&inputs, part, &sizes);
            let batches = [
                fixed.get("sample").map(|dims| dims[0]),
                fixed.get("encoder_hidden_states").map(|dims| dims[0]),
            ];
            assert_eq!(batches[0], batches[1]);
            batches[0]
        };
        for part in [Part::Dense, Part::Pruned] {
            assert_eq!(batch(part, sizes()), Some(2));
            assert_eq!(batch(part, Sizes { guided: false, ..sizes() }), Some(1));
            assert_eq!(batch(part, Sizes { batching: Batching::InTurn, ..sizes() }), Some(1));
            assert_eq!(batch(part, Sizes { replaces: true, ..sizes() }), Some(2));
        }
        let cond = Sizes { on: On::Cond, ..sizes() };
        assert_eq!([batch(Part::Dense, cond), batch(Part::Pruned, cond)], [Some(2), Some(1)]);
        // With w = 1 in some calls, the dense network runs on one branch there and on both elsewhere.
        let replaced = Sizes { replaces: true, ..cond };
        assert_eq!([batch(Part::Dense, replaced), batch(Part::Pruned, replaced)], [None, Some(1)]);
        assert_eq!(fixed(&inputs, Part::Dense, &sizes())["sample"], [2, 4, 64, 96]);
        // A network that takes the guidance scale runs without guidance.
        let distilled = fixed(&signature("lcm"), Part::Dense, &sizes());
        assert_eq!((distilled["sample"][0], distilled["timestep_cond"].as_slice()), (1, &[1, 24][..]));
    }

    #[test]
    fn profiles_follow_from_the_request_and_the_graphs_inputs() {
        let sizes = sizes();
        let inputs = signature("sd15");
        let profile = Profile::of(&inputs, &ranges(&inputs, &sizes)).unwrap();
        let width = 32;
        assert_eq!(profile.min, format!("sample:1x4x64x96,encoder_hidden_states:1x77x{width}"));
        assert_eq!(profile.max, format!("sample:2x4x64x96,encoder_hidden_states:2x77x{width}"));
        assert_eq!(profile.opt, profile.max);
        let inputs = signature("sdxl");
        let one = Sizes { guided: false, ..sizes };
        let profile = Profile::of(&inputs, &ranges(&inputs, &one)).unwrap();
        assert_eq!(profile.min, profile.max);
        for part in ["text_embeds:1x", "time_ids:1x6"] {
            assert!(profile.min.contains(part), "{}", profile.min);
        }
    }
}
