//! Frobenius norms of what LoRAs add to weights, beside those of the weights as they came.

use rayon::prelude::*;

use super::{CompileReport, compile::Made};
use crate::{analysis::magnitude::FloatType, ir::WeightReader, onnx::OnnxError, rules::Change};

/// How many bytes of a weight are read at once.
const PIECE: usize = 1 << 20;

/// Enters how large the changes of merged weights are. Those weights are read, as they came.
///
/// # Errors
/// [`OnnxError`] if they, or the factors, cannot be read.
pub fn norms(report: &mut CompileReport, made: &Made<'_>) -> Result<(), OnnxError> {
    let merges: Vec<_> = made.edits.changes().flat_map(Change::merges).zip(made.originals).collect();
    let squares = merges
        .par_iter()
        .map(|(merge, original)| {
            let float = FloatType::try_from(merge.weight.data_type);
            let float = float.map_err(|e| OnnxError::invalid(&merge.weight.path, e.to_string()))?;
            Ok((merge.squared_norm()?, squared_norm(original, float)?))
        })
        .collect::<Result<Vec<_>, OnnxError>>()?;
    let ratio = |(change, weight): (f64, f64)| (weight > 0.0).then(|| (change / weight).sqrt());
    let mut squares = squares.into_iter();
    for rule in &mut report.lora {
        let mut sum = (0.0, 0.0);
        for (tensor, (change, weight)) in rule.per_tensor.iter_mut().zip(&mut squares) {
            tensor.change = ratio((change, weight));
            sum = (sum.0 + change, sum.1 + weight);
        }
        rule.change = ratio(sum);
    }
    Ok(())
}

fn squared_norm(weight: &WeightReader, float: FloatType) -> Result<f64, OnnxError> {
    let mut buffer = vec![0; weight.len().min(PIECE as u64) as usize];
    let mut sum = 0.0;
    for at in (0..weight.len()).step_by(PIECE) {
        let piece = &mut buffer[..(weight.len() - at).min(PIECE as u64) as usize];
        weight.read_at(at, piece)?;
        sum += float.singles(piece).iter().map(|element| f64::from(*element).powi(2)).sum::<f64>();
    }
    Ok(sum)
}
