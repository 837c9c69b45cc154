//! Mask selection: which elements of a rule's weights are masked, by rank of their magnitudes.

use std::sync::Arc;

use super::{
    PassError,
    mask::{MagnitudeMask, PatternMask},
};
use crate::{
    analysis::{
        magnitude::{Magnitude, MagnitudeHistogram, Magnitudes, PoolTensor, Summary, Threshold, TieMask},
        weights::Weight,
    },
    ir::{Graph, InitializerId, NewData, Transform, WeightReader},
    observer::Observer,
    onnx::OnnxError,
    rules::{Mask, Pool, WeightEdit},
};

/// The masks of a rule's weights.
pub(super) struct Masks {
    /// The threshold of the whole rule, if it has one.
    pub(super) threshold: Option<Magnitude>,
    /// How many weights the ratio asks for.
    pub(super) k: Option<u64>,
    /// One entry a weight; `None` where nothing is masked.
    pub(super) of: Vec<Option<WeightMask>>,
    /// Each weight's own threshold, where each has its own.
    pub(super) own: Vec<Option<Threshold>>,
    /// The magnitudes of all weights, if they were ranked.
    pub(super) magnitudes: Option<Summary>,
}

/// The number of bins that a report has for magnitudes: half to an eighth of an octave each.
pub(crate) const REPORTED_BINS: usize = 96;

/// Decides the masks of `prune`, reading its weights where a ratio needs their ranks.
pub(super) fn masks(prune: &WeightEdit, graph: &Graph, observer: &dyn Observer) -> Result<Masks, PassError> {
    let scale = prune.scale as f32;
    let weights = &prune.weights;
    let magnitude = |weight: &Weight, t: Magnitude, ties: TieMask| -> Result<WeightMask, PassError> {
        Ok(WeightMask::Magnitude(MagnitudeMask::new(&weight.path, weight.data_type, t, ties, scale)?))
    };
    match prune.mask {
        Mask::Threshold { threshold } => {
            let mut of = Vec::with_capacity(weights.len());
            let mut t = None;
            for weight in weights {
                let given = Magnitude::given(threshold.value, weight.data_type)?;
                t = Some(given);
                of.push(Some(magnitude(weight, given, TieMask::All)?));
            }
            Ok(Masks { threshold: t, k: None, of, own: Vec::new(), magnitudes: None })
        }
        Mask::Pattern { pattern } => {
            let (keep, every) = (pattern.value.keep().into(), pattern.value.of().into());
            let of = weights
                .iter()
                .map(|weight| Ok(Some(WeightMask::Pattern(PatternMask::new(weight, keep, every, scale)?))))
                .collect::<Result<_, PassError>>()?;
            Ok(Masks { threshold: None, k: None, of, own: Vec::new(), magnitudes: None })
        }
        Mask::Ratio { ratio, pool, ties } => {
            let ratio = ratio.value.get();
            let exact = ties == crate::rules::Ties::Exact;
            let pools: Vec<&[Weight]> = match pool {
                Pool::Group => vec![weights],
                Pool::Tensor => weights.chunks(1).collect(),
            };
            let mut masks =
                Masks { threshold: None, k: Some(0), of: Vec::new(), own: Vec::new(), magnitudes: None };
            let mut magnitudes = Magnitudes::default();
            for members in pools {
                let (threshold, histogram) =
                    ratio_masks(members, graph, ratio, exact, observer, &mut masks.of, &magnitude)?;
                magnitudes.add(&histogram);
                let k = threshold.map_or(0, |t| t.k);
                masks.k = masks.k.map(|sum| sum + k);
                match pool {
                    Pool::Group => masks.threshold = threshold.map(|t| t.t),
                    Pool::Tensor => masks.own.push(threshold),
                }
            }
            masks.magnitudes = Some(magnitudes.summary(REPORTED_BINS));
            Ok(masks)
        }
    }
}

/// Masks for one pool; returns its threshold, if the ratio asks for any weight at all, and its magnitudes.
fn ratio_masks(
    members: &[Weight],
    graph: &Graph,
    ratio: f64,
    exact: bool,
    observer: &dyn Observer,
    of: &mut Vec<Option<WeightMask>>,
    magnitude: &dyn Fn(&Weight, Magnitude, TieMask) -> Result<WeightMask, PassError>,
) -> Result<(Option<Threshold>, MagnitudeHistogram), PassError> {
    let tensors = members
        .iter()
        .map(|w| Ok(PoolTensor { reader: reader(graph, w.initializer)?, data_type: w.data_type }))
        .collect::<Result<Vec<_>, OnnxError>>()?;
    let histogram = MagnitudeHistogram::read(&tensors, observer)?;
    let threshold = histogram.threshold(ratio, observer)?;
    let Some(found) = threshold else {
        of.extend(members.iter().map(|_| None));
        return Ok((None, histogram));
    };
    let ties = if exact { histogram.ties(&found, observer)? } else { vec![TieMask::All; members.len()] };
    for (weight, ties) in members.iter().zip(ties) {
        of.push(Some(magnitude(weight, found.t, ties)?));
    }
    Ok((threshold, histogram))
}

/// Returns a reader of an initializer's elements as they are without a mask.
pub(super) fn reader(graph: &Graph, initializer: InitializerId) -> Result<WeightReader, OnnxError> {
    match graph.initializer(initializer) {
        Some(initializer) => match &initializer.new_data {
            Some(NewData::Computed(reader)) => Ok(reader.clone()),
            Some(NewData::Masked(masked)) => Ok(masked.original.clone()),
            Some(NewData::Bytes(_)) | None => graph.weight_reader(&initializer.header),
        },
        None => Err(OnnxError::invalid("an initializer", "it was removed before it was read")),
    }
}

/// Which elements of a weight are masked.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum WeightMask {
    /// Those at or below a threshold.
    Magnitude(MagnitudeMask),
    /// All but the largest of each group.
    Pattern(PatternMask),
}

impl WeightMask {
    pub(super) fn transform(&self) -> Arc<dyn Transform> {
        match self {
            Self::Magnitude(mask) => Arc::new(mask.clone()),
            Self::Pattern(mask) => Arc::new(mask.clone()),
        }
    }
}
