//! Translation validation: is a compiled graph exactly the original plus its plan?
//!
//! The compiled graph is walked back from its outputs, and the original with it, through what the plan says is read
//! in place of what. Every node must agree in operator, attributes (the original's, or those that the plan gives it),
//! bodies and operands; every tensor must hold the original's bytes, or what its prune rule makes of them, with the
//! threshold checked by its definition or selected again. A fused graph is two such walks, one for each network, and
//! the mix of both at its outputs.
//!
//! Harmless, and accepted: other names of values and nodes, another order of nodes, more or fewer Identity nodes, dead
//! nodes that are gone or new, a Constant for an initializer of the same bytes, weights inline or external or shared,
//! other doc strings, operands of Add and Mul that change places (both operators give the same bits either way,
//! IEEE 754; where they differ by nothing but the elements of tensors, only if values kept their names), masks made by operators in front of a weight, and lost metadata of exporters (`pkg.`).

mod calls;
mod classes;
mod error;
mod explain;
mod form;
mod fused_output;
mod interface;
mod kept;
mod masks;
mod merges;
mod per_row;
mod reach;
mod select;
mod signature;
mod substitution;
mod templates;
mod tensor_checks;
mod tensors;
mod threshold_check;
mod value;
mod walk;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use miette::SourceSpan;
use rustc_hash::FxHashSet;

pub use self::error::VerifyError;
use self::{
    classes::{Class, Classes, Interner, Overrides, Side},
    explain::Names,
    interface::{Extra, Stamp},
    kept::Kept,
    merges::Merges,
    per_row::PerRow,
    reach::Reach,
    substitution::Substitution,
    tensor_checks::Pairs,
    walk::{Cause, Cone, Mismatch, Reader, Sides, Walk},
};
use crate::{
    analysis::Analysis,
    ir::{Graph, ValueId},
    observer::{Event, Observer, Progress, Stage},
    plan::{self, Depth, Plan, Target},
};

/// The verdict of a verification.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Verdict {
    /// The form that is proven of the compiled graph, or the one that it was compared with.
    pub form: Form,
    /// The proven facts.
    pub proof: Proof,
    /// The violations, the one furthest up in the graph first. None means proven.
    pub differences: Vec<Violation>,
    /// Worth knowing, but no difference.
    pub notes: Vec<String>,
}

/// The form of a compiled graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Form {
    /// Which graph it is.
    pub target: Target,
    /// Which one of a cache's pair, if it is one of them.
    pub depth: Option<Depth>,
    /// The inputs that have an element for each row of the batch, where the original has one for all.
    pub per_row: Vec<String>,
}

/// The form that a compiled graph must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Required {
    /// Which graph it must be.
    pub target: Target,
    /// Whether it must be one of the two that a cache takes.
    pub cached: bool,
    /// Whether inputs of one element must have one for each row of the batch.
    pub per_row: bool,
}

impl From<Target> for Required {
    fn from(target: Target) -> Self {
        Self { target, cached: false, per_row: false }
    }
}

impl Verdict {
    /// Returns whether the compiled graph is the original plus the plan.
    pub fn is_proven(&self) -> bool {
        self.differences.is_empty()
    }
}

/// The proven facts.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Proof {
    /// Nodes of the compiled graph that have their counterpart.
    pub nodes: usize,
    /// Tensors that hold the original's bytes, in another place.
    pub identical: usize,
    /// Tensors that are masked as their rule says.
    pub masked: usize,
    /// Tensors that hold the original's elements with the sums of LoRAs added.
    pub merged: usize,
    /// Tensors that are the original's own bytes, in the original's own file.
    pub shared: usize,
    /// Bytes of weights that were read.
    pub bytes_read: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// One way in which the compiled graph is not the original plus the plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Violation {
    /// The message, as a sentence without its full stop.
    pub message: String,
    /// The path of the module in which it is wrong.
    pub module: Option<String>,
    /// The original's node, tensor or input there.
    pub expected: Option<String>,
    /// The compiled graph's node, tensor or input there.
    pub found: Option<String>,
    /// The tensor in the compiled graph.
    pub tensor: Option<String>,
    /// The first wrong element of it, in the order of the file.
    pub element: Option<u64>,
    /// The expected and the actual value of that element.
    pub values: Option<(String, String)>,
    /// The rule of the plan that is not followed.
    pub rule: Option<SourceSpan>,
    /// The probable cause.
    pub help: Option<String>,
    rank: usize,
}

impl Violation {
    /// Returns a violation about the whole model, which comes before all others.
    fn first(message: String) -> Self {
        Self { message, ..Self::default() }
    }

    /// Returns a violation about the whole model, which comes after all others.
    fn last(message: String) -> Self {
        Self { message, rank: usize::MAX, ..Self::default() }
    }
}

/// The most violations that are reported.
const MOST: usize = 21;
/// How often a difference is set aside, at most, to look for the next.
const ROUNDS: usize = 64;

/// Decides whether `compiled` is `original` plus `plan`, in the form `required`, or else in any. Both graphs are as they
/// were loaded.
///
/// # Errors
/// [`VerifyError`].
pub fn verify(
    original: &Graph,
    compiled: &Graph,
    plan: &Plan,
    required: Option<Required>,
    observer: &dyn Observer,
) -> Result<Verdict, VerifyError> {
    let started = Instant::now();
    let analysis = Analysis::of(original);
    let edits = plan::resolve(plan, &analysis).map_err(Box::new)?;
    let cut = plan::cut(plan, &analysis, &edits).map_err(Box::new)?;
    let mut kept = cut.and_then(|cut| Kept::of(cut, original, compiled, &analysis.shapes));
    let rows = PerRow::of(original, compiled, &edits, &analysis.shapes);
    observer.check()?;
    // Shapes take as much memory as a graph.
    let modules = analysis.into_modules();
    let mut interner = Interner::with_capacity(original.value_capacity());
    let merges = Merges::of(&edits)?;
    let (mut expected, templates) = templates::beside(original, &edits)?;
    if let Some(kept) = kept.as_mut().filter(|kept| kept.depth == Depth::Shallow) {
        kept.add_inputs(expected.to_mut())?;
    }
    let original_side = Side::new(&expected, &mut interner)?;
    let compiled_side = Side::new(compiled, &mut interner)?;
    observer.check()?;
    let none = Overrides::default();
    let substitution = Substitution::of_dense(&edits, (&rows, &templates), original, &mut interner)?;
    let masks = masks::masked_operands(edits.always.weights()).0;
    let mut dense = Cone { masks, merges: merges.dense.clone(), substitution, ..Cone::default() };
    let (masked, masks) = masks::masked_operands(edits.weights());
    let substitution = Substitution::of_other(&edits, (&rows, &templates), original, &mut interner)?;
    let mut pruned = Cone { masks: masked, merges: merges.other.clone(), substitution, ..Cone::default() };
    if let Some(kept) = &mut kept {
        let reach = Reach::of(&original_side, &pruned, &dense);
        kept.cut(&expected, &reach, [&mut pruned, &mut dense]);
    }
    for cone in [&mut pruned, &mut dense] {
        cone.classes = Classes::of(&original_side, &cone.substitution, &none, &mut interner);
    }
    let dense_values = dense.classes.first_values();
    pruned.reach = Reach::of(&original_side, &pruned, &dense);
    let mut order = vec![usize::MAX - 1; expected.node_capacity()];
    for (at, id) in original.node_ids().enumerate() {
        order[id.index()] = at;
    }
    for id in expected.node_ids() {
        if let Some((_, before)) = templates.nodes.get(&id) {
            order[id.index()] = order[before.index()];
        }
    }
    observer.check()?;
    let stamp = Stamp::of(original, compiled);
    let forms = match required {
        Some(form) => vec![form.target],
        None => Target::candidates(original, compiled, plan, &edits, stamp.as_ref(), [&pruned, &dense]),
    };
    let mut cones = [pruned, dense];
    let mut verifier = Verifier {
        names: Names {
            source: original,
            original: &original_side,
            compiled: &compiled_side,
            modules: &modules,
            templates: &templates,
            edits: &edits,
            order: &order,
            dense: &dense_values,
        },
        plan,
        required,
        rows: &rows,
        kept: kept.as_ref(),
        masks: &masks,
        merges: &merges,
        stamp: stamp.as_ref(),
        interner: &mut interner,
        observer,
    };
    let (likeliest, others) = forms.split_first().unwrap_or((&Target::Pruned, &[]));
    let mut verdict = verifier.compare(*likeliest, &mut cones)?;
    for form in others {
        if verdict.is_proven() {
            break;
        }
        let other = verifier.compare(*form, &mut cones)?;
        if other.is_proven() {
            verdict = other;
        }
    }
    verdict.proof.elapsed = started.elapsed();
    Ok(verdict)
}

/// An observer that counts bytes for another.
struct Counted<'a> {
    observer: &'a dyn Observer,
    bytes: AtomicU64,
}

impl Observer for Counted<'_> {
    fn hear(&self, event: Event<'_>) {
        if let Event::Bytes(_, bytes) = event {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.observer.hear(event);
    }

    fn is_stopped(&self) -> bool {
        self.observer.is_stopped()
    }
}

/// The reference that a compiled graph is compared with.
struct Verifier<'a, 'g> {
    names: Names<'a, 'g>,
    plan: &'a Plan,
    required: Option<Required>,
    rows: &'a PerRow,
    kept: Option<&'a Kept>,
    /// The rule of each mask, and the weight's index in it.
    masks: &'a [(usize, usize)],
    merges: &'a Merges<'a>,
    stamp: Option<&'a Stamp>,
    interner: &'a mut Interner,
    observer: &'a dyn Observer,
}

impl Verifier<'_, '_> {
    /// Compares the compiled graph with the plan in this form. `cones` are the original as the plan changes it, and as
    /// it was.
    fn compare(&mut self, form: Target, cones: &mut [Cone; 2]) -> Result<Verdict, VerifyError> {
        let (original, compiled) = (self.names.source, self.names.compiled.graph);
        let (mut differences, mut notes) = (Vec::new(), Vec::new());
        form.fits(self.plan, self.names.edits, &mut differences);
        self.compare_required(&mut differences);
        interface::compare_models(original, compiled, &mut differences);
        match self.stamp {
            Some(stamp) => {
                let depth = self.kept.map(|kept| kept.depth);
                let rows = (self.rows, depth);
                stamp.compare(&self.names, self.plan, form, rows, &mut differences, &mut notes);
            }
            None if self.names.edits.is_empty() => {}
            None => {
                notes.push("the compiled graph does not say which plan and model it was made from".into())
            }
        }
        if interface::repeated_name(original).is_none()
            && let Some(name) = interface::repeated_name(compiled)
        {
            notes.push(format!("two nodes are called `{name}`: ONNX Runtime refuses such a graph"));
        }
        let [pruned, dense] = cones;
        let reached =
            original.outputs().iter().any(|io| pruned.reach.has(original, [pruned, dense], io.value));
        let weight = form == Target::FusedWithInput && reached;
        let extra = Extra { weight, kept: self.kept.map(|kept| (kept, form.is_fused())) };
        let renamed = interface::compare_inputs(original, compiled, self.rows, extra, &mut differences);
        let (outputs, places) = interface::compare_outputs(original, compiled, extra, &mut differences);
        let mut overrides = Overrides::default();
        for (found, wanted) in renamed {
            overrides.values.extend(dense.classes.get(wanted).map(|class| (found, class)));
        }
        let roots = form.roots(
            [compiled, original],
            self.rows,
            self.plan,
            &outputs,
            [pruned, dense],
            &mut differences,
        );
        (pruned.roots, dense.roots) = (roots.pruned, roots.dense);
        if let Some(kept) = self.kept {
            let networks =
                [(pruned, form != Target::Dense), (dense, form.is_fused() || form == Target::Dense)];
            kept.roots(compiled, &places, form.is_fused(), networks);
        }
        let walk = match_nodes(&self.names, self.rows, &*cones, overrides, self.interner, &mut differences);

        let counted = Counted { observer: self.observer, bytes: AtomicU64::new(0) };
        let progress = Progress::new(&counted, Stage::Checking);
        let factor = form.factor(self.plan);
        let pairs =
            Pairs { names: &self.names, masks: self.masks, merges: self.merges, factor: &*factor, progress };
        let mut proof = pairs.compare_all(&walk, &mut differences)?;
        proof.nodes = walk.matched.len();
        proof.bytes_read = counted.bytes.into_inner();

        differences.sort_by_key(|difference| difference.rank);
        if differences.len() > MOST {
            notes.push(format!("{} more differences are not shown", differences.len() - MOST));
            differences.truncate(MOST);
        }
        let depth = self.kept.map(|kept| kept.depth);
        let form = Form { target: form, depth, per_row: self.rows.inputs.clone() };
        Ok(Verdict { form, proof, differences, notes })
    }

    /// Reports what of the original allows no rows, and what of the form must be there or must not.
    fn compare_required(&self, differences: &mut Vec<Violation>) {
        differences.extend(self.rows.refusals.iter().cloned().map(Violation::last));
        if let Some(required) = self.required
            && required.cached != self.kept.is_some()
        {
            let message = match self.kept {
                None => {
                    "it is no graph for a cache: it has neither an output nor an input called `cache`".into()
                }
                Some(kept) => format!("it is the {} graph for a cache", kept.depth.name()),
            };
            differences.push(Violation::first(message));
        }
        let inputs = &self.rows.inputs;
        match self.required {
            Some(Required { per_row: true, .. }) if inputs.is_empty() => {
                let message =
                    "no input has an element for each row of the batch, where the original has one for all";
                differences.push(Violation::first(message.into()));
            }
            Some(Required { per_row: false, .. }) if !inputs.is_empty() => {
                let message =
                    format!("inputs have an element for each row of the batch: {}", inputs.join(", "));
                differences.push(Violation::first(message));
            }
            _ => {}
        }
    }
}

/// The outputs of the two networks: pairs of values with the index of the compiled graph's output.
#[derive(Default)]
struct Roots {
    pruned: Vec<(ValueId, ValueId, usize)>,
    dense: Vec<(ValueId, ValueId, usize)>,
}

/// Walks until nothing new differs: each difference, once told, is set aside so that what depends on it can be
/// compared all the same.
fn match_nodes(
    names: &Names<'_, '_>,
    rows: &PerRow,
    cones: &[Cone],
    mut overrides: Overrides,
    interner: &mut Interner,
    differences: &mut Vec<Violation>,
) -> Walk {
    let mut told: FxHashSet<(ValueId, ValueId, bool)> = FxHashSet::default();
    let mut last = Walk::default();
    let columns = Substitution::of_compiled(rows);
    for _ in 0..ROUNDS {
        let classes = Classes::of(names.compiled, &columns, &overrides, interner);
        let sides = Sides {
            original: names.original,
            compiled: names.compiled,
            columns: &columns,
            classes: &classes,
            overrides: &overrides,
        };
        let mut found = Walk::default();
        let mut worst: Option<(usize, &Cone, Mismatch)> = None;
        let mut all: Vec<(&Cone, Mismatch)> = Vec::new();
        for cone in cones {
            let before = found.mismatches.len();
            walk::walk(sides, cone, &mut found);
            all.extend(found.mismatches.iter().skip(before).map(|m| (cone, *m)));
        }
        for (cone, mismatch) in &all {
            let rank = names.rank(mismatch);
            if worst.is_none_or(|(least, ..)| rank < least) {
                worst = Some((rank, cone, *mismatch));
            }
        }
        last = found;
        let Some((_, cone, mismatch)) = worst else { break };
        let (compiled, original) = (mismatch.compiled, mismatch.original);
        if told.len() < MOST && told.insert((compiled, original, mismatch.cause == Cause::WrongOperand)) {
            differences.push(names.explain(&mismatch, cone, classes.get(compiled)));
        }
        let Some(class) = mismatch.wanted else { break };
        let same = all.iter().filter(|(_, m)| (m.compiled, m.original) == (compiled, original));
        set_aside(&mut overrides, class, mismatch, same.map(|(_, m)| m.reader));
    }
    last
}

fn set_aside(
    overrides: &mut Overrides,
    class: Class,
    mismatch: Mismatch,
    readers: impl Iterator<Item = Reader>,
) {
    match mismatch.cause {
        // Nothing in the expected network is like the compiled value: it can stand for the expected one everywhere.
        Cause::Different | Cause::Unexpected | Cause::NotDone(_) => {
            overrides.values.insert(mismatch.compiled, class);
        }
        Cause::WrongOperand | Cause::Missing | Cause::NotATensor | Cause::Merged | Cause::Rows(_) => {
            for reader in readers {
                match reader {
                    Reader::Operand { compiled, slot, .. } => {
                        overrides.reads.insert((compiled, slot), class);
                    }
                    Reader::Output(index) => overrides.outputs.push(index),
                }
            }
        }
    }
}
