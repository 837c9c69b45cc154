//! A walk of the compiled graph back from its outputs beside the original, read through the plan's substitution.

use std::num::NonZeroU32;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    classes::{Class, Classes, FirstValues, Overrides, Side},
    masks::MaskedOperands,
    merges::MergedOperands,
    per_row::Reading,
    reach::Reach,
    substitution::Substitution,
    value::{self, ValueKind},
};
use crate::ir::{NodeId, ValueId};

/// One of the two networks that a compiled graph can hold: the original as the plan changes it, or as it was.
#[derive(Debug, Default)]
pub(super) struct Cone {
    pub substitution: Substitution,
    /// Classes of the original, read through the substitution.
    pub classes: Classes,
    /// The operands that are masked weights, with the index of their mask.
    pub masks: MaskedOperands,
    /// The operands that are merged weights, with the index of what is added to them.
    pub merges: MergedOperands,
    /// The part of this network that depends on the plan.
    pub reach: Reach,
    /// The outputs: of the compiled graph, of the original, and the index of the graph output they are for.
    pub roots: Vec<(ValueId, ValueId, usize)>,
}

/// Two tensors that must hold the same, or what sums and a mask make of the original's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TensorPair {
    pub compiled: ValueId,
    pub original: ValueId,
    pub edited: Edited,
}

/// The edits of a weight: the indexes of its mask and of the sums that are added to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Edited {
    mask: Option<NonZeroU32>,
    sums: Option<NonZeroU32>,
}

impl Edited {
    fn new(mask: Option<usize>, sums: Option<usize>) -> Self {
        let small = |index: usize| NonZeroU32::MIN.saturating_add(index as u32);
        Self { mask: mask.map(small), sums: sums.map(small) }
    }

    pub fn mask(self) -> Option<usize> {
        self.mask.map(|mask| mask.get() as usize - 1)
    }

    pub fn sums(self) -> Option<usize> {
        self.sums.map(|sums| sums.get() as usize - 1)
    }

    fn is_any(self) -> bool {
        self != Self::default()
    }
}

/// Where a value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Operand of a node of the compiled graph, which is that of a node of the original.
    Operand { compiled: NodeId, slot: usize, original: NodeId },
    /// A graph output.
    Output(usize),
}

/// Two values that should be one and are not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mismatch {
    pub compiled: ValueId,
    pub original: ValueId,
    pub reader: Reader,
    pub cause: Cause,
    /// The class that the compiled value should have.
    pub wanted: Option<Class>,
}

/// Why two values are not the same, as far as classes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The compiled value is what is read without this change of the plan.
    NotDone(usize),
    /// Both are values of the expected network: the wrong one is read.
    WrongOperand,
    /// The compiled graph computes something that the expected network doesn't, on top of what it should read.
    Unexpected,
    /// The expected value is nowhere in the compiled graph.
    Missing,
    /// The nodes that make them differ.
    Different,
    /// They are the same, but what is to be masked or merged is no tensor.
    NotATensor,
    /// They are the same, but stand for another two already, and each time may compute something else.
    Merged,
    /// The original reads one element, and the compiled graph one for each row otherwise than it can be read.
    Rows(Reading),
}

/// The result of a walk.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Nodes of the compiled graph that have their counterpart.
    pub matched: FxHashSet<NodeId>,
    /// Tensors still to be compared, each with one place where it is read.
    pub tensors: Vec<(TensorPair, Reader)>,
    pub mismatches: Vec<Mismatch>,
    /// The one counterpart of each random node of the original, or two: one that depends on the plan, one that doesn't.
    random: FxHashMap<(NodeId, bool), NodeId>,
    /// The other way round.
    random_of: FxHashMap<NodeId, NodeId>,
}

/// The graphs being compared.
#[derive(Clone, Copy)]
pub(super) struct Sides<'a, 'g> {
    pub original: &'a Side<'g>,
    pub compiled: &'a Side<'g>,
    /// Columns of the compiled graph.
    pub columns: &'a Substitution,
    /// Classes of the compiled graph.
    pub classes: &'a Classes,
    pub overrides: &'a Overrides,
}

struct Item {
    compiled: ValueId,
    original: ValueId,
    edited: Edited,
    reader: Reader,
    /// The class that it must have, if it must be something else than the original's value.
    wanted: Option<(Class, Reading)>,
}

/// Matches everything that the roots of `cone` depend on.
pub(super) fn walk(sides: Sides<'_, '_>, cone: &Cone, found: &mut Walk) {
    let mut walker = Walker {
        sides,
        cone,
        expected: cone.classes.first_values(),
        present: sides.classes.first_values(),
        pairs: vec![None; sides.compiled.graph.node_capacity()],
        more_pairs: FxHashSet::default(),
        differing: FxHashSet::default(),
        tensors: FxHashSet::default(),
        open: Vec::new(),
        found,
    };
    for (compiled, original, index) in &cone.roots {
        if !sides.overrides.outputs.contains(index) {
            let (compiled, original, reader) = (*compiled, *original, Reader::Output(*index));
            let edited = Edited::default();
            walker.open.push(Item { compiled, original, edited, reader, wanted: None });
        }
    }
    while let Some(item) = walker.open.pop() {
        walker.visit(&item);
    }
}

struct Walker<'a, 'g> {
    sides: Sides<'a, 'g>,
    cone: &'a Cone,
    expected: FirstValues,
    present: FirstValues,
    /// For each node of the compiled graph, the node of the original that it was first compared with, and for which edits.
    pairs: Vec<Option<(NodeId, Edited)>>,
    /// What nodes were compared with besides.
    more_pairs: FxHashSet<(NodeId, NodeId, Edited)>,
    differing: FxHashSet<(ValueId, ValueId)>,
    tensors: FxHashSet<TensorPair>,
    open: Vec<Item>,
    found: &'a mut Walk,
}

impl Walker<'_, '_> {
    fn visit(&mut self, item: &Item) {
        let Sides { original, compiled, classes, overrides, .. } = self.sides;
        if let Reader::Operand { compiled, slot, .. } = item.reader
            && overrides.reads.contains_key(&(compiled, slot))
        {
            return;
        }
        let have = value::through_identities(compiled.graph, item.compiled);
        let want = self.cone.substitution.source(original.graph, item.original);
        if overrides.values.contains_key(&have) {
            return;
        }
        if let Some((_, reading)) = item.wanted {
            return self.visit_rows(item, have, want, reading);
        }
        let (have_class, want_class) = (classes.get(have), self.cone.classes.get(want));
        if have_class.is_none() || have_class != want_class {
            return self.differ(item, have, want);
        }
        match (compiled.kind(have), original.kind(want)) {
            (ValueKind::Input, ValueKind::Input) | (ValueKind::Sparse, ValueKind::Sparse)
                if !item.edited.is_any() => {}
            (ValueKind::Tensor, ValueKind::Tensor) => {
                let pair = TensorPair { compiled: have, original: want, edited: item.edited };
                if self.tensors.insert(pair) {
                    self.found.tensors.push((pair, item.reader));
                }
            }
            (ValueKind::Result, ValueKind::Result) => {
                let (Some(a), Some(b)) = (compiled.graph.producer(have), original.graph.producer(want))
                else {
                    return self.differ(item, have, want);
                };
                if item.edited.is_any() && !is_view(self.sides, b) {
                    return self.mismatch(item, have, want, Cause::NotATensor);
                }
                if original.is_random(b) && !self.is_only_pair(a, b) {
                    return self.mismatch(item, have, want, Cause::Merged);
                }
                if self.is_new_pair(a, b, item.edited) {
                    self.found.matched.insert(a);
                    self.descend(a, b, item.edited);
                }
            }
            _ if item.edited.is_any() => self.mismatch(item, have, want, Cause::NotATensor),
            _ => self.differ(item, have, want),
        }
    }

    /// Goes on behind the column that `have` must be.
    fn visit_rows(&mut self, item: &Item, have: ValueId, want: ValueId, reading: Reading) {
        match (reading, self.sides.columns.column(have)) {
            (Reading::Column(rank), Some((rows, found))) if found == rank => {
                self.found.matched.extend(self.sides.compiled.graph.producer(have));
                self.open.push(Item { compiled: rows, wanted: None, ..*item });
            }
            _ => self.mismatch(item, have, want, Cause::Rows(reading)),
        }
    }

    fn mismatch(&mut self, item: &Item, compiled: ValueId, original: ValueId, cause: Cause) {
        let wanted = item.wanted.map(|(class, _)| class).or_else(|| self.cone.classes.get(original));
        self.found.mismatches.push(Mismatch { compiled, original, reader: item.reader, cause, wanted });
    }

    /// Returns whether two nodes were not compared yet for these edits.
    fn is_new_pair(&mut self, compiled: NodeId, original: NodeId, edited: Edited) -> bool {
        let first = &mut self.pairs[compiled.index()];
        match *first {
            None => {
                *first = Some((original, edited));
                true
            }
            Some(known) if known == (original, edited) => false,
            Some(_) => self.more_pairs.insert((compiled, original, edited)),
        }
    }

    /// Returns whether two random nodes stand for each other and nothing else: each draws numbers of its own.
    fn is_only_pair(&mut self, compiled: NodeId, original: NodeId) -> bool {
        let key = (original, self.cone.reach.has_node(original));
        *self.found.random.entry(key).or_insert(compiled) == compiled
            && *self.found.random_of.entry(compiled).or_insert(original) == original
    }

    /// Goes on to the operands of two nodes that compute the same.
    fn descend(&mut self, compiled: NodeId, original: NodeId, edited: Edited) {
        let (have, want) = (self.sides.compiled.reads(compiled), self.sides.original.reads(original));
        let swapped = self.is_swapped(compiled, original);
        let view = is_view(self.sides, original);
        for (slot, value) in have.iter().enumerate() {
            let other = if swapped { have.len() - 1 - slot } else { slot };
            let (Some(value), Some(wanted)) = (*value, want.get(other).copied().flatten()) else { continue };
            let wanted = self.cone.substitution.operand(original, other, wanted);
            // Edits asked for at a multiplication are those of the tensor behind Transpose and Cast.
            let inherited = if view && other == 0 { edited } else { Edited::default() };
            let read = (original, other);
            let mask = self.cone.masks.get(&read).copied().or(inherited.mask());
            let sums = self.cone.merges.get(&read).copied().or(inherited.sums());
            self.open.push(Item {
                compiled: value,
                original: wanted,
                edited: Edited::new(mask, sums),
                reader: Reader::Operand { compiled, slot, original },
                wanted: self
                    .cone
                    .classes
                    .reading(original, other)
                    .zip(self.cone.substitution.reading(original, other)),
            });
        }
    }

    /// Returns whether the operands of a commutative node stand the other way round: more of them agree then. Where
    /// classes don't tell, because both operands are computed alike from other tensors, names say where to look.
    fn is_swapped(&self, compiled: NodeId, original: NodeId) -> bool {
        let Sides { compiled: side, original: other, .. } = self.sides;
        let ([Some(a), Some(b)], [Some(x), Some(y)]) = (side.reads(compiled), other.reads(original)) else {
            return false;
        };
        let substitution = &self.cone.substitution;
        let (x, y) = (&substitution.operand(original, 0, *x), &substitution.operand(original, 1, *y));
        let agree = |have: (ValueId, usize), slot: usize, want: ValueId| {
            let class = self.sides.overrides.reads.get(&(compiled, have.1)).copied();
            let class =
                class.or_else(|| self.sides.classes.get(value::through_identities(side.graph, have.0)));
            let want = self.cone.substitution.source(other.graph, want);
            let expected = self.cone.classes.reading(original, slot).or_else(|| self.cone.classes.get(want));
            usize::from(class.is_some() && class == expected)
        };
        let named = |have: ValueId, want: ValueId| {
            let have = value::through_identities(side.graph, have);
            let want = self.cone.substitution.source(other.graph, want);
            usize::from(side.graph.value(have).name == other.graph.value(want).name)
        };
        let straight = (agree((*a, 0), 0, *x) + agree((*b, 1), 1, *y), named(*a, *x) + named(*b, *y));
        let crossed = (agree((*a, 0), 1, *y) + agree((*b, 1), 0, *x), named(*a, *y) + named(*b, *x));
        side.is_commutative(compiled) && straight < crossed
    }

    /// Finds out why two values differ: here, or further up.
    fn differ(&mut self, item: &Item, have: ValueId, want: ValueId) {
        let Sides { original, compiled, classes, .. } = self.sides;
        let class = classes.get(have);
        let known = class.is_some_and(|class| self.expected.get(class).is_some());
        let present = self.cone.classes.get(want).is_some_and(|class| self.present.get(class).is_some());
        let tensors = (compiled.kind(have), original.kind(want)) == (ValueKind::Tensor, ValueKind::Tensor);
        let cause = match (self.not_done(item.original, class), known, present) {
            (Some(change), ..) => Cause::NotDone(change),
            _ if tensors => Cause::Different,
            _ if self.go_on(have, want, known) => return,
            (None, true, true) => Cause::WrongOperand,
            (None, false, true) => Cause::Unexpected,
            (None, true, false) => Cause::Missing,
            (None, false, false) => Cause::Different,
        };
        self.mismatch(item, have, want, cause);
    }

    /// Goes on to the operands if two values differ only because their operands do: always if the compiled one is like
    /// nothing in the expected network (`known`), else if their nodes have one name. Names say only where to look.
    fn go_on(&mut self, have: ValueId, want: ValueId, known: bool) -> bool {
        let Sides { original, compiled, .. } = self.sides;
        let (Some(a), Some(b)) = (compiled.graph.producer(have), original.graph.producer(want)) else {
            return false;
        };
        let (found, expected) = (compiled.graph.node(a), original.graph.node(b));
        let slot = |outputs: &[Option<ValueId>], value| outputs.iter().position(|v| *v == Some(value));
        let named = found.name == expected.name && !found.name.is_empty();
        let same = compiled.signature(a).is_some()
            && compiled.signature(a) == self.cone.substitution.signature(b).or(original.signature(b))
            && slot(&found.outputs, have) == slot(&expected.outputs, want);
        if !same || known && !named {
            return false;
        }
        if self.differing.insert((have, want)) {
            self.descend(a, b, Edited::default());
        }
        true
    }

    /// Returns the change that should have replaced the value of this class, if readers of `original` should read its
    /// skip, or the result of a template.
    fn not_done(&self, original: ValueId, class: Option<Class>) -> Option<usize> {
        let graph = self.sides.original.graph;
        if let Some((value, change)) = self.cone.substitution.spliced(original) {
            let value = self.cone.substitution.source(graph, value);
            return (class.is_some() && class == self.cone.classes.get(value)).then_some(change);
        }
        let mut value = original;
        for _ in 0..graph.node_capacity() {
            if let Some((skip, bypass)) = self.cone.substitution.skip(value) {
                if class.is_some() && class == self.cone.classes.get(value) {
                    return Some(bypass);
                }
                value = skip;
            } else {
                value = value::behind_identity(graph, value)?;
            }
        }
        None
    }
}

fn is_view(sides: Sides<'_, '_>, original: NodeId) -> bool {
    let node = sides.original.graph.node(original);
    ["Transpose", "Cast"].iter().any(|op| node.is(op))
}
