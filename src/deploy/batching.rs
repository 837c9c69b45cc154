//! A batch whose rows are requests of their own: every input has the batch first.

use super::DeployError;
use crate::{
    analysis::{per_row_inputs::PerRowInputs, shapes},
    ir::{Graph, Origin},
    passes::{self, Recipe},
};

/// Sizes for dimensions other than the batch when shapes are checked at two batches: divisible by any downsampling,
/// and not more than the positions of a text encoder.
const PROBE: i64 = 64;

/// Whether a graph's rows can be requests of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batching {
    /// They can; these inputs, scalars before, now have one value a row.
    Rows(Vec<String>),
    /// They cannot, for this reason. The graph is of no use any more if it was edited.
    Whole(String),
}

/// Gives every input of `graph` a row for each row of the batch.
///
/// It is not proven that the rows don't influence one another: it is so in every network that torch runs on a batch,
/// unless it normalizes over the batch.
///
/// # Errors
/// [`DeployError`] if the graph cannot be edited.
pub fn make_rows(graph: &mut Graph) -> Result<Batching, DeployError> {
    let rows = match PerRowInputs::of(graph, &shapes::shapes(graph)) {
        Ok(rows) => rows,
        Err(why) => return Ok(Batching::Whole(why)),
    };
    if !rows.inputs.is_empty() {
        passes::run(graph, &Recipe::per_row(&rows), &())?;
    }
    if let Err(why) = outputs_follow(graph) {
        return Ok(Batching::Whole(why));
    }
    Ok(Batching::Rows(rows.inputs.iter().map(|value| graph.value(*value).name.clone()).collect()))
}

/// Checks that the outputs have as many rows as the inputs, at two batches.
fn outputs_follow(graph: &Graph) -> Result<(), String> {
    let shapes = shapes::shapes(graph);
    let fed = graph.inputs().filter(|io| matches!(graph.value(io.value).origin, Origin::Input(_)));
    let firsts: Vec<String> =
        fed.filter_map(|io| Some(shapes.of(io.value)?.dims.first()?.to_string())).collect();
    for rows in [2, 3] {
        let size = |symbol: &str| if firsts.iter().any(|first| first == symbol) { rows } else { PROBE };
        let bindings: Vec<(&str, i64)> = shapes.symbols().iter().map(|s| (s.as_ref(), size(s))).collect();
        let concrete = shapes.evaluate(&bindings);
        for io in graph.outputs() {
            let dims = concrete.of(io.value);
            if dims.and_then(|dims| dims.first()) != Some(&rows) {
                let found = dims.map_or("of unknown shape".to_string(), |dims| format!("{dims:?}"));
                return Err(format!("output `{}` is {found} for a batch of {rows}", io.info.name()));
            }
        }
    }
    match shapes.problems().next() {
        Some(note) => Err(note.what.clone()),
        None => Ok(()),
    }
}
