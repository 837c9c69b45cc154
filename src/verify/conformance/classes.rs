//! Value numbering: two values have one class exactly if the same operators compute them from the same inputs and
//! from tensors of the same types and dimensions. The elements of the tensors are compared later.

use std::{hash::BuildHasher, num::NonZeroU32};

use hashbrown::{HashTable, hash_table::Entry};
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::{
    per_row::Reading,
    signature::{Signature, signature},
    substitution::Substitution,
    value::{self, ValueKind},
};
use crate::{
    ir::{Graph, NodeId, ValueId},
    onnx::OnnxError,
    verify::{canonical::Canonical, hash::Hash},
};

/// A class, the same number in every graph of one [`Interner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Class(NonZeroU32);

impl Class {
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Input(Box<str>),
    Tensor(i32, Box<[i64]>),
    Sparse(Box<Hash>),
    Result {
        signature: u32,
        slot: u32,
        operands: Box<[Option<Class>]>,
    },
    /// The elements of rows as `[rows, 1, ..., 1]` of so many dimensions.
    Column(Class, usize),
    /// A reading of the one element of an input, where it has an element for each row: equal to nothing.
    OneForAll(NodeId, usize),
    /// A value that depends on itself, or was removed: equal to nothing else of that name.
    Nothing(Box<str>),
}

/// Numbers classes and signatures.
#[derive(Debug, Default)]
pub(super) struct Interner {
    /// The key of each class.
    keys: Vec<Key>,
    by_key: HashTable<Class>,
    signatures: FxHashMap<Vec<u8>, u32>,
}

impl Interner {
    /// Returns one with room for so many classes.
    pub fn with_capacity(classes: usize) -> Self {
        let (keys, by_key) = (Vec::with_capacity(classes), HashTable::with_capacity(classes));
        Self { keys, by_key, signatures: FxHashMap::default() }
    }

    fn class(&mut self, key: Key) -> Class {
        let Self { keys, by_key, .. } = self;
        let hash = |key: &Key| FxBuildHasher.hash_one(key);
        let is_known = |class: &Class| keys[class.index()] == key;
        match by_key.entry(hash(&key), is_known, |class| hash(&keys[class.index()])) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                let class = Class(NonZeroU32::MIN.saturating_add(keys.len() as u32));
                keys.push(key);
                *place.insert(class).get()
            }
        }
    }

    /// Returns the number of a signature.
    pub fn signature(&mut self, bytes: Vec<u8>) -> u32 {
        let next = self.signatures.len() as u32;
        *self.signatures.entry(bytes).or_insert(next)
    }
}

/// A graph with what is compared of each node and each value that no node computes.
#[derive(Debug)]
pub(super) struct Side<'g> {
    pub graph: &'g Graph,
    nodes: Vec<Option<Shape>>,
    kinds: Vec<ValueKind>,
    leaves: Vec<Option<Class>>,
}

/// The comparable part of one node.
#[derive(Debug)]
struct Shape {
    signature: u32,
    /// The values that it reads, where they are not just its operands.
    reads: Option<Box<[Option<ValueId>]>>,
    commutative: bool,
    random: bool,
}

impl<'g> Side<'g> {
    /// Looks at every node and leaf of `graph`.
    ///
    /// # Errors
    /// [`OnnxError`] if a tensor in an attribute cannot be read.
    pub fn new(graph: &'g Graph, interner: &mut Interner) -> Result<Self, OnnxError> {
        let mut nodes: Vec<Option<Shape>> = Vec::new();
        nodes.resize_with(graph.node_capacity(), || None);
        let kinds: Vec<ValueKind> = graph.value_ids().map(|value| value::kind(graph, value)).collect();
        for (id, node) in graph.nodes() {
            if node.results().any(|v| kinds[v.index()] == ValueKind::Result) {
                let Signature { bytes, reads, is_random: random } = signature(graph, id, &node.attributes)?;
                let commutative =
                    (node.is("Add") || node.is("Mul")) && matches!(reads[..], [Some(_), Some(_)]);
                let reads = (reads != *node.inputs).then(|| reads.into());
                nodes[id.index()] =
                    Some(Shape { signature: interner.signature(bytes), reads, commutative, random });
            }
        }
        let sparse: FxHashMap<String, Hash> = match kinds.contains(&ValueKind::Sparse) {
            true => Canonical::exact(graph).sparse_initializers()?.into_iter().collect(),
            false => FxHashMap::default(),
        };
        let mut leaves = vec![None; graph.value_capacity()];
        for id in graph.value_ids() {
            let name = || graph.value(id).name.as_str().into();
            let key = match kinds[id.index()] {
                ValueKind::Input => Key::Input(name()),
                ValueKind::Tensor => match value::tensor_type(graph, id) {
                    Some((data_type, dims)) => Key::Tensor(data_type.0, dims.into()),
                    None => Key::Nothing(name()),
                },
                ValueKind::Sparse => match sparse.get(&graph.value(id).name) {
                    Some(hash) => Key::Sparse(Box::new(*hash)),
                    None => Key::Nothing(name()),
                },
                ValueKind::Nothing => Key::Nothing(name()),
                ValueKind::Result => continue,
            };
            leaves[id.index()] = Some(interner.class(key));
        }
        Ok(Self { graph, nodes, kinds, leaves })
    }

    /// Returns the class of `value`.
    pub fn kind(&self, value: ValueId) -> ValueKind {
        self.kinds[value.index()]
    }

    /// Returns the values that node `id` reads: operands, then those that its bodies refer to.
    pub fn reads(&self, id: NodeId) -> &[Option<ValueId>] {
        match &self.nodes[id.index()] {
            Some(Shape { reads: Some(reads), .. }) => reads,
            Some(Shape { reads: None, .. }) => &self.graph.node(id).inputs,
            None => &[],
        }
    }

    /// Returns whether both operands of node `id` can change places: Add and Mul give the same bits either way (IEEE
    /// 754).
    pub fn is_commutative(&self, id: NodeId) -> bool {
        self.nodes[id.index()].as_ref().is_some_and(|shape| shape.commutative)
    }

    /// Returns whether another node like `id`, with the same operands, may compute something else.
    pub fn is_random(&self, id: NodeId) -> bool {
        self.nodes[id.index()].as_ref().is_some_and(|shape| shape.random)
    }

    /// Returns the number of the node's signature.
    pub fn signature(&self, id: NodeId) -> Option<u32> {
        self.nodes[id.index()].as_ref().map(|shape| shape.signature)
    }
}

/// Values, and places where values are read, whose class is taken to be another one.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub values: FxHashMap<ValueId, Class>,
    pub reads: FxHashMap<(NodeId, usize), Class>,
    pub outputs: Vec<usize>,
}

/// The class of every value of a graph, as it is made.
#[derive(Debug, Default)]
pub(super) struct Classes {
    values: Vec<Option<Class>>,
    /// Those of operands that read something else than the value: [`Reading`].
    readings: FxHashMap<(NodeId, usize), Class>,
}

impl Classes {
    /// Returns the classes of `side`, whose nodes read and are what `substitution` says.
    pub fn of(
        side: &Side<'_>,
        substitution: &Substitution,
        overrides: &Overrides,
        interner: &mut Interner,
    ) -> Self {
        let mut classes = Self { values: side.leaves.clone(), readings: FxHashMap::default() };
        #[allow(clippy::iter_over_hash_type, reason = "each entry sets a value of its own")]
        for (value, class) in &overrides.values {
            classes.values[value.index()] = Some(*class);
        }
        // Substituted operands can come after their readers in the file: depth first, without recursion.
        let mut open = vec![false; side.graph.value_capacity()];
        let mut stack = Vec::new();
        for root in side.graph.value_ids() {
            stack.push(root);
            while let Some(value) = stack.pop() {
                if classes.values[value.index()].is_some() {
                    continue;
                }
                let Some(missing) = classes.make(side, substitution, overrides, value, interner) else {
                    continue;
                };
                if std::mem::replace(&mut open[value.index()], true) {
                    let name = side.graph.value(value).name.as_str().into();
                    classes.values[value.index()] = Some(interner.class(Key::Nothing(name)));
                    continue;
                }
                stack.push(value);
                stack.extend(missing);
            }
        }
        classes
    }

    /// Gives `value` its class, or returns the values whose classes are needed first.
    fn make(
        &mut self,
        side: &Side<'_>,
        substitution: &Substitution,
        overrides: &Overrides,
        value: ValueId,
        interner: &mut Interner,
    ) -> Option<Vec<ValueId>> {
        let read = |node, slot, value| substitution.read(substitution.operand(node, slot, value));
        if let Some(operand) = value::behind_identity(side.graph, value) {
            let node = side.graph.producer(value)?;
            let operand = read(node, 0, operand);
            let class = overrides.reads.get(&(node, 0)).copied().or(self.values[operand.index()]);
            self.values[value.index()] = class;
            return if class.is_none() { Some(vec![operand]) } else { None };
        }
        if let Some((operand, rank)) = substitution.column(value) {
            let class = self.values[operand.index()].map(|class| interner.class(Key::Column(class, rank)));
            self.values[value.index()] = class;
            return if class.is_none() { Some(vec![operand]) } else { None };
        }
        let node = side.graph.producer(value)?;
        let slot = side.graph.node(node).outputs.iter().position(|v| *v == Some(value))?;
        let shape = side.nodes[node.index()].as_ref()?;
        let mut missing = Vec::new();
        let reads = side.reads(node);
        let mut operands = Vec::with_capacity(reads.len());
        for (index, operand) in reads.iter().enumerate() {
            let Some(operand) = operand.map(|operand| read(node, index, operand)) else {
                operands.push(None);
                continue;
            };
            match overrides.reads.get(&(node, index)).copied().or(self.values[operand.index()]) {
                Some(class) => {
                    let key = match substitution.reading(node, index) {
                        None => None,
                        Some(Reading::Column(rank)) => Some(Key::Column(class, rank)),
                        Some(Reading::OneForAll) => Some(Key::OneForAll(node, index)),
                    };
                    let read = key.map(|key| interner.class(key));
                    self.readings.extend(read.map(|read| ((node, index), read)));
                    operands.push(Some(read.unwrap_or(class)));
                }
                None => missing.push(operand),
            }
        }
        if !missing.is_empty() {
            return Some(missing);
        }
        if shape.commutative {
            operands.sort_unstable_by_key(|class| class.map(|c| c.0));
        }
        let signature = substitution.signature(node).unwrap_or(shape.signature);
        let key = Key::Result { signature, slot: slot as u32, operands: operands.into() };
        self.values[value.index()] = Some(interner.class(key));
        None
    }

    /// Returns the class of `value` as it is made, whatever its readers read instead.
    pub fn get(&self, value: ValueId) -> Option<Class> {
        self.values.get(value.index()).copied().flatten()
    }

    /// Returns the class that operand `slot` of `node` must be of, if it must be something else than the value that it
    /// reads.
    pub fn reading(&self, node: NodeId, slot: usize) -> Option<Class> {
        self.readings.get(&(node, slot)).copied()
    }

    /// Returns, for each class, the first value that has it.
    pub fn first_values(&self) -> FirstValues {
        let mut first = Vec::new();
        for (index, class) in self.values.iter().enumerate() {
            let Some(class) = class.map(Class::index) else { continue };
            if first.len() <= class {
                first.resize(class + 1, None);
            }
            first[class].get_or_insert(ValueId::new(index));
        }
        FirstValues(first)
    }
}

/// For each class, the first value of a graph that has it.
#[derive(Debug)]
pub(super) struct FirstValues(Vec<Option<ValueId>>);

impl FirstValues {
    /// Returns the first value of `class`.
    pub fn get(&self, class: Class) -> Option<ValueId> {
        self.0.get(class.index()).copied().flatten()
    }
}
