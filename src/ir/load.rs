//! Reading a [`Source`] into a [`Graph`].

use std::{collections::BTreeMap, sync::Arc};

use prost::Message;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Attribute, Graph, GraphIo, Initializer, InitializerId, Node, NodeId, Origin, Use, Value, ValueId,
    graph::Item, names::Names, symbol::Symbols,
};
use crate::onnx::{
    self, OnnxError, Source, TensorHeader, ValueInfo, graph_field, model_field,
    proto::{AttributeProto, GraphProto, NodeProto, OperatorSetIdProto, ValueInfoProto},
    wire::{self, Field},
};

impl Graph {
    /// Reads the graph of `source`: nodes, initializer headers, inputs and outputs. Calls of model-local functions are
    /// read through: the bodies stand in their places. No weight is read.
    ///
    /// # Errors
    /// [`OnnxError`] if a message is broken, a name is defined twice, or a node reads a value that nothing before it
    /// defines.
    pub fn load(mut source: Source) -> Result<Self, OnnxError> {
        onnx::read_through(&mut source)?;
        let source = Arc::new(source);
        let mut loader = Loader::new(&source)?;
        for field in source.graph.fields() {
            loader.define(&field)?;
        }
        loader.connect()?;
        Ok(loader.graph)
    }
}

struct Loader {
    graph: Graph,
    symbols: Symbols,
    inputs: Vec<(ValueInfoProto, bytes::Bytes)>,
    outputs: Vec<(ValueInfoProto, bytes::Bytes)>,
}

impl Loader {
    fn new(source: &Arc<Source>) -> Result<Self, OnnxError> {
        let mut opsets = BTreeMap::new();
        for field in source.fields_of(model_field::OPSET_IMPORT) {
            let opset: OperatorSetIdProto = decode(field, "an opset_import")?;
            let domain = if opset.domain() == "ai.onnx" { "" } else { opset.domain() };
            opsets.insert(domain.to_string(), opset.version());
        }
        for (domain, version) in &source.calls.opsets {
            opsets.entry(domain.clone()).or_insert(*version);
        }
        // Growing these a step at a time would copy a large model's nodes over and over.
        let count = |number| source.graph.fields_of(number).count();
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
            by_name: Names::with_capacity(values),
            opsets,
            layout: Vec::with_capacity(source.graph.fields().count()),
            first: Vec::new(),
            front: 0,
            before: FxHashMap::default(),
            last: Vec::new(),
            added_initializers: Vec::new(),
            metadata: Vec::new(),
            name: String::new(),
            new_name: None,
            extra_inputs: Vec::new(),
            edits: 0,
            node_names: FxHashSet::default(),
            source: Arc::clone(source),
        };
        Ok(Self { graph, symbols: Symbols::default(), inputs: Vec::new(), outputs: Vec::new() })
    }

    /// Reads, in a first round, everything but the nodes. The wire format does not fix the order of a graph's fields,
    /// and exporters write the nodes before the initializers that they read.
    fn define(&mut self, field: &Field) -> Result<(), OnnxError> {
        let item = match field.number {
            graph_field::NODE => {
                let id = NodeId::new(self.graph.order.len());
                self.graph.order.push(id);
                Item::Node(id)
            }
            graph_field::INITIALIZER => {
                let header = TensorHeader::parse(field.value())?;
                let id = InitializerId::new(self.graph.initializers.len());
                let value = self.define_value(header.name.clone(), Origin::Initializer(id), |n| {
                    format!("initializer `{n}`")
                })?;
                self.graph.initializers.push(Some(Initializer { value, header, new_data: None }));
                Item::Initializer(id)
            }
            graph_field::SPARSE_INITIALIZER => {
                self.define_sparse(field)?;
                Item::Other
            }
            graph_field::INPUT => {
                self.inputs.push((decode(field, "a graph input")?, field.value()));
                Item::Input
            }
            graph_field::OUTPUT => {
                self.outputs.push((decode(field, "a graph output")?, field.value()));
                Item::Output
            }
            graph_field::NAME => {
                self.graph.name = field.as_str().unwrap_or_default().to_string();
                Item::Name
            }
            graph_field::VALUE_INFO => Item::ValueInfo(None),
            graph_field::QUANTIZATION_ANNOTATION => Item::Annotation(None),
            _ => Item::Other,
        };
        self.graph.layout.push(item);
        Ok(())
    }

    fn define_sparse(&mut self, field: &Field) -> Result<(), OnnxError> {
        // SparseTensorProto.values (field 1) is a TensorProto that carries the name.
        let parts = wire::split(&field.value())?;
        if parts.iter().all(|part| part.number != 1) {
            return Err(OnnxError::invalid("a sparse initializer", "it has no values, and so no name"));
        }
        for part in parts.iter().filter(|f| f.number == 1) {
            let values = TensorHeader::parse(part.value())?;
            self.define_value(values.name, Origin::SparseInitializer, |n| {
                format!("sparse initializer `{n}`")
            })?;
        }
        Ok(())
    }

    fn define_value(
        &mut self,
        name: String,
        origin: Origin,
        what: impl Fn(&str) -> String,
    ) -> Result<ValueId, OnnxError> {
        if name.is_empty() {
            return Err(OnnxError::invalid(what(&name), "it has no name"));
        }
        if self.graph.value_named(&name).is_some() {
            return Err(OnnxError::invalid(what(&name), "the name is defined twice"));
        }
        Ok(self.graph.push_value(name, origin))
    }

    /// Reads, in a second round, inputs, nodes in their order, outputs, value_info.
    fn connect(&mut self) -> Result<(), OnnxError> {
        for (info, raw) in std::mem::take(&mut self.inputs) {
            let index = self.graph.inputs.len();
            // An initializer may be listed as an input as well; then the value is the initializer's.
            let value = match self.graph.value_named(info.name()) {
                Some(value) if self.graph.initializer_of(value).is_some() => value,
                _ => self.define_value(info.name().to_string(), Origin::Input(index), |n| {
                    format!("graph input `{n}`")
                })?,
            };
            self.graph.inputs.push(GraphIo { value, info: ValueInfo(info), raw });
        }
        let source = Arc::clone(&self.graph.source);
        for field in source.graph.fields_of(graph_field::NODE) {
            self.add_node(&field)?;
        }
        for (index, (info, raw)) in std::mem::take(&mut self.outputs).into_iter().enumerate() {
            let value = self.graph.value_named(info.name()).ok_or_else(|| {
                OnnxError::invalid(format!("graph output `{}`", info.name()), "nothing produces it")
            })?;
            self.graph.uses[value.index()].push(Use::Output(index));
            self.graph.outputs.push(GraphIo { value, info: ValueInfo(info), raw });
        }
        // A list makes room for four uses, and most values have one.
        self.graph.uses.iter_mut().for_each(Vec::shrink_to_fit);
        self.connect_descriptions()
    }

    fn add_node(&mut self, field: &Field) -> Result<(), OnnxError> {
        let mut proto: NodeProto = decode(field, "a node")?;
        let id = NodeId::new(self.graph.nodes.len());
        let mut inputs = Vec::with_capacity(proto.input.len());
        for (slot, name) in proto.input.iter().enumerate() {
            inputs.push(match name.as_str() {
                "" => None,
                name => Some(self.read(&proto, name, Use::Operand { node: id, slot })?),
            });
        }
        let mut captured = Vec::new();
        for attribute in &proto.attribute {
            for body in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
                outer_names(body, &mut FxHashSet::default(), &mut captured)?;
            }
        }
        captured.sort_unstable();
        captured.dedup();
        let mut captures = Vec::with_capacity(captured.len());
        for name in captured {
            captures.push(self.read(&proto, &name, Use::Capture(id))?);
        }
        let mut outputs = Vec::with_capacity(proto.output.len());
        for (slot, name) in std::mem::take(&mut proto.output).into_iter().enumerate() {
            outputs.push(match name.is_empty() {
                true => None,
                false => Some(self.define_value(name, Origin::Node { node: id, slot }, |n| {
                    format!("output `{n}` of node `{}`", proto.name())
                })?),
            });
        }
        self.graph.nodes.push(Some(Node {
            op_type: self.symbols.get(proto.op_type()),
            domain: self.symbols.get(proto.domain()),
            name: proto.name.unwrap_or_default().into(),
            inputs: inputs.into(),
            outputs: outputs.into(),
            attributes: proto.attribute.into_iter().map(Attribute).collect(),
            captures: captures.into(),
            raw: field.value(),
        }));
        Ok(())
    }

    /// Returns the value that `reader` reads by this name.
    fn read(&mut self, reader: &NodeProto, name: &str, used: Use) -> Result<ValueId, OnnxError> {
        let value = self.graph.value_named(name).ok_or_else(|| {
            let why = match self.is_produced(name) {
                true => "is produced only after it: the nodes are not in topological order",
                false => "nothing defines",
            };
            OnnxError::invalid(
                format!("{} node `{}`", reader.op_type(), reader.name()),
                format!("it reads `{name}`, which {why}"),
            )
        })?;
        self.graph.uses[value.index()].push(used);
        Ok(value)
    }

    /// Returns whether any node of the model, read already or not, has a result of this name.
    fn is_produced(&self, name: &str) -> bool {
        let nodes = self.graph.source.graph.fields_of(graph_field::NODE);
        nodes
            .filter_map(|field| NodeProto::decode(field.value()).ok())
            .any(|node| node.output.iter().any(|output| output == name))
    }

    fn connect_descriptions(&mut self) -> Result<(), OnnxError> {
        let graph = &mut self.graph;
        for (item, field) in graph.layout.iter_mut().zip(graph.source.graph.fields()) {
            match item {
                Item::ValueInfo(about) => {
                    let info: ValueInfoProto = decode(&field, "a value_info")?;
                    *about = graph.by_name.get(&graph.values, info.name());
                    if let (Some(value), Some(r#type)) = (*about, info.r#type) {
                        graph.value_info.insert(value, r#type);
                    }
                }
                Item::Annotation(about) => {
                    // TensorAnnotation.tensor_name is field 1.
                    let name = wire::split(&field.value())?.into_iter().find(|f| f.number == 1);
                    *about = name.and_then(|f| graph.by_name.get(&graph.values, f.as_str()?));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Graph {
    /// Adds a value; its name must not be taken.
    pub(crate) fn push_value(&mut self, name: String, origin: Origin) -> ValueId {
        let id = ValueId::new(self.values.len());
        self.values.push(Value { name, origin });
        self.by_name.insert(&self.values, id);
        self.uses.push(Vec::new());
        id
    }
}

fn decode<M: Message + Default>(field: &Field, what: &str) -> Result<M, OnnxError> {
    M::decode(field.value()).map_err(|e| OnnxError::invalid(what, format!("broken message: {e}")))
}

/// Returns the names that `body` reads, but neither it nor a body around it (`known`) defines.
///
/// # Errors
/// [`OnnxError`] if the body defines a name twice, or only after it has read what another graph calls so.
fn outer_names(
    body: &GraphProto,
    known: &mut FxHashSet<String>,
    found: &mut Vec<String>,
) -> Result<(), OnnxError> {
    let mut own: FxHashSet<&str> = FxHashSet::default();
    let mut outside: FxHashSet<String> = FxHashSet::default();
    let mut added = Vec::new();
    let mut looked_at = found.len();
    let mut define = |name: &'_ str, known: &mut FxHashSet<String>| {
        if known.insert(name.to_string()) {
            added.push(name.to_string());
        }
    };
    let twice = |name: &str| {
        OnnxError::invalid(
            format!("the body `{}`", body.name()),
            format!("the name `{name}` is defined twice"),
        )
    };
    for input in &body.input {
        own.insert(input.name());
        define(input.name(), known);
    }
    let sparse = body.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
    let mut initializers: FxHashSet<&str> = FxHashSet::default();
    for tensor in body.initializer.iter().chain(sparse) {
        // One that is listed as an input as well is the input's default.
        if !initializers.insert(tensor.name()) {
            return Err(twice(tensor.name()));
        }
        own.insert(tensor.name());
        define(tensor.name(), known);
    }
    for node in &body.node {
        for name in node.input.iter().filter(|n| !n.is_empty() && !known.contains(*n)) {
            found.push(name.clone());
        }
        for AttributeProto { g, graphs, .. } in &node.attribute {
            for inner in g.as_deref().into_iter().chain(graphs) {
                outer_names(inner, known, found)?;
            }
        }
        outside.extend(found.iter().skip(looked_at).cloned());
        looked_at = found.len();
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            if !own.insert(name) || outside.contains(name) {
                return Err(twice(name));
            }
            define(name, known);
        }
    }
    for output in body.output.iter().filter(|o| !known.contains(o.name())) {
        found.push(output.name().to_string());
    }
    for name in added {
        known.remove(&name);
    }
    Ok(())
}
