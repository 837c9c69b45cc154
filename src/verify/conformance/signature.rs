//! What two nodes must have in common to compute the same from the same operands: operator, domain, attributes with
//! the bodies in them, number of operands and results. Names, doc strings and metadata are not among it.

use prost::Message;
use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

use super::value;
use crate::{
    ir::{Graph, Node, NodeId, ValueId},
    onnx::{
        OnnxError,
        proto::{AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto},
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
}

/// The signature of node `id`.
///
/// # Errors
/// [`OnnxError`] if a tensor in an attribute cannot be read.
pub(super) fn signature(graph: &Graph, id: NodeId) -> Result<Signature, OnnxError> {
    let node = graph.node(id);
    let mut renamer = Renamer { graph, bound: Vec::new(), free: Vec::new(), next: 0 };
    let attributes = renamer.attributes(&node.attributes)?;
    let operands = node.inputs.len() - node.inputs.iter().rev().take_while(|v| v.is_none()).count();
    let mut bytes = Vec::new();
    let overload = overload(node)?;
    for part in [node.op_type.as_str(), domain(node), &overload] {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes.extend_from_slice(&(operands as u64).to_le_bytes());
    bytes.extend_from_slice(&(node.outputs.len() as u64).to_le_bytes());
    for attribute in attributes {
        let encoded = attribute.encode_to_vec();
        bytes.extend_from_slice(&(encoded.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&encoded);
    }
    let mut reads = node.inputs.get(..operands).unwrap_or_default().to_vec();
    reads.extend(renamer.free.iter().map(|name| graph.value_named(name)));
    Ok(Signature { bytes, reads })
}

/// Which of several functions of one name a node calls; empty for operators.
fn overload(node: &Node) -> Result<String, OnnxError> {
    if domain(node).is_empty() {
        return Ok(String::new());
    }
    let proto = NodeProto::decode(node.raw.clone())
        .map_err(|e| OnnxError::invalid(node.describe(), format!("broken message: {e}")))?;
    Ok(proto.overload().to_string())
}

/// The operator set a node is of; the standard one has two names.
pub(super) fn domain(node: &Node) -> &str {
    match node.domain.as_str() {
        "ai.onnx" => "",
        other => other,
    }
}

/// The attributes of a node by name, each as it counts.
///
/// # Errors
/// [`OnnxError`] if a tensor in one cannot be read.
pub(super) fn attributes(graph: &Graph, node: &Node) -> Result<Vec<AttributeProto>, OnnxError> {
    Renamer { graph, bound: Vec::new(), free: Vec::new(), next: 0 }.attributes(&node.attributes)
}

/// Bytes that are equal for equal sparse initializers; empty if there is none called `name`.
///
/// # Errors
/// [`OnnxError`] if its elements cannot be read.
pub(super) fn sparse(graph: &Graph, name: &str) -> Result<Vec<u8>, OnnxError> {
    let fields = graph.source().graph.fields.iter();
    for field in fields.filter(|f| f.number == crate::onnx::graph_field::SPARSE_INITIALIZER) {
        let Ok(tensor) = SparseTensorProto::decode(field.value()) else { continue };
        if tensor.values.as_ref().is_some_and(|values| values.name() == name) {
            return Ok(sparse_content(graph, &tensor)?.encode_to_vec());
        }
    }
    Ok(Vec::new())
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
        for tensor in &body.initializer {
            let name = self.bind(tensor.name());
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

/// A tensor without its name, and with a digest in place of its elements, wherever those are.
fn tensor_content(graph: &Graph, tensor: &TensorProto) -> Result<TensorProto, OnnxError> {
    let raw_data = match value::header(tensor) {
        Some(header) => Some(digest(&graph.weight_reader(&header)?)?.into()),
        None => tensor.raw_data.clone(),
    };
    Ok(TensorProto {
        dims: tensor.dims.clone(),
        data_type: tensor.data_type,
        string_data: tensor.string_data.clone(),
        raw_data,
        ..TensorProto::default()
    })
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
