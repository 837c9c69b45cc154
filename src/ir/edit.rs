//! The only mutators of a graph. Each keeps uses, operands and bytes in step, and refuses to leave a dangling use.

use bytes::Bytes;
use prost::Message;

use super::{
    Attribute, Graph, GraphIo, Initializer, InitializerId, Masked, NewData, Node, NodeId, Origin, Use, Value,
    ValueId, WeightReader,
    rename::{NODE_INPUT, NODE_OUTPUT, rename_in_bodies},
};
use crate::onnx::{
    DataType, OnnxError, Payload, TensorHeader, ValueInfo,
    proto::{NodeProto, ValueInfoProto},
    wire::{self, Field},
};

/// An edit that would break the graph, or bytes that cannot be edited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// Something still reads what should be removed.
    #[error("{0} is still used and cannot be removed")]
    StillUsed(String),
    /// The node or initializer was removed before.
    #[error("{0} was removed before")]
    Gone(String),
    /// A subgraph in which a name would have to change returns it directly.
    #[error("{0}")]
    Unsupported(String),
    /// The node's own bytes cannot be edited.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
}

/// A node to add. Its result is a fresh value.
#[derive(Clone, Debug)]
pub struct NodeSpec<'a> {
    /// Name; made unique if it is taken.
    pub name: &'a str,
    /// Operator of the standard ONNX domain.
    pub op_type: &'a str,
    /// Operands.
    pub inputs: &'a [Option<ValueId>],
    /// Name of the result; made unique if it is taken.
    pub output: &'a str,
    /// Attributes.
    pub attributes: Vec<Attribute>,
}

/// Where in the topological order a node is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before everything else, in the order in which they are added: for nodes that read only initializers, and each
    /// other.
    Front,
    /// Before all original nodes: for nodes that read only graph inputs, initializers and what is in front.
    First,
    /// Just before this original node, and after what was added there before.
    Before(NodeId),
    /// After all original nodes.
    Last,
}

/// The editor of a graph.
#[derive(Debug)]
pub struct Editor<'g> {
    pub(super) graph: &'g mut Graph,
}

impl<'g> Editor<'g> {
    pub(super) fn new(graph: &'g mut Graph) -> Self {
        Self { graph }
    }

    /// Returns the graph as it is now.
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// Makes everything that reads `from` read `to` instead: operands, references from subgraphs, graph outputs.
    /// A graph output keeps its name: an Identity gives `to` that name, and `from` gets another.
    ///
    /// # Errors
    /// [`EditError`] if a subgraph cannot be edited.
    pub fn redirect(&mut self, from: ValueId, to: ValueId) -> Result<(), EditError> {
        if from == to {
            return Ok(());
        }
        for used in self.graph.uses(from).to_vec() {
            match used {
                Use::Operand { node, slot } => self.set_input(node, slot, to)?,
                Use::Capture(node) => self.rename_capture(node, from, to)?,
                Use::Output(index) => self.replace_output(index, to)?,
            }
        }
        Ok(())
    }

    /// Makes operand `slot` of `node` read `to`.
    ///
    /// # Errors
    /// [`EditError::Gone`] if the node was removed or has no such operand.
    pub fn set_input(&mut self, node: NodeId, slot: usize, to: ValueId) -> Result<(), EditError> {
        let from =
            self.node_mut(node)?.input(slot).ok_or_else(|| EditError::Gone(format!("operand {slot}")))?;
        self.node_mut(node)?.inputs[slot] = Some(to);
        self.forget(from, Use::Operand { node, slot });
        self.graph.uses[to.index()].push(Use::Operand { node, slot });
        self.encode_names(node, NODE_INPUT)
    }

    /// Makes graph output `index` yield `value`, under the name that the output has.
    ///
    /// # Errors
    /// [`EditError::Gone`] if there is no such output or what it yielded was removed.
    pub fn replace_output(&mut self, index: usize, value: ValueId) -> Result<(), EditError> {
        let old = self
            .graph
            .outputs
            .get(index)
            .map(|io| io.value)
            .ok_or_else(|| EditError::Gone(format!("graph output {index}")))?;
        let name = self.graph.value(old).name.clone();
        let retired = self.fresh_name(&format!("{name}_replaced"));
        self.rename(old, retired)?;
        let output = self.add_node(
            NodeSpec {
                name: &format!("{name}/Identity"),
                op_type: "Identity",
                inputs: &[Some(value)],
                output: &name,
                attributes: Vec::new(),
            },
            Place::Last,
        )?;
        self.forget(old, Use::Output(index));
        self.graph.outputs[index].value = output;
        self.graph.uses[output.index()].push(Use::Output(index));
        Ok(())
    }

    /// Adds a node and returns its result.
    ///
    /// # Errors
    /// [`EditError`] if the node cannot be encoded.
    pub fn add_node(&mut self, spec: NodeSpec<'_>, place: Place) -> Result<ValueId, EditError> {
        let output = self.fresh_name(spec.output);
        let name = self.fresh_node_name(spec.name);
        let proto = NodeProto {
            name: Some(name.clone()),
            op_type: Some(spec.op_type.to_string()),
            input: self.names(spec.inputs),
            output: vec![output.clone()],
            attribute: spec.attributes.iter().map(|attribute| attribute.0.clone()).collect(),
            ..NodeProto::default()
        };
        let node = Node {
            name: name.into(),
            op_type: spec.op_type.into(),
            domain: "".into(),
            inputs: spec.inputs.into(),
            outputs: Box::default(),
            attributes: spec.attributes.into(),
            captures: Box::default(),
            raw: proto.encode_to_vec().into(),
        };
        let id = self.insert(node, vec![output], place);
        self.graph.node(id).output(0).ok_or_else(|| EditError::Gone(spec.output.to_string()))
    }

    /// Adds a copy of `node` that reads `inputs`, in its bodies what the original's do, and whose results are new values,
    /// named after the original's with `suffix`. Attributes, metadata and unknown fields are the original's.
    ///
    /// # Errors
    /// [`EditError::Gone`] if the node was removed.
    pub fn copy_node(
        &mut self,
        node: NodeId,
        inputs: &[Option<ValueId>],
        suffix: &str,
        place: Place,
    ) -> Result<NodeId, EditError> {
        let mut copy = self.node_mut(node)?.clone();
        let mut names = Vec::with_capacity(copy.outputs.len());
        for output in &copy.outputs {
            names.push(match output {
                Some(value) => self.fresh_name(&format!("{}{suffix}", self.graph.value(*value).name)),
                None => String::new(),
            });
        }
        copy.name = self.fresh_node_name(&format!("{}{suffix}", copy.name)).into();
        copy.inputs = inputs.into();
        copy.raw = wire::replace_fields(&copy.raw, 3, &[Field::message(3, copy.name.as_bytes())])?;
        let id = self.insert(copy, names, place);
        self.encode_names(id, NODE_INPUT)?;
        self.encode_names(id, NODE_OUTPUT)?;
        Ok(id)
    }

    fn insert(&mut self, mut node: Node, outputs: Vec<String>, place: Place) -> NodeId {
        let graph = &mut *self.graph;
        let id = NodeId::new(graph.nodes.len());
        node.outputs = outputs
            .into_iter()
            .enumerate()
            .map(|(slot, name)| {
                (!name.is_empty()).then(|| graph.push_value(name, Origin::Node { node: id, slot }))
            })
            .collect();
        for (slot, input) in node.inputs.iter().enumerate() {
            if let Some(value) = input {
                graph.uses[value.index()].push(Use::Operand { node: id, slot });
            }
        }
        for value in &node.captures {
            graph.uses[value.index()].push(Use::Capture(id));
        }
        graph.nodes.push(Some(node));
        match place {
            Place::Front => {
                graph.first.insert(graph.front, id);
                graph.front += 1;
            }
            Place::First => graph.first.push(id),
            Place::Before(reader) => graph.before.entry(reader).or_default().push(id),
            Place::Last => graph.last.push(id),
        }
        graph.edits += 1;
        id
    }

    /// Removes a node whose results nothing reads.
    ///
    /// # Errors
    /// [`EditError::StillUsed`] if something does.
    pub fn remove_node(&mut self, id: NodeId) -> Result<(), EditError> {
        let node = self.node_mut(id)?.clone();
        if node.results().any(|v| !self.graph.uses(v).is_empty()) {
            return Err(EditError::StillUsed(node.describe()));
        }
        for (slot, input) in node.inputs.iter().enumerate() {
            if let Some(value) = input {
                self.forget(*value, Use::Operand { node: id, slot });
            }
        }
        for value in &node.captures {
            self.forget(*value, Use::Capture(id));
        }
        for value in node.results() {
            self.remove_value(value);
        }
        self.graph.nodes[id.index()] = None;
        Ok(())
    }

    /// Removes an initializer that nothing reads.
    ///
    /// # Errors
    /// [`EditError::StillUsed`] if something does, or if it is a graph input too.
    pub fn remove_initializer(&mut self, id: InitializerId) -> Result<(), EditError> {
        let initializer = self
            .graph
            .initializer(id)
            .ok_or_else(|| EditError::Gone(format!("initializer {}", id.index())))?;
        let value = initializer.value;
        let listed = self.graph.inputs.iter().any(|io| io.value == value);
        if listed || !self.graph.uses(value).is_empty() {
            return Err(EditError::StillUsed(format!("initializer `{}`", initializer.header.name)));
        }
        self.remove_value(value);
        self.graph.initializers[id.index()] = None;
        Ok(())
    }

    /// Gives an initializer new elements; name, type and shape stay.
    ///
    /// # Errors
    /// [`EditError::Gone`] if it was removed.
    pub fn set_data(&mut self, id: InitializerId, data: NewData) -> Result<(), EditError> {
        let gone = || EditError::Gone(format!("initializer {}", id.index()));
        self.graph.initializers[id.index()].as_mut().ok_or_else(gone)?.new_data = Some(data);
        self.graph.edits += 1;
        Ok(())
    }

    /// Gives an initializer the elements back that were masked.
    ///
    /// # Errors
    /// [`EditError::Gone`] if it was removed.
    pub fn unmask(&mut self, id: InitializerId) -> Result<(), EditError> {
        let gone = || EditError::Gone(format!("initializer {}", id.index()));
        let initializer = self.graph.initializers[id.index()].as_mut().ok_or_else(gone)?;
        initializer.new_data = match initializer.new_data.take() {
            Some(NewData::Masked(Masked { original: reader @ WeightReader::Computed(_), .. })) => {
                Some(NewData::Computed(reader))
            }
            _ => None,
        };
        self.graph.edits += 1;
        Ok(())
    }

    /// Adds an initializer and returns it with its value; the name is made unique if it is taken.
    pub fn add_initializer(
        &mut self,
        name: &str,
        data_type: DataType,
        dims: &[i64],
        data: NewData,
    ) -> (InitializerId, ValueId) {
        let name = self.fresh_name(name);
        let id = InitializerId::new(self.graph.initializers.len());
        let value = self.graph.push_value(name.clone(), Origin::Initializer(id));
        let header =
            TensorHeader { name, data_type, dims: dims.to_vec(), payload: Payload::Typed, raw: Bytes::new() };
        self.graph.initializers.push(Some(Initializer { value, header, new_data: Some(data) }));
        self.graph.added_initializers.push(id);
        self.graph.edits += 1;
        (id, value)
    }

    /// Adds a graph input, after those that are there.
    ///
    /// # Errors
    /// [`EditError::Unsupported`] if its name is taken.
    pub fn add_input(&mut self, info: ValueInfo) -> Result<ValueId, EditError> {
        if self.graph.value_named(info.name()).is_some() {
            return Err(EditError::Unsupported(format!(
                "the graph already has a value called `{}`",
                info.name()
            )));
        }
        let index = self.graph.inputs.len() + self.graph.extra_inputs.len();
        let value = self.graph.push_value(info.name().to_string(), Origin::Input(index));
        let raw = info.0.encode_to_vec().into();
        self.graph.extra_inputs.push(GraphIo { value, info, raw });
        self.graph.edits += 1;
        Ok(value)
    }

    /// Makes `value` a graph output too, after those that are there; nothing changes if it is one. `info` is what the
    /// graph states about it, under the value's name.
    ///
    /// # Errors
    /// [`EditError::Gone`] if nothing produces it any more.
    pub fn add_output(&mut self, value: ValueId, info: ValueInfo) -> Result<(), EditError> {
        let Value { name, origin } = self.graph.value(value).clone();
        if origin == Origin::Removed {
            return Err(EditError::Gone(format!("value `{name}`")));
        }
        if self.graph.outputs.iter().any(|io| io.value == value) {
            return Ok(());
        }
        let info = ValueInfo(ValueInfoProto { name: Some(name), ..info.0 });
        let raw = info.0.encode_to_vec().into();
        self.graph.uses[value.index()].push(Use::Output(self.graph.outputs.len()));
        self.graph.outputs.push(GraphIo { value, info, raw });
        self.graph.edits += 1;
        Ok(())
    }

    /// Names the graph.
    pub fn set_graph_name(&mut self, name: impl Into<String>) {
        self.graph.new_name = Some(name.into());
        self.graph.edits += 1;
    }

    /// Sets an entry of the model's `metadata_props`.
    pub fn set_metadata(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.graph.metadata.push((key.into(), value.into()));
        self.graph.edits += 1;
    }

    /// Returns a value name that is not taken: `hint` itself, or with a number after it.
    pub fn fresh_name(&self, hint: &str) -> String {
        let mut name = hint.to_string();
        let mut n = 1;
        while self.graph.value_named(&name).is_some() {
            n += 1;
            name = format!("{hint}_{n}");
        }
        name
    }

    /// Returns a node name that is not taken, and is from now on: engines refuse a graph in which two nodes share one.
    fn fresh_node_name(&mut self, hint: &str) -> String {
        let mut taken = std::mem::take(&mut self.graph.node_names);
        if taken.is_empty() {
            taken.extend(self.graph.nodes().map(|(_, node)| node.name.to_string()));
        }
        let mut name = hint.to_string();
        let mut n = 1;
        while !taken.insert(name.clone()) {
            n += 1;
            name = format!("{hint}_{n}");
        }
        self.graph.node_names = taken;
        name
    }

    fn names(&self, values: &[Option<ValueId>]) -> Vec<String> {
        values.iter().map(|v| v.map_or_else(String::new, |v| self.graph.value(v).name.clone())).collect()
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, EditError> {
        self.graph.edits += 1;
        self.graph.nodes[id.index()].as_mut().ok_or_else(|| EditError::Gone(format!("node {}", id.index())))
    }

    fn forget(&mut self, value: ValueId, used: Use) {
        self.graph.uses[value.index()].retain(|u| *u != used);
    }

    fn remove_value(&mut self, value: ValueId) {
        let Graph { values, by_name, .. } = &mut *self.graph;
        by_name.remove(values, value);
        values[value.index()].origin = Origin::Removed;
        self.graph.edits += 1;
    }

    /// Writes the node's operand or result names into its bytes, leaving every other field as it is.
    fn encode_names(&mut self, id: NodeId, number: u32) -> Result<(), EditError> {
        let node = self.graph.node(id);
        let values = if number == NODE_INPUT { &node.inputs } else { &node.outputs };
        let fields: Vec<Field> =
            self.names(values).iter().map(|name| Field::message(number, name.as_bytes())).collect();
        let raw = wire::replace_fields(&node.raw, number, &fields)?;
        self.node_mut(id)?.raw = raw;
        Ok(())
    }

    /// Renames `value` wherever it is written.
    fn rename(&mut self, value: ValueId, name: String) -> Result<(), EditError> {
        let Origin::Node { node: producer, .. } = self.graph.value(value).origin else {
            return Err(EditError::Unsupported(format!(
                "graph output `{}` is directly a graph input or an initializer and cannot be replaced",
                self.graph.value(value).name
            )));
        };
        let Graph { values, by_name, .. } = &mut *self.graph;
        by_name.remove(values, value);
        let old = std::mem::replace(&mut values[value.index()].name, name.clone());
        by_name.insert(values, value);
        self.encode_names(producer, NODE_OUTPUT)?;
        for used in self.graph.uses(value).to_vec() {
            match used {
                Use::Operand { node, .. } => self.encode_names(node, NODE_INPUT)?,
                Use::Capture(node) => self.encode_capture(node, &old, &name)?,
                Use::Output(_) => {}
            }
        }
        Ok(())
    }

    /// Makes the bodies of `node` read `to` where they read `from`.
    ///
    /// # Errors
    /// [`EditError::Unsupported`] if a body returns `from` directly.
    pub(crate) fn rename_capture(
        &mut self,
        node: NodeId,
        from: ValueId,
        to: ValueId,
    ) -> Result<(), EditError> {
        let (old, new) = (self.graph.value(from).name.clone(), self.graph.value(to).name.clone());
        self.encode_capture(node, &old, &new)?;
        let node_mut = self.node_mut(node)?;
        let known = node_mut.captures.contains(&to);
        let others = node_mut.captures.iter().copied().filter(|v| *v != from);
        node_mut.captures = others.chain((!known).then_some(to)).collect();
        self.forget(from, Use::Capture(node));
        if !known {
            self.graph.uses[to.index()].push(Use::Capture(node));
        }
        Ok(())
    }

    fn encode_capture(&mut self, id: NodeId, old: &str, new: &str) -> Result<(), EditError> {
        let node = self.node_mut(id)?;
        node.raw = rename_in_bodies(&node.raw, old, new)?;
        let proto = NodeProto::decode(node.raw.clone())
            .map_err(|e| OnnxError::invalid(node.describe(), e.to_string()))?;
        node.attributes = proto.attribute.into_iter().map(Attribute).collect();
        Ok(())
    }
}
