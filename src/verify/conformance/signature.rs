//! What two nodes must have in common to compute the same from the same operands: operator, domain, attributes with
//! the bodies in them, which operands and results are there, and every other field but names, doc strings and metadata.

use prost::Message;
use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

use super::value;
use crate::{
    ir::{Graph, Node, NodeId, ValueId},
    onnx::{
        self, OnnxError,
        proto::{AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto},
        wire,
    },
};

/// The signature of a node, and what it reads.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    /// Equal for nodes that agree.
    pub bytes: Vec<u8>,
    /// The operands, without those left out at the end, and then the values that bodies refer to, in the order in
    /// which they do.
    pub reads: Vec<Option<ValueId>>,
    /// Whether two nodes like this one, with the same operands, may compute different things.
    pub is_random: bool,
}

/// Fields of `NodeProto` that the signature takes apart, or that say nothing about what a node computes: input, output,
/// name, op_type, attribute, doc_string, domain, metadata_props.
const TAKEN_APART: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 9];

/// The signature of node `id`, if it has these attributes.
///
/// # Errors
/// [`OnnxError`] if a tensor in an attribute cannot be read.
pub(super) fn signature(
    graph: &Graph,
    id: NodeId,
    attributes: &[AttributeProto],
) -> Result<Signature, OnnxError> {
    let node = graph.node(id);
    let mut renamer = Renamer { graph, bound: Vec::new(), free: Vec::new(), next: 0 };
    let counted = renamer.attributes(attributes)?;
    // An optional operand that is left out at the end is the same as none; in the middle it is one of its own.
    let operands = node.inputs.len() - node.inputs.iter().rev().take_while(|v| v.is_none()).count();
    let operands = node.inputs.get(..operands).unwrap_or_default();
    let mut bytes = Vec::new();
    let mut add = |part: &[u8]| {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    };
    add(node.op_type.as_bytes());
    add(domain(node).as_bytes());
    for values in [operands, &node.outputs] {
        add(&values.iter().map(|value| u8::from(value.is_some())).collect::<Vec<_>>());
    }
    for part in wire::parts(&node.raw) {
        let part = part?;
        if !TAKEN_APART.contains(&part.number) {
            add(&part.number.to_le_bytes());
            add(part.value);
        }
    }
    if !graph.source().unknown.is_empty() {
        for unknown in onnx::check("NodeProto", &node.raw)? {
            add(unknown.message.as_bytes());
            add(&unknown.number.to_le_bytes());
            add(&unknown.value);
        }
    }
    for attribute in counted {
        add(&attribute.encode_to_vec());
    }
    let mut reads = operands.to_vec();
    reads.extend(renamer.free.iter().map(|name| graph.value_named(name)));
    let is_random = is_random(&node.op_type, domain(node)) || any_random(attributes);
    Ok(Signature { bytes, reads, is_random })
}

/// Whether a node has no field but those, so that its operator, attributes and operands say all of it.
pub(super) fn is_plain(node: &Node) -> bool {
    wire::parts(&node.raw).all(|part| part.is_ok_and(|part| TAKEN_APART.contains(&part.number)))
}

/// Whether an operator may compute something else each time: ONNX's random ones, and all that are not ONNX's own.
fn is_random(op_type: &str, domain: &str) -> bool {
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

/// Whether a node in the bodies among `attributes` may.
fn any_random(attributes: &[AttributeProto]) -> bool {
    let mut bodies = attributes.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs));
    bodies.any(|body| {
        body.node.iter().any(|node| is_random(node.op_type(), node.domain()) || any_random(&node.attribute))
    })
}

/// The operator set a node is of; the standard one has two names.
pub(super) fn domain(node: &Node) -> &str {
    match node.domain.as_str() {
        "ai.onnx" => "",
        other => other,
    }
}

/// `attributes` of a node by name, each as it counts.
///
/// # Errors
/// [`OnnxError`] if a tensor in one cannot be read.
pub(super) fn counted(
    graph: &Graph,
    attributes: &[AttributeProto],
) -> Result<Vec<AttributeProto>, OnnxError> {
    Renamer { graph, bound: Vec::new(), free: Vec::new(), next: 0 }.attributes(attributes)
}

/// Bytes that are equal for equal sparse initializers.
///
/// # Errors
/// [`OnnxError`] if there is none called `name`, or its elements cannot be read.
pub(super) fn sparse(graph: &Graph, name: &str) -> Result<Vec<u8>, OnnxError> {
    let fields = graph.source().graph.fields.iter();
    for field in fields.filter(|f| f.number == onnx::graph_field::SPARSE_INITIALIZER) {
        let Ok(tensor) = SparseTensorProto::decode(field.value()) else { continue };
        if tensor.values.as_ref().is_some_and(|values| values.name() == name) {
            return Ok(sparse_content(graph, &tensor)?.encode_to_vec());
        }
    }
    Err(OnnxError::invalid(format!("sparse initializer `{name}`"), "it cannot be decoded"))
}

/// Gives the values of bodies names that depend only on where they are first met.
struct Renamer<'g> {
    graph: &'g Graph,
    bound: Vec<FxHashMap<String, String>>,
    /// Names that no body defines.
    free: Vec<String>,
    next: usize,
}

impl Renamer<'_> {
    fn attributes(&mut self, attributes: &[AttributeProto]) -> Result<Vec<AttributeProto>, OnnxError> {
        let mut sorted: Vec<&AttributeProto> = attributes.iter().collect();
        sorted.sort_by_key(|a| a.name());
        sorted.into_iter().map(|a| self.attribute(a)).collect()
    }

    fn attribute(&mut self, attribute: &AttributeProto) -> Result<AttributeProto, OnnxError> {
        let graph = self.graph;
        let AttributeProto { t, g, sparse_tensor, tensors, graphs, sparse_tensors, .. } = attribute;
        Ok(AttributeProto {
            name: attribute.name.clone(),
            doc_string: None,
            t: t.as_ref().map(|t| tensor_content(graph, t).map(Box::new)).transpose()?,
            g: g.as_ref().map(|g| self.body(g).map(Box::new)).transpose()?,
            sparse_tensor: sparse_tensor
                .as_ref()
                .map(|t| sparse_content(graph, t).map(Box::new))
                .transpose()?,
            tensors: tensors.iter().map(|t| tensor_content(graph, t)).collect::<Result<_, _>>()?,
            graphs: graphs.iter().map(|g| self.body(g)).collect::<Result<_, _>>()?,
            sparse_tensors: sparse_tensors
                .iter()
                .map(|t| sparse_content(graph, t))
                .collect::<Result<_, _>>()?,
            ..attribute.clone()
        })
    }

    fn body(&mut self, body: &GraphProto) -> Result<GraphProto, OnnxError> {
        self.bound.push(FxHashMap::default());
        let mut renamed = GraphProto::default();
        for input in &body.input {
            let mut input = input.clone();
            (input.doc_string, input.metadata_props) = (None, Vec::new());
            input.name = Some(self.bind(input.name()));
            renamed.input.push(input);
        }
        let inputs: Vec<&str> = body.input.iter().map(|input| input.name()).collect();
        for tensor in &body.initializer {
            // The default of an input is that input.
            let name = match inputs.contains(&tensor.name()) {
                true => self.name(tensor.name()),
                false => self.bind(tensor.name()),
            };
            renamed.initializer.push(TensorProto { name: Some(name), ..tensor_content(self.graph, tensor)? });
        }
        for sparse in &body.sparse_initializer {
            let mut content = sparse_content(self.graph, sparse)?;
            if let (Some(content), Some(values)) = (&mut content.values, &sparse.values) {
                content.name = Some(self.bind(values.name()));
            }
            renamed.sparse_initializer.push(content);
        }
        for node in &body.node {
            renamed.node.push(NodeProto {
                input: node.input.iter().map(|name| self.name(name)).collect(),
                attribute: self.attributes(&node.attribute)?,
                output: node.output.iter().map(|name| self.bind(name)).collect(),
                op_type: node.op_type.clone(),
                domain: node.domain.clone(),
                overload: node.overload.clone(),
                device_configurations: node.device_configurations.clone(),
                ..NodeProto::default()
            });
        }
        for output in &body.output {
            let mut output = output.clone();
            (output.doc_string, output.metadata_props) = (None, Vec::new());
            output.name = Some(self.name(output.name()));
            renamed.output.push(output);
        }
        self.bound.pop();
        Ok(renamed)
    }

    fn bind(&mut self, name: &str) -> String {
        if name.is_empty() {
            return String::new();
        }
        let new = self.next.to_string();
        self.next += 1;
        if let Some(scope) = self.bound.last_mut() {
            scope.insert(name.to_string(), new.clone());
        }
        new
    }

    fn name(&mut self, name: &str) -> String {
        if name.is_empty() {
            return String::new();
        }
        if let Some(known) = self.bound.iter().rev().find_map(|scope| scope.get(name)) {
            return known.clone();
        }
        let index = self.free.iter().position(|free| free == name).unwrap_or_else(|| {
            self.free.push(name.to_string());
            self.free.len() - 1
        });
        format!("outer {index}")
    }
}

/// A tensor without its name, and with a digest in place of its elements, wherever those are; elements of types that
/// cannot be read stay as they are written.
fn tensor_content(graph: &Graph, tensor: &TensorProto) -> Result<TensorProto, OnnxError> {
    match value::header(tensor) {
        Some(header) => Ok(TensorProto {
            dims: tensor.dims.clone(),
            data_type: tensor.data_type,
            raw_data: Some(digest(&graph.weight_reader(&header)?)?.into()),
            ..TensorProto::default()
        }),
        None => Ok(value::content(tensor)),
    }
}

fn sparse_content(graph: &Graph, tensor: &SparseTensorProto) -> Result<SparseTensorProto, OnnxError> {
    let content = |t: &Option<TensorProto>| t.as_ref().map(|t| tensor_content(graph, t)).transpose();
    Ok(SparseTensorProto {
        values: content(&tensor.values)?,
        indices: content(&tensor.indices)?,
        dims: tensor.dims.clone(),
    })
}

fn digest(elements: &crate::ir::WeightReader) -> Result<Vec<u8>, OnnxError> {
    const PIECE: u64 = 1 << 20;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; elements.len().min(PIECE) as usize];
    let mut at = 0;
    while at < elements.len() {
        let piece = &mut buffer[..(elements.len() - at).min(PIECE) as usize];
        elements.read_at(at, piece)?;
        hash.update(&*piece);
        at += piece.len() as u64;
    }
    Ok(hash.finalize().to_vec())
}
