//! Expansion of one call after the other.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    bodies::{self, graphs, graphs_mut},
    domain,
    functions::{Function, Functions, invalid},
};
use crate::onnx::{
    OnnxError,
    proto::{AttributeProto, GraphProto, NodeProto, StringStringEntryProto},
};

/// The expansion of all calls in a model, and the names that are taken in it.
pub(super) struct Expansion<'f, 'a> {
    functions: &'f Functions<'a>,
    values: Taken,
    node_names: Taken,
    /// How many calls were read through.
    pub instances: u64,
    opsets: BTreeMap<String, i64>,
    /// Whether no call stays.
    pub all: bool,
}

/// Names that are taken.
#[derive(Default)]
struct Taken {
    names: FxHashSet<String>,
    next: FxHashMap<String, u64>,
}

impl Taken {
    /// Returns `name`, or `name` with a number behind it, which from then on is taken.
    fn free(&mut self, name: String) -> String {
        if self.names.insert(name.clone()) {
            return name;
        }
        let next = self.next.entry(name.clone()).or_insert(0);
        loop {
            *next += 1;
            let numbered = format!("{name}_{next}");
            if self.names.insert(numbered.clone()) {
                return numbered;
            }
        }
    }
}

impl<'f, 'a> Expansion<'f, 'a> {
    pub fn new(functions: &'f Functions<'a>) -> Self {
        Self {
            functions,
            values: Taken::default(),
            node_names: Taken::default(),
            instances: 0,
            opsets: BTreeMap::new(),
            all: true,
        }
    }

    /// Takes the name of a value.
    pub fn take(&mut self, name: &str) {
        self.values.names.insert(name.to_string());
    }

    /// Takes the names that a node, and those in its bodies, have and read.
    pub(super) fn take_node(&mut self, node: &NodeProto) {
        node.input.iter().chain(&node.output).for_each(|name| self.take(name));
        self.node_names.names.insert(node.name().to_string());
        for graph in graphs(node) {
            graph.input.iter().chain(&graph.output).for_each(|io| self.take(io.name()));
            graph.initializer.iter().for_each(|tensor| self.take(tensor.name()));
            let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
            sparse.for_each(|values| self.take(values.name()));
            graph.node.iter().for_each(|node| self.take_node(node));
        }
    }

    /// Returns whether `node` is a call, or has one in a body.
    pub(super) fn concerns(&self, node: &NodeProto) -> bool {
        let mut found = false;
        bodies::each_node(std::slice::from_ref(node), &mut |node| found |= self.functions.is_call(node));
        found
    }

    /// Returns the versions of operator sets that the bodies use.
    pub fn opsets(self) -> BTreeMap<String, i64> {
        self.opsets
    }

    /// Returns `nodes` with bodies of functions in the places of calls, those in their own bodies too.
    ///
    /// # Errors
    /// [`OnnxError`] if a call or a function is none by ONNX's rules.
    pub(super) fn nodes(&mut self, nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>, OnnxError> {
        let mut expanded = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            let functions = self.functions;
            if let Some(function) = functions.called(&node) {
                let body = self.body(function, &node)?;
                expanded.append(&mut self.nodes(body)?);
                continue;
            }
            self.all &= !functions.is_call(&node);
            for graph in graphs_mut(&mut node.attribute) {
                graph.node = self.nodes(std::mem::take(&mut graph.node))?;
            }
            expanded.push(node);
        }
        Ok(expanded)
    }

    /// Returns the body of a function as it is in the place of `call`.
    fn body(&mut self, function: &Function<'a>, call: &NodeProto) -> Result<Vec<NodeProto>, OnnxError> {
        let proto = function.proto;
        for (what, given, known) in
            [("operands", &call.input, &proto.input), ("results", &call.output, &proto.output)]
        {
            if given.len() > known.len() {
                let name = call.name();
                let (given, known) = (given.len(), known.len());
                return Err(invalid(
                    proto,
                    format!("its call `{name}` has {given} {what}, the function {known}"),
                ));
            }
        }
        self.instances += 1;
        let own = proto.opset_import.iter();
        self.opsets.extend(own.map(|set| (domain(set.domain()).to_string(), set.version())));
        let mut instance = Instance {
            function,
            call,
            label: format!("{}_{}", proto.name(), self.instances),
            names: FxHashMap::default(),
            made: FxHashSet::default(),
            in_bodies: FxHashSet::default(),
        };
        for (index, formal) in proto.input.iter().enumerate() {
            instance.names.insert(formal, call.input.get(index).cloned().unwrap_or_default());
        }
        for (formal, actual) in proto.output.iter().zip(&call.output).filter(|(_, actual)| !actual.is_empty())
        {
            instance.names.insert(formal, actual.clone());
        }
        let mut nodes = Vec::with_capacity(proto.node.len());
        for node in &proto.node {
            nodes.push(instance.node(node, &mut self.values, &mut self.node_names, true)?);
        }
        if let Some(missing) = proto.output.iter().find(|name| !instance.made.contains(name.as_str())) {
            return Err(invalid(proto, format!("nothing in it makes its output `{missing}`")));
        }
        Ok(nodes)
    }
}

/// One place at which a function is called.
struct Instance<'a> {
    function: &'a Function<'a>,
    call: &'a NodeProto,
    /// The front of its values' names.
    label: String,
    /// The names that values have in the graph, by those that they have in the function.
    names: FxHashMap<&'a str, String>,
    /// The values that nodes of the function made so far.
    made: FxHashSet<&'a str>,
    /// The values that only bodies in it know.
    in_bodies: FxHashSet<&'a str>,
}

impl<'a> Instance<'a> {
    /// Returns a node of the function, or of a body in it, as it is in the graph.
    fn node(
        &mut self,
        node: &'a NodeProto,
        values: &mut Taken,
        node_names: &mut Taken,
        is_outer: bool,
    ) -> Result<NodeProto, OnnxError> {
        let input = node.input.iter().map(|name| self.read(name)).collect::<Result<_, _>>()?;
        let mut attribute = Vec::with_capacity(node.attribute.len());
        for written in &node.attribute {
            let Some(mut bound) = self.attribute(written)? else { continue };
            let sources = written.g.as_deref().into_iter().chain(&written.graphs);
            for (graph, source) in graphs_mut(std::slice::from_mut(&mut bound)).zip(sources) {
                self.graph(graph, source, values, node_names)?;
            }
            attribute.push(bound);
        }
        let output = node.output.iter().map(|name| self.define(name, values, is_outer));
        let output = output.collect::<Result<_, _>>()?;
        let name = self.name(node);
        Ok(NodeProto {
            input,
            output,
            attribute,
            name: (!name.is_empty()).then(|| node_names.free(name)),
            op_type: node.op_type.clone(),
            domain: node.domain.clone(),
            overload: node.overload.clone(),
            doc_string: node.doc_string.clone(),
            metadata_props: self.metadata(node),
            device_configurations: node.device_configurations.clone(),
        })
    }

    /// Returns the name in the graph of a value that is read.
    fn read(&self, name: &str) -> Result<String, OnnxError> {
        match self.names.get(name) {
            _ if name.is_empty() => Ok(String::new()),
            Some(known) => Ok(known.clone()),
            None => Err(invalid(
                self.function.proto,
                format!("a node in it reads `{name}`, which nothing defines"),
            )),
        }
    }

    /// Returns the name in the graph of a value that is made, in a body unless `is_outer`.
    fn define(&mut self, name: &'a str, values: &mut Taken, is_outer: bool) -> Result<String, OnnxError> {
        if name.is_empty() {
            return Ok(String::new());
        }
        let is_new = match is_outer {
            true => {
                let is_input = self.function.proto.input.iter().any(|input| input == name);
                !is_input && !self.in_bodies.contains(name) && self.made.insert(name)
            }
            // Two bodies may each have a value of their own.
            false => !self.in_bodies.insert(name) || !self.names.contains_key(name),
        };
        if !is_new {
            return Err(invalid(self.function.proto, format!("`{name}` is defined twice in it")));
        }
        let label = &self.label;
        Ok(self.names.entry(name).or_insert_with(|| values.free(format!("{label}/{name}"))).clone())
    }

    /// Returns an attribute with what the call gives it; `None` if it is one that the call leaves out.
    fn attribute(&self, attribute: &AttributeProto) -> Result<Option<AttributeProto>, OnnxError> {
        let Some(name) = attribute.ref_attr_name.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(Some(attribute.clone()));
        };
        let proto = self.function.proto;
        let given = self.call.attribute.iter().find(|a| a.name() == name);
        let Some(given) = given.or_else(|| proto.attribute_proto.iter().find(|a| a.name() == name)) else {
            return Ok(None);
        };
        if let (Some(wanted), Some(found)) = (attribute.r#type, given.r#type)
            && wanted != 0
            && wanted != found
        {
            return Err(invalid(
                proto,
                format!("its attribute `{name}` is of another type where it is called"),
            ));
        }
        Ok(Some(AttributeProto { name: attribute.name.clone(), ..given.clone() }))
    }

    /// Renames the values of a body, whose text is `source`.
    fn graph(
        &mut self,
        graph: &mut GraphProto,
        source: &'a GraphProto,
        values: &mut Taken,
        node_names: &mut Taken,
    ) -> Result<(), OnnxError> {
        for (io, source) in graph.input.iter_mut().zip(&source.input) {
            io.name = Some(self.define(source.name(), values, false)?);
        }
        for (tensor, source) in graph.initializer.iter_mut().zip(&source.initializer) {
            tensor.name = Some(self.define(source.name(), values, false)?);
        }
        for (tensor, source) in graph.sparse_initializer.iter_mut().zip(&source.sparse_initializer) {
            if let (Some(tensor), Some(source)) = (&mut tensor.values, &source.values) {
                tensor.name = Some(self.define(source.name(), values, false)?);
            }
        }
        graph.node.clear();
        for node in &source.node {
            graph.node.push(self.node(node, values, node_names, false)?);
        }
        for (io, source) in graph.output.iter_mut().zip(&source.output) {
            io.name = Some(self.read(source.name())?);
        }
        graph.value_info.clear();
        Ok(())
    }

    /// Returns the name of a node, before a number makes it one of its own. A scope in it is one that names its module:
    /// the node's, if no other call has the same node, or the call's, if one layer at most is in it.
    fn name(&self, node: &NodeProto) -> String {
        let own = node.name();
        if self.function.instances <= 1 && own.contains('/') {
            return own.to_string();
        }
        let base = own.rsplit('/').next().unwrap_or_default();
        match self.call.name().rsplit_once('/').filter(|_| self.function.layers <= 1) {
            Some((scope, _)) => format!("{scope}/{}", if base.is_empty() { node.op_type() } else { base }),
            None => base.to_string(),
        }
    }

    /// Returns the metadata of a node: its own, unless other calls have the same node, and the call's.
    fn metadata(&self, node: &NodeProto) -> Vec<StringStringEntryProto> {
        let mut metadata =
            if self.function.instances <= 1 { node.metadata_props.clone() } else { Vec::new() };
        for entry in &self.call.metadata_props {
            if !metadata.iter().any(|known| known.key() == entry.key()) {
                metadata.push(entry.clone());
            }
        }
        metadata
    }
}
