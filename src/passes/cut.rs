//! Cut: the values that the deep part of the network gives the shallow one are outputs of the full graph and inputs of
//! the shallow one. Nodes that only the deep part needed are dead code.

use super::{PassError, Sharing};
use crate::{
    analysis::cut::Cut,
    ir::{EditError, Editor, NodeId, NodeSpec, Place, ValueId},
    plan::{CACHE_NAMES, Depth},
};

pub(super) fn run(
    cut: &Cut,
    depth: Depth,
    sharing: &Sharing,
    editor: &mut Editor<'_>,
) -> Result<(), PassError> {
    // In a fused graph the pruned network has a Concat of its own if it reads something else there.
    let copies = sharing.copies.iter().filter(|(_, original)| *original == cut.node).map(|(copy, _)| *copy);
    let readers: Vec<NodeId> = std::iter::once(cut.node).chain(copies).collect();
    let mut kept: Vec<(ValueId, Vec<NodeId>)> = Vec::new();
    for reader in readers {
        let value = editor.graph().get(reader).and_then(|node| node.input(cut.slot));
        let value = value.ok_or_else(|| EditError::Gone("the Concat of the cache".to_string()))?;
        match kept.iter_mut().find(|(known, _)| *known == value) {
            Some((_, readers)) => readers.push(reader),
            None => kept.push((value, vec![reader])),
        }
    }
    for ((value, readers), name) in kept.into_iter().zip(CACHE_NAMES) {
        if editor.graph().value_named(name).is_some() {
            let what = format!("the graph already has a value called `{name}`, so it can have no cache");
            return Err(EditError::Unsupported(what).into());
        }
        let stated = cut.stated(name);
        match depth {
            Depth::Full => {
                let inputs = &[Some(value)];
                let spec =
                    NodeSpec { name, op_type: "Identity", inputs, output: name, attributes: Vec::new() };
                let output = editor.add_node(spec, Place::Last)?;
                editor.add_output(output, stated)?;
            }
            Depth::Shallow => {
                let input = editor.add_input(stated)?;
                for reader in readers {
                    editor.set_input(reader, cut.slot, input)?;
                }
            }
        }
    }
    Ok(())
}
