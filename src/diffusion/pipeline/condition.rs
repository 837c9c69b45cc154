//! Conditioning of the UNet, for a batch and its branches.

use super::super::{PipelineError, interleave::Branches, text::Encoded, unet::Conditioning};
use crate::engine::{HostTensor, TensorData};

/// The outputs of all text encoders for one prompt.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Prompt {
    /// `[1, tokens, width]`, the widths of several encoders side by side.
    context: HostTensor,
    /// `[1, projection]`, of the last encoder that has it.
    pooled: Option<HostTensor>,
}

impl Prompt {
    /// Joins what several encoders say.
    pub(super) fn join(encoded: Vec<Encoded>) -> Result<Self, PipelineError> {
        let pooled = encoded.iter().rev().find_map(|e| e.pooled.clone());
        let hidden: Vec<HostTensor> = encoded.into_iter().map(|e| e.hidden).collect();
        if let [one] = hidden.as_slice() {
            return Ok(Self { context: one.clone(), pooled });
        }
        let tokens: Vec<usize> = hidden.iter().filter_map(|h| h.dims().get(1).copied()).collect();
        let Some(&length) = tokens.first().filter(|first| tokens.iter().all(|n| n == *first)) else {
            let what = format!("the text encoders see {tokens:?} tokens; they must see equally many");
            return Err(PipelineError::Request(what));
        };
        let width = |h: &HostTensor| h.dims().get(2).copied().unwrap_or(0);
        let total = hidden.iter().map(width).sum();
        let parts: Vec<(Vec<f32>, usize)> = hidden.iter().map(|h| (h.to_f32(), width(h))).collect();
        let mut values = Vec::with_capacity(length * total);
        for token in 0..length {
            for (part, width) in &parts {
                values.extend_from_slice(part.get(token * width..(token + 1) * width).unwrap_or_default());
            }
        }
        Ok(Self { context: HostTensor::new([1, length, total], values)?, pooled })
    }

    /// Zeros of the same shape.
    pub(super) fn zeros(&self) -> Result<Self, PipelineError> {
        Ok(Self { context: zeros(&self.context)?, pooled: self.pooled.as_ref().map(zeros).transpose()? })
    }

    /// Returns whether the encoders compute in half precision.
    pub(super) fn is_half(&self) -> bool {
        matches!(self.context.data(), TensorData::Float16(_))
    }
}

fn zeros(tensor: &HostTensor) -> Result<HostTensor, PipelineError> {
    let count = tensor.data().len();
    Ok(HostTensor::new(tensor.dims(), vec![0f32; count])?)
}

/// The conditioning that all branches share.
pub(super) struct Shared {
    /// Images of all prompts.
    pub(super) images: usize,
    /// SDXL's sizes, for networks that take them.
    pub(super) time_ids: Option<[f32; 6]>,
    /// The embedded guidance scale, for networks that take it.
    pub(super) timestep_cond: Option<Vec<f32>>,
}

/// Returns the branches of a batch, in which each prompt has equally many images; `unconditional` is `None` without
/// guidance.
pub(super) fn branches(
    conditional: &[Prompt],
    unconditional: Option<&[Prompt]>,
    shared: &Shared,
) -> Result<Branches, PipelineError> {
    fn listed(prompts: &[Prompt], images: usize) -> Vec<(&Prompt, usize)> {
        prompts.iter().map(|prompt| (prompt, images / prompts.len())).collect()
    }
    let conditional = listed(conditional, shared.images);
    let unconditional = unconditional.map(|prompts| listed(prompts, shared.images));
    let together = unconditional.as_ref().map(|prompts| [prompts.as_slice(), &conditional].concat());
    Ok(Branches {
        unconditional: unconditional.map(|prompts| conditioning(&prompts, shared)).transpose()?,
        conditional: conditioning(&conditional, shared)?,
        together: together.map(|prompts| conditioning(&prompts, shared)).transpose()?,
    })
}

/// Prompts, each as often as said, as one batch.
fn conditioning(prompts: &[(&Prompt, usize)], shared: &Shared) -> Result<Conditioning, PipelineError> {
    let batch = prompts.iter().map(|(_, times)| times).sum();
    let stacked = |of: &dyn Fn(&Prompt) -> Option<HostTensor>| -> Result<Option<HostTensor>, PipelineError> {
        let mut values = Vec::new();
        let mut dims = Vec::new();
        for (prompt, times) in prompts {
            let Some(tensor) = of(prompt) else { return Ok(None) };
            values.extend(tensor.to_f32().repeat(*times));
            dims = tensor.dims().to_vec();
        }
        if let Some(first) = dims.first_mut() {
            *first = batch;
        }
        Ok(Some(HostTensor::new(dims, values)?))
    };
    let repeated = |row: &[f32]| HostTensor::new([batch, row.len()], row.repeat(batch));
    let context = stacked(&|prompt| Some(prompt.context.clone()))?;
    Ok(Conditioning {
        context: context.ok_or_else(|| PipelineError::Request("there is no prompt".to_string()))?,
        pooled: stacked(&|prompt| prompt.pooled.clone())?,
        time_ids: shared.time_ids.as_ref().map(|row| repeated(row)).transpose()?,
        timestep_cond: shared.timestep_cond.as_ref().map(|row| repeated(row)).transpose()?,
    })
}

/// Returns the guidance scale as distilled networks take it: sines and cosines of 1000 (scale - 1) at `width / 2`
/// frequencies (`get_guidance_scale_embedding` of diffusers).
///
/// Rounded to float32 where torch rounds: the angles go to thousands, where the last bit counts.
pub(super) fn guidance_embedding(guidance: f64, width: usize) -> Vec<f32> {
    let half = width / 2;
    let scaled = (guidance - 1.0) as f32 * 1000.0;
    let rate = f64::from(10000f32).ln() as f32 / (half.max(2) - 1) as f32;
    let angles: Vec<f32> = (0..half).map(|i| f64::from(i as f32 * -rate).exp() as f32 * scaled).collect();
    let sines = angles.iter().map(|angle| f64::from(*angle).sin() as f32);
    let cosines = angles.iter().map(|angle| f64::from(*angle).cos() as f32);
    let mut embedding: Vec<f32> = sines.chain(cosines).collect();
    embedding.resize(width, 0.0);
    embedding
}
