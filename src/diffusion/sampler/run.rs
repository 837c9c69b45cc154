//! The sampling loop, which runs any table.

use super::{Operand, Row, Table, Term};
use std::collections::VecDeque;

/// Samples: turns `sample` from noise (standard normal times [`Table::init_noise_sigma`]) into the clean
/// latents, in place.
///
/// `network` is called once a row, with the row, the scaled input and a buffer for the output; all have
/// the length of `sample`. `noise` fills its buffer with standard normal numbers; it is called where
/// [`Row::draws_noise`] says so, after the network of that row has run, which is when diffusers draws from
/// its generator. The buffers are made once, before the first call.
///
/// # Errors
/// The first error of `network`; the sample then is the one that its input was made from.
pub fn run<E>(
    table: &Table,
    sample: &mut [f32],
    mut noise: impl FnMut(&mut [f32]),
    mut network: impl FnMut(&Row, &[f32], &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffers = Buffers::new(sample.len(), table.depth());
    let mut sum = vec![0.0; sample.len()];
    for row in table.rows() {
        scale(sample, row.input_scale as f32, &mut sum);
        network(row, &sum, &mut buffers.output)?;
        buffers.predictions.rotate_right(1);
        if let Some(prediction) = buffers.predictions.front_mut() {
            predict(row, sample, &buffers.output, prediction);
        }
        if let Some(keep) = &row.keep {
            add_up(keep, sample, &buffers, &mut sum);
            std::mem::swap(&mut buffers.kept, &mut sum);
        }
        if row.draws_noise() {
            noise(&mut buffers.noise);
        }
        add_up(&row.next, sample, &buffers, &mut sum);
        sample.copy_from_slice(&sum);
    }
    Ok(())
}

/// Everything a row reads but the sample; all of its length.
struct Buffers {
    output: Vec<f32>,
    kept: Vec<f32>,
    noise: Vec<f32>,
    /// The newest first.
    predictions: VecDeque<Vec<f32>>,
}

impl Buffers {
    fn new(length: usize, depth: usize) -> Self {
        let zeros = || vec![0.0; length];
        Self {
            output: zeros(),
            kept: zeros(),
            noise: zeros(),
            predictions: (0..=depth).map(|_| zeros()).collect(),
        }
    }
}

fn scale(values: &[f32], scale: f32, scaled: &mut [f32]) {
    for (scaled, value) in scaled.iter_mut().zip(values) {
        *scaled = scale * value;
    }
}

fn predict(row: &Row, sample: &[f32], output: &[f32], prediction: &mut [f32]) {
    let (of_sample, of_output) = (row.prediction.sample as f32, row.prediction.output as f32);
    for ((prediction, sample), output) in prediction.iter_mut().zip(sample).zip(output) {
        *prediction = of_sample * sample + of_output * output;
    }
    if let Some(clip) = row.prediction.clip {
        let clip = clip as f32;
        prediction.iter_mut().for_each(|value| *value = value.clamp(-clip, clip));
    }
}

fn add_up(terms: &[Term], sample: &[f32], buffers: &Buffers, sum: &mut [f32]) {
    sum.fill(0.0);
    for term in terms {
        let values = match term.operand {
            Operand::Sample => sample,
            Operand::Kept => &buffers.kept,
            Operand::Output => &buffers.output,
            Operand::Prediction(age) => buffers.predictions.get(age).map_or(&[][..], Vec::as_slice),
            Operand::Noise => &buffers.noise,
        };
        let weight = term.weight as f32;
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += weight * value;
        }
    }
}
