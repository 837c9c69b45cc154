//! Hashes of nodes: forward, of everything that a node's results are computed from; backward, of everything that is
//! computed from them. Neither knows a name.

use std::collections::BTreeMap;

use super::constants::Constant;
use crate::{
    ir::{Graph, GraphIo, Node, NodeId, Origin, Use, ValueId},
    onnx::{
        OnnxError,
        proto::{tensor_shape_proto::dimension, type_proto},
    },
    verify::{
        canonical::{Canonical, domain, result},
        constant::is_constant,
        hash::{Hash, Hasher},
    },
};

/// The hashes of one graph's nodes, by node. Constant nodes have none of meaning: they count as constants.
#[derive(Clone, Debug)]
pub struct Fingerprints {
    /// Of what each node's results are computed from.
    pub forward: Vec<Hash>,
    /// The same of each value, by value.
    pub values: Vec<Hash>,
    /// Of what is computed from them.
    pub backward: Vec<Hash>,
    /// Of the operator, the attributes and the constant operands alone.
    pub local: Vec<Hash>,
    /// Of each graph output: its name, type and what it is computed from.
    pub outputs: Vec<Hash>,
}

/// The facts about a graph that hashing needs.
pub struct Hashed<'a, 'g> {
    /// The graph.
    pub graph: &'g Graph,
    /// Its attributes and functions.
    pub canonical: &'a Canonical<'g>,
    /// Its constants, by value.
    pub constants: &'a [Option<Box<Constant>>],
    /// Hashes of their elements, where they should count.
    pub contents: &'a [Option<Hash>],
}

const NOTHING: Hash = [0; 32];

impl Hashed<'_, '_> {
    /// Hashes every node.
    ///
    /// # Errors
    /// [`OnnxError`] if a tensor in an attribute cannot be read.
    pub fn fingerprints(&self) -> Result<Fingerprints, OnnxError> {
        let graph = self.graph;
        let mut values = self.leaves()?;
        let mut forward = vec![NOTHING; graph.node_capacity()];
        let mut local = vec![NOTHING; graph.node_capacity()];
        for (id, node) in graph.nodes().filter(|(_, n)| !is_constant(n)) {
            let outer = |name: &str| values.get(graph.value_named(name)?.index()).copied();
            let operator = self.canonical.operator(&node.domain, &node.op_type, node.overload());
            let operands: Vec<Hash> =
                node.inputs.iter().map(|v| v.map_or(NOTHING, |v| values[v.index()])).collect();
            let hash = Hasher::new("node")
                .bytes(&operator)
                .bytes(&self.canonical.attributes(&node.attributes, &outer)?)
                .list(&operands)
                .finish();
            for (slot, value) in node.outputs.iter().enumerate() {
                if let Some(value) = value {
                    values[value.index()] = result(&hash, slot);
                }
            }
            forward[id.index()] = hash;
            local[id.index()] = self.local(node, &operator)?;
        }
        let backward = self.backward(&local);
        let output = |io: &GraphIo| {
            Hasher::new("output")
                .text(io.info.name())
                .number(element_type(io))
                .bytes(&values[io.value.index()])
                .finish()
        };
        let outputs: Vec<Hash> = graph.outputs().iter().map(output).collect();
        Ok(Fingerprints { forward, values, backward, local, outputs })
    }

    /// Returns the hash of the whole graph: operator sets, inputs, outputs and all nodes, in any order.
    pub fn whole(&self, fingerprints: &Fingerprints) -> Hash {
        let graph = self.graph;
        let nodes = graph.nodes().filter(|(_, n)| !is_constant(n));
        let mut hasher = Hasher::new("crdiff graph 1");
        for (domain, version) in used_opsets(graph) {
            hasher = hasher.text(&domain).number(version as u64);
        }
        hasher
            .set(inputs(graph).into_iter().map(|(_, hash)| hash).collect())
            .set(fingerprints.outputs.clone())
            .set(nodes.map(|(id, _)| fingerprints.forward[id.index()]).collect())
            .finish()
    }

    /// Hashes of the values that no node computes.
    fn leaves(&self) -> Result<Vec<Hash>, OnnxError> {
        let graph = self.graph;
        let mut values = vec![NOTHING; graph.value_capacity()];
        for (value, hash) in inputs(graph) {
            values[value.index()] = hash;
        }
        for (name, hash) in self.canonical.sparse_initializers()? {
            if let Some(value) = graph.value_named(&name) {
                values[value.index()] = hash;
            }
        }
        for (index, constant) in self.constants.iter().enumerate() {
            if let Some(constant) = constant {
                values[index] = constant.hash(self.contents.get(index).and_then(Option::as_ref));
            }
        }
        Ok(values)
    }

    fn constant_hash(&self, value: ValueId) -> Option<Hash> {
        let constant = self.constants.get(value.index())?.as_deref()?;
        Some(constant.hash(self.contents.get(value.index()).and_then(Option::as_ref)))
    }

    fn local(&self, node: &Node, operator: &Hash) -> Result<Hash, OnnxError> {
        let operand = |value: &Option<ValueId>| match value {
            None => NOTHING,
            Some(value) => self.constant_hash(*value).unwrap_or_else(|| Hasher::new("computed").finish()),
        };
        let operands: Vec<Hash> = node.inputs.iter().map(operand).collect();
        let attributes = self.canonical.attributes(&node.attributes, &|_| None)?;
        Ok(Hasher::new("local").bytes(operator).bytes(&attributes).list(&operands).finish())
    }

    fn backward(&self, local: &[Hash]) -> Vec<Hash> {
        let graph = self.graph;
        let mut backward = vec![NOTHING; graph.node_capacity()];
        for (id, node) in graph.nodes().rev() {
            let mut hasher = Hasher::new("backward").bytes(&local[id.index()]);
            for value in &node.outputs {
                let used = |used: &Use| match *used {
                    Use::Operand { node, slot } => {
                        Hasher::new("operand").bytes(&backward[node.index()]).number(slot as u64).finish()
                    }
                    Use::Capture(node) => Hasher::new("capture").bytes(&backward[node.index()]).finish(),
                    Use::Output(index) => {
                        let name = graph.outputs().get(index).map(|io| io.info.name()).unwrap_or_default();
                        Hasher::new("output").text(name).finish()
                    }
                };
                let uses = value.map(|v| graph.uses(v).iter().map(used).collect()).unwrap_or_default();
                hasher = hasher.set(uses);
            }
            backward[id.index()] = hasher.finish();
        }
        backward
    }
}

/// Returns the operator sets of the domains that nodes of the graph are in.
pub fn used_opsets(graph: &Graph) -> BTreeMap<String, i64> {
    let domains = graph.nodes().map(|(_, node)| domain(&node.domain));
    domains.filter_map(|domain| Some((domain.to_string(), graph.opset(domain)?))).collect()
}

/// Returns the inputs that must be fed, each with the hash of its name and type. A named dimension counts by the places
/// that have the same name, not by the name.
pub fn inputs(graph: &Graph) -> Vec<(ValueId, Hash)> {
    let mut inputs: Vec<&GraphIo> =
        graph.inputs().filter(|io| matches!(graph.value(io.value).origin, Origin::Input(_))).collect();
    inputs.sort_by_key(|io| io.info.name());
    let mut names: Vec<String> = Vec::new();
    let mut hashes = Vec::with_capacity(inputs.len());
    for io in inputs {
        let mut hasher = Hasher::new("input").text(io.info.name()).number(element_type(io));
        let shape = match io.info.0.r#type.as_ref().and_then(|t| t.value.as_ref()) {
            Some(type_proto::Value::TensorType(tensor)) => tensor.shape.as_ref(),
            Some(_) => {
                let other = io.info.0.r#type.as_ref().map(prost::Message::encode_to_vec).unwrap_or_default();
                hasher = hasher.bytes(&other);
                None
            }
            None => None,
        };
        if let Some(shape) = shape {
            hasher = hasher.number(shape.dim.len() as u64);
            for dim in &shape.dim {
                hasher = match &dim.value {
                    Some(dimension::Value::DimValue(size)) => hasher.text("size").number(*size as u64),
                    Some(dimension::Value::DimParam(name)) if !name.is_empty() => {
                        let place = names.iter().position(|n| n == name).unwrap_or_else(|| {
                            names.push(name.clone());
                            names.len() - 1
                        });
                        hasher.text("name").number(place as u64)
                    }
                    _ => hasher.text("any"),
                };
            }
        }
        hashes.push((io.value, hasher.finish()));
    }
    hashes
}

fn element_type(io: &GraphIo) -> u64 {
    io.info.data_type().map_or(0, |data_type| data_type.0 as u64)
}

/// Returns the nodes that are compared: all but Constant nodes.
pub fn compared(graph: &Graph) -> impl Iterator<Item = (NodeId, &Node)> {
    graph.nodes().filter(|(_, node)| !is_constant(node))
}
