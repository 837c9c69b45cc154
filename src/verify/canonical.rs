//! Attributes, subgraphs and model-local functions in canonical form, as hashes: names of values inside them, the order
//! of attributes and nodes, doc strings and the field that a tensor keeps its elements in don't count.

use std::collections::BTreeMap;

use prost::Message;
use rustc_hash::FxHashMap;

use super::{
    constant::{content, header},
    hash::{Hash, Hasher},
};
use crate::{
    ir::{Attribute, Graph},
    observer::Progress,
    onnx::{
        OnnxError, graph_field, model_field,
        proto::{
            AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto,
            ValueInfoProto,
        },
    },
};

/// The meaning of a name outside of a subgraph.
pub type Outer<'a> = &'a dyn Fn(&str) -> Option<Hash>;

/// Hashes the attributes and operators of one model.
pub struct Canonical<'g> {
    graph: &'g Graph,
    /// By domain, name and overload.
    functions: BTreeMap<[String; 3], Hash>,
    /// Whether more counts than a digest may depend on: what attributes and the values of bodies are declared as, and
    /// which of several random nodes one is.
    exact: bool,
}

/// The parts that a subgraph and a function's body have in common.
struct Body<'a> {
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    /// The types of both, as they are declared.
    declared: Vec<Vec<u8>>,
    nodes: &'a [NodeProto],
    initializers: &'a [TensorProto],
    sparse: &'a [SparseTensorProto],
}

impl<'g> Canonical<'g> {
    /// Reads the model's functions.
    ///
    /// # Errors
    /// [`OnnxError`] if a function or a tensor in it is broken.
    pub fn new(graph: &'g Graph) -> Result<Self, OnnxError> {
        let functions = graph.source().fields_of(model_field::FUNCTIONS);
        let functions: Vec<FunctionProto> = functions
            .map(|f| FunctionProto::decode(f.value()))
            .collect::<Result<_, _>>()
            .map_err(|e| OnnxError::invalid("a function", format!("broken message: {e}")))?;
        let mut this = Self { graph, functions: BTreeMap::new(), exact: false };
        // A function's hash holds those of the functions that it calls, so each round reaches one call deeper.
        for _ in 0..=functions.len() {
            let mut hashes = BTreeMap::new();
            for function in &functions {
                let key = [domain(function.domain()), function.name(), function.overload()];
                hashes.insert(key.map(str::to_string), this.function(function)?);
            }
            if hashes == this.functions {
                break;
            }
            this.functions = hashes;
        }
        Ok(this)
    }

    /// Returns the canonical form in which everything counts that a reader of the file may look at. Functions are known
    /// by their names alone.
    pub fn exact(graph: &'g Graph) -> Self {
        Self { graph, functions: BTreeMap::new(), exact: true }
    }

    /// Returns the hash of an operator: its domain, name and overload, and what it does if it is a function of the model.
    pub fn operator(&self, domain_name: &str, op_type: &str, overload: &str) -> Hash {
        let key = [domain(domain_name), op_type, overload];
        let mut hasher = Hasher::new("operator").text(key[0]).text(op_type);
        if !overload.is_empty() {
            hasher = hasher.text(overload);
        }
        match self.functions.get(&key.map(str::to_string)) {
            Some(function) => hasher.bytes(function).finish(),
            None => hasher.finish(),
        }
    }

    /// Returns the hash of a node's attributes, in which names from outside stand for what `outer` says.
    ///
    /// # Errors
    /// [`OnnxError`] if a tensor in them cannot be read.
    pub fn attributes(&self, attributes: &[Attribute], outer: Outer<'_>) -> Result<Hash, OnnxError> {
        self.attributes_at(attributes.iter().map(|attribute| &attribute.0), outer, 0)
    }

    /// Returns the hash of one attribute, names from outside left out.
    ///
    /// # Errors
    /// [`OnnxError`] if a tensor in it cannot be read.
    pub fn attribute(&self, attribute: &Attribute) -> Result<Hash, OnnxError> {
        self.attribute_at(&attribute.0, &|_| None, 0)
    }

    /// Returns the hash of a tensor: type, dimensions and elements.
    ///
    /// # Errors
    /// [`OnnxError`] if its elements cannot be read.
    pub fn tensor(&self, tensor: &TensorProto) -> Result<Hash, OnnxError> {
        let header = header(tensor)?;
        Ok(Hasher::new("tensor")
            .number(header.data_type.0 as u64)
            .dims(&header.dims)
            .bytes(&content(self.graph, &header, Progress::none())?)
            .finish())
    }

    /// Returns the hash of a sparse tensor.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn sparse(&self, tensor: &SparseTensorProto) -> Result<Hash, OnnxError> {
        let mut hasher = Hasher::new("sparse").dims(&tensor.dims);
        for part in tensor.values.iter().chain(&tensor.indices) {
            hasher = hasher.bytes(&self.tensor(part)?);
        }
        Ok(hasher.finish())
    }

    /// Hashes of the graph's sparse initializers, by name.
    ///
    /// # Errors
    /// [`OnnxError`] if one is broken.
    pub fn sparse_initializers(&self) -> Result<Vec<(String, Hash)>, OnnxError> {
        let mut found = Vec::new();
        for field in self.graph.source().graph.fields_of(graph_field::SPARSE_INITIALIZER) {
            let tensor = SparseTensorProto::decode(field.value())
                .map_err(|e| OnnxError::invalid("a sparse initializer", format!("broken message: {e}")))?;
            let name = tensor.values.as_ref().map(|v| v.name().to_string()).unwrap_or_default();
            found.push((name, self.sparse(&tensor)?));
        }
        Ok(found)
    }

    fn attributes_at<'p>(
        &self,
        attributes: impl IntoIterator<Item = &'p AttributeProto>,
        outer: Outer<'_>,
        depth: u64,
    ) -> Result<Hash, OnnxError> {
        // In an order of their own: `outer` may number names as it meets them.
        let mut sorted: Vec<&AttributeProto> = attributes.into_iter().collect();
        sorted.sort_by_key(|attribute| attribute.name());
        let hashes: Result<Vec<Hash>, OnnxError> =
            sorted.into_iter().map(|a| self.attribute_at(a, outer, depth)).collect();
        Ok(Hasher::new("attributes").set(hashes?).finish())
    }

    fn attribute_at(
        &self,
        attribute: &AttributeProto,
        outer: Outer<'_>,
        depth: u64,
    ) -> Result<Hash, OnnxError> {
        let plain = AttributeProto {
            doc_string: None,
            r#type: attribute.r#type.filter(|_| self.exact),
            t: None,
            g: None,
            sparse_tensor: None,
            tensors: Vec::new(),
            graphs: Vec::new(),
            sparse_tensors: Vec::new(),
            ..attribute.clone()
        };
        let mut parts = Vec::new();
        for tensor in attribute.t.as_deref().into_iter().chain(&attribute.tensors) {
            parts.push(self.tensor(tensor)?);
        }
        for tensor in attribute.sparse_tensor.as_deref().into_iter().chain(&attribute.sparse_tensors) {
            parts.push(self.sparse(tensor)?);
        }
        for graph in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
            parts.push(self.subgraph(graph, outer, depth + 1)?);
        }
        let mut hasher = Hasher::new("attribute").bytes(&plain.encode_to_vec()).list(&parts);
        if self.exact {
            let single = [attribute.t.is_some(), attribute.sparse_tensor.is_some(), attribute.g.is_some()];
            let many = [attribute.tensors.len(), attribute.sparse_tensors.len(), attribute.graphs.len()];
            hasher = single.into_iter().map(u64::from).fold(hasher, Hasher::number);
            hasher = many.into_iter().map(|n| n as u64).fold(hasher, Hasher::number);
        }
        Ok(hasher.finish())
    }

    fn subgraph(&self, graph: &GraphProto, outer: Outer<'_>, depth: u64) -> Result<Hash, OnnxError> {
        let names =
            |list: &'_ [ValueInfoProto]| list.iter().map(|io| io.name().to_string()).collect::<Vec<_>>();
        let (inputs, outputs) = (names(&graph.input), names(&graph.output));
        let declared = |io: &ValueInfoProto| {
            ValueInfoProto { name: None, doc_string: None, metadata_props: Vec::new(), ..io.clone() }
                .encode_to_vec()
        };
        let body = Body {
            inputs: inputs.iter().map(String::as_str).collect(),
            outputs: outputs.iter().map(String::as_str).collect(),
            declared: graph.input.iter().chain(&graph.output).map(declared).collect(),
            nodes: &graph.node,
            initializers: &graph.initializer,
            sparse: &graph.sparse_initializer,
        };
        self.body(&body, outer, depth)
    }

    fn function(&self, function: &FunctionProto) -> Result<Hash, OnnxError> {
        let body = Body {
            inputs: function.input.iter().map(String::as_str).collect(),
            outputs: function.output.iter().map(String::as_str).collect(),
            declared: Vec::new(),
            nodes: &function.node,
            initializers: &[],
            sparse: &[],
        };
        let mut opsets: Vec<_> =
            function.opset_import.iter().map(|o| (domain(o.domain()), o.version())).collect();
        opsets.sort_unstable();
        let mut hasher = Hasher::new("function").bytes(&self.body(&body, &|_| None, 0)?);
        for (domain, version) in opsets {
            hasher = hasher.text(domain).number(version as u64);
        }
        let mut parameters = function.attribute.clone();
        parameters.sort_unstable();
        hasher = parameters.iter().fold(hasher, |hasher, name| hasher.text(name));
        Ok(hasher.bytes(&self.attributes_at(&function.attribute_proto, &|_| None, 0)?).finish())
    }

    fn body(&self, body: &Body<'_>, outer: Outer<'_>, depth: u64) -> Result<Hash, OnnxError> {
        let mut known: FxHashMap<&str, Hash> = FxHashMap::default();
        for tensor in body.initializers {
            known.insert(tensor.name(), self.tensor(tensor)?);
        }
        for tensor in body.sparse {
            if let Some(values) = &tensor.values {
                known.insert(values.name(), self.sparse(tensor)?);
            }
        }
        for (index, name) in body.inputs.iter().enumerate() {
            let hasher = Hasher::new("parameter").number(depth).number(index as u64);
            // A tensor of its name is its default.
            let default = known.get(name).filter(|_| self.exact);
            known.insert(name, default.into_iter().fold(hasher, |hasher, hash| hasher.bytes(hash)).finish());
        }
        let unknown = || Hasher::new("outside").finish();
        let mut nodes = Vec::with_capacity(body.nodes.len());
        for node in body.nodes {
            let lookup = |name: &str| known.get(name).copied().or_else(|| outer(name));
            let operands: Vec<Hash> = node
                .input
                .iter()
                .map(|name| match name.as_str() {
                    "" => Hasher::new("nothing").finish(),
                    name => lookup(name).unwrap_or_else(unknown),
                })
                .collect();
            let mut hasher = Hasher::new("node")
                .bytes(&self.operator(node.domain(), node.op_type(), node.overload()))
                .bytes(&self.attributes_at(&node.attribute, &lookup, depth)?)
                .list(&operands);
            if self.exact {
                let rest = NodeProto {
                    overload: node.overload.clone(),
                    device_configurations: node.device_configurations.clone(),
                    ..NodeProto::default()
                };
                let results = node.output.iter().map(|name| u64::from(!name.is_empty()));
                hasher = results.fold(hasher.bytes(&rest.encode_to_vec()), Hasher::number);
                if is_random(node.op_type(), node.domain()) || any_random(&node.attribute) {
                    hasher = hasher.number(depth).number(nodes.len() as u64);
                }
            }
            let hash = hasher.finish();
            for (slot, name) in node.output.iter().enumerate() {
                known.insert(name, result(&hash, slot));
            }
            nodes.push(hash);
        }
        let output = |name: &&str| known.get(name).copied().or_else(|| outer(name)).unwrap_or_else(unknown);
        let outputs: Vec<Hash> = body.outputs.iter().map(output).collect();
        let mut hasher = Hasher::new("body").number(body.inputs.len() as u64).list(&outputs).set(nodes);
        if self.exact {
            hasher = body.declared.iter().fold(hasher, |hasher, declared| hasher.bytes(declared));
        }
        Ok(hasher.finish())
    }
}

/// Returns the hash of a node's result.
pub fn result(node: &Hash, slot: usize) -> Hash {
    Hasher::new("result").bytes(node).number(slot as u64).finish()
}

/// Returns the domain with one name for the standard one.
pub fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

/// Returns whether an operator may compute something else each time: ONNX's random ones, and all that are not ONNX's
/// own.
pub fn is_random(op_type: &str, domain: &str) -> bool {
    const RANDOM: [&str; 7] = [
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ];
    !matches!(domain, "" | "ai.onnx") || RANDOM.contains(&op_type)
}

/// Returns whether a node in the bodies among `attributes` may.
pub fn any_random<'p>(attributes: impl IntoIterator<Item = &'p AttributeProto>) -> bool {
    let mut bodies = attributes.into_iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs));
    bodies.any(|body| {
        body.node.iter().any(|node| is_random(node.op_type(), node.domain()) || any_random(&node.attribute))
    })
}
