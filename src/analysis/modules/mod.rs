//! The module tree: which part of the torch model each node comes from, whatever exporter wrote the graph.

use crate::ir::{Graph, NodeId};

/// A module's place in [`Modules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(pub u32);

/// The module tree of a graph. The root (id 0) has the empty path.
#[derive(Clone, Debug)]
pub struct Modules {
    modules: Vec<Module>,
    of_node: Vec<ModuleId>,
}

/// A module of the torch model, such as `down_blocks.0.resnets.1`.
#[derive(Clone, Debug)]
pub struct Module {
    /// Dotted path, a wrapper prefix dropped.
    pub path: String,
    /// What it is, as far as its path and contents tell.
    pub kind: Kind,
    /// The module around it.
    pub parent: Option<ModuleId>,
    /// The modules in it, in order of first appearance.
    pub children: Vec<ModuleId>,
    /// The nodes that are in it but in none of its children, in topological order.
    pub own_nodes: Vec<NodeId>,
}

/// What a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The whole model.
    Root,
    /// Anything that this crate has no name for.
    Other,
}

impl Modules {
    /// All modules, parents before children.
    pub fn iter(&self) -> impl Iterator<Item = (ModuleId, &Module)> {
        self.modules.iter().enumerate().map(|(i, m)| (ModuleId(i as u32), m))
    }

    /// The module that `node` belongs to.
    pub fn of_node(&self, node: NodeId) -> ModuleId {
        self.of_node[node.index()]
    }
}

/// Finds the modules of `graph`.
pub fn modules(graph: &Graph) -> Modules {
    Modules { modules: Vec::new(), of_node: vec![ModuleId(0); graph.node_capacity()] }
}
