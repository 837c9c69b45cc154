//! Calls of model-local functions, checked anew: each node that the loader put in the place of a call is compared with
//! the function's, so that a defect of inlining is found like one of any pass.

use std::collections::BTreeMap;

use prost::Message;
use rustc_hash::FxHashMap;

use super::Violation;
use crate::{
    ir::Graph,
    onnx::{
        graph_field, model_field,
        proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto},
        wire::{self, Field},
    },
    verify::canonical::domain,
};

/// The most calls in each other that are followed.
const DEEPEST: usize = 100;

/// Compares the functions of two models, and what their calls were replaced by. Functions may be gone where no call is
/// left in the original.
pub(super) fn compare(original: &Graph, compiled: &Graph, differences: &mut Vec<Violation>) {
    let mut is_left = false;
    for (graph, whose) in [(original, "original"), (compiled, "compiled")] {
        match Check::of(graph) {
            Ok(left) => is_left |= left && whose == "original",
            Err(what) => differences.push(Violation::first(format!(
                "calls of functions in the {whose} model were not read through rightly: {what}"
            ))),
        }
    }
    let functions = |graph: &Graph| {
        let functions = graph.source().fields_of(model_field::FUNCTIONS);
        let mut functions: Vec<_> = functions.map(Field::value).collect();
        functions.sort_unstable();
        functions
    };
    let (expected, found) = (functions(original), functions(compiled));
    let is_new = found.iter().any(|function| expected.binary_search(function).is_err());
    if is_new || (is_left && found.len() != expected.len()) {
        differences.push(Violation::first("the model's functions differ".into()));
    }
}

/// A walk over a model's nodes as they are written, beside those of the graph that was made of them.
struct Check<'a> {
    functions: FxHashMap<(&'a str, &'a str, &'a str), &'a FunctionProto>,
    /// Versions of operator sets of the graph.
    opsets: BTreeMap<&'a str, i64>,
    /// The values of calls, by the names that they have in the graph: each is one value of one call.
    renamed: FxHashMap<&'a str, Owned<'a>>,
    calls: usize,
    /// Whether a call is left.
    is_left: bool,
}

/// The meaning of names where a node is written.
struct Scope<'a> {
    /// The number of the call; 0 for the graph itself, which keeps its names.
    call: usize,
    /// The names in the graph of the values that are defined so far; none for those that the call leaves out.
    names: FxHashMap<&'a str, Option<&'a str>>,
    /// The values of the calls around it that its results are.
    results: FxHashMap<&'a str, Owned<'a>>,
    /// Its attributes.
    attributes: FxHashMap<&'a str, AttributeProto>,
    depth: usize,
}

/// The number of a call, and the name that a value has in it; of the graph's own values, 0.
type Owned<'a> = (usize, &'a str);

type Checked<T = ()> = Result<T, String>;
type Found<'a> = std::iter::Peekable<std::slice::Iter<'a, NodeProto>>;

impl<'a> Check<'a> {
    /// Compares the nodes of `graph` with the model that it was loaded from. Returns whether a call is left.
    fn of(graph: &Graph) -> Checked<bool> {
        let source = graph.source();
        let functions = source.fields_of(model_field::FUNCTIONS);
        let functions: Vec<FunctionProto> = functions.map(decode).collect::<Checked<_>>()?;
        if functions.is_empty() {
            return Ok(false);
        }
        let content = source.fields_of(model_field::GRAPH).next().map(Field::value).unwrap_or_default();
        let written = wire::split(&content).map_err(|e| e.to_string())?;
        let others = written.iter().filter(|field| field.number != graph_field::NODE);
        let found = source.graph.fields().filter(|field| field.number != graph_field::NODE);
        if !others.map(|field| field.raw.clone()).eq(found.map(|field| field.raw)) {
            return Err("something beside the nodes is another".into());
        }
        let written = written.iter().filter(|field| field.number == graph_field::NODE);
        let written: Vec<NodeProto> = written.map(decode).collect::<Checked<_>>()?;
        let found = source.graph.fields_of(graph_field::NODE);
        let found: Vec<NodeProto> = found.map(|field| decode(&field)).collect::<Checked<_>>()?;
        let mut check = Check {
            functions: functions.iter().map(|f| ((f.domain(), f.name(), f.overload()), f)).collect(),
            opsets: graph.opsets.iter().map(|(name, version)| (name.as_str(), *version)).collect(),
            renamed: FxHashMap::default(),
            calls: 0,
            is_left: false,
        };
        let imports = source.fields_of(model_field::OPSET_IMPORT).map(decode);
        let imports: Vec<OperatorSetIdProto> = imports.collect::<Checked<_>>()?;
        if imports.iter().any(|set| check.opsets.get(domain(set.domain())) != Some(&set.version())) {
            return Err("the graph has other versions of operator sets".into());
        }
        let mut kept = Vec::new();
        names(&written, &mut kept);
        check.renamed.extend(kept.into_iter().map(|name| (name, (0, name))));
        let values = graph.inputs().map(|io| io.value).chain(graph.initializers().map(|(_, i)| i.value));
        let values: Vec<&str> = values.map(|value| graph.value(value).name.as_str()).collect();
        check.renamed.extend(values.into_iter().map(|name| (name, (0, name))));
        let mut scope = Scope {
            call: 0,
            names: FxHashMap::default(),
            results: FxHashMap::default(),
            attributes: FxHashMap::default(),
            depth: 0,
        };
        check.all(&written, &found, &mut scope)?;
        Ok(check.is_left)
    }

    /// Compares all of `found` with `written`.
    fn all(&mut self, written: &'a [NodeProto], found: &'a [NodeProto], scope: &mut Scope<'a>) -> Checked {
        let mut found = found.iter().peekable();
        self.nodes(written, &mut found, scope)?;
        match found.next() {
            None => Ok(()),
            Some(node) => Err(format!("there is one more {} node `{}`", node.op_type(), node.name())),
        }
    }

    /// Compares the next nodes of `found` with `written`.
    fn nodes(&mut self, written: &'a [NodeProto], found: &mut Found<'a>, scope: &mut Scope<'a>) -> Checked {
        for node in written {
            let function = self.functions.get(&operator(node)).copied();
            match (function, found.peek()) {
                (Some(function), next) if next.is_none_or(|next| operator(next) != operator(node)) => {
                    self.call(node, function, found, scope)?;
                }
                (_, None) => return Err(format!("{} node `{}` is missing", node.op_type(), node.name())),
                (function, Some(_)) => {
                    self.is_left |= function.is_some();
                    if let Some(next) = found.next() {
                        self.node(node, next, scope)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares the next nodes of `found` with the body of `function`, which `call` calls.
    fn call(
        &mut self,
        call: &'a NodeProto,
        function: &'a FunctionProto,
        found: &mut Found<'a>,
        outer: &mut Scope<'a>,
    ) -> Checked {
        let name = function.name();
        if outer.depth >= DEEPEST {
            return Err(format!("calls of `{name}` are nested too deeply"));
        }
        if call.input.len() > function.input.len() || call.output.len() > function.output.len() {
            return Err(format!("a call of `{name}` has more operands or results than the function"));
        }
        for set in &function.opset_import {
            if self.opsets.get(domain(set.domain())) != Some(&set.version()) {
                return Err(format!("`{name}` uses another version of operator set `{}`", set.domain()));
            }
        }
        self.calls += 1;
        let mut attributes: FxHashMap<&str, AttributeProto> =
            function.attribute_proto.iter().map(|a| (a.name(), a.clone())).collect();
        for attribute in &call.attribute {
            attributes.extend(outer.bind(attribute).map(|bound| (attribute.name(), bound)));
        }
        let mut inner = Scope {
            call: self.calls,
            names: FxHashMap::default(),
            results: FxHashMap::default(),
            attributes,
            depth: outer.depth + 1,
        };
        for (index, formal) in function.input.iter().enumerate() {
            let actual = match call.input.get(index) {
                Some(actual) if !actual.is_empty() => outer.read(actual)?,
                _ => None,
            };
            inner.names.insert(formal, actual);
        }
        let results = || function.output.iter().zip(&call.output).filter(|(_, actual)| !actual.is_empty());
        inner.results.extend(results().map(|(formal, actual)| (formal.as_str(), outer.owner(actual))));
        self.nodes(&function.node, found, &mut inner)?;
        for (formal, actual) in results() {
            let made = inner.names.get(formal.as_str()).copied().flatten();
            let made = made.ok_or_else(|| format!("nothing makes the result `{formal}` of `{name}`"))?;
            outer.names.insert(actual, Some(made));
        }
        Ok(())
    }

    /// Compares one node with another.
    fn node(&mut self, written: &'a NodeProto, found: &'a NodeProto, scope: &mut Scope<'a>) -> Checked {
        let place = |what: &str| format!("{} node `{}` has other {what}", found.op_type(), found.name());
        let rest = |node: &NodeProto| NodeProto {
            input: Vec::new(),
            output: Vec::new(),
            attribute: Vec::new(),
            name: None,
            doc_string: None,
            metadata_props: Vec::new(),
            ..node.clone()
        };
        if rest(written) != rest(found) {
            return Err(place("fields"));
        }
        if written.input.len() != found.input.len() || written.output.len() != found.output.len() {
            return Err(place("operands or results"));
        }
        for (written, found) in written.input.iter().zip(&found.input) {
            let read = if written.is_empty() { None } else { scope.read(written)? };
            if read.unwrap_or_default() != found {
                return Err(place("operands"));
            }
        }
        let bound: Vec<(&'a AttributeProto, AttributeProto)> =
            written.attribute.iter().filter_map(|a| Some((a, scope.bind(a)?))).collect();
        if bound.len() != found.attribute.len() {
            return Err(place("attributes"));
        }
        for ((written, bound), found) in bound.iter().zip(&found.attribute) {
            let plain = |attribute: &AttributeProto| AttributeProto {
                g: None,
                graphs: Vec::new(),
                ..attribute.clone()
            };
            if plain(bound) != plain(found) {
                return Err(place("attributes"));
            }
            // Bodies that a call gives are written where names are those of the graph.
            if is_reference(written) {
                if bound != found {
                    return Err(place("bodies"));
                }
                continue;
            }
            let bodies = |a: &'a AttributeProto| a.g.as_deref().into_iter().chain(&a.graphs);
            if bodies(written).count() != bodies(found).count() {
                return Err(place("bodies"));
            }
            for (written, found) in bodies(written).zip(bodies(found)) {
                self.body(written, found, scope)?;
            }
        }
        for (written, found) in written.output.iter().zip(&found.output) {
            if written.is_empty() != found.is_empty() {
                return Err(place("results"));
            }
            if !written.is_empty() {
                scope.define(self, written, found)?;
            }
        }
        Ok(())
    }

    fn body(&mut self, written: &'a GraphProto, found: &'a GraphProto, scope: &mut Scope<'a>) -> Checked {
        let place = |what: &str| format!("the body `{}` has other {what}", found.name());
        let plain = |graph: &GraphProto| {
            let mut graph = graph.clone();
            graph.input.iter_mut().chain(&mut graph.output).for_each(|io| io.name = None);
            graph.initializer.iter_mut().for_each(|tensor| tensor.name = None);
            let sparse = graph.sparse_initializer.iter_mut().filter_map(|tensor| tensor.values.as_mut());
            sparse.for_each(|values| values.name = None);
            GraphProto { node: Vec::new(), value_info: Vec::new(), ..graph }
        };
        if plain(written) != plain(found) {
            return Err(place("inputs, outputs or tensors"));
        }
        let pairs = |graph: &'a GraphProto| {
            let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
            let tensors = graph.initializer.iter().map(|t| t.name()).chain(sparse.map(|t| t.name()));
            graph.input.iter().map(|io| io.name()).chain(tensors)
        };
        for (written, found) in pairs(written).zip(pairs(found)) {
            scope.define(self, written, found)?;
        }
        self.all(&written.node, &found.node, scope)?;
        for (written, found) in written.output.iter().zip(&found.output) {
            if scope.read(written.name())? != Some(found.name()) {
                return Err(place("outputs"));
            }
        }
        Ok(())
    }
}

impl<'a> Scope<'a> {
    /// Returns the name in the graph of a value that is read; `None` if the call leaves it out.
    fn read(&self, name: &'a str) -> Checked<Option<&'a str>> {
        match self.names.get(name) {
            Some(known) => Ok(*known),
            None if self.call == 0 => Ok(Some(name)),
            None => Err(format!("`{name}` is read before it is made")),
        }
    }

    /// Returns the value of a call around it that a value is, or the value itself.
    fn owner(&self, written: &'a str) -> Owned<'a> {
        self.results.get(written).copied().unwrap_or((self.call, written))
    }

    /// Notes that the value `written` has the name `found` in the graph, which no other value may have.
    fn define(&mut self, check: &mut Check<'a>, written: &'a str, found: &'a str) -> Checked {
        let owner = self.owner(written);
        let is_right = match owner {
            (0, name) => name == found,
            owner => *check.renamed.entry(found).or_insert(owner) == owner,
        };
        if !is_right {
            return Err(format!("a value `{written}` is called `{found}`"));
        }
        self.names.insert(written, Some(found));
        Ok(())
    }

    /// Returns an attribute with the value that the call gives it; `None` if it gives none.
    fn bind(&self, written: &AttributeProto) -> Option<AttributeProto> {
        if !is_reference(written) || self.call == 0 {
            return Some(written.clone());
        }
        let given = self.attributes.get(written.ref_attr_name())?;
        Some(AttributeProto { name: written.name.clone(), ..given.clone() })
    }
}

fn is_reference(attribute: &AttributeProto) -> bool {
    !attribute.ref_attr_name().is_empty()
}

fn operator(node: &NodeProto) -> (&str, &str, &str) {
    (node.domain(), node.op_type(), node.overload())
}

/// Collects the names that nodes, and those in their bodies, have and read.
fn names<'a>(nodes: &'a [NodeProto], found: &mut Vec<&'a str>) {
    for node in nodes {
        found.extend(node.input.iter().chain(&node.output).map(String::as_str));
        for graph in node.attribute.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs)) {
            found.extend(graph.input.iter().chain(&graph.output).map(|io| io.name()));
            found.extend(graph.initializer.iter().map(|tensor| tensor.name()));
            let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
            found.extend(sparse.map(|values| values.name()));
            names(&graph.node, found);
        }
    }
}

fn decode<M: Message + Default>(field: &Field) -> Checked<M> {
    M::decode(field.value()).map_err(|e| format!("broken message: {e}"))
}

#[cfg(test)]
mod tests;
