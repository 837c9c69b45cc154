//! Resolution of a plan's `cache:` against a model.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Plan, PlanError, Problem, join, nearest};
use crate::{
    analysis::{Analysis, cut::Cut, skip::Illegal},
    ir::{NodeId, ValueId},
    rules::{Change, Edits, Skips},
};

/// Returns where `plan`, which means `edits`, cuts the network; `None` if it doesn't.
///
/// # Errors
/// [`PlanError`] if no module is called so, it has no backbone, or the plan takes out what is to be cut.
pub fn cut(plan: &Plan, analysis: &Analysis<'_>, edits: &Edits) -> Result<Option<Cut>, PlanError> {
    let Some(cache) = &plan.cache else { return Ok(None) };
    let (path, at) = (&cache.at.value, cache.at.span);
    let modules = &analysis.modules;
    let path_of = |cut: &Cut| modules.get(cut.module).path.clone();
    let candidates = || analysis.cuts().iter().map(path_of).collect::<Vec<_>>();
    let Some(module) = modules.named(path).filter(|module| *module != modules.root()) else {
        let mut near = nearest(path, candidates().iter().map(String::as_str));
        if near.is_empty() {
            near = nearest(path, modules.iter().map(|(_, module)| module.path.as_str()));
        }
        return Err(PlanError::no_match(&plan.source, at, path, &near));
    };
    let found = analysis.cut(module).and_then(|cut| {
        let dense = edits.always.changes.iter().collect::<Vec<_>>();
        remains(analysis, &cut, &dense, &edits.dense_skips())?;
        remains(analysis, &cut, &edits.changes().collect::<Vec<_>>(), &edits.skips())?;
        Ok(cut)
    });
    found.map(Some).map_err(|illegal| {
        let candidates: Vec<String> = candidates().into_iter().filter(|other| other != path).collect();
        let help = match candidates.as_slice() {
            [] => "no module of this network has a skip connection that ends at its input".to_string(),
            names => format!("it can be at {}", join(names, "or")),
        };
        let (module, reason) = (path.clone(), illegal.reason);
        PlanError::new(&plan.source, Problem::IllegalCut { module, reason, help: Some(help), at })
    })
}

/// Checks that a network with `changes` still reads the value of the cut where the network as it came does.
fn remains(analysis: &Analysis<'_>, cut: &Cut, changes: &[&Change], skips: &Skips) -> Result<(), Illegal> {
    let graph = analysis.graph;
    let mut spliced: FxHashMap<(NodeId, usize), Vec<ValueId>> = FxHashMap::default();
    for splice in changes.iter().flat_map(|change| change.splices()) {
        if splice.replaces.contains(&cut.node) {
            return Err(Illegal::at(graph, cut.node, "is replaced by the plan"));
        }
        for at in &splice.at {
            spliced.insert(*at, splice.template.values().collect());
        }
    }
    let resized = changes.iter().flat_map(|change| change.splices()).any(|s| s.resized.contains(&cut.value));
    if resized && !spliced.contains_key(&(cut.node, cut.slot)) {
        return Err(Illegal::at(graph, cut.node, "joins what the plan runs at another size"));
    }
    let mut open: Vec<ValueId> = graph.outputs().iter().map(|io| io.value).collect();
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    while let Some(value) = open.pop() {
        let Some(id) = graph.producer(skips.follow(value)).filter(|id| seen.insert(*id)) else { continue };
        let node = graph.node(id);
        for (slot, operand) in node.inputs.iter().enumerate() {
            match spliced.get(&(id, slot)) {
                Some(values) => open.extend(values),
                None => open.extend(operand),
            }
        }
        open.extend(&node.captures);
    }
    match seen.contains(&cut.node) {
        true => Ok(()),
        false => {
            Err(Illegal::at(graph, cut.node, "is bypassed by the plan, so nothing would read the cache"))
        }
    }
}
