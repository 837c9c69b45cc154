//! The sizes that a request's UNets are fed, for providers that build engines for sizes.

use std::{collections::BTreeMap, path::Path};

use crate::{
    diffusion::PipelineError,
    engine::{Dim, EngineError, Provider, ProviderKind, ShapeRange, Signature, TensorInfo},
    onnx,
};

/// What the dimensions of a UNet's inputs follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The batch of latents, `[batch, channels, height, width]`.
    pub(super) sample: [usize; 4],
    /// Tokens of a prompt.
    pub(super) tokens: usize,
    /// Whether there are two branches, which may run together.
    pub(super) guided: bool,
}

/// Whether a provider builds engines for sizes.
pub(super) fn needed(providers: &[Provider]) -> bool {
    providers.iter().any(|p| matches!(p.kind, ProviderKind::TensorRt | ProviderKind::NvTensorRtRtx))
}

/// The ranges of the inputs of the UNet at `path`.
pub(super) fn profile(path: &Path, sizes: &Sizes) -> Result<BTreeMap<String, ShapeRange>, PipelineError> {
    let model = || path.display().to_string();
    let signature = onnx::open(path)
        .and_then(|source| Signature::of(&source))
        .map_err(|source| EngineError::Model { model: model(), source })?;
    Ok(ranges(&signature.inputs, sizes))
}

/// One branch at least, both at most. Both are the rule: what is alone (`on: cond` at w = 1) or in turn is smaller.
fn ranges(inputs: &[TensorInfo], sizes: &Sizes) -> BTreeMap<String, ShapeRange> {
    let [batch, channels, height, width] = sizes.sample;
    let most = if sizes.guided { 2 * batch } else { batch };
    let declared = |input: &TensorInfo, at: usize| match input.dims.as_ref().and_then(|dims| dims.get(at)) {
        Some(Dim::Fixed(size)) => usize::try_from(*size).unwrap_or(1),
        _ => 1,
    };
    let dims = |input: &TensorInfo, batch: usize| -> Option<Vec<usize>> {
        Some(match (input.name.as_str(), input.dims.as_ref()?.len()) {
            ("sample", 4) => vec![batch, channels, height, width],
            ("timestep", 1) => vec![batch],
            ("encoder_hidden_states", 3) => vec![batch, sizes.tokens, declared(input, 2)],
            ("text_embeds" | "timestep_cond", 2) => vec![batch, declared(input, 1)],
            ("time_ids", 2) => vec![batch, 6],
            _ => return None,
        })
    };
    let range = |input: &TensorInfo| {
        let (min, max) = (dims(input, batch)?, dims(input, most)?);
        Some((input.name.clone(), ShapeRange { min, opt: max.clone(), max }))
    };
    inputs.iter().filter_map(range).collect()
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

    #[test]
    fn profiles_follow_from_the_request_and_the_graphs_inputs() {
        let sizes = Sizes { sample: [1, 4, 64, 96], tokens: 77, guided: true };
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
