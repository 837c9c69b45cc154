//! Matching of nodes: which node of one graph is which of the other.
//!
//! Pairs are found by ever weaker evidence, each kind for all nodes before the next: the same computation from the
//! inputs on and the same uses down to the outputs, in the same module and then in any; the node's name with its
//! module, or with all that it is by itself; being next to a pair; the same operator in the same place of the same
//! module. A bypass leaves everything before it with its forward hash and everything after it with its backward hash,
//! so the later kinds only matter between two edits.

use std::collections::BTreeMap;

use super::fingerprint::{Fingerprints, compared};
use crate::{
    analysis::modules::Modules,
    ir::{Graph, Node, NodeId, Use},
    verify::{
        constant::is_constant,
        hash::{Hash, Hasher},
    },
};

/// One of the two graphs.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Its modules.
    pub modules: &'a Modules,
    /// Hashes that know no weights.
    pub structure: &'a Fingerprints,
    /// Hashes that know the weights; the same as `structure` if weights don't count.
    pub weights: &'a Fingerprints,
}

impl Side<'_> {
    /// Returns the path of the module that `node` is in; empty for the root.
    pub fn path(&self, node: NodeId) -> &str {
        &self.modules.get(self.modules.of_node(node)).path
    }
}

/// Pairs of nodes.
#[derive(Clone, Debug)]
pub struct Matching {
    /// For each node of the first graph its partner in the second.
    pub of_a: Vec<Option<NodeId>>,
    /// For each node of the second graph its partner in the first.
    pub of_b: Vec<Option<NodeId>>,
}

impl Matching {
    fn add(&mut self, a: NodeId, b: NodeId) {
        self.of_a[a.index()] = Some(b);
        self.of_b[b.index()] = Some(a);
    }
}

/// The key by which nodes are paired.
type Key = fn(&Side<'_>, NodeId, &Node) -> Option<Hash>;

/// Strongest first.
const BY_HASH: [Key; 5] = [
    |s, id, _| Some(in_module(s, id).bytes(&s.weights.forward[id.index()]).finish()),
    |s, id, _| Some(in_module(s, id).bytes(&s.weights.backward[id.index()]).finish()),
    |s, id, _| {
        let (forward, backward) = (&s.structure.forward[id.index()], &s.structure.backward[id.index()]);
        Some(in_module(s, id).bytes(forward).bytes(backward).finish())
    },
    |s, id, _| Some(in_module(s, id).bytes(&s.structure.forward[id.index()]).finish()),
    |s, id, _| Some(in_module(s, id).bytes(&s.structure.backward[id.index()]).finish()),
];
const BY_NAME: [Key; 2] = [
    |s, id, node| {
        let named = in_module(s, id).text(&node.name).text(&node.domain).text(&node.op_type);
        (!node.name.is_empty()).then(|| named.finish())
    },
    |s, id, node| {
        let named = Hasher::new("name").text(&node.name).bytes(&s.structure.local[id.index()]);
        (!node.name.is_empty()).then(|| named.finish())
    },
];
const BY_HASH_ANYWHERE: [Key; 3] = [
    |s, id, _| Some(s.weights.forward[id.index()]),
    |s, id, _| Some(s.weights.backward[id.index()]),
    |s, id, _| {
        let (forward, backward) = (&s.structure.forward[id.index()], &s.structure.backward[id.index()]);
        Some(Hasher::new("both").bytes(forward).bytes(backward).finish())
    },
];
const BY_PLACE: [Key; 2] = [
    |s, id, _| Some(in_module(s, id).bytes(&s.structure.local[id.index()]).finish()),
    |s, id, node| Some(in_module(s, id).text(&node.domain).text(&node.op_type).finish()),
];
const BY_STRUCTURE_ANYWHERE: [Key; 2] =
    [|s, id, _| Some(s.structure.forward[id.index()]), |s, id, _| Some(s.structure.backward[id.index()])];

fn in_module(side: &Side<'_>, node: NodeId) -> Hasher {
    Hasher::new("module").text(side.path(node))
}

/// Pairs the nodes of two graphs.
pub fn matching(a: &Side<'_>, b: &Side<'_>) -> Matching {
    let mut found =
        Matching { of_a: vec![None; a.graph.node_capacity()], of_b: vec![None; b.graph.node_capacity()] };
    for key in BY_HASH.into_iter().chain(BY_NAME).chain(BY_HASH_ANYWHERE) {
        pair(a, b, key, &mut found);
    }
    spread(a, b, &mut found);
    for key in BY_PLACE {
        pair(a, b, key, &mut found);
    }
    spread(a, b, &mut found);
    for key in BY_STRUCTURE_ANYWHERE {
        pair(a, b, key, &mut found);
    }
    found
}

/// Pairs free nodes with equal keys, in their order.
fn pair(a: &Side<'_>, b: &Side<'_>, key: Key, found: &mut Matching) {
    let mut groups: BTreeMap<Hash, (Vec<NodeId>, Vec<NodeId>)> = BTreeMap::new();
    for (id, node) in compared(a.graph).filter(|(id, _)| found.of_a[id.index()].is_none()) {
        if let Some(key) = key(a, id, node) {
            groups.entry(key).or_default().0.push(id);
        }
    }
    for (id, node) in compared(b.graph).filter(|(id, _)| found.of_b[id.index()].is_none()) {
        if let Some(group) = key(b, id, node).and_then(|key| groups.get_mut(&key)) {
            group.1.push(id);
        }
    }
    for (ours, theirs) in groups.into_values() {
        for (a, b) in ours.into_iter().zip(theirs) {
            found.add(a, b);
        }
    }
}

/// Pairs nodes that are next to pairs: the producers of the same operand, and the only free reader on each side.
fn spread(a: &Side<'_>, b: &Side<'_>, found: &mut Matching) {
    let mut open: Vec<(NodeId, NodeId)> =
        compared(a.graph).filter_map(|(id, _)| Some((id, found.of_a[id.index()]?))).collect();
    while let Some((ours, theirs)) = open.pop() {
        let (Some(our_node), Some(their_node)) = (a.graph.get(ours), b.graph.get(theirs)) else { continue };
        let mut candidates = Vec::new();
        for (x, y) in our_node.inputs.iter().zip(&their_node.inputs) {
            let producers = x.and_then(|x| a.graph.producer(x)).zip(y.and_then(|y| b.graph.producer(y)));
            candidates.extend(producers);
        }
        for (x, y) in our_node.outputs.iter().zip(&their_node.outputs) {
            let (Some(x), Some(y)) = (x, y) else { continue };
            let x = free_readers(a.graph.uses(*x), &found.of_a);
            let y = free_readers(b.graph.uses(*y), &found.of_b);
            if let ([(x, x_slot)], [(y, y_slot)]) = (x.as_slice(), y.as_slice())
                && x_slot == y_slot
            {
                candidates.push((*x, *y));
            }
        }
        for (x, y) in candidates {
            let free = found.of_a[x.index()].is_none() && found.of_b[y.index()].is_none();
            if free && alike(a, x, b, y) {
                found.add(x, y);
                open.push((x, y));
            }
        }
    }
}

fn free_readers(uses: &[Use], partners: &[Option<NodeId>]) -> Vec<(NodeId, usize)> {
    let operand = |used: &Use| match *used {
        Use::Operand { node, slot } if partners[node.index()].is_none() => Some((node, slot)),
        _ => None,
    };
    uses.iter().filter_map(operand).collect()
}

/// Returns whether two nodes could be the same: one operator, and no two known modules.
fn alike(a: &Side<'_>, x: NodeId, b: &Side<'_>, y: NodeId) -> bool {
    let (Some(our_node), Some(their_node)) = (a.graph.get(x), b.graph.get(y)) else { return false };
    let (ours, theirs) = (a.path(x), b.path(y));
    our_node.op_type == their_node.op_type
        && our_node.domain == their_node.domain
        && !is_constant(our_node)
        && (ours == theirs || ours.is_empty() || theirs.is_empty())
}
