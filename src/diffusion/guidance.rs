//! Guidance and amplification: how several outputs of a network become one.

/// An error of shapes: two outputs that should be of one shape are not, or a batch doesn't divide them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuidanceError {
    /// The buffers differ in length.
    #[error("outputs of {first} and {second} values cannot be combined; they must have one shape")]
    Lengths {
        /// Values in the first buffer.
        first: usize,
        /// Values in the one that differs.
        second: usize,
    },
    /// The values cannot be split into this many equal parts of two or more.
    #[error("{length} values do not split into a batch of {batch} with two or more values each")]
    Batch {
        /// Values in the buffer.
        length: usize,
        /// Parts asked for.
        batch: usize,
    },
}

/// Applies classifier-free guidance: `unconditional + scale * (conditional - unconditional)`, written over
/// `unconditional`.
///
/// For a network run once on both, see [`split_batch`].
///
/// # Errors
/// When the buffers differ in length.
///
/// Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", as `StableDiffusionPipeline` has it.
pub fn guide(unconditional: &mut [f32], conditional: &[f32], scale: f32) -> Result<(), GuidanceError> {
    same_length(unconditional, conditional)?;
    for (value, conditional) in unconditional.iter_mut().zip(conditional) {
        *value += scale * (conditional - *value);
    }
    Ok(())
}

/// Splits the output of a batch `[2 * batch, ...]` into its unconditional first half and its conditional
/// second half, the order in which diffusers concatenates prompts.
///
/// # Errors
/// When the length is odd.
pub fn split_batch(output: &mut [f32]) -> Result<(&mut [f32], &mut [f32]), GuidanceError> {
    let length = output.len();
    if !length.is_multiple_of(2) {
        return Err(GuidanceError::Batch { length, batch: 2 });
    }
    Ok(output.split_at_mut(length / 2))
}

/// Pulls the standard deviation of `guided` back towards that of `conditional`, in place: each image of
/// the batch is scaled to it, and mixed with itself unscaled by `factor` (0 leaves `guided` as it is).
///
/// Both are `[batch, ...]`. The deviation is over all but the batch, with Bessel's correction as torch's.
///
/// # Errors
/// When the buffers differ in length or do not split into `batch` images.
///
/// Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4;
/// diffusers' `rescale_noise_cfg`.
pub fn rescale(
    guided: &mut [f32],
    conditional: &[f32],
    batch: usize,
    factor: f32,
) -> Result<(), GuidanceError> {
    same_length(guided, conditional)?;
    let length = guided.len();
    if batch == 0 || !length.is_multiple_of(batch) || length / batch < 2 {
        return Err(GuidanceError::Batch { length, batch });
    }
    let image = length / batch;
    for (guided, conditional) in guided.chunks_exact_mut(image).zip(conditional.chunks_exact(image)) {
        let ratio = deviation(conditional) / deviation(guided);
        for value in guided {
            *value = factor * (*value * ratio) + (1.0 - factor) * *value;
        }
    }
    Ok(())
}

/// Applies CR-Diff's amplification: `dense + weight * (pruned - dense)` into `out`.
///
/// `out` is a buffer of its own, so that neither output is lost while the other is still to come.
///
/// # Errors
/// When the buffers differ in length.
pub fn amplify(dense: &[f32], pruned: &[f32], weight: f32, out: &mut [f32]) -> Result<(), GuidanceError> {
    same_length(dense, pruned)?;
    same_length(dense, out)?;
    for ((out, dense), pruned) in out.iter_mut().zip(dense).zip(pruned) {
        *out = dense + weight * (pruned - dense);
    }
    Ok(())
}

fn same_length(first: &[f32], second: &[f32]) -> Result<(), GuidanceError> {
    if first.len() == second.len() {
        return Ok(());
    }
    Err(GuidanceError::Lengths { first: first.len(), second: second.len() })
}

/// Returns the unbiased standard deviation, summed in double precision as torch sums it.
fn deviation(values: &[f32]) -> f32 {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let squares = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>();
    (squares / (count - 1.0)).sqrt() as f32
}
