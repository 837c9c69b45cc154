//! The module tree: which part of the torch model each node comes from, whatever exporter wrote the graph.
//!
//! Evidence, strongest first ([`Evidence`]): what the dynamo exporter wrote into the node's metadata, the scope in a
//! TorchScript node name, the names of the parameters that a node reads, the shape of an attention around a Softmax,
//! and at last the neighbours. Each node's evidence is kept, so that `inspect` can say why a node sits where it sits.

mod infer;
mod kind;
mod paths;

use rustc_hash::FxHashMap;

use super::attention::{self, Attentions};
use crate::ir::{Graph, NodeId};
pub use kind::ModuleKind;

/// A module's place in [`Modules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(u32);

/// The module tree of a graph. The root has the empty path.
#[derive(Clone, Debug)]
pub struct Modules {
    modules: Vec<Module>,
    by_path: FxHashMap<String, ModuleId>,
    of_node: Vec<ModuleId>,
    evidence: Vec<Evidence>,
    layout: Naming,
    wrapper: String,
}

/// A module of the torch model, such as `down_blocks.0.resnets.1`.
#[derive(Clone, Debug)]
pub struct Module {
    /// Dotted path, a wrapper prefix dropped.
    pub path: String,
    /// Its kind, as far as its path and contents show.
    pub kind: ModuleKind,
    /// The module around it; `None` for the root.
    pub parent: Option<ModuleId>,
    /// The modules in it, in order of first appearance.
    pub children: Vec<ModuleId>,
    /// The nodes that are in it but in none of its children, in topological order.
    pub own_nodes: Vec<NodeId>,
}

/// The naming that the modules follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `down_blocks`, `mid_block`, `up_blocks` (diffusers' `UNet2DConditionModel`).
    Diffusers,
    /// `input_blocks`, `middle_block`, `output_blocks` (the original Latent Diffusion code).
    Ldm,
    /// Neither: no UNet that this crate knows, or a graph without names.
    Unknown,
}

/// Why a node was put into its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// `pkg.torch.onnx.name_scopes` in the node's metadata (dynamo exporter).
    Metadata,
    /// The scope in the node's name (TorchScript exporter).
    NodeName,
    /// The name of a parameter that the node reads.
    ParameterName,
    /// Its part in an attention: the projections before and after a Softmax.
    Attention,
    /// A residual Add after a module that is known.
    Residual,
    /// The modules of the nodes around it.
    Neighbours,
    /// Nothing: it sits in the root.
    None,
}

impl Modules {
    /// Returns the root, which holds everything.
    pub fn root(&self) -> ModuleId {
        ModuleId(0)
    }

    /// Returns all modules, parents before children.
    pub fn iter(&self) -> impl Iterator<Item = (ModuleId, &Module)> {
        self.modules.iter().enumerate().map(|(i, m)| (ModuleId(i as u32), m))
    }

    /// Returns the module with this id.
    pub fn get(&self, id: ModuleId) -> &Module {
        &self.modules[id.0 as usize]
    }

    /// Returns the module with this dotted path.
    pub fn named(&self, path: &str) -> Option<ModuleId> {
        self.by_path.get(path).copied()
    }

    /// Returns the module that `node` belongs to.
    pub fn of_node(&self, node: NodeId) -> ModuleId {
        self.of_node.get(node.index()).copied().unwrap_or(self.root())
    }

    /// Returns why `node` was put there.
    pub fn evidence(&self, node: NodeId) -> Evidence {
        self.evidence.get(node.index()).copied().unwrap_or(Evidence::None)
    }

    /// Returns whether `inner` is `outer` or lies in it.
    pub fn is_within(&self, inner: ModuleId, outer: ModuleId) -> bool {
        let mut at = Some(inner);
        while let Some(id) = at {
            if id == outer {
                return true;
            }
            at = self.get(id).parent;
        }
        false
    }

    /// Returns the innermost module that both `a` and `b` are or lie in.
    pub fn common(&self, a: ModuleId, b: ModuleId) -> ModuleId {
        let mut at = a;
        while !self.is_within(b, at) {
            at = self.get(at).parent.unwrap_or(self.root());
        }
        at
    }

    /// Returns the nodes of `module` and of all modules in it, in topological order.
    pub fn nodes(&self, module: ModuleId) -> Vec<NodeId> {
        let mut nodes = Vec::new();
        let mut open = vec![module];
        while let Some(id) = open.pop() {
            nodes.extend_from_slice(&self.get(id).own_nodes);
            open.extend_from_slice(&self.get(id).children);
        }
        nodes.sort_unstable();
        nodes
    }

    /// Makes `module` a block, by whatever name it goes.
    pub(super) fn set_block(&mut self, module: ModuleId) {
        self.modules[module.0 as usize].kind = ModuleKind::Block;
    }

    /// Returns the naming that the modules follow.
    pub fn layout(&self) -> Naming {
        self.layout
    }

    /// Returns the module that the name of a node in a body names, if it names one.
    pub fn path_in(&self, name: &str) -> Option<String> {
        let path = paths::from_node_name(name)?;
        Some(path.strip_prefix(&self.wrapper).unwrap_or(&path).to_string())
    }

    /// Returns the wrapper prefix that was dropped from every path (`unet.`); empty if there was none.
    pub fn wrapper(&self) -> &str {
        &self.wrapper
    }
}

/// Finds the modules of `graph`.
pub fn modules(graph: &Graph) -> Modules {
    around(graph, &attention::structure(graph))
}

/// Finds the modules of `graph`, whose attentions these are.
pub(super) fn around(graph: &Graph, attentions: &Attentions) -> Modules {
    let found = infer::paths(graph, attentions);
    let mut modules = Modules {
        modules: vec![Module {
            path: String::new(),
            kind: ModuleKind::Root,
            parent: None,
            children: Vec::new(),
            own_nodes: Vec::new(),
        }],
        by_path: FxHashMap::default(),
        of_node: vec![ModuleId(0); graph.node_capacity()],
        evidence: found.evidence,
        layout: paths::layout(found.paths.iter().flatten().map(AsRef::as_ref)),
        wrapper: found.wrapper,
    };
    modules.by_path.insert(String::new(), ModuleId(0));
    for (id, _) in graph.nodes() {
        let module = match &found.paths[id.index()] {
            Some(path) => modules.intern(path),
            None => ModuleId(0),
        };
        modules.of_node[id.index()] = module;
        modules.modules[module.0 as usize].own_nodes.push(id);
    }
    let of_attentions: Vec<ModuleId> = attentions.all.iter().map(|a| a.module(&modules)).collect();
    kind::assign(graph, &mut modules.modules, &of_attentions);
    modules
}

impl Modules {
    /// Returns the module with this path, made with the modules around it if it is new.
    fn intern(&mut self, path: &str) -> ModuleId {
        if let Some(id) = self.by_path.get(path) {
            return *id;
        }
        let parent = match path.rsplit_once('.') {
            Some((parent, _)) => self.intern(parent),
            None => ModuleId(0),
        };
        let id = ModuleId(self.modules.len() as u32);
        self.modules.push(Module {
            path: path.to_string(),
            kind: ModuleKind::Other,
            parent: Some(parent),
            children: Vec::new(),
            own_nodes: Vec::new(),
        });
        self.modules[parent.0 as usize].children.push(id);
        self.by_path.insert(path.to_string(), id);
        id
    }
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Metadata => "metadata",
            Self::NodeName => "node names",
            Self::ParameterName => "parameter names",
            Self::Attention => "attention",
            Self::Residual => "residuals",
            Self::Neighbours => "neighbours",
            Self::None => "nothing",
        })
    }
}
