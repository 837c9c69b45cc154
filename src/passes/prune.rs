//! Prune: gives masked weights new elements, which are made only when they are written.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::{
    PassError,
    mask::{MagnitudeMask, PatternMask},
};
use crate::{
    analysis::{
        magnitude::{Magnitude, MagnitudeHistogram, PoolTensor, Progress, Threshold, Ties},
        weights::Weight,
    },
    ir::{Editor, Graph, InitializerId, Masked, NewData, NodeId, Place, Transform, Use, ValueId},
    onnx::OnnxError,
    plan::{Mask, Pool, ResolvedPlan, ResolvedPrune},
};

/// What one prune rule came to.
#[derive(Clone, Debug)]
pub struct PruneOutcome {
    /// The threshold of the whole rule: its own, or that of its pool. `None` for a pattern, for thresholds that
    /// differ between tensors, and where the ratio asks for less than one weight.
    pub threshold: Option<Magnitude>,
    /// How many weights the ratio asks for, all tensors together.
    pub k: Option<u64>,
    /// The weights, in the order of the rule.
    pub tensors: Vec<MaskedTensor>,
}

/// One masked weight.
#[derive(Clone, Debug)]
pub struct MaskedTensor {
    /// The module path.
    pub path: String,
    /// Number of elements.
    pub elements: u64,
    /// The initializer that holds the masked elements; `None` if nothing of it is masked.
    pub initializer: Option<InitializerId>,
    /// The masked elements.
    pub data: Option<Masked>,
    /// Its own threshold and k, where each tensor has its own (`pool: tensor`).
    pub threshold: Option<Threshold>,
    /// Whether the original is kept for others that use it, and this is a copy.
    pub cloned: bool,
}

/// Masks the weights of all prune rules.
pub(super) fn run(
    plan: &ResolvedPlan,
    editor: &mut Editor<'_>,
    progress: &Progress<'_>,
) -> Result<Vec<PruneOutcome>, PassError> {
    plan.prunes.iter().map(|prune| run_rule(prune, editor, progress)).collect()
}

fn run_rule(
    prune: &ResolvedPrune,
    editor: &mut Editor<'_>,
    progress: &Progress<'_>,
) -> Result<PruneOutcome, PassError> {
    let masks = masks(prune, editor.graph(), progress)?;
    let mut outcome = PruneOutcome { threshold: masks.threshold, k: masks.k, tensors: Vec::new() };
    // One initializer can be the weight of several of the rule's modules: mask it once.
    let mut done: Vec<(InitializerId, usize)> = Vec::new();
    for (index, weight) in prune.weights.iter().enumerate() {
        let mut tensor = MaskedTensor {
            path: weight.path.clone(),
            elements: weight.elements(),
            initializer: None,
            data: None,
            threshold: masks.own.get(index).copied().flatten(),
            cloned: false,
        };
        if let Some(mask) = &masks.of[index] {
            let twin = done.iter().find(|(initializer, twin)| {
                *initializer == weight.initializer && masks.of[*twin].as_ref() == Some(mask)
            });
            if let Some((_, twin)) = twin {
                let MaskedTensor { initializer, cloned, ref data, .. } = outcome.tensors[*twin];
                (tensor.initializer, tensor.cloned, tensor.data) = (initializer, cloned, data.clone());
                if let (Some(id), true) = (initializer, cloned)
                    && let Some(value) = editor.graph().initializer(id).map(|i| i.value)
                {
                    reroute(editor, weight, value)?;
                }
            } else {
                let users = users(prune, &masks.of, weight, mask);
                let original = reader(editor.graph(), weight.initializer)?;
                let data = Masked { original, transform: mask.transform() };
                tensor.data = Some(data.clone());
                (tensor.initializer, tensor.cloned) = apply(editor, weight, &users, data)?;
                done.push((weight.initializer, index));
            }
        }
        outcome.tensors.push(tensor);
    }
    Ok(outcome)
}

/// The masks of a rule's weights.
struct Masks {
    threshold: Option<Magnitude>,
    k: Option<u64>,
    /// One entry a weight; `None` where nothing is masked.
    of: Vec<Option<WeightMask>>,
    /// Each weight's own threshold, where each has its own.
    own: Vec<Option<Threshold>>,
}

fn masks(prune: &ResolvedPrune, graph: &Graph, progress: &Progress<'_>) -> Result<Masks, PassError> {
    let scale = prune.rule.scale.value as f32;
    let weights = &prune.weights;
    let magnitude = |weight: &Weight, t: Magnitude, ties: Ties| -> Result<WeightMask, PassError> {
        Ok(WeightMask::Magnitude(MagnitudeMask::new(&weight.path, weight.data_type, t, ties, scale)?))
    };
    match prune.rule.mask {
        Mask::Threshold(threshold) => {
            let mut of = Vec::with_capacity(weights.len());
            let mut t = None;
            for weight in weights {
                let given = Magnitude::given(threshold.value, weight.data_type)?;
                t = Some(given);
                of.push(Some(magnitude(weight, given, Ties::All)?));
            }
            Ok(Masks { threshold: t, k: None, of, own: Vec::new() })
        }
        Mask::Pattern(pattern) => {
            let (keep, every) = (pattern.value.keep().into(), pattern.value.of().into());
            let of = weights
                .iter()
                .map(|weight| Ok(Some(WeightMask::Pattern(PatternMask::new(weight, keep, every, scale)?))))
                .collect::<Result<_, PassError>>()?;
            Ok(Masks { threshold: None, k: None, of, own: Vec::new() })
        }
        Mask::Ratio { ratio, pool, ties } => {
            let ratio = ratio.value.get();
            let exact = ties == crate::plan::Ties::Exact;
            let pools: Vec<&[Weight]> = match pool {
                Pool::Group => vec![weights],
                Pool::Tensor => weights.chunks(1).collect(),
            };
            let mut masks = Masks { threshold: None, k: Some(0), of: Vec::new(), own: Vec::new() };
            for members in pools {
                let threshold =
                    ratio_masks(members, graph, ratio, exact, progress, &mut masks.of, &magnitude)?;
                let k = threshold.map_or(0, |t| t.k);
                masks.k = masks.k.map(|sum| sum + k);
                match pool {
                    Pool::Group => masks.threshold = threshold.map(|t| t.t),
                    Pool::Tensor => masks.own.push(threshold),
                }
            }
            Ok(masks)
        }
    }
}

/// Masks for one pool; returns its threshold, if the ratio asks for any weight at all.
fn ratio_masks(
    members: &[Weight],
    graph: &Graph,
    ratio: f64,
    exact: bool,
    progress: &Progress<'_>,
    of: &mut Vec<Option<WeightMask>>,
    magnitude: &dyn Fn(&Weight, Magnitude, Ties) -> Result<WeightMask, PassError>,
) -> Result<Option<Threshold>, PassError> {
    let tensors = members
        .iter()
        .map(|w| Ok(PoolTensor { reader: reader(graph, w.initializer)?, data_type: w.data_type }))
        .collect::<Result<Vec<_>, OnnxError>>()?;
    let histogram = MagnitudeHistogram::read(&tensors, progress)?;
    let threshold = histogram.threshold(ratio, progress)?;
    let Some(found) = threshold else {
        of.extend(members.iter().map(|_| None));
        return Ok(None);
    };
    let ties = if exact { histogram.ties(&found, progress)? } else { vec![Ties::All; members.len()] };
    for (weight, ties) in members.iter().zip(ties) {
        of.push(Some(magnitude(weight, found.t, ties)?));
    }
    Ok(threshold)
}

fn reader(graph: &Graph, initializer: InitializerId) -> Result<crate::ir::WeightReader, OnnxError> {
    match graph.initializer(initializer) {
        Some(initializer) => graph.weight_reader(&initializer.header),
        None => Err(OnnxError::invalid("an initializer", "it was removed before it was read")),
    }
}

/// Which elements of a weight are masked.
#[derive(Clone, Debug, PartialEq)]
enum WeightMask {
    Magnitude(MagnitudeMask),
    Pattern(PatternMask),
}

impl WeightMask {
    fn transform(&self) -> Arc<dyn Transform> {
        match self {
            Self::Magnitude(mask) => Arc::new(mask.clone()),
            Self::Pattern(mask) => Arc::new(mask.clone()),
        }
    }
}

/// Every use of the weight's initializer by modules of this rule that mask it alike.
fn users(
    prune: &ResolvedPrune,
    masks: &[Option<WeightMask>],
    weight: &Weight,
    mask: &WeightMask,
) -> FxHashSet<(NodeId, usize)> {
    let alike =
        prune.weights.iter().zip(masks).filter(|(other, theirs)| {
            other.initializer == weight.initializer && theirs.as_ref() == Some(mask)
        });
    alike.flat_map(|(other, _)| other.uses.iter().copied()).collect()
}

/// Masks one initializer: in place if `users` are all that read it, else in a copy that they read from now on.
fn apply(
    editor: &mut Editor<'_>,
    weight: &Weight,
    users: &FxHashSet<(NodeId, usize)>,
    data: Masked,
) -> Result<(Option<InitializerId>, bool), PassError> {
    let graph = editor.graph();
    let data = NewData::Masked(data);
    let Some(entry) = graph.initializer(weight.initializer) else { return Ok((None, false)) };
    if entry.new_data.is_none() && read_only_by(graph, entry.value, users) {
        editor.set_data(weight.initializer, data)?;
        return Ok((Some(weight.initializer), false));
    }
    let header = entry.header.clone();
    let name = format!("{}.weight.masked", weight.path);
    let value = editor.add_initializer(&name, header.data_type, &header.dims, data);
    reroute(editor, weight, value)?;
    Ok((editor.graph().initializer_of(value).map(|(id, _)| id), true))
}

/// Whether `value` leads, through Identity, Transpose and Cast nodes, to nothing but `users`.
fn read_only_by(graph: &Graph, value: ValueId, users: &FxHashSet<(NodeId, usize)>) -> bool {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        for used in graph.uses(value) {
            match *used {
                Use::Operand { node, slot } if users.contains(&(node, slot)) => {}
                Use::Operand { node, .. } if is_view(graph, node) => open.extend(graph.node(node).results()),
                _ => return false,
            }
        }
    }
    true
}

/// Makes the nodes of `weight` read `value`, through copies of what stands between them and the original.
fn reroute(editor: &mut Editor<'_>, weight: &Weight, value: ValueId) -> Result<(), PassError> {
    for (node, slot) in &weight.uses {
        let mut chain = Vec::new();
        let mut at = editor.graph().node(*node).input(*slot);
        while let Some(producer) = at.and_then(|v| editor.graph().producer(v)) {
            chain.push(producer);
            at = editor.graph().node(producer).input(0);
        }
        let mut value = value;
        for view in chain.into_iter().rev() {
            let copy = editor.copy_node(view, &[Some(value)], "_masked", Place::First)?;
            value = editor.graph().node(copy).output(0).unwrap_or(value);
        }
        editor.set_input(*node, *slot, value)?;
    }
    Ok(())
}

fn is_view(graph: &Graph, node: NodeId) -> bool {
    let node = graph.node(node);
    ["Identity", "Transpose", "Cast"].iter().any(|op| node.is(op))
}
