//! Stamp: an edited graph gets a name of its own and says where it comes from. Engines cache by graph name (TensorRT
//! even without looking at the weights), so the dense and the pruned graph must never share one.

use super::{PassError, Recipe};
use crate::ir::Editor;

/// Digits of the plan's digest in a graph's name.
const SHORT: usize = 12;

pub(super) fn run(recipe: &Recipe<'_>, editor: &mut Editor<'_>) -> Result<(), PassError> {
    if !editor.graph().is_edited() {
        return Ok(());
    }
    let digest = recipe.plan.get(..SHORT).unwrap_or(recipe.plan);
    let name = format!("{}_crdiff_{}_{digest}", editor.graph().name(), recipe.target.name());
    editor.set_graph_name(name);
    editor.set_metadata("crdiff.version", env!("CARGO_PKG_VERSION"));
    editor.set_metadata("crdiff.emit", recipe.target.name());
    editor.set_metadata("crdiff.plan", recipe.plan);
    editor.set_metadata("crdiff.source", recipe.source);
    Ok(())
}
