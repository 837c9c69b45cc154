//! Graphs in which each row of a batch has its own value of an input that the original has one element of.
//!
//! Such an input is `[batch]`. A value that is computed from it has one element in the original and an element for each
//! row here, and may be read in two ways alone. A reader that spreads it over the batch (`Expand` to `[batch]`) in the
//! original takes it as it is. A reader that broadcasts it against a tensor with the batch first takes a column of it
//! (`Reshape` to `[-1, 1, ..., 1]`) of as many dimensions. Any other reader would take it for one element, and is a
//! difference. So the graph computes what the original does if all rows have equal elements, and row i depends on
//! element i alone.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{interface::WEIGHT_INPUT, signature::is_plain, value};
use crate::{
    analysis::shapes::{Dim, Shapes},
    ir::{Graph, Node, NodeId, Origin, Template, Use, ValueId},
    onnx::{
        DataType, ValueInfo,
        proto::{TypeProto, tensor_shape_proto::Dimension, type_proto},
    },
    rules::{Change, Edit, Edits},
};

/// The inputs of a compiled graph that have an element for each row, and how the original must read them.
#[derive(Clone, Debug, Default)]
pub(super) struct PerRow {
    /// Their names, in the order of the compiled graph.
    pub inputs: Vec<String>,
    /// Values of the original that hold the one element of another, spread or in other dimensions.
    pub same: FxHashMap<ValueId, ValueId>,
    /// How operands of the original read them.
    pub readings: FxHashMap<(NodeId, usize), Reading>,
    /// The same in the compiled graph: columns, what they are of, and their number of dimensions.
    pub columns: FxHashMap<ValueId, (ValueId, usize)>,
    /// For each output of the original, the number of dimensions of a column that its rows can be multiplied by.
    ranks: Vec<Option<usize>>,
    /// How the batch is called in the original's inputs.
    batch: Option<Dimension>,
    /// The parts of the original that do not allow it, as sentences.
    pub refusals: Vec<String>,
}

/// How an operand of the original reads the one element of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Broadcast against a tensor of so many dimensions, the batch first.
    Column(usize),
    /// In a way that has no meaning for rows.
    OneForAll,
}

impl PerRow {
    /// Finds the inputs of `compiled` with an element for each row, and what reads them in `original`.
    pub fn of(original: &Graph, compiled: &Graph, edits: &Edits, shapes: &Shapes) -> Self {
        let mut found = Self::default();
        let (mut ones, mut batches) = (FxHashSet::default(), Vec::new());
        let is_fed = |graph: &Graph, value| matches!(graph.value(value).origin, Origin::Input(_));
        for io in compiled.inputs().filter(|io| is_fed(compiled, io.value)) {
            let name = io.info.name();
            let is_rows = matches!(dims(&io.info), Some([dim]) if size(dim).is_none());
            let wanted = original.inputs().find(|wanted| wanted.info.name() == name);
            let is_one = match wanted {
                Some(wanted) => {
                    is_fed(original, wanted.value)
                        && dims(&wanted.info)
                            .is_some_and(|dims| dims.len() < 2 && dims.iter().all(|dim| size(dim) == Some(1)))
                }
                None => name == WEIGHT_INPUT,
            };
            if !is_rows || !is_one {
                continue;
            }
            found.inputs.push(name.to_string());
            found.add_columns(compiled, io.value);
            if let Some(wanted) = wanted {
                found.follow(original, wanted.value, shapes, &mut ones, &mut batches);
            }
        }
        if found.inputs.is_empty() {
            return found;
        }
        let redirects = edits.changes().flat_map(|change| &change.edits).filter_map(|edit| match edit {
            Edit::Redirect(redirect) => Some(redirect),
            Edit::Transform(_) | Edit::Attributes(_) | Edit::Splice(_) | Edit::Merge(_) => None,
        });
        for redirect in redirects.filter(|redirect| ones.contains(&redirect.to)) {
            let name = &original.value(redirect.to).name;
            found.refusals.push(format!("the plan makes modules read `{name}`, which has no rows"));
        }
        let templates = edits.changes().flat_map(Change::splices).map(|splice| &splice.template);
        for value in templates.flat_map(Template::values).filter(|value| ones.contains(value)) {
            let name = &original.value(value).name;
            found.refusals.push(format!("nodes of the plan read `{name}`, which has rows"));
        }
        let inputs = original.inputs().filter_map(|io| {
            let dim = shapes.of(io.value)?.dims.first().filter(|dim| dim.constant().is_none())?;
            Some((dim.clone(), dims(&io.info)?.first()?.clone()))
        });
        let inputs: Vec<(Dim, Dimension)> = inputs.collect();
        let leading = batches.first().or(inputs.first().map(|(dim, _)| dim)).cloned();
        if batches.iter().any(|dim| Some(dim) != leading.as_ref()) {
            found.refusals.push("inputs are spread over batches of different sizes".into());
        }
        let stated = inputs.iter().find(|(dim, _)| Some(dim) == leading.as_ref());
        found.batch = stated.map(|(_, stated)| stated.clone());
        found.ranks = original
            .outputs()
            .iter()
            .map(|io| {
                let dims = &shapes.of(io.value)?.dims;
                (dims.first() == leading.as_ref()).then_some(dims.len())
            })
            .collect();
        found
    }

    /// Returns whether the compiled graph's input `name` has an element for each row.
    pub fn has(&self, name: &str) -> bool {
        self.inputs.iter().any(|input| input == name)
    }

    /// Returns the type that an input with an element for each row must have, if it has one of this type.
    pub fn widened(&self, one: Option<&TypeProto>) -> Option<TypeProto> {
        let mut widened = one?.clone();
        let type_proto::Value::TensorType(tensor) = widened.value.as_mut()? else { return None };
        let value = self.batch.as_ref()?.value.clone();
        tensor.shape.as_mut()?.dim = vec![Dimension { value, ..Dimension::default() }];
        Some(widened)
    }

    /// Returns the number of dimensions of the column that output `index` of the original can be multiplied by.
    pub fn rank(&self, index: usize) -> Option<usize> {
        self.ranks.get(index).copied().flatten()
    }

    /// Follows the one element `value` of the original to everything that reads it.
    fn follow(
        &mut self,
        graph: &Graph,
        value: ValueId,
        shapes: &Shapes,
        ones: &mut FxHashSet<ValueId>,
        batches: &mut Vec<Dim>,
    ) {
        let dims = |value: ValueId| shapes.of(value).map(|shape| &*shape.dims);
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            ones.insert(value);
            for used in graph.uses(value) {
                let (id, slot) = match *used {
                    Use::Operand { node, slot } => (node, slot),
                    Use::Capture(id) => {
                        // The values that bodies refer to come after the operands.
                        let node = graph.node(id);
                        let places = node.inputs.len() + node.captures.len();
                        let all = (0..places).map(|slot| ((id, slot), Reading::OneForAll));
                        self.readings.extend(all);
                        continue;
                    }
                    Use::Output(_) => {
                        let name = &graph.value(value).name;
                        self.refusals.push(format!("`{name}` is an output too, and has no rows"));
                        continue;
                    }
                };
                let node = graph.node(id);
                let result = node.output(0).filter(|_| is_plain(node) && node.results().count() == 1);
                let Some(result) = result else {
                    self.readings.insert((id, slot), Reading::OneForAll);
                    continue;
                };
                let made = dims(result);
                let first = made.and_then(<[Dim]>::first).filter(|dim| dim.constant().is_none());
                let is = |ops: &[&str]| ops.iter().any(|op| node.is(op));
                if slot == 0 && is(&["Cast", "Identity"]) {
                    open.push(result);
                } else if slot == 0
                    && is(&["Unsqueeze", "Squeeze", "Reshape", "Flatten"])
                    && made.is_some_and(|dims| dims.iter().all(|dim| dim.constant() == Some(1)))
                {
                    self.same.insert(result, value);
                    open.push(result);
                } else if slot == 0
                    && is(&["Expand"])
                    && made.is_some_and(|dims| dims.len() == 1)
                    && first.is_some()
                {
                    self.same.insert(result, value);
                    batches.extend(first.cloned());
                } else if is(&["Add", "Sub", "Mul", "Div"])
                    && first.is_some()
                    && other(node, slot, value).and_then(dims) == made
                {
                    let rank = made.map_or(0, <[Dim]>::len);
                    self.readings.insert((id, slot), Reading::Column(rank));
                    batches.extend(first.cloned());
                } else {
                    self.readings.insert((id, slot), Reading::OneForAll);
                }
            }
        }
    }

    /// Finds the columns of `value`, which has an element for each row in the compiled graph.
    fn add_columns(&mut self, graph: &Graph, value: ValueId) {
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            for used in graph.uses(value) {
                let Use::Operand { node, slot: 0 } = *used else { continue };
                let node = graph.node(node);
                let Some(result) = node.output(0).filter(|_| is_plain(node)) else { continue };
                if node.is("Cast") || node.is("Identity") {
                    open.push(result);
                } else if let Some(rank) = column(graph, node) {
                    self.columns.insert(result, (value, rank));
                }
            }
        }
    }
}

/// Returns the other operand of a node of two, if it is another value.
fn other(node: &Node, slot: usize, value: ValueId) -> Option<ValueId> {
    match node.inputs[..] {
        [Some(a), Some(b)] => [b, a].get(slot).copied().filter(|other| *other != value),
        _ => None,
    }
}

/// Returns the number of dimensions of the column that `node` makes, if it is a Reshape to `[-1, 1, ..., 1]` that no
/// caller can make another one.
fn column(graph: &Graph, node: &Node) -> Option<usize> {
    if !node.is("Reshape") || !node.attributes.is_empty() || node.inputs.len() != 2 {
        return None;
    }
    let shape = value::through_identities(graph, node.input(1)?);
    let (DataType::INT64, dims) = value::tensor_type(graph, shape)? else { return None };
    let tensor = value::tensor(graph, shape).ok().filter(|tensor| tensor.input.is_none())?;
    let [rank] = dims[..] else { return None };
    let rank = usize::try_from(rank).ok().filter(|rank| (1..=16).contains(rank))?;
    let mut bytes = vec![0; 8 * rank];
    tensor.elements.read_at(0, &mut bytes).ok()?;
    let mut sizes =
        bytes.chunks_exact(8).map(|bytes| i64::from_le_bytes(*bytes.first_chunk().unwrap_or(&[0; 8])));
    (sizes.next() == Some(-1) && sizes.all(|size| size == 1)).then_some(rank)
}

fn dims(info: &ValueInfo) -> Option<&[Dimension]> {
    match info.0.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => Some(tensor.shape.as_ref()?.dim.as_slice()),
        _ => None,
    }
}

fn size(dim: &Dimension) -> Option<i64> {
    use crate::onnx::proto::tensor_shape_proto::dimension::Value;
    match dim.value {
        Some(Value::DimValue(size)) => Some(size),
        _ => None,
    }
}
