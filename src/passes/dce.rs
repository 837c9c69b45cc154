//! Dead-code elimination: removes nodes and tensors that the other passes left without a reader. Graph inputs stay,
//! and everything that had no reader in the model as it came.

use super::PassError;
use crate::ir::{Editor, Graph, InitializerId, NodeId};

/// Results and initializers that nothing read in the model as it came, which must therefore stay.
#[derive(Clone, Debug)]
pub(crate) struct Unread {
    nodes: Vec<bool>,
    initializers: Vec<bool>,
}

impl Unread {
    /// Looks at a graph that no pass has touched.
    pub(crate) fn of(graph: &Graph) -> Self {
        let nodes = (0..graph.node_capacity()).map(NodeId::new);
        let initializers = graph.initializers().map(|(_, i)| graph.uses(i.value).is_empty()).collect();
        Self { nodes: nodes.map(|id| !is_read(graph, id)).collect(), initializers }
    }
}

pub(crate) fn run(unread: &Unread, editor: &mut Editor<'_>) -> Result<(), PassError> {
    let nodes: Vec<NodeId> = editor.graph().node_ids().rev().collect();
    for id in nodes {
        let was_unread = unread.nodes.get(id.index()).copied().unwrap_or(false);
        if !was_unread && !is_read(editor.graph(), id) {
            editor.remove_node(id)?;
        }
    }
    let initializers: Vec<InitializerId> = editor.graph().initializers().map(|(id, _)| id).collect();
    for id in initializers {
        let was_unread = unread.initializers.get(id.index()).copied().unwrap_or(false);
        let graph = editor.graph();
        let Some(value) = graph.initializer(id).map(|i| i.value) else { continue };
        let is_input = graph.inputs().any(|io| io.value == value);
        if !was_unread && !is_input && graph.uses(value).is_empty() {
            editor.remove_initializer(id)?;
        }
    }
    Ok(())
}

fn is_read(graph: &Graph, id: NodeId) -> bool {
    graph.get(id).is_some_and(|node| node.results().any(|v| !graph.uses(v).is_empty()))
}
