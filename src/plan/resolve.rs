//! Resolution of a plan against a model, from paths to ids. All rules are resolved against the model as it came, so
//! their order means nothing, and weights inside a bypassed module still count in their pool.

use miette::SourceSpan;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{Plan, PlanError, PlanSource};
use crate::{
    analysis::{Analysis, splice::Splice},
    ir::NodeId,
    rules::{Change, EditSet, Edits, Model, Rule, idle},
};

/// Resolves `plan` against an analysed model.
///
/// # Errors
/// [`PlanError`] with everything that is wrong: a selector that matches nothing, a bypass that is not legal, weights
/// that cannot be masked, a weight that two rules mask.
pub fn resolve(plan: &Plan, analysis: &Analysis<'_>) -> Result<Edits, PlanError> {
    let mut errors = Vec::new();
    let model = Model { analysis, source: &plan.source };
    let always = set(&plan.always, &model, &mut errors);
    let mut edits = Edits { always, other: set(&plan.rules, &model, &mut errors) };
    refuse_overlaps(&plan.source, &edits, &mut errors);
    refuse_idleness(&model, &edits, &mut errors);
    refuse_other_sizes(&model, &mut edits, &mut errors);
    match PlanError::combine(errors) {
        Some(error) => Err(error),
        None => Ok(edits),
    }
}

fn set(rules: &[Rule], model: &Model<'_>, errors: &mut Vec<PlanError>) -> EditSet {
    let mut changes: Vec<Change> = Vec::new();
    for rule in rules {
        for change in rule.kind().resolve(model, errors) {
            let same = |known: &&Change| {
                known.rule == change.rule && known.module.is_some() && known.module == change.module
            };
            match changes.iter().find(same) {
                None => changes.push(change),
                Some(known) if known.how == change.how => {}
                Some(_) => errors.push(rule.kind().two_ways(model.source, &change)),
            }
        }
    }
    changes.sort_by_key(|change| (change.module.is_none(), change.module));
    EditSet { changes }
}

/// Reports a plan each of whose rules is for a part that the network does not have.
fn refuse_idleness(model: &Model<'_>, edits: &Edits, errors: &mut Vec<PlanError>) {
    let Some(first) = edits.changes().next().filter(|_| errors.is_empty()) else { return };
    if edits.changes().all(|change| change.edits.is_empty()) {
        errors.push(idle(model, first));
    }
}

/// Reports a network that is not proven to run: one in which parts run at another size, with what else is edited in it.
fn refuse_other_sizes(model: &Model<'_>, edits: &mut Edits, errors: &mut Vec<PlanError>) {
    let resizes = |change: &Change| change.splices().any(Splice::resizes);
    if !edits.changes().any(resizes) {
        return;
    }
    let both: Vec<Change> = edits.always.changes.clone();
    for (set, before) in [(&mut edits.always, Vec::new()), (&mut edits.other, both)] {
        let all = || before.iter().chain(&set.changes);
        let Some(first) = all().position(resizes).filter(|_| errors.is_empty() && all().count() > 1) else {
            continue;
        };
        let proof = model.analysis.runs_with(
            all().flat_map(Change::redirects),
            all().flat_map(Change::splices),
            all().flat_map(Change::attributes).map(|edit| (edit.node, edit.set.as_slice())),
        );
        match proof {
            Ok(note) => {
                let first = set.changes.iter_mut().find(|change| resizes(change));
                first.into_iter().for_each(|change| change.note.clone_from(&note));
            }
            Err(illegal) => {
                let Some(change) = all().nth(first) else { continue };
                let reason = format!("with the other rules, {illegal}");
                errors.push(PlanError::not_editable(model.source, change.span, &change.subject, reason));
            }
        }
    }
}

fn refuse_overlaps(source: &PlanSource, edits: &Edits, errors: &mut Vec<PlanError>) {
    let mut owners: FxHashMap<&str, SourceSpan> = FxHashMap::default();
    let mut refused: Vec<(SourceSpan, SourceSpan)> = Vec::new();
    for change in edits.changes() {
        for weight in change.weights().flat_map(|edit| &edit.weights) {
            let owner = *owners.entry(&weight.path).or_insert(change.span);
            let pair = (owner, change.span);
            if owner != change.span && !refused.contains(&pair) {
                refused.push(pair);
                errors.push(PlanError::overlap(source, pair.0, pair.1, &weight.path));
            }
        }
    }
    let nodes = |change: &Change| change.attributes().map(|edit| edit.node).collect::<Vec<_>>();
    let always: FxHashSet<NodeId> = edits.always.changes.iter().flat_map(nodes).collect();
    for change in edits.other.changes.iter().filter(|c| nodes(c).iter().any(|node| always.contains(node))) {
        let reason = format!("`always` has a `{}` of it, for both networks", change.rule);
        errors.push(PlanError::not_editable(source, change.span, &change.subject, reason));
    }
    let mut spliced: FxHashMap<(NodeId, usize), (&Change, &Splice)> = FxHashMap::default();
    let of = |replaced: NodeId, change: &Change| {
        let readers = change.splices().flat_map(|splice| &splice.at).map(|(node, _)| *node);
        readers.chain(change.attributes().map(|edit| edit.node)).any(|node| node == replaced)
    };
    for change in edits.changes() {
        let replaced: Vec<NodeId> = change.splices().flat_map(|splice| &splice.replaces).copied().collect();
        let mut others = edits.changes().filter(|other| !std::ptr::eq(*other, change));
        if let Some(other) = others.find(|other| replaced.iter().any(|node| of(*node, other))) {
            let reason = format!("it is made anew, without the `{}` of `{}`", other.rule, other.subject);
            errors.push(PlanError::not_editable(source, change.span, &change.subject, reason));
        }
        let mut others: Vec<&Change> = Vec::new();
        for splice in change.splices() {
            for operand in &splice.at {
                let known = spliced.insert(*operand, (change, splice));
                // Sizes of a part that is in two others are those of the part, whoever asks for them.
                let is_other =
                    |(_, known): &(_, &Splice)| !splice.resizes() || known.template != splice.template;
                others.extend(known.filter(is_other).map(|(other, _)| other));
            }
        }
        if let Some(other) = others.first() {
            let reason = format!("the `{}` of `{}` is in the same place", other.rule, other.subject);
            errors.push(PlanError::not_editable(source, change.span, &change.subject, reason));
        }
    }
}
