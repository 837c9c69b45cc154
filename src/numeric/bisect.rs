//! Where two models begin to differ: the first tensor that diverges although everything it is computed from agrees.
//!
//! Nodes are paired as `diff` pairs them. Each round runs both models with a few of the values between those known to
//! agree and the earliest known to diverge, so no more than [`PROBES`] tensors of each are held at once, and the
//! rounds grow with the logarithm of the graph. Nothing is taken for granted about values that were not read: the
//! result is a tensor that diverges and whose paired ancestors, followed up to the nearest, all agree.

use std::path::Path;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::Serialize;

use super::{Case, Metrics, NumericError, Tolerances, measure, probe::Probe};
use crate::{
    analysis::shapes::{Shapes, shapes},
    engine::{Engine, UINT8},
    ir::{Graph, NodeId, Origin, ValueId},
    observer::Observer,
    onnx::DataType,
    verify::structure::Diff,
};

/// How many values are read in one run.
pub const PROBES: usize = 8;

/// A model that is loaded and where it lies.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// Its graph.
    pub graph: &'a Graph,
    /// Its file.
    pub path: &'a Path,
}

/// The first tensor that diverges.
#[derive(Clone, Debug, Serialize)]
pub struct Divergence {
    /// Path of the module that computes it.
    pub module: String,
    /// The node that computes it, as messages name it.
    pub node: String,
    /// Its name in the first model.
    pub tensor: String,
    /// How far it is off; `None` if its dimensions differ.
    pub metrics: Option<Metrics>,
    /// How many times both models were run.
    pub rounds: usize,
}

/// A value that both models have.
struct Candidate {
    /// Place of its node in the first model's order.
    order: usize,
    names: [String; 2],
    types: [DataType; 2],
}

/// Finds the first tensor that diverges on the way to output `output` (of the first model), which does; `None` if no
/// value that both models have diverges.
///
/// # Errors
/// [`NumericError`] if a model cannot be copied, changed or run, or `observer` says stop.
pub fn bisect(
    engine: &dyn Engine,
    [a, b]: [Model<'_>; 2],
    diff: &Diff,
    case: &Case,
    output: &str,
    tolerances: &Tolerances,
    observer: &dyn Observer,
) -> Result<Option<Divergence>, NumericError> {
    let Some(end) = a.graph.outputs().iter().find(|io| io.info.name() == output).map(|io| io.value) else {
        return Ok(None);
    };
    let candidates = candidates([a.graph, b.graph], diff);
    let (probe_a, probe_b) = (Probe::new(a.path, observer)?, Probe::new(b.path, observer)?);
    let mut agreeing: FxHashSet<ValueId> = FxHashSet::default();
    let mut first: Option<(ValueId, Option<Metrics>)> = None;
    let mut rounds = 0;
    loop {
        let start = match first {
            None => vec![end],
            Some((value, _)) => operands(a.graph, value),
        };
        let open = open_candidates(a.graph, start, &candidates, &agreeing);
        if open.is_empty() {
            break;
        }
        let probes = spaced(&open);
        let names = |side: usize| -> Vec<(String, DataType)> {
            let of = |value: &ValueId| candidates.get(value);
            probes
                .iter()
                .filter_map(of)
                .filter_map(|c| Some((c.names.get(side)?.clone(), *c.types.get(side)?)))
                .collect()
        };
        let ours = probe_a.values(engine, case, &names(0))?;
        let theirs = probe_b.values(engine, case, &names(1))?;
        rounds += 1;
        let mut diverging = None;
        for ((value, x), y) in probes.iter().zip(&ours).zip(&theirs) {
            let metrics = measure(x, y);
            let tolerance = tolerances.between(x.data_type(), y.data_type());
            if metrics.is_some_and(|m| tolerance.allows(&m)) {
                agreeing.insert(*value);
            } else if diverging.is_none() {
                diverging = Some((*value, metrics));
            }
        }
        first = diverging.or(first);
    }
    Ok(first.and_then(|(value, metrics)| {
        let node = a.graph.producer(value)?;
        Some(Divergence {
            module: diff.modules.get(diff.modules.of_node(node)).path.clone(),
            node: a.graph.get(node)?.describe(),
            tensor: a.graph.value(value).name.clone(),
            metrics,
            rounds,
        })
    }))
}

fn candidates(graphs: [&Graph; 2], diff: &Diff) -> FxHashMap<ValueId, Candidate> {
    let [shapes_a, shapes_b] = graphs.map(shapes);
    let [a, b] = graphs;
    let mut found = FxHashMap::default();
    for (order, (id, node)) in a.nodes().enumerate() {
        let partner: Option<NodeId> = diff.matching.of_a.get(id.index()).copied().flatten();
        let Some(other) = partner.and_then(|id| b.get(id)) else { continue };
        for (x, y) in node.outputs.iter().zip(&other.outputs) {
            let (Some(x), Some(y)) = (*x, *y) else { continue };
            let types = element_type(a, &shapes_a, x).zip(element_type(b, &shapes_b, y));
            if let Some((type_a, type_b)) = types {
                let names = [a.value(x).name.clone(), b.value(y).name.clone()];
                found.insert(x, Candidate { order, names, types: [type_a, type_b] });
            }
        }
    }
    found
}

/// Returns the type of a value, if it is one that can be read.
fn element_type(graph: &Graph, shapes: &Shapes, value: ValueId) -> Option<DataType> {
    use crate::onnx::proto::type_proto::Value;
    let stated = || match graph.stated_type(value)?.value.as_ref()? {
        Value::TensorType(tensor) => Some(DataType(tensor.elem_type())),
        _ => None,
    };
    let output = || graph.outputs().iter().find(|io| io.value == value)?.info.data_type();
    shapes.data_type(value).or_else(stated).or_else(output).filter(|t| {
        t.is_weight_float()
            || matches!(*t, DataType::DOUBLE | DataType::INT64 | DataType::INT32 | DataType::BOOL | UINT8)
    })
}

fn operands(graph: &Graph, value: ValueId) -> Vec<ValueId> {
    match graph.value(value).origin {
        Origin::Node { node, .. } => match graph.get(node) {
            Some(node) => node.operands().chain(node.captures.iter().copied()).collect(),
            None => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Returns the candidates that `start` depends on, itself among them, as far as no value known to agree lies between;
/// in the order of the first model.
fn open_candidates(
    graph: &Graph,
    start: Vec<ValueId>,
    candidates: &FxHashMap<ValueId, Candidate>,
    agreeing: &FxHashSet<ValueId>,
) -> Vec<ValueId> {
    let mut seen: FxHashSet<ValueId> = FxHashSet::default();
    let mut todo = start;
    let mut found = Vec::new();
    while let Some(value) = todo.pop() {
        if agreeing.contains(&value) || !seen.insert(value) {
            continue;
        }
        if let Some(candidate) = candidates.get(&value) {
            found.push((candidate.order, value));
        }
        todo.extend(operands(graph, value));
    }
    found.sort_unstable();
    found.into_iter().map(|(_, value)| value).collect()
}

/// Returns at most [`PROBES`] of these, evenly spaced.
fn spaced(values: &[ValueId]) -> Vec<ValueId> {
    let count = values.len().min(PROBES);
    (1..=count)
        .filter_map(|i| values.get((i * values.len() / (count + 1)).min(values.len() - 1)).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_spread_and_few() {
        let values: Vec<ValueId> = (0..100).map(ValueId::new).collect();
        let picked: Vec<usize> = spaced(&values).iter().map(|v| v.index()).collect();
        assert_eq!(picked, [11, 22, 33, 44, 55, 66, 77, 88]);
        for len in 1..=PROBES {
            let picked: FxHashSet<ValueId> = spaced(&values[..len]).into_iter().collect();
            assert_eq!(picked.len(), len, "all of {len}");
        }
    }
}
