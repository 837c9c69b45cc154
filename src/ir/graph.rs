//! The graph and its read-only view.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use rayon::iter::Either;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{Editor, InitializerId, Node, NodeId, ValueId, names::Names, weights::NewData};
use crate::onnx::{DataFiles, Source, TensorHeader, ValueInfo, proto::TypeProto};

/// A model's top-level graph, with everything else of the model kept as it came.
#[derive(Clone, Debug)]
pub struct Graph {
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) order: Vec<NodeId>,
    pub(crate) values: Vec<Value>,
    pub(crate) uses: Vec<Vec<Use>>,
    pub(crate) initializers: Vec<Option<Initializer>>,
    pub(crate) inputs: Vec<GraphIo>,
    pub(crate) outputs: Vec<GraphIo>,
    pub(crate) value_info: FxHashMap<ValueId, TypeProto>,
    pub(crate) by_name: Names,
    pub(crate) opsets: BTreeMap<String, i64>,
    pub(crate) layout: Vec<Item>,
    pub(crate) first: Vec<NodeId>,
    /// How many of `first` stand in front.
    pub(crate) front: usize,
    /// Added nodes by the original node that they stand before.
    pub(crate) before: FxHashMap<NodeId, Vec<NodeId>>,
    pub(crate) last: Vec<NodeId>,
    pub(crate) added_initializers: Vec<InitializerId>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) name: String,
    pub(crate) new_name: Option<String>,
    pub(crate) extra_inputs: Vec<GraphIo>,
    /// How many edits were made so far.
    pub(crate) edits: u64,
    /// Names of nodes, those of removed ones too; empty until a node is added.
    pub(crate) node_names: FxHashSet<String>,
    pub(crate) source: Arc<Source>,
}

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its name, unique in the graph.
    pub name: String,
    /// The origin of the value.
    pub origin: Origin,
}

/// The origin of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The graph's input with this index.
    Input(usize),
    /// An initializer (which may be listed as a graph input too: then a caller can override it).
    Initializer(InitializerId),
    /// A sparse initializer, kept as it is.
    SparseInitializer,
    /// A node's result.
    Node {
        /// The node.
        node: NodeId,
        /// Which of its results.
        slot: usize,
    },
    /// Nothing any more: the node or initializer was removed.
    Removed,
}

/// A reader of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Use {
    /// A node's operand.
    Operand {
        /// The node.
        node: NodeId,
        /// Which of its operands.
        slot: usize,
    },
    /// A reference by name from inside a subgraph of this node.
    Capture(NodeId),
    /// The graph's output with this index.
    Output(usize),
}

/// An input or output of the graph.
#[derive(Clone, Debug)]
pub struct GraphIo {
    /// The value.
    pub value: ValueId,
    /// Name and type as the model states them.
    pub info: ValueInfo,
    pub(crate) raw: Bytes,
}

/// An initializer.
#[derive(Clone, Debug)]
pub struct Initializer {
    /// The value that it defines.
    pub value: ValueId,
    /// Name, type, dimensions and where the original elements are.
    pub header: TensorHeader,
    /// New elements, if a pass replaced them.
    pub new_data: Option<NewData>,
}

/// The meaning of one field of the original `GraphProto`, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Item {
    Node(NodeId),
    Initializer(InitializerId),
    Input,
    Output,
    Name,
    /// Kept as long as its value exists, as is an annotation.
    ValueInfo(Option<ValueId>),
    /// A value_info that is not true any more.
    Forgotten,
    Annotation(Option<ValueId>),
    Other,
}

impl Graph {
    /// Returns the nodes in topological order, as the model lists them.
    pub fn node_ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + '_ {
        let is_there = |id: &NodeId| self.nodes[id.index()].is_some();
        // Analyses go through graphs that were not edited, a dozen times.
        if self.first.is_empty() && self.before.is_empty() && self.last.is_empty() {
            return Either::Left(self.order.iter().copied().filter(is_there));
        }
        let with_those_before = |id| self.before.get(id).into_iter().flatten().chain([id]);
        let ordered = self.order.iter().flat_map(with_those_before);
        Either::Right(self.first.iter().chain(ordered).chain(&self.last).copied().filter(is_there))
    }

    /// Returns the nodes with their ids, in topological order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + '_ {
        self.node_ids().filter_map(|id| Some((id, self.nodes[id.index()].as_ref()?)))
    }

    /// Returns the node with this id; `None` once it was removed.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes[id.index()].as_ref()
    }

    /// Returns the node with this id.
    ///
    /// # Panics
    /// If the node was removed: ids of removed nodes must not be kept across a pass.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.index()].as_ref().expect("the node was not removed")
    }

    /// Returns an upper bound of node ids, for side tables indexed by [`NodeId::index`].
    pub fn node_capacity(&self) -> usize {
        self.nodes.len()
    }

    /// Returns an upper bound of value ids, for side tables indexed by [`ValueId::index`].
    pub fn value_capacity(&self) -> usize {
        self.values.len()
    }

    /// Returns all values that were ever defined, removed ones included.
    pub fn value_ids(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len()).map(ValueId::new)
    }

    /// Returns the value with this id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// Returns the value with this name.
    pub fn value_named(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(&self.values, name)
    }

    /// Returns the node that produces `value`, if one does.
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        match self.values[value.index()].origin {
            Origin::Node { node, .. } => Some(node),
            _ => None,
        }
    }

    /// Returns the initializer behind `value`, if it is one.
    pub fn initializer_of(&self, value: ValueId) -> Option<(InitializerId, &Initializer)> {
        match self.values[value.index()].origin {
            Origin::Initializer(id) => Some((id, self.initializers[id.index()].as_ref()?)),
            _ => None,
        }
    }

    /// Returns whether a caller can give `value` in place of its initializer. Before IR version 4, which lists every
    /// initializer as an input, no engine lets a caller do so.
    pub fn is_overridable(&self, value: ValueId) -> bool {
        matches!(self.values[value.index()].origin, Origin::Initializer(_))
            && self.source.ir_version().is_none_or(|version| version >= 4)
            && self.inputs.iter().any(|io| io.value == value)
    }

    /// Returns everything that reads `value`.
    pub fn uses(&self, value: ValueId) -> &[Use] {
        &self.uses[value.index()]
    }

    /// Returns the initializers that are there, in order.
    pub fn initializers(&self) -> impl Iterator<Item = (InitializerId, &Initializer)> + '_ {
        self.initializers.iter().enumerate().filter_map(|(i, x)| Some((InitializerId::new(i), x.as_ref()?)))
    }

    /// Returns the initializer with this id; `None` once it was removed.
    pub fn initializer(&self, id: InitializerId) -> Option<&Initializer> {
        self.initializers[id.index()].as_ref()
    }

    /// Returns the graph's inputs, added ones last.
    pub fn inputs(&self) -> impl Iterator<Item = &GraphIo> + '_ {
        self.inputs.iter().chain(&self.extra_inputs)
    }

    /// Returns the graph's outputs.
    pub fn outputs(&self) -> &[GraphIo] {
        &self.outputs
    }

    /// Returns the type that the model states for `value` (`value_info`): a hint, not to be trusted over inference.
    pub(crate) fn stated_type(&self, value: ValueId) -> Option<&TypeProto> {
        self.value_info.get(&value)
    }

    /// Returns the version of the operator set of `domain` that the model uses (the standard one for `""`).
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let domain = if domain == "ai.onnx" { "" } else { domain };
        self.opsets.get(domain).copied()
    }

    /// Returns the graph's name.
    pub fn name(&self) -> &str {
        self.new_name.as_deref().unwrap_or(&self.name)
    }

    /// Returns whether anything was changed since the graph was loaded.
    pub fn is_edited(&self) -> bool {
        self.edits > 0
    }

    /// Returns how many edits were made since the graph was loaded: as long as it stays, so does the graph.
    pub fn edits(&self) -> u64 {
        self.edits
    }

    /// Returns the model that the graph was read from.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Returns the data files of the model.
    pub fn data_files(&self) -> &Arc<DataFiles> {
        &self.source.data
    }

    /// Starts editing.
    pub fn edit(&mut self) -> Editor<'_> {
        Editor::new(self)
    }
}
