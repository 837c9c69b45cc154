//! Stamp: an edited graph gets a name of its own and says where it comes from. Engines cache by graph name (TensorRT
//! even without looking at the weights), so the dense and the pruned graph must never share one.

use std::collections::BTreeSet;

use super::{PassError, Recipe, Stamp, per_row_inputs::SUFFIX};
use crate::{ir::Editor, plan::Depth};

/// Digits of the plan's digest in a graph's name.
const SHORT: usize = 12;

pub(super) fn run(
    recipe: &Recipe<'_>,
    depth: Option<Depth>,
    editor: &mut Editor<'_>,
) -> Result<(), PassError> {
    if !editor.graph().is_edited() {
        return Ok(());
    }
    let mut name = editor.graph().name().to_string();
    editor.set_metadata("crdiff.version", env!("CARGO_PKG_VERSION"));
    if let Some(Stamp { plan, source }) = recipe.stamp {
        let (emit, digest) = (recipe.target.name(), plan.get(..SHORT).unwrap_or(plan));
        name = format!("{name}_crdiff_{emit}_{digest}");
        if let Some(depth) = depth {
            name = format!("{name}_{}", depth.name());
            editor.set_metadata("crdiff.cache", depth.name());
        }
        editor.set_metadata("crdiff.emit", emit);
        editor.set_metadata("crdiff.plan", plan);
        editor.set_metadata("crdiff.source", source);
        let merges = recipe.edits.always.merges().chain(recipe.edits.other.merges());
        let files: BTreeSet<&str> = merges.map(|merge| merge.file.digest()).collect();
        if !files.is_empty() {
            editor.set_metadata("crdiff.lora", files.into_iter().collect::<Vec<_>>().join(","));
        }
    }
    if let Some(rows) = recipe.per_row {
        name.push_str(SUFFIX);
        let graph = editor.graph();
        let names: Vec<&str> = rows.inputs.iter().map(|value| graph.value(*value).name.as_str()).collect();
        let names = names.join(",");
        editor.set_metadata("crdiff.per_row_inputs", names);
    }
    editor.set_graph_name(name);
    Ok(())
}
