//! Finding each node's module path, from the strongest evidence to the weakest.

use std::rc::Rc;

use rustc_hash::FxHashSet;

use super::{Evidence, paths};
use crate::{
    analysis::{attention::Attentions, flow::Flow},
    ir::{Graph, Node, NodeId, Use, ValueId},
};

/// Each node's path (indexed by node id; `None` where nothing shows it) and why.
pub(super) struct Found {
    pub paths: Vec<Option<Rc<str>>>,
    pub evidence: Vec<Evidence>,
    pub wrapper: String,
    /// Every path once: there are seven nodes to a module.
    texts: FxHashSet<Rc<str>>,
}

/// Segments of the longest path that is a module's. Each is a module with a path of its own: in a name of thousands of
/// them, these would take the square of its length.
const MOST_SEGMENTS: usize = 64;

pub(super) fn paths(graph: &Graph, attentions: &Attentions) -> Found {
    let capacity = graph.node_capacity();
    let mut found = Found {
        paths: vec![None; capacity],
        evidence: vec![Evidence::None; capacity],
        wrapper: String::new(),
        texts: FxHashSet::default(),
    };
    // Names without a slash in front are scopes only where no exporter writes them with one.
    let relative = !graph.nodes().any(|(_, node)| node.name.starts_with('/'));
    for (id, node) in graph.nodes() {
        if let Some((path, evidence)) = own_evidence(graph, node, relative)
            && path.matches('.').count() < MOST_SEGMENTS
        {
            found.set(id, &path, evidence);
        }
    }
    found.drop_wrapper();
    found.merge_repeated_calls(graph);
    if found.paths.iter().any(Option::is_none) {
        found.place_by_bias(graph);
        found.place_by_attention(attentions);
        found.place_by_neighbours(graph);
    }
    found
}

fn own_evidence(graph: &Graph, node: &Node, relative: bool) -> Option<(String, Evidence)> {
    let scopes = |key| node.metadata(key);
    let written = scopes("pkg.torch.onnx.name_scopes").and_then(paths::from_name_scopes);
    let written =
        written.or_else(|| scopes("pkg.onnxscript.name_scopes").and_then(paths::from_relative_scopes));
    if let Some(path) = written {
        return Some((path, Evidence::Metadata));
    }
    let named = if relative { paths::from_relative_name } else { paths::from_node_name };
    if let Some(path) = named(&node.name) {
        return Some((path, Evidence::NodeName));
    }
    parameter_path(graph, node).map(|path| (path.to_string(), Evidence::ParameterName))
}

/// Returns the module of the first named parameter among the node's operands, as it is or behind what only turns it or
/// changes its type. Behind an Identity, which lets two modules share a parameter, the name is that of the result.
fn parameter_path<'g>(graph: &'g Graph, node: &Node) -> Option<&'g str> {
    node.operands().find_map(|mut value| {
        let mut path = None;
        loop {
            path = path.or_else(|| paths::from_parameter(&graph.value(value).name));
            if graph.initializer_of(value).is_some() {
                return path;
            }
            let view = graph.node(graph.producer(value)?);
            if !["Transpose", "Identity", "Cast", "DequantizeLinear"].iter().any(|op| view.is(op)) {
                return None;
            }
            value = view.input(0)?;
        }
    })
}

impl Found {
    fn set(&mut self, node: NodeId, path: &str, evidence: Evidence) {
        self.paths[node.index()] = Some(self.text(path));
        self.evidence[node.index()] = evidence;
    }

    fn text(&mut self, path: &str) -> Rc<str> {
        if let Some(known) = self.texts.get(path) {
            return Rc::clone(known);
        }
        let text: Rc<str> = path.into();
        self.texts.insert(Rc::clone(&text));
        text
    }

    fn get(&self, node: NodeId) -> Option<&str> {
        self.paths[node.index()].as_deref()
    }

    fn drop_wrapper(&mut self) {
        self.wrapper = paths::wrapper(self.paths.iter().flatten().map(Rc::as_ref));
        let wrapper = self.wrapper.clone();
        let Some(bare) = wrapper.strip_suffix('.') else { return };
        self.rename(|path| path.strip_prefix(&wrapper).or((path == bare).then_some("")));
    }

    /// Merges modules that are called twice, which get scopes `act` and `act_1` from the TorchScript exporter: one
    /// module again. A sibling that has parameters of its own stays as it is.
    fn merge_repeated_calls(&mut self, graph: &Graph) {
        let owners: FxHashSet<&str> =
            graph.initializers().filter_map(|(_, i)| paths::from_parameter(&i.header.name)).collect();
        let known: FxHashSet<Rc<str>> = self.paths.iter().flatten().cloned().collect();
        let wrapper = self.wrapper.clone();
        self.rename(|path| {
            let (base, number) = path.rsplit_once('_')?;
            let repeated = number.parse::<u32>().is_ok() && known.contains(base);
            let is_module = owners.contains(format!("{wrapper}{path}").as_str());
            (repeated && !is_module).then_some(base)
        });
    }

    fn rename(&mut self, new: impl Fn(&str) -> Option<&str>) {
        for index in 0..self.paths.len() {
            let Some(path) = self.paths[index].clone() else { continue };
            if let Some(new) = new(&path) {
                self.paths[index] = Some(self.text(new));
            }
        }
    }

    /// Places each MatMul whose weight is anonymous in the module of the bias that is added to its result.
    fn place_by_bias(&mut self, graph: &Graph) {
        for (id, node) in graph.nodes() {
            if self.get(id).is_some() || !node.is("MatMul") {
                continue;
            }
            let Some((add, sum)) = only_consumer(graph, node) else { continue };
            if sum.is("Add")
                && let Some(path) = self.get(add).filter(|_| parameter_path(graph, sum).is_some())
            {
                let path = path.to_string();
                self.set(id, &path, Evidence::ParameterName);
            }
        }
    }

    /// Places query, key and value projections, which have neither names nor biases, by their place in an attention.
    fn place_by_attention(&mut self, attentions: &Attentions) {
        for attention in &attentions.all {
            let mut outs = attention.out.iter().filter_map(|p| self.get(p.node));
            let Some(path) = outs.find_map(|path| path.strip_suffix(".to_out.0")) else { continue };
            let path = path.to_string();
            let parts = [(&attention.query, "to_q"), (&attention.key, "to_k"), (&attention.value, "to_v")];
            for (operand, name) in parts {
                if let [projection] = operand.projections[..]
                    && self.get(projection.node).is_none()
                {
                    self.set(projection.node, &format!("{path}.{name}"), Evidence::Attention);
                }
            }
        }
    }

    fn place_by_neighbours(&mut self, graph: &Graph) {
        let flow = Flow::of(graph);
        let order: Vec<NodeId> = graph.node_ids().collect();
        // The path below each node: what all its consumers lie in.
        let mut below: Vec<Option<Rc<str>>> = vec![None; graph.node_capacity()];
        for id in order.iter().rev() {
            let mut path: Option<Rc<str>> = None;
            for consumer in consumers(graph, *id) {
                let theirs = self.paths[consumer.index()].as_ref().or(below[consumer.index()].as_ref());
                path = match (path, theirs) {
                    (None, theirs) => theirs.cloned(),
                    (Some(mine), Some(theirs)) if mine == *theirs => Some(mine),
                    (Some(mine), Some(theirs)) => Some(self.text(paths::common(&mine, theirs))),
                    (mine, None) => mine,
                };
            }
            below[id.index()] = path;
        }
        for id in order {
            if self.get(id).is_some() {
                continue;
            }
            let node = graph.node(id);
            // Nodes that compute activations are better evidence than those that compute shapes.
            let latest = |operands: &mut dyn Iterator<Item = ValueId>| {
                operands.filter_map(|v| graph.producer(v)).filter(|p| !graph.node(*p).is("Constant")).max()
            };
            let above = latest(&mut flow.operands(node))
                .or_else(|| latest(&mut node.operands()))
                .and_then(|p| Some((self.get(p)?, self.evidence[p.index()])));
            let (path, evidence) = match (above, below[id.index()].as_deref()) {
                (Some((layer, Evidence::ParameterName | Evidence::NodeName)), _)
                    if is_residual(graph, node) =>
                {
                    (residual_owner(layer), Evidence::Residual)
                }
                (Some((above, _)), _) if is_residual(graph, node) => (above, Evidence::Residual),
                (Some((above, _)), Some(below)) => (paths::common(above, below), Evidence::Neighbours),
                (Some((path, _)), None) | (None, Some(path)) => (path, Evidence::Neighbours),
                (None, None) => continue,
            };
            let path = path.to_string();
            self.set(id, &path, evidence);
        }
    }
}

/// Returns whether `node` adds two values that are both computed.
fn is_residual(graph: &Graph, node: &Node) -> bool {
    let computed = |v: ValueId| {
        graph.initializer_of(v).is_none() && graph.producer(v).is_none_or(|p| !graph.node(p).is("Constant"))
    };
    node.is("Add") && node.operands().all(computed)
}

/// Returns the module whose branch ends in the layer `path`: `resnets.0` for `resnets.0.conv2`, `ff` for `ff.net.2`.
fn residual_owner(path: &str) -> &str {
    let mut owner = path.rsplit_once('.').map_or("", |(owner, _)| owner);
    while let Some((outer, last)) = owner.rsplit_once('.') {
        if !matches!(last, "net" | "to_out" | "out_layers" | "conv" | "proj_out") {
            break;
        }
        owner = outer;
    }
    owner
}

fn consumers<'g>(graph: &'g Graph, id: NodeId) -> impl Iterator<Item = NodeId> + 'g {
    graph.node(id).outputs.iter().flatten().flat_map(|v| graph.uses(*v)).filter_map(|used| match used {
        Use::Operand { node, .. } | Use::Capture(node) => Some(*node),
        Use::Output(_) => None,
    })
}

/// Returns the one node that reads the one result of `node`.
fn only_consumer<'g>(graph: &'g Graph, node: &Node) -> Option<(NodeId, &'g Node)> {
    match graph.uses(node.output(0)?) {
        [Use::Operand { node, .. }] => Some((*node, graph.node(*node))),
        _ => None,
    }
}
