//! Prune: gives masked weights new elements, which are made only when they are written.

use std::borrow::Cow;

use rustc_hash::FxHashSet;

use super::{
    PassError, Recipe,
    mask_selection::{WeightMask, masks, reader},
    merge::Merged,
};
use crate::{
    analysis::{
        magnitude::{Magnitude, Summary, Threshold},
        weights::Weight,
    },
    ir::{EditError, Editor, Graph, InitializerId, Masked, NewData, NodeId, Place, Use, ValueId},
    observer::Observer,
    rules::WeightEdit,
};

/// The result of one prune rule.
#[derive(Clone, Debug)]
pub struct WeightOutcome {
    /// The threshold of the whole rule: its own, or that of its pool. `None` for a pattern, for thresholds that
    /// differ between tensors, and where the ratio asks for less than one weight.
    pub threshold: Option<Magnitude>,
    /// How many weights the ratio asks for, all tensors together.
    pub k: Option<u64>,
    /// The magnitudes of all its weights as they came, if they had to be ranked.
    pub magnitudes: Option<Summary>,
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

/// Where masked weights go.
pub(super) trait Placing {
    /// Puts the masked elements of `weight` somewhere for `users`, all the uses of the same initializer that the rule
    /// masks alike. Returns the initializer, and whether it is a copy because others read the original.
    fn place(
        &mut self,
        editor: &mut Editor<'_>,
        weight: &Weight,
        users: &FxHashSet<(NodeId, usize)>,
        data: Masked,
    ) -> Result<(InitializerId, bool), PassError>;

    /// Makes `weight`, another one with the same initializer and mask, use what was placed for the first.
    fn join(
        &mut self,
        editor: &mut Editor<'_>,
        weight: &Weight,
        placed: (InitializerId, bool),
    ) -> Result<(), PassError>;
}

/// Masks weights where they are, or in copies if others read them too.
pub(super) fn run<'a>(
    edits: impl Iterator<Item = &'a WeightEdit>,
    merged: &Merged,
    editor: &mut Editor<'_>,
    observer: &dyn Observer,
) -> Result<Vec<WeightOutcome>, PassError> {
    place_all(edits, merged, editor, &mut InPlace, observer)
}

/// Returns the edits of weights with the initializers that hold them now.
pub(super) fn current<'a>(recipe: &Recipe<'a>, merged: &Merged, other: &Merged) -> Vec<Cow<'a, WeightEdit>> {
    let mut both = merged.clone();
    both.extend(other);
    let (always, rest) = (recipe.edits.always.weights(), recipe.edits.other.weights());
    always.map(|edit| merged.current(edit)).chain(rest.map(|edit| both.current(edit))).collect()
}

/// Masks weights and puts them where `placing` does.
pub(super) fn place_all<'a>(
    edits: impl Iterator<Item = &'a WeightEdit>,
    merged: &Merged,
    editor: &mut Editor<'_>,
    placing: &mut dyn Placing,
    observer: &dyn Observer,
) -> Result<Vec<WeightOutcome>, PassError> {
    edits.map(|edit| place(&merged.current(edit), editor, placing, observer)).collect()
}

fn place(
    prune: &WeightEdit,
    editor: &mut Editor<'_>,
    placing: &mut dyn Placing,
    observer: &dyn Observer,
) -> Result<WeightOutcome, PassError> {
    let masks = masks(prune, editor.graph(), observer)?;
    let mut outcome = WeightOutcome {
        threshold: masks.threshold,
        k: masks.k,
        magnitudes: masks.magnitudes,
        tensors: Vec::new(),
    };
    // One initializer can be the weight of several of the rule's modules: mask it once.
    let mut done: Vec<(usize, (InitializerId, bool))> = Vec::new();
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
            let original = reader(editor.graph(), weight.initializer)?;
            let data = Masked { original, transform: mask.transform() };
            let twin = done.iter().find(|(twin, _)| {
                prune.weights[*twin].initializer == weight.initializer
                    && masks.of[*twin].as_ref() == Some(mask)
            });
            let placed = match twin {
                Some((_, placed)) => {
                    placing.join(editor, weight, *placed)?;
                    *placed
                }
                None => {
                    let users = users(prune, &masks.of, weight, mask);
                    let placed = placing.place(editor, weight, &users, data.clone())?;
                    done.push((index, placed));
                    placed
                }
            };
            (tensor.initializer, tensor.cloned, tensor.data) = (Some(placed.0), placed.1, Some(data));
        }
        outcome.tensors.push(tensor);
    }
    Ok(outcome)
}

/// Returns every use of the weight's initializer by modules of this rule that mask it alike.
fn users(
    prune: &WeightEdit,
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

/// The placing of masks in place: an initializer is masked where it is if all that read it are masked alike, else in a
/// copy.
struct InPlace;

impl Placing for InPlace {
    fn place(
        &mut self,
        editor: &mut Editor<'_>,
        weight: &Weight,
        users: &FxHashSet<(NodeId, usize)>,
        data: Masked,
    ) -> Result<(InitializerId, bool), PassError> {
        let graph = editor.graph();
        let is_unmasked = |data: &Option<NewData>| matches!(data, None | Some(NewData::Computed(_)));
        let untouched = graph.initializer(weight.initializer).filter(|i| is_unmasked(&i.new_data));
        if untouched.is_some_and(|i| read_only_by(graph, i.value, users)) {
            editor.set_data(weight.initializer, NewData::Masked(data))?;
            return Ok((weight.initializer, false));
        }
        let placed = (add_masked(editor, weight, data), true);
        self.join(editor, weight, placed)?;
        Ok(placed)
    }

    fn join(
        &mut self,
        editor: &mut Editor<'_>,
        weight: &Weight,
        placed: (InitializerId, bool),
    ) -> Result<(), PassError> {
        let (initializer, copied) = placed;
        if !copied {
            return Ok(());
        }
        for (node, slot) in &weight.uses {
            let value = seen_by(editor, (*node, *slot), initializer)?;
            editor.set_input(*node, *slot, value)?;
        }
        Ok(())
    }
}

/// Adds a masked copy of the weight's initializer.
pub(super) fn add_masked(editor: &mut Editor<'_>, weight: &Weight, data: Masked) -> InitializerId {
    let name = format!("{}.weight.masked", weight.path);
    editor.add_initializer(&name, weight.data_type, &weight.dims, NewData::Masked(data)).0
}

/// Returns whether `value` leads, through Identity, Transpose and Cast nodes, to nothing but `users`.
pub(super) fn read_only_by(graph: &Graph, value: ValueId, users: &FxHashSet<(NodeId, usize)>) -> bool {
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

/// Returns `initializer` as the operand `slot` of `node` sees a weight: through copies of the Transpose, Cast and
/// Identity nodes that stand between.
pub(super) fn seen_by(
    editor: &mut Editor<'_>,
    (node, slot): (NodeId, usize),
    initializer: InitializerId,
) -> Result<ValueId, PassError> {
    let mut views = Vec::new();
    let mut at = editor.graph().get(node).and_then(|n| n.input(slot));
    while let Some(producer) = at.and_then(|v| editor.graph().producer(v)) {
        views.push(producer);
        at = editor.graph().node(producer).input(0);
    }
    let gone = || EditError::Gone(format!("initializer {}", initializer.index()));
    let mut value = editor.graph().initializer(initializer).ok_or_else(gone)?.value;
    for view in views.into_iter().rev() {
        let copy = editor.copy_node(view, &[Some(value)], "_masked", Place::First)?;
        value = editor.graph().node(copy).output(0).unwrap_or(value);
    }
    Ok(value)
}

fn is_view(graph: &Graph, node: NodeId) -> bool {
    let node = graph.node(node);
    ["Identity", "Transpose", "Cast"].iter().any(|op| node.is(op))
}
