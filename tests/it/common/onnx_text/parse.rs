//! The parser: tokens to messages. One method a rule of the grammar, called as the grammar calls it.

mod attribute;
mod tensor;

use super::{
    TextError, is_type_name,
    lexer::{Lexer, Token, TokenKind},
};
use crdiff::onnx::proto::{
    FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, ValueInfoProto,
};

/// How deep graphs and types may be nested. A subgraph is three messages deep in a model, and protobuf readers
/// follow 100.
const MAX_DEPTH: usize = 30;

type Parsed<T> = Result<T, TextError>;

pub(super) fn model(text: &str) -> Parsed<ModelProto> {
    let mut parser = Parser::new(text)?;
    let mut model = ModelProto::default();
    if parser.matches('<')? {
        parser.separated('>', |p| p.model_header(&mut model))?;
    }
    model.graph = Some(parser.graph()?);
    while parser.token.kind != TokenKind::End {
        model.functions.push(parser.function()?);
    }
    Ok(model)
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token to be read next.
    token: Token<'a>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Parsed<Self> {
        let mut lexer = Lexer::new(text);
        let token = lexer.next()?;
        Ok(Self { lexer, token, depth: 0 })
    }

    fn model_header(&mut self, model: &mut ModelProto) -> Parsed<()> {
        let key = self.key()?;
        match key.kind {
            TokenKind::Name("ir_version") => model.ir_version = Some(self.int()?),
            TokenKind::Name("opset_import") => self.opset_imports(&mut model.opset_import)?,
            TokenKind::Name("producer_name") => model.producer_name = Some(self.text()?),
            TokenKind::Name("producer_version") => model.producer_version = Some(self.text()?),
            TokenKind::Name("domain") => model.domain = Some(self.text()?),
            TokenKind::Name("model_version") => model.model_version = Some(self.int()?),
            TokenKind::Name("doc_string") => model.doc_string = Some(self.text()?),
            TokenKind::Name("metadata_props") => {
                self.expect('[')?;
                self.entries(&mut model.metadata_props)?;
            }
            found => {
                let what = format!(
                    "a model's header has ir_version, opset_import, producer_name, producer_version, domain, \
                     model_version, doc_string and metadata_props, not {found}"
                );
                return Err(self.lexer.error(key.at, what));
            }
        }
        Ok(())
    }

    fn function_header(&mut self, function: &mut FunctionProto) -> Parsed<()> {
        let key = self.key()?;
        match key.kind {
            TokenKind::Name("opset_import") => self.opset_imports(&mut function.opset_import)?,
            TokenKind::Name("domain") => function.domain = Some(self.text()?),
            TokenKind::Name("overload") => function.overload = Some(self.text()?),
            TokenKind::Name("doc_string") => function.doc_string = Some(self.text()?),
            found => {
                let what = format!(
                    "a function's header has domain, overload, opset_import and doc_string, not {found}"
                );
                return Err(self.lexer.error(key.at, what));
            }
        }
        Ok(())
    }

    fn key(&mut self) -> Parsed<Token<'a>> {
        let key = self.advance()?;
        if matches!(key.kind, TokenKind::Name(_)) {
            self.expect(':')?;
        }
        Ok(key)
    }

    fn opset_imports(&mut self, opsets: &mut Vec<OperatorSetIdProto>) -> Parsed<()> {
        self.expect('[')?;
        self.separated(']', |p| {
            let domain = Some(p.text()?);
            p.expect(':')?;
            opsets.push(OperatorSetIdProto { domain, version: Some(p.int()?) });
            Ok(())
        })
    }

    /// Parses `"key": "value", ... ]`.
    fn entries(&mut self, entries: &mut Vec<StringStringEntryProto>) -> Parsed<()> {
        self.separated(']', |p| {
            let key = Some(p.text()?);
            p.expect(':')?;
            entries.push(StringStringEntryProto { key, value: Some(p.text()?) });
            Ok(())
        })
    }

    fn graph(&mut self) -> Parsed<GraphProto> {
        let name = self.name("the graph's name")?;
        self.graph_named(name)
    }

    fn graph_named(&mut self, name: String) -> Parsed<GraphProto> {
        self.nested(|p| {
            let mut graph = GraphProto { name: Some(name), ..GraphProto::default() };
            p.expect('(')?;
            p.separated(')', |p| {
                let info = p.value_info()?;
                if p.matches('=')? {
                    graph.initializer.push(p.initializer(&info)?);
                }
                graph.input.push(info);
                Ok(())
            })?;
            p.arrow()?;
            p.expect('(')?;
            p.separated(')', |p| {
                graph.output.push(p.value_info()?);
                Ok(())
            })?;
            if p.matches('<')? {
                p.separated('>', |p| {
                    let info = p.value_info()?;
                    if p.matches('=')? {
                        graph.initializer.push(p.initializer(&info)?);
                    } else {
                        graph.value_info.push(info);
                    }
                    Ok(())
                })?;
            }
            graph.node = p.nodes()?;
            Ok(graph)
        })
    }

    fn initializer(&mut self, info: &ValueInfoProto) -> Parsed<TensorProto> {
        let mut tensor = self.tensor_data(info.r#type.as_ref())?;
        tensor.name = info.name.clone();
        Ok(tensor)
    }

    /// Parses a name with or without a type before it.
    fn value_info(&mut self) -> Parsed<ValueInfoProto> {
        let r#type = if self.at_type() { Some(self.r#type()?) } else { None };
        let name = self.name(if r#type.is_some() { "a name" } else { "a type or a name" })?;
        Ok(ValueInfoProto { name: Some(name), r#type, ..ValueInfoProto::default() })
    }

    fn function(&mut self) -> Parsed<FunctionProto> {
        let mut function = FunctionProto::default();
        if self.matches('<')? {
            self.separated('>', |p| p.function_header(&mut function))?;
        }
        function.name = Some(self.name("a function's name")?);
        if self.matches('<')? {
            self.separated('>', |p| {
                let name = p.name("an attribute's name")?;
                if p.at(':') || p.at('=') {
                    function.attribute_proto.push(p.attribute_named(name)?);
                } else {
                    function.attribute.push(name);
                }
                Ok(())
            })?;
        }
        function.input = self.parameters(&mut function.value_info)?;
        self.arrow()?;
        function.output = self.parameters(&mut function.value_info)?;
        if self.matches('<')? {
            self.separated('>', |p| {
                function.value_info.push(p.value_info()?);
                Ok(())
            })?;
        }
        function.node = self.nodes()?;
        Ok(function)
    }

    /// Inputs or outputs of a function. The types of those that have one go to `types`.
    fn parameters(&mut self, types: &mut Vec<ValueInfoProto>) -> Parsed<Vec<String>> {
        let mut names = Vec::new();
        self.expect('(')?;
        self.separated(')', |p| {
            let info = p.value_info()?;
            names.extend(info.name.clone());
            if info.r#type.is_some() {
                types.push(info);
            }
            Ok(())
        })?;
        Ok(names)
    }

    fn nodes(&mut self) -> Parsed<Vec<NodeProto>> {
        let mut nodes = Vec::new();
        self.expect('{')?;
        while !self.matches('}')? {
            nodes.push(self.node()?);
        }
        Ok(nodes)
    }

    fn node(&mut self) -> Parsed<NodeProto> {
        let mut node = NodeProto::default();
        if self.matches('[')? {
            node.name = Some(if self.at(']') { String::new() } else { self.name("a node's name")? });
            self.expect(']')?;
        }
        node.output = self.operands()?;
        self.expect('=')?;
        let mut domain: Vec<String> = Vec::new();
        let mut op_type = self.name("an operator")?;
        while self.matches('.')? {
            domain.push(std::mem::replace(&mut op_type, self.name("an operator")?));
        }
        node.domain = Some(domain.join("."));
        node.op_type = Some(op_type);
        if self.matches(':')? {
            node.overload = Some(self.name("an overload")?);
        }
        let before = self.matches('<')?;
        if before {
            self.separated('>', |p| p.attribute(&mut node.attribute))?;
        }
        self.expect('(')?;
        node.input = self.operands()?;
        self.expect(')')?;
        if !before && self.matches('<')? {
            self.separated('>', |p| p.attribute(&mut node.attribute))?;
        }
        Ok(node)
    }

    /// Parses the names of a node's operands or results. One that is left out is `""`, or nothing before a comma; a
    /// comma after the last one adds nothing.
    fn operands(&mut self) -> Parsed<Vec<String>> {
        let mut names = Vec::new();
        loop {
            match &self.token.kind {
                TokenKind::Name(_) | TokenKind::Text(_) => names.push(self.name("a name")?),
                TokenKind::Symbol(',') => names.push(String::new()),
                _ => return Ok(names),
            }
            if !self.matches(',')? {
                return Ok(names);
            }
        }
    }

    /// Runs `parse` one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            let what = format!("graphs and types are nested more than {MAX_DEPTH} deep here");
            return Err(self.lexer.error(self.token.at, what));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Items with commas between them, up to `close`.
    fn separated(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Parsed<()>) -> Parsed<()> {
        if self.matches(close)? {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.matches(close)? {
                return Ok(());
            }
            if !self.matches(',')? {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
        }
    }

    /// Returns the token and advances to the next.
    fn advance(&mut self) -> Parsed<Token<'a>> {
        let next = self.lexer.next()?;
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn at(&self, symbol: char) -> bool {
        self.token.kind == TokenKind::Symbol(symbol)
    }

    fn at_type(&self) -> bool {
        matches!(self.token.kind, TokenKind::Name(name) if is_type_name(name))
    }

    fn matches(&mut self, symbol: char) -> Parsed<bool> {
        let found = self.at(symbol);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect(&mut self, symbol: char) -> Parsed<()> {
        if self.matches(symbol)? { Ok(()) } else { Err(self.expected(&format!("`{symbol}`"))) }
    }

    fn arrow(&mut self) -> Parsed<()> {
        match self.token.kind {
            TokenKind::Arrow => self.advance().map(drop),
            _ => Err(self.expected("`=>`")),
        }
    }

    /// Parses a name, quoted or not.
    fn name(&mut self, what: &str) -> Parsed<String> {
        match &mut self.token.kind {
            TokenKind::Name(name) => {
                let name = name.to_string();
                self.advance()?;
                Ok(name)
            }
            TokenKind::Text(_) => self.text(),
            _ => Err(self.expected(what)),
        }
    }

    fn text(&mut self) -> Parsed<String> {
        if !matches!(self.token.kind, TokenKind::Text(_)) {
            return Err(self.expected("a string in quotes"));
        }
        match self.advance()?.kind {
            TokenKind::Text(text) => Ok(text),
            _ => Ok(String::new()),
        }
    }

    fn int(&mut self) -> Parsed<i64> {
        self.number("an integer")
    }

    /// Parses a number of type `T`.
    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Parsed<T> {
        let (TokenKind::Number(text) | TokenKind::Name(text)) = self.token.kind else {
            return Err(self.expected(what));
        };
        let Ok(value) = text.parse() else { return Err(self.expected(what)) };
        self.advance()?;
        Ok(value)
    }

    /// Parses a float; one that is too large for its type is an error, not infinite.
    fn float<T: Into<f64> + Copy + std::str::FromStr>(&mut self, what: &str) -> Parsed<T> {
        let digits =
            matches!(self.token.kind, TokenKind::Number(text) if text.contains(|c: char| c.is_ascii_digit()));
        let at = self.token.clone();
        let value: T = self.number(what)?;
        if digits && !value.into().is_finite() {
            return Err(self.lexer.error(at.at, format!("{} is too large for {what}", at.kind)));
        }
        Ok(value)
    }

    fn expected(&self, what: &str) -> TextError {
        self.lexer.error(self.token.at, format!("expected {what}, found {}", self.token.kind))
    }
}
