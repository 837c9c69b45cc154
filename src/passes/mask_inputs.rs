//! Masked weights as inputs of the graph, so that its caller can try other masks without loading it again.

use super::{PassError, WeightOutcome};
use crate::{
    ir::{EditError, Editor, InitializerId, Masked, Use},
    onnx::{DataType, Dimension, ValueInfo},
    rules::WeightEdit,
};

/// A masked weight that a graph reads from an input.
#[derive(Clone, Debug)]
pub struct FedWeight {
    /// The input's name.
    pub input: String,
    /// The uses that read it.
    pub uses: Vec<Use>,
    /// Element type.
    pub data_type: DataType,
    /// Dimensions.
    pub dims: Vec<i64>,
    /// The tensor to feed.
    pub data: Masked,
}

/// Makes each masked initializer an input, after those that the graph has.
pub(super) fn run<'a>(
    edits: impl Iterator<Item = &'a WeightEdit>,
    outcomes: &[WeightOutcome],
    editor: &mut Editor<'_>,
) -> Result<Vec<FedWeight>, PassError> {
    let mut done: Vec<InitializerId> = Vec::new();
    let mut fed = Vec::new();
    for (prune, outcome) in edits.zip(outcomes) {
        for (weight, tensor) in prune.weights.iter().zip(&outcome.tensors) {
            let (Some(masked), Some(data)) = (tensor.initializer, &tensor.data) else { continue };
            if done.contains(&masked) {
                continue;
            }
            done.push(masked);
            let gone = || EditError::Gone("a masked weight".into());
            let from = editor.graph().initializer(masked).ok_or_else(gone)?.value;
            let dims = weight.dims.iter().map(|size| Dimension::Size(*size)).collect();
            let input = editor.fresh_name(&format!("{}.weight.fed", weight.path));
            let to = editor.add_input(ValueInfo::tensor(&input, weight.data_type, Some(dims)))?;
            editor.redirect(from, to)?;
            let uses = editor.graph().uses(to).to_vec();
            let (data_type, dims) = (weight.data_type, weight.dims.clone());
            fed.push(FedWeight { input, uses, data_type, dims, data: data.clone() });
        }
    }
    Ok(fed)
}
