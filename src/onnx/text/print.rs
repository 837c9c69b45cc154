//! The printer: messages to text, laid out as `onnx.printer` does.

mod tensor;

use std::fmt::{Display, Write as _};

use super::{is_float_name, is_identifier, is_type_name};
use crate::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
};

/// Options of the printer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrintOptions {
    /// Tensors with more elements are printed as a digest, which the parser refuses.
    pub max_elements: usize,
    /// Prints each input, output, initializer and typed value of a graph on a line of its own, for people.
    pub one_a_line: bool,
}

impl Default for PrintOptions {
    fn default() -> Self {
        Self { max_elements: 1024, one_a_line: false }
    }
}

pub(super) fn model(model: &ModelProto, options: PrintOptions) -> String {
    let mut printer = Printer { out: String::new(), indent: 3, options };
    printer.model(model);
    printer.out
}

struct Printer {
    out: String,
    /// Columns before a node.
    indent: usize,
    options: PrintOptions,
}

impl Printer {
    fn model(&mut self, model: &ModelProto) {
        self.put("<\n   ir_version: ");
        self.put(model.ir_version());
        self.put(",\n   opset_import: ");
        self.list("[", ", ", "]", &model.opset_import, Self::opset);
        let texts = [
            ("producer_name", &model.producer_name),
            ("producer_version", &model.producer_version),
            ("domain", &model.domain),
        ];
        for (key, text) in texts {
            self.header_text(key, text.as_deref());
        }
        if let Some(version) = model.model_version {
            self.put(",\n   model_version: ");
            self.put(version);
        }
        self.header_text("doc_string", model.doc_string.as_deref());
        if !model.metadata_props.is_empty() {
            self.put(",\n   metadata_props: ");
            self.entries(&model.metadata_props);
        }
        self.put("\n>\n");
        self.graph(model.graph.as_ref().unwrap_or(&GraphProto::default()));
        for function in &model.functions {
            self.put("\n");
            self.function(function);
        }
    }

    fn header_text(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.put(",\n   ");
            self.put(key);
            self.put(": ");
            self.quoted(text);
        }
    }

    fn opset(&mut self, opset: &OperatorSetIdProto) {
        self.quoted(opset.domain());
        self.put(" : ");
        self.put(opset.version());
    }

    fn entries(&mut self, entries: &[StringStringEntryProto]) {
        self.list("[", ", ", "]", entries, |p, entry| {
            p.quoted(entry.key());
            p.put(": ");
            p.quoted(entry.value());
        });
    }

    fn graph(&mut self, graph: &GraphProto) {
        self.id(graph.name());
        self.graph_signature(graph);
    }

    fn graph_signature(&mut self, graph: &GraphProto) {
        let between = match self.options.one_a_line {
            true => format!(",\n{}", " ".repeat(self.indent + 1)),
            false => ", ".to_string(),
        };
        self.put(" ");
        self.list("(", &between, ")", &graph.input, Self::value_info);
        self.put(" => ");
        self.list("(", &between, ")", &graph.output, Self::value_info);
        self.put(" ");
        if graph.initializer.len() + graph.sparse_initializer.len() + graph.value_info.len() > 0 {
            self.put("\n");
            self.pad();
            self.put("<");
            self.list("", &between, "", &graph.initializer, Self::initializer);
            let mut separator = if graph.initializer.is_empty() { "" } else { &between };
            for sparse in &graph.sparse_initializer {
                self.put(separator);
                self.sparse_initializer(sparse);
                separator = &between;
            }
            self.list(
                if graph.value_info.is_empty() { "" } else { separator },
                &between,
                "",
                &graph.value_info,
                Self::value_info,
            );
            self.put(">\n");
        }
        self.nodes(&graph.node);
    }

    fn value_info(&mut self, info: &ValueInfoProto) {
        let typed = info.r#type.as_ref().is_some_and(|t| t.value.is_some());
        if let Some(r#type) = &info.r#type {
            self.r#type(r#type);
        }
        self.put(" ");
        if typed { self.id(info.name()) } else { self.unambiguous_id(info.name()) }
    }

    fn function(&mut self, function: &FunctionProto) {
        self.put("<\n  domain: ");
        self.quoted(function.domain());
        self.put(",\n");
        if !function.overload().is_empty() {
            self.put("  overload: ");
            self.quoted(function.overload());
            self.put(",\n");
        }
        if let Some(doc_string) = &function.doc_string {
            self.put("  doc_string: ");
            self.quoted(doc_string);
            self.put(",\n");
        }
        self.put("  opset_import: ");
        self.list("[", ",", "]", &function.opset_import, Self::opset);
        self.put("\n>\n");
        self.id(function.name());
        self.put(" ");
        if !function.attribute.is_empty() || !function.attribute_proto.is_empty() {
            self.list("<", ",", "", &function.attribute, |p, name| p.id(name));
            let separator =
                if function.attribute.is_empty() || function.attribute_proto.is_empty() { "" } else { "," };
            self.list(separator, ",", ">", &function.attribute_proto, Self::attribute);
        }
        self.list("(", ", ", ")", &function.input, |p, name| p.unambiguous_id(name));
        self.put(" => ");
        self.list("(", ", ", ")", &function.output, |p, name| p.unambiguous_id(name));
        self.put("\n");
        if !function.value_info.is_empty() {
            self.list("   <", ", ", ">\n", &function.value_info, Self::value_info);
        }
        self.nodes(&function.node);
    }

    fn nodes(&mut self, nodes: &[NodeProto]) {
        self.put("{\n");
        for node in nodes {
            self.node(node);
        }
        self.put(" ".repeat(self.indent - 3));
        self.put("}");
    }

    fn node(&mut self, node: &NodeProto) {
        self.pad();
        if let Some(name) = &node.name {
            self.put("[");
            self.id(name);
            self.put("] ");
        }
        self.list("", ", ", "", &node.output, |p, name| p.id(name));
        self.put(" = ");
        if !node.domain().is_empty() {
            if node.domain().split('.').all(is_identifier) {
                self.put(node.domain());
            } else {
                self.quoted(node.domain());
            }
            self.put(".");
        }
        self.id(node.op_type());
        if !node.overload().is_empty() {
            self.put(":");
            self.id(node.overload());
        }
        let has_subgraph = node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
        if !has_subgraph {
            self.attributes(&node.attribute);
        }
        self.list(" (", ", ", ")", &node.input, |p, name| p.id(name));
        if has_subgraph {
            self.attributes(&node.attribute);
        }
        self.put("\n");
    }

    fn attributes(&mut self, attributes: &[AttributeProto]) {
        if !attributes.is_empty() {
            self.list(" <", ", ", ">", attributes, Self::attribute);
        }
    }

    fn attribute(&mut self, attribute: &AttributeProto) {
        let found = attribute.r#type();
        self.id(attribute.name());
        if attribute.ref_attr_name.is_none() || found != AttributeType::Undefined {
            self.put(": ");
            self.put(found.as_str_name().to_ascii_lowercase());
        }
        self.put(" = ");
        if let Some(name) = &attribute.ref_attr_name {
            self.put("@");
            self.id(name);
            return;
        }
        match found {
            AttributeType::Int => self.put(attribute.i()),
            AttributeType::Ints => self.list("[", ", ", "]", &attribute.ints, |p, i| p.put(i)),
            AttributeType::Float => self.float(attribute.f()),
            AttributeType::Floats => self.list("[", ", ", "]", &attribute.floats, |p, f| p.float(*f)),
            AttributeType::String => self.quoted_bytes(attribute.s()),
            AttributeType::Strings => self.list("[", ", ", "]", &attribute.strings, |p, s| p.quoted_bytes(s)),
            AttributeType::Tensor => self.tensor(attribute.t.as_deref().unwrap_or(&TensorProto::default())),
            AttributeType::Tensors => self.list("[", ", ", "]", &attribute.tensors, Self::tensor),
            AttributeType::Graph => self.subgraph(attribute.g.as_deref().unwrap_or(&GraphProto::default())),
            AttributeType::Graphs => self.list("[", ", ", "]", &attribute.graphs, Self::subgraph),
            AttributeType::TypeProto => self.r#type(attribute.tp.as_deref().unwrap_or(&TypeProto::default())),
            AttributeType::TypeProtos => self.list("[", ", ", "]", &attribute.type_protos, Self::r#type),
            AttributeType::Undefined | AttributeType::SparseTensor | AttributeType::SparseTensors => {
                self.put("...")
            }
        }
    }

    fn subgraph(&mut self, graph: &GraphProto) {
        self.indent += 3;
        self.unambiguous_id(graph.name());
        self.graph_signature(graph);
        self.indent -= 3;
    }

    fn put(&mut self, text: impl Display) {
        // Writing to a `String` cannot fail.
        let _ = write!(self.out, "{text}");
    }

    fn pad(&mut self) {
        self.put(" ".repeat(self.indent));
    }

    fn list<T>(
        &mut self,
        open: &str,
        separator: &str,
        close: &str,
        items: &[T],
        print: impl Fn(&mut Self, &T),
    ) {
        self.put(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.put(separator);
            }
            print(self, item);
        }
        self.put(close);
    }

    /// Prints a name, quoted if it has to be.
    fn id(&mut self, name: &str) {
        if is_identifier(name) { self.put(name) } else { self.quoted(name) }
    }

    /// Prints a name where a type or a number could stand as well.
    fn unambiguous_id(&mut self, name: &str) {
        if is_type_name(name) || is_float_name(name) { self.quoted(name) } else { self.id(name) }
    }

    fn quoted(&mut self, text: &str) {
        self.put('"');
        self.put(text.replace('\\', "\\\\").replace('"', "\\\""));
        self.put('"');
    }

    fn quoted_bytes(&mut self, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.quoted(text),
            Err(_) => self.put("..."),
        }
    }

    fn float<T: tensor::Float>(&mut self, value: T) {
        self.put(tensor::shortest(value));
    }
}
