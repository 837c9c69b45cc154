//! Reading a [`Source`] into a [`Graph`].

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use prost::Message;
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use super::{
    Graph, GraphIo, Initializer, InitializerId, Node, NodeId, Origin, Use, Value, ValueId, graph::Item,
};
use crate::onnx::{
    OnnxError, Source, TensorHeader, graph_field, model_field,
    proto::{AttributeProto, GraphProto, NodeProto, OperatorSetIdProto, ValueInfoProto},
    wire::{self, Field},
};

impl Graph {
    /// Reads the graph of `source`: nodes, initializer headers, inputs and outputs. No weight is read.
    ///
    /// # Errors
    /// [`OnnxError`] if a message is broken, a name is defined twice, or a node reads a value that nothing before it
    /// defines.
    pub fn load(source: Source) -> Result<Self, OnnxError> {
        let source = Arc::new(source);
        let mut loader = Loader::new(&source)?;
        let fields = &source.graph.fields;
        for field in fields {
            loader.define(field)?;
        }
        loader.connect()?;
        Ok(loader.graph)
    }
}

struct Loader {
    graph: Graph,
    /// Operand names of each node, until all values are known.
    pending: Vec<NodeProto>,
    outputs: Vec<(ValueInfoProto, bytes::Bytes)>,
    overridable: Vec<(ValueInfoProto, bytes::Bytes)>,
}

impl Loader {
    fn new(source: &Arc<Source>) -> Result<Self, OnnxError> {
        let mut opsets = BTreeMap::new();
        for field in source.fields.iter().filter(|f| f.number == model_field::OPSET_IMPORT) {
            let opset: OperatorSetIdProto = decode(field, "an opset_import")?;
            let domain = if opset.domain() == "ai.onnx" { "" } else { opset.domain() };
            opsets.insert(domain.to_string(), opset.version());
        }
        // Growing these a step at a time would copy a large model's nodes over and over.
        let fields = &source.graph.fields;
        let count = |number| fields.iter().filter(|f| f.number == number).count();
        let (nodes, initializers) = (count(graph_field::NODE), count(graph_field::INITIALIZER));
        // Nearly all nodes have one result.
        let values = nodes + initializers;
        let graph = Graph {
            nodes: Vec::with_capacity(nodes),
            order: Vec::with_capacity(nodes),
            values: Vec::with_capacity(values),
            uses: Vec::with_capacity(values),
            initializers: Vec::with_capacity(initializers),
            inputs: Vec::new(),
            outputs: Vec::new(),
            value_info: FxHashMap::default(),
            by_name: FxHashMap::with_capacity_and_hasher(values, FxBuildHasher),
            opsets,
            layout: Vec::with_capacity(fields.len()),
            first: Vec::new(),
            front: 0,
            last: Vec::new(),
            added_initializers: Vec::new(),
            metadata: Vec::new(),
            name: String::new(),
            new_name: None,
            extra_inputs: Vec::new(),
            edited: false,
            node_names: FxHashSet::default(),
            source: Arc::clone(source),
        };
        Ok(Self { graph, pending: Vec::with_capacity(nodes), outputs: Vec::new(), overridable: Vec::new() })
    }

    /// First round: everything that defines a value. Operands are resolved once all names are known, because the
    /// wire format does not fix the order of a graph's fields.
    fn define(&mut self, field: &Field) -> Result<(), OnnxError> {
        let item = match field.number {
            graph_field::NODE => {
                let proto: NodeProto = decode(field, "a node")?;
                let id = NodeId::new(self.graph.nodes.len());
                let outputs = self.define_outputs(id, &proto)?;
                self.graph.nodes.push(Some(Node {
                    name: proto.name().to_string(),
                    op_type: proto.op_type().to_string(),
                    domain: proto.domain().to_string(),
                    inputs: Vec::new(),
                    outputs,
                    attributes: Vec::new(),
                    metadata: Vec::new(),
                    captures: Vec::new(),
                    raw: field.value(),
                }));
                self.graph.order.push(id);
                self.pending.push(proto);
                Item::Node(id)
            }
            graph_field::INITIALIZER => {
                let header = TensorHeader::parse(field.value())?;
                let id = InitializerId::new(self.graph.initializers.len());
                let value = self.define_value(&header.name, Origin::Initializer(id), "initializer")?;
                self.graph.initializers.push(Some(Initializer { value, header, new_data: None }));
                Item::Initializer(id)
            }
            graph_field::SPARSE_INITIALIZER => {
                self.define_sparse(field)?;
                Item::Other(field.clone())
            }
            graph_field::INPUT => {
                self.overridable.push((decode(field, "a graph input")?, field.value()));
                Item::Input
            }
            graph_field::OUTPUT => {
                self.outputs.push((decode(field, "a graph output")?, field.value()));
                Item::Output(self.outputs.len() - 1)
            }
            graph_field::NAME => {
                self.graph.name = field.as_str().unwrap_or_default().to_string();
                Item::Name
            }
            graph_field::VALUE_INFO | graph_field::QUANTIZATION_ANNOTATION => {
                Item::About(None, field.clone())
            }
            _ => Item::Other(field.clone()),
        };
        self.graph.layout.push(item);
        Ok(())
    }

    fn define_outputs(&mut self, id: NodeId, proto: &NodeProto) -> Result<Vec<Option<ValueId>>, OnnxError> {
        proto
            .output
            .iter()
            .enumerate()
            .map(|(slot, name)| match name.as_str() {
                "" => Ok(None),
                name => self
                    .define_value(
                        name,
                        Origin::Node { node: id, slot },
                        format_args!("output of node `{}`", proto.name()),
                    )
                    .map(Some),
            })
            .collect()
    }

    fn define_sparse(&mut self, field: &Field) -> Result<(), OnnxError> {
        // SparseTensorProto.values (field 1) is a TensorProto that carries the name.
        for part in wire::split(&field.value())?.iter().filter(|f| f.number == 1) {
            let values = TensorHeader::parse(part.value())?;
            self.define_value(&values.name, Origin::SparseInitializer, "sparse initializer")?;
        }
        Ok(())
    }

    fn define_value(&mut self, name: &str, origin: Origin, what: impl Display) -> Result<ValueId, OnnxError> {
        if name.is_empty() {
            return Err(OnnxError::invalid(format!("an {what}"), "it has no name"));
        }
        let id = self.graph.push_value(name.to_string(), origin);
        match self.graph.by_name.insert(name.to_string(), id) {
            None => Ok(id),
            Some(_) => Err(OnnxError::invalid(format!("{what} `{name}`"), "the name is defined twice")),
        }
    }

    /// Second round: inputs, operands, captures, outputs, value_info.
    fn connect(&mut self) -> Result<(), OnnxError> {
        for (info, raw) in std::mem::take(&mut self.overridable) {
            let index = self.graph.inputs.len();
            // An initializer may be listed as an input as well; then the value is the initializer's.
            let value = match self.graph.value_named(info.name()) {
                Some(value) if self.graph.initializer_of(value).is_some() => value,
                _ => self.define_value(info.name(), Origin::Input(index), "graph input")?,
            };
            self.graph.inputs.push(GraphIo { value, info, raw });
        }
        let mut defined = vec![false; self.graph.values.len()];
        for (index, value) in self.graph.values.iter().enumerate() {
            defined[index] = !matches!(value.origin, Origin::Node { .. });
        }
        for (index, proto) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            self.connect_node(NodeId::new(index), proto, &mut defined)?;
        }
        for (index, (info, raw)) in std::mem::take(&mut self.outputs).into_iter().enumerate() {
            let value = self.graph.value_named(info.name()).ok_or_else(|| {
                OnnxError::invalid(format!("graph output `{}`", info.name()), "nothing produces it")
            })?;
            self.graph.uses[value.index()].push(Use::Output(index));
            self.graph.outputs.push(GraphIo { value, info, raw });
        }
        self.connect_descriptions()
    }

    fn connect_node(&mut self, id: NodeId, proto: NodeProto, defined: &mut [bool]) -> Result<(), OnnxError> {
        let graph = &mut self.graph;
        let undefined = |name: &str, why: &str| {
            OnnxError::invalid(
                format!("{} node `{}`", proto.op_type(), proto.name()),
                format!("it reads `{name}`, which {why}"),
            )
        };
        let read = |graph: &mut Graph, name: &str, used: Use| {
            let value = graph.value_named(name).ok_or_else(|| undefined(name, "nothing defines"))?;
            if !defined[value.index()] {
                return Err(undefined(
                    name,
                    "is produced only after it: the nodes are not in topological order",
                ));
            }
            graph.uses[value.index()].push(used);
            Ok(value)
        };
        let mut inputs = Vec::with_capacity(proto.input.len());
        for (slot, name) in proto.input.iter().enumerate() {
            inputs.push(match name.as_str() {
                "" => None,
                name => Some(read(graph, name, Use::Operand { node: id, slot })?),
            });
        }
        let mut captured = Vec::new();
        for attribute in &proto.attribute {
            for body in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
                outer_names(body, &mut FxHashSet::default(), &mut captured);
            }
        }
        captured.sort_unstable();
        captured.dedup();
        let mut captures = Vec::with_capacity(captured.len());
        for name in captured {
            captures.push(read(graph, &name, Use::Capture(id))?);
        }
        if let Some(node) = graph.nodes[id.index()].as_mut() {
            node.inputs = inputs;
            node.captures = captures;
            node.attributes = proto.attribute;
            node.metadata = proto.metadata_props;
            for value in node.results() {
                defined[value.index()] = true;
            }
        }
        Ok(())
    }

    fn connect_descriptions(&mut self) -> Result<(), OnnxError> {
        let graph = &mut self.graph;
        for item in &mut graph.layout {
            let Item::About(about, field) = item else { continue };
            if field.number == graph_field::VALUE_INFO {
                let info: ValueInfoProto = decode(field, "a value_info")?;
                *about = graph.by_name.get(info.name()).copied();
                if let (Some(value), Some(r#type)) = (*about, info.r#type) {
                    graph.value_info.insert(value, r#type);
                }
            } else {
                // TensorAnnotation.tensor_name is field 1.
                let name = wire::split(&field.value())?.into_iter().find(|f| f.number == 1);
                *about = name.and_then(|f| graph.by_name.get(f.as_str()?).copied());
            }
        }
        Ok(())
    }
}

impl Graph {
    pub(crate) fn push_value(&mut self, name: String, origin: Origin) -> ValueId {
        let id = ValueId::new(self.values.len());
        self.values.push(Value { name, origin });
        self.uses.push(Vec::new());
        id
    }
}

fn decode<M: Message + Default>(field: &Field, what: &str) -> Result<M, OnnxError> {
    M::decode(field.value()).map_err(|e| OnnxError::invalid(what, format!("broken message: {e}")))
}

/// Names that `body` reads, but neither it nor a body around it (`known`) defines.
fn outer_names(body: &GraphProto, known: &mut FxHashSet<String>, found: &mut Vec<String>) {
    let mut added = Vec::new();
    let mut define = |name: &str, known: &mut FxHashSet<String>| {
        if known.insert(name.to_string()) {
            added.push(name.to_string());
        }
    };
    for input in &body.input {
        define(input.name(), known);
    }
    for initializer in &body.initializer {
        define(initializer.name(), known);
    }
    for sparse in &body.sparse_initializer {
        if let Some(values) = &sparse.values {
            define(values.name(), known);
        }
    }
    for node in &body.node {
        for name in node.input.iter().filter(|n| !n.is_empty() && !known.contains(*n)) {
            found.push(name.clone());
        }
        for AttributeProto { g, graphs, .. } in &node.attribute {
            for inner in g.as_deref().into_iter().chain(graphs) {
                outer_names(inner, known, found);
            }
        }
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            define(name, known);
        }
    }
    for output in body.output.iter().filter(|o| !known.contains(o.name())) {
        found.push(output.name().to_string());
    }
    for name in added {
        known.remove(&name);
    }
}
