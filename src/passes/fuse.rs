//! Fuse: dense and pruned network and their mix in one graph, each node that both have in common once.
//!
//! The pruned branch starts as the dense one. A node is copied only if an operand of it differs between the two: it
//! reads a masked weight, the output of a bypassed module, or the result of a copied node; or if its attributes differ; or
//! if it belongs to an attention at which the branches part ([`attentions`]). Everything before the first such node on any
//! path is shared, and everything beside the paths: time embedding, text projections.

mod attentions;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    PassError, WeightOutcome,
    merge::Merged,
    prune::{Placing, add_masked, place_all, seen_by},
    splice::Spliced,
};
use crate::{
    analysis::weights::Weight,
    ir::{
        Attribute, Editor, Graph, InitializerId, Masked, NewData, NodeId, NodeSpec, Place, ValueId,
        int_attribute,
    },
    observer::Observer,
    onnx::{DataType, ValueInfo},
    rules::{Change, Edits, Skips},
};

/// Suffix of the names of copied nodes and their results.
const SUFFIX: &str = "_pruned";

/// Name of the graph input with the amplification weight, a float32 scalar.
pub const WEIGHT_INPUT: &str = "poa_weight";

/// How much of a fused graph is computed once.
#[derive(Clone, Debug, Default)]
pub struct Sharing {
    /// Nodes that the dense branch has and the pruned branch uses too.
    pub shared: Vec<NodeId>,
    /// Nodes of the pruned branch, each with the node of the dense branch that it is a copy of.
    pub copies: Vec<(NodeId, NodeId)>,
}

/// Adds the pruned branch and the mix of the outputs, `dense + w * (pruned - dense)`. Without a `weight` w is a graph
/// input.
pub(super) fn run(
    edits: &Edits,
    weight: Option<f64>,
    (spliced, merged, merged_other): (&Spliced, &Merged, &Merged),
    editor: &mut Editor<'_>,
    observer: &dyn Observer,
) -> Result<(Vec<WeightOutcome>, Sharing), PassError> {
    let dense: Vec<NodeId> = editor.graph().node_ids().collect();
    let attributes = edits.other.changes.iter().flat_map(Change::attributes);
    let attributes = attributes.map(|edit| (edit.node, edit.set.as_slice())).collect();
    let mut branch =
        Branch { skips: edits.skips(), attributes, operands: spliced.clone(), ..Branch::default() };
    for (operand, initializer) in merged_other.operands() {
        branch.operands.insert(operand, seen_by(editor, operand, initializer)?);
    }
    let mut merged = merged.clone();
    merged.extend(merged_other);
    let outcomes = place_all(edits.other.weights(), &merged, editor, &mut branch, observer)?;
    let outputs: Vec<ValueId> = editor.graph().outputs().iter().map(|io| io.value).collect();
    let mut copied = branch.differing(editor.graph(), &dense);
    let needed = branch.needed(editor.graph(), &dense, &outputs);
    branch.copy_whole_attentions(editor.graph(), &needed, &mut copied);
    let mut sharing = Sharing::default();
    for id in dense {
        if !needed.contains(&id) {
            continue;
        }
        if !copied.contains(&id) {
            sharing.shared.push(id);
            continue;
        }
        let inputs = branch.operands(editor.graph(), id);
        let copy = editor.copy_node(id, &inputs, SUFFIX, Place::Last)?;
        if let Some(set) = branch.attributes.get(&id) {
            editor.set_attributes(copy, set)?;
        }
        for captured in editor.graph().node(copy).captures.clone() {
            let pruned = branch.value(captured);
            if pruned != captured {
                editor.rename_capture(copy, captured, pruned)?;
            }
        }
        sharing.copies.push((copy, id));
        let (from, to) = (editor.graph().node(id).outputs.clone(), editor.graph().node(copy).outputs.clone());
        for (from, to) in from.into_iter().zip(to) {
            if let (Some(from), Some(to)) = (from, to) {
                branch.values.insert(from, to);
            }
        }
    }
    let mut w = None;
    for (index, dense) in outputs.into_iter().enumerate() {
        let pruned = branch.value(dense);
        if pruned == dense {
            continue;
        }
        let w = match w {
            Some(w) => w,
            None => *w.insert(mix_weight(editor, weight)?),
        };
        mix(editor, index, dense, pruned, w)?;
    }
    Ok((outcomes, sharing))
}

/// The values and tensors of the pruned branch that replace those of the dense one.
#[derive(Default)]
struct Branch<'a> {
    skips: Skips,
    /// Attributes of nodes.
    attributes: FxHashMap<NodeId, &'a [Attribute]>,
    /// Operands that are other values: masked weights, results of templates.
    operands: FxHashMap<(NodeId, usize), ValueId>,
    /// Results of copied nodes.
    values: FxHashMap<ValueId, ValueId>,
}

impl Placing for Branch<'_> {
    fn place(
        &mut self,
        editor: &mut Editor<'_>,
        weight: &Weight,
        _users: &FxHashSet<(NodeId, usize)>,
        data: Masked,
    ) -> Result<(InitializerId, bool), PassError> {
        let placed = (add_masked(editor, weight, data), false);
        self.join(editor, weight, placed)?;
        Ok(placed)
    }

    fn join(
        &mut self,
        editor: &mut Editor<'_>,
        weight: &Weight,
        placed: (InitializerId, bool),
    ) -> Result<(), PassError> {
        for user in &weight.uses {
            self.operands.insert(*user, seen_by(editor, *user, placed.0)?);
        }
        Ok(())
    }
}

impl Branch<'_> {
    /// Returns the value that the pruned branch reads where the dense one reads `value`.
    fn value(&self, value: ValueId) -> ValueId {
        let skip = self.skips.follow(value);
        self.values.get(&skip).copied().unwrap_or(skip)
    }

    /// Returns the operands of `node` where nothing is copied yet.
    fn reads(&self, graph: &Graph, id: NodeId) -> Vec<Option<ValueId>> {
        let operand = |(slot, value): (usize, &Option<ValueId>)| {
            value.map(|value| self.operands.get(&(id, slot)).copied().unwrap_or(value))
        };
        graph.node(id).inputs.iter().enumerate().map(operand).collect()
    }

    fn operands(&self, graph: &Graph, id: NodeId) -> Vec<Option<ValueId>> {
        self.reads(graph, id).into_iter().map(|value| value.map(|value| self.value(value))).collect()
    }

    /// Returns the nodes that compute something else in the pruned branch.
    fn differing(&self, graph: &Graph, dense: &[NodeId]) -> FxHashSet<NodeId> {
        let mut differing = FxHashSet::default();
        for id in dense {
            let node = graph.node(*id);
            let replaced = (0..node.inputs.len()).any(|slot| self.operands.contains_key(&(*id, slot)));
            let changed = |value: ValueId| {
                let skip = self.skips.follow(value);
                skip != value || graph.producer(skip).is_some_and(|p| differing.contains(&p))
            };
            let otherwise = replaced || self.attributes.contains_key(id);
            if otherwise || node.operands().chain(node.captures.iter().copied()).any(changed) {
                differing.insert(*id);
            }
        }
        differing
    }

    /// Returns the nodes that the pruned branch computes at all.
    fn needed(&self, graph: &Graph, dense: &[NodeId], outputs: &[ValueId]) -> FxHashSet<NodeId> {
        let mut needed: FxHashSet<NodeId> =
            outputs.iter().filter_map(|v| graph.producer(self.skips.follow(*v))).collect();
        for id in dense.iter().rev() {
            if needed.contains(id) {
                let node = graph.node(*id);
                let read = self.reads(graph, *id).into_iter().flatten().chain(node.captures.iter().copied());
                needed.extend(read.filter_map(|v| graph.producer(self.skips.follow(v))));
            }
        }
        needed
    }
}

/// Returns the value of w, a float32 scalar.
fn mix_weight(editor: &mut Editor<'_>, weight: Option<f64>) -> Result<ValueId, PassError> {
    match weight {
        Some(w) => {
            let bytes = (w as f32).to_le_bytes().to_vec().into();
            Ok(editor.add_initializer(WEIGHT_INPUT, DataType::FLOAT, &[], NewData::Bytes(bytes)).1)
        }
        None => Ok(editor.add_input(ValueInfo::tensor(WEIGHT_INPUT, DataType::FLOAT, Some(Vec::new())))?),
    }
}

/// Makes output `index` yield `dense + w * (pruned - dense)`. Half-precision outputs are mixed in float32: the
/// difference of two near numbers, made larger, is where their rounding would show.
fn mix(
    editor: &mut Editor<'_>,
    index: usize,
    dense: ValueId,
    pruned: ValueId,
    w: ValueId,
) -> Result<(), PassError> {
    let data_type = editor.graph().outputs()[index].info.data_type().unwrap_or(DataType::FLOAT);
    let name = format!("poa/{index}");
    let half = data_type != DataType::FLOAT;
    let (mut dense, mut pruned) = (dense, pruned);
    if half {
        dense = add(editor, &name, "Cast", &[dense], cast(DataType::FLOAT))?;
        pruned = add(editor, &name, "Cast", &[pruned], cast(DataType::FLOAT))?;
    }
    let difference = add(editor, &name, "Sub", &[pruned, dense], Vec::new())?;
    let scaled = add(editor, &name, "Mul", &[difference, w], Vec::new())?;
    let mut mixed = add(editor, &name, "Add", &[dense, scaled], Vec::new())?;
    if half {
        mixed = add(editor, &name, "Cast", &[mixed], cast(data_type))?;
    }
    Ok(editor.replace_output(index, mixed)?)
}

fn add(
    editor: &mut Editor<'_>,
    scope: &str,
    op_type: &str,
    inputs: &[ValueId],
    attributes: Vec<Attribute>,
) -> Result<ValueId, PassError> {
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    let name = format!("{scope}/{op_type}");
    let spec = NodeSpec { name: &name, op_type, inputs: &inputs, output: &name, attributes };
    Ok(editor.add_node(spec, Place::Last)?)
}

fn cast(to: DataType) -> Vec<Attribute> {
    vec![int_attribute("to", to.0.into())]
}
