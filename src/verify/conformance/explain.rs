//! Messages about mismatches, with the names of both graphs.

use miette::SourceSpan;

use super::{
    Violation,
    classes::{Class, FirstValues, Side},
    per_row::Reading,
    templates::Templates,
    value::{self, ValueKind},
    walk::{Cause, Cone, Mismatch, Reader},
};
use crate::{
    analysis::modules::Modules,
    ir::{Attribute, Graph, NodeId, ValueId},
    onnx::proto::AttributeProto,
    rules::{Change, Edits, Merge, WeightEdit},
    verify::canonical::Canonical,
};

/// The source of names.
pub(super) struct Names<'a, 'g> {
    /// The original as it was read.
    pub source: &'a Graph,
    /// The original with the templates of the plan beside it.
    pub original: &'a Side<'g>,
    pub compiled: &'a Side<'g>,
    pub modules: &'a Modules,
    pub edits: &'a Edits,
    /// The nodes of templates.
    pub templates: &'a Templates,
    /// Position of each node of the original in its file, by node id.
    pub order: &'a [usize],
    /// Values of the original as it was, by class.
    pub dense: &'a FirstValues,
}

impl Names<'_, '_> {
    /// Returns where in the original a mismatch lies: smaller is further up.
    pub fn rank(&self, mismatch: &Mismatch) -> usize {
        let producer = self.original.graph.producer(mismatch.original);
        let reader = match mismatch.reader {
            Reader::Operand { original, .. } => Some(original),
            Reader::Output(_) => None,
        };
        let node = match mismatch.cause {
            Cause::Missing | Cause::Different => producer.or(reader),
            _ => reader.or(producer),
        };
        node.and_then(|node| self.order.get(node.index()).copied()).unwrap_or(usize::MAX - 1)
    }

    /// Returns the place where something is read: its position in the file of the original.
    pub fn rank_of(&self, reader: Reader) -> usize {
        match reader {
            Reader::Operand { original, .. } => {
                self.order.get(original.index()).copied().unwrap_or(usize::MAX - 1)
            }
            Reader::Output(_) => usize::MAX - 1,
        }
    }

    /// Returns the module path of the node of the original that reads something.
    pub fn module_of(&self, reader: Reader) -> Option<String> {
        match reader {
            Reader::Operand { original, .. } => self.module(original),
            Reader::Output(_) => None,
        }
    }

    fn module(&self, node: NodeId) -> Option<String> {
        if let Some(change) = self.template_change(node) {
            return Some(change.subject.clone());
        }
        let path = &self.modules.get(self.modules.of_node(node)).path;
        (!path.is_empty()).then(|| path.clone())
    }

    /// Returns the change that a node is of, if it is one of a template.
    fn template_change(&self, node: NodeId) -> Option<&Change> {
        self.edits.changes().nth(self.templates.change_of(node)?)
    }

    /// Returns the rule whose template reads something.
    pub fn rule_of(&self, reader: Reader) -> Option<SourceSpan> {
        match reader {
            Reader::Operand { original, .. } => self.template_change(original).map(|change| change.span),
            Reader::Output(_) => None,
        }
    }

    /// Returns the reader of a value, in the words of each graph: the original's, the compiled graph's.
    pub fn reader(&self, reader: Reader) -> (String, String) {
        match reader {
            Reader::Operand { compiled, slot, original } => {
                let operand = |graph: &Graph, id| format!("operand {slot} of {}", graph.node(id).describe());
                (operand(self.original.graph, original), operand(self.compiled.graph, compiled))
            }
            Reader::Output(index) => {
                let name = |graph: &Graph| match graph.outputs().get(index) {
                    Some(io) => format!("graph output `{}`", io.info.name()),
                    None => format!("graph output {index}"),
                };
                (name(self.original.graph), name(self.compiled.graph))
            }
        }
    }

    /// Returns the edit of weights with this index, and the change that it is of.
    pub fn weight_edit(&self, index: usize) -> Option<(&Change, &WeightEdit)> {
        let edits = self.edits.changes().flat_map(|change| change.weights().map(move |edit| (change, edit)));
        edits.into_iter().nth(index)
    }

    /// Returns the rule that adds a sum.
    pub fn merge_rule(&self, merge: &Merge) -> Option<SourceSpan> {
        let is_of = |change: &&Change| change.merges().any(|other| std::ptr::eq(other, merge));
        self.edits.changes().find(is_of).map(|change| change.span)
    }

    /// Returns `mismatch` as a violation.
    pub fn explain(&self, mismatch: &Mismatch, cone: &Cone, compiled_class: Option<Class>) -> Violation {
        let (original, compiled) = (self.original.graph, self.compiled.graph);
        let (want, have) = (describe(original, mismatch.original), describe(compiled, mismatch.compiled));
        let (_, reader) = self.reader(mismatch.reader);
        let producer = original.producer(mismatch.original);
        let made_in = || producer.and_then(|node| self.module(node));
        let mut difference = Violation {
            rank: self.rank(mismatch),
            expected: Some(want.clone()),
            found: Some(have.clone()),
            ..Violation::default()
        };
        match mismatch.cause {
            Cause::NotDone(index) => {
                if let Some(change) = self.edits.changes().nth(index) {
                    let (path, undone) = (&change.subject, change.undone);
                    difference.message = format!("`{path}` {undone}: {reader} still reads its output");
                    difference.module = Some(path.clone());
                    difference.rule = Some(change.span);
                }
            }
            Cause::WrongOperand => {
                difference.message = format!("{reader} is {have}, expected {want}");
                difference.module = self.module_of(mismatch.reader).or_else(made_in);
            }
            Cause::Unexpected => {
                let known = compiled_class.and_then(|class| self.dense.get(class));
                let node = known.and_then(|value| original.producer(value));
                difference.message = match node {
                    Some(_) => format!("{reader} is {have}, which the plan takes out, expected {want}"),
                    None => format!("{reader} is {have}, which is not in the original, expected {want}"),
                };
                difference.module = node
                    .and_then(|node| self.module(node))
                    .or_else(|| self.module_of(mismatch.reader))
                    .or_else(made_in);
            }
            Cause::Missing => {
                difference.message = format!("{want} is missing: {reader} is {have} instead");
                difference.module = made_in().or_else(|| self.module_of(mismatch.reader));
                difference.help = self.bypassed_without_rule(mismatch, cone);
            }
            Cause::NotATensor => {
                difference.message =
                    format!("{reader} is {have}: a weight that is computed cannot be masked");
                difference.module = self.module_of(mismatch.reader).or_else(made_in);
            }
            Cause::Merged => {
                difference.message = format!(
                    "{have} stands for more than one node, or more than one for {want}: each may compute something else"
                );
                difference.module = made_in().or_else(|| self.module_of(mismatch.reader));
            }
            Cause::Rows(reading) => {
                difference.message = match reading {
                    Reading::Column(rank) => format!(
                        "{reader} is {have}, expected the value of each row as [rows{}]",
                        ", 1".repeat(rank.saturating_sub(1))
                    ),
                    Reading::OneForAll => {
                        format!("{reader} is {have}: it reads the values of all rows as one")
                    }
                };
                difference.module = self.module_of(mismatch.reader).or_else(made_in);
            }
            Cause::Different => {
                difference.message = self.different(mismatch, cone);
                let change = producer.and_then(|node| match cone.substitution.attributes(node) {
                    Some((_, index)) => self.edits.changes().nth(index),
                    None => self.template_change(node),
                });
                difference.rule = change.map(|change| change.span);
                difference.module = made_in().or_else(|| self.module_of(mismatch.reader));
            }
        }
        difference
    }

    /// Returns the message if a module that no rule names may have been taken out.
    fn bypassed_without_rule(&self, mismatch: &Mismatch, cone: &Cone) -> Option<String> {
        let module = self.modules.of_node(self.original.graph.producer(mismatch.original)?);
        let path = &self.modules.get(module).path;
        let planned = self.edits.changes().any(|change| change.module == Some(module));
        (!path.is_empty() && !planned && cone.substitution.skip(mismatch.original).is_none())
            .then(|| format!("was `{path}`, or something in it, taken out by another plan?"))
    }

    fn different(&self, mismatch: &Mismatch, cone: &Cone) -> String {
        let (original, compiled) = (self.original.graph, self.compiled.graph);
        let (want, have) = (describe(original, mismatch.original), describe(compiled, mismatch.compiled));
        if (self.original.kind(mismatch.original), self.compiled.kind(mismatch.compiled))
            == (ValueKind::Tensor, ValueKind::Tensor)
        {
            let text = |graph, value| match value::tensor_type(graph, value) {
                Some((data_type, dims)) => format!("{}{dims:?}", data_type.name()),
                None => "of unknown type".into(),
            };
            let (found, expected) = (text(compiled, mismatch.compiled), text(original, mismatch.original));
            return format!("{have} is {found}, expected {expected}");
        }
        let (Some(a), Some(b)) = (compiled.producer(mismatch.compiled), original.producer(mismatch.original))
        else {
            return format!("{have}, expected {want}");
        };
        let (found, expected) = (compiled.node(a), original.node(b));
        let same_operator = found.op_type == expected.op_type && found.domain == expected.domain;
        if !same_operator || self.compiled.kind(mismatch.compiled) != self.original.kind(mismatch.original) {
            return format!("{have}, expected {want}");
        }
        let planned = cone.substitution.attributes(b).map_or(&*expected.attributes, |(set, _)| set);
        if let Some(what) = attribute_difference((compiled, &found.attributes), (original, planned)) {
            return format!("{} has {what}", found.describe());
        }
        let there = |graph: &Graph, id: NodeId| {
            let node = graph.node(id);
            let places = |values: &[Option<ValueId>]| {
                let all: Vec<&str> = values.iter().map(|v| if v.is_some() { "x" } else { "-" }).collect();
                all.join(" ")
            };
            format!("operands ({}) and results ({})", places(&node.inputs), places(&node.outputs))
        };
        let (found, expected) = (there(compiled, a), there(original, b));
        match found == expected {
            true => format!("{have} has other fields than {want}"),
            false => format!("{have} has {found}, expected {expected}"),
        }
    }
}

/// Returns the difference between the attributes of two nodes, each with its graph.
fn attribute_difference(
    (compiled, found): (&Graph, &[Attribute]),
    (original, expected): (&Graph, &[Attribute]),
) -> Option<String> {
    let mut sorted: Vec<&Attribute> = expected.iter().collect();
    sorted.sort_by_key(|attribute| attribute.name());
    let is_same = |other, wanted| {
        let hashes = [(compiled, other), (original, wanted)].map(|(g, a)| Canonical::exact(g).attribute(a));
        matches!(hashes, [Ok(a), Ok(b)] if a == b)
    };
    for wanted in sorted {
        let name = wanted.name();
        match found.iter().find(|a| a.name() == name) {
            None => return Some(format!("no attribute `{name}`, expected {}", attribute_text(wanted))),
            Some(other) if !is_same(other, wanted) => {
                let (found, expected) = (attribute_text(other), attribute_text(wanted));
                return Some(if found == expected {
                    format!("another value of attribute `{name}` ({found})")
                } else {
                    format!("attribute `{name}` = {found}, expected {expected}")
                });
            }
            Some(_) => {}
        }
    }
    let extra = found.iter().find(|a| !expected.iter().any(|b| b.name() == a.name()))?;
    Some(format!("an attribute `{}` = {} that it should not have", extra.name(), attribute_text(extra)))
}

fn attribute_text(attribute: &Attribute) -> String {
    match &attribute.0 {
        AttributeProto { f: Some(f), .. } => format!("{f:?}"),
        AttributeProto { i: Some(i), .. } => i.to_string(),
        AttributeProto { s: Some(s), .. } => format!("{:?}", String::from_utf8_lossy(s)),
        AttributeProto { t: Some(_), .. } => "a tensor".into(),
        AttributeProto { g: Some(_), .. } => "a body".into(),
        AttributeProto { floats, .. } if !floats.is_empty() => format!("{floats:?}"),
        other => format!("{:?}", other.ints),
    }
}

/// Returns a value as messages name it.
pub(super) fn describe(graph: &Graph, value: ValueId) -> String {
    match graph.producer(value).map(|id| graph.node(id)) {
        Some(node) => {
            let slot = node.outputs.iter().position(|v| *v == Some(value)).unwrap_or(0);
            if node.outputs.len() > 1 {
                format!("result {slot} of {}", node.describe())
            } else {
                node.describe()
            }
        }
        None if graph.initializer_of(value).is_some() => format!("initializer `{}`", graph.value(value).name),
        None => format!("graph input `{}`", graph.value(value).name),
    }
}
