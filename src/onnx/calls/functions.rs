//! The functions of a model: which of them can be read through, how often each is called, and what that makes.

use std::collections::BTreeMap;

use prost::Message;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{bodies, domain};
use crate::onnx::{
    OnnxError,
    proto::{FunctionProto, NodeProto},
};

/// Domain, name and overload.
type Key<'a> = (&'a str, &'a str, &'a str);

/// How deep calls are read through.
const DEEPEST: usize = 64;
/// The most nodes, and the most bytes, that functions may become.
const MOST_NODES: u64 = 1 << 22;
const MOST_BYTES: u64 = 1 << 30;

/// Operators that multiply by a matrix.
const LAYERS: [&str; 6] = ["Conv", "ConvTranspose", "Einsum", "FusedMatMul", "Gemm", "MatMul"];

/// The functions of a model.
pub(super) struct Functions<'a> {
    all: Vec<Function<'a>>,
    by_key: FxHashMap<Key<'a>, usize>,
    /// Domains and names of those with overloads.
    overloaded: FxHashSet<(&'a str, &'a str)>,
}

/// A function of a model.
pub(super) struct Function<'a> {
    pub(super) proto: &'a FunctionProto,
    /// How often its body comes to stand in the graph.
    pub instances: u64,
    /// How many layers are in it, and in those that it calls.
    pub layers: u64,
    /// Why its calls stay.
    stays: Option<String>,
    /// How many calls lead from it to the innermost.
    depth: usize,
    /// The functions that it calls, once for each call.
    callees: Vec<usize>,
}

impl<'a> Functions<'a> {
    /// Looks at the functions of a model with these nodes and imports.
    ///
    /// # Errors
    /// [`OnnxError`] if one calls itself.
    pub(super) fn of(
        protos: &'a [FunctionProto],
        nodes: &[NodeProto],
        imports: &BTreeMap<String, i64>,
    ) -> Result<Self, OnnxError> {
        let key = |f: &'a FunctionProto| (f.domain(), f.name(), f.overload());
        let by_key: FxHashMap<_, _> = protos.iter().enumerate().map(|(at, f)| (key(f), at)).collect();
        let overloaded = protos.iter().filter(|f| !f.overload().is_empty());
        let overloaded = overloaded.map(|f| (f.domain(), f.name())).collect();
        let mut this = Self { all: Vec::with_capacity(protos.len()), by_key, overloaded };
        for proto in protos {
            let mut callees = Vec::new();
            bodies::each_node(&proto.node, &mut |node| callees.extend(this.index(node)));
            this.all.push(Function { proto, instances: 0, layers: 0, stays: None, depth: 0, callees });
        }
        let order = this.callees_first()?;
        let mut imports = imports.clone();
        for at in &order {
            this.judge(*at, &mut imports);
        }
        bodies::each_node(nodes, &mut |node| {
            if let Some(at) = this.index(node) {
                this.all[at].instances += 1;
            }
        });
        for at in order.iter().rev() {
            let Function { instances, stays, callees, .. } = &this.all[*at];
            let instances = if stays.is_some() { 0 } else { *instances };
            for callee in callees.clone() {
                let known = &mut this.all[callee].instances;
                *known = known.saturating_add(instances);
            }
        }
        this.limit();
        Ok(this)
    }

    /// Returns the function that `node` calls, if its calls are read through.
    pub(super) fn called(&self, node: &NodeProto) -> Option<&Function<'a>> {
        let function = self.all.get(self.index(node)?)?;
        (function.stays.is_none() && node.device_configurations.is_empty()).then_some(function)
    }

    /// Returns whether `node` is a call of any of them.
    pub(super) fn is_call(&self, node: &NodeProto) -> bool {
        self.index(node).is_some()
    }

    /// Returns the functions whose calls stay, with the reason.
    pub fn left(&self) -> BTreeMap<(String, String), String> {
        let with_reason = |f: &Function<'_>| {
            let key = (f.proto.domain().to_string(), f.proto.name().to_string());
            f.stays.clone().map(|reason| (key, reason))
        };
        self.all.iter().filter_map(with_reason).collect()
    }

    fn index(&self, node: &NodeProto) -> Option<usize> {
        self.by_key.get(&(node.domain(), node.op_type(), node.overload())).copied()
    }

    /// Returns the functions in an order in which each stands after those that it calls.
    fn callees_first(&self) -> Result<Vec<usize>, OnnxError> {
        let mut callers: Vec<Vec<usize>> = vec![Vec::new(); self.all.len()];
        let mut waits: Vec<usize> = Vec::with_capacity(self.all.len());
        for (at, function) in self.all.iter().enumerate() {
            function.callees.iter().for_each(|callee| callers[*callee].push(at));
            waits.push(function.callees.len());
        }
        let mut order: Vec<usize> = (0..waits.len()).filter(|at| waits[*at] == 0).collect();
        let mut next = 0;
        while let Some(at) = order.get(next).copied() {
            next += 1;
            for caller in &callers[at] {
                waits[*caller] -= 1;
                if waits[*caller] == 0 {
                    order.push(*caller);
                }
            }
        }
        match waits.iter().position(|waits| *waits > 0) {
            None => Ok(order),
            Some(at) => Err(invalid(self.all[at].proto, "it calls itself, or one that does")),
        }
    }

    /// Decides whether the calls of a function stay; those that it calls were decided on.
    fn judge(&mut self, at: usize, imports: &mut BTreeMap<String, i64>) {
        let Function { proto, callees, .. } = &self.all[at];
        let read = callees.iter().map(|callee| &self.all[*callee]).filter(|f| f.stays.is_none());
        let depth = read.clone().map(|f| f.depth + 1).max().unwrap_or(0);
        let mut layers = read.map(|f| f.layers).fold(0, u64::saturating_add);
        bodies::each_node(&proto.node, &mut |node| layers += u64::from(LAYERS.contains(&node.op_type())));
        let stays = match depth > DEEPEST {
            true => Some(format!("calls are nested more than {DEEPEST} deep")),
            false => self.conflict(proto, imports),
        };
        if stays.is_none() {
            let own = proto.opset_import.iter();
            imports.extend(own.map(|set| (domain(set.domain()).to_string(), set.version())));
        }
        let function = &mut self.all[at];
        (function.depth, function.layers, function.stays) = (depth, layers, stays);
    }

    /// Returns why the body of a function may not compute in a graph with these imports what it does in the function.
    fn conflict(&self, function: &FunctionProto, imports: &BTreeMap<String, i64>) -> Option<String> {
        if is_of_engines(function.domain()) {
            return Some(format!(
                "the domain `{}` is one of engines, which may have an operator of that name",
                function.domain()
            ));
        }
        if self.overloaded.contains(&(function.domain(), function.name())) {
            return Some("engines disagree on which overload of a function a function calls".to_string());
        }
        let mut formals = FxHashSet::default();
        if !function.input.iter().chain(&function.output).all(|name| formals.insert(name)) {
            return Some("an input or output of the function has the name of another".to_string());
        }
        let mut own = FxHashSet::default();
        for set in &function.opset_import {
            let name = domain(set.domain());
            own.insert(name);
            if let Some(version) = imports.get(name).filter(|version| **version != set.version()) {
                let name = if name.is_empty() { "ai.onnx" } else { name };
                return Some(format!(
                    "the function uses version {} of operator set `{name}`, the model version {version}",
                    set.version()
                ));
            }
        }
        let mut why = None;
        bodies::each_node(&function.node, &mut |node| {
            if !self.is_call(node) && !own.contains(domain(node.domain())) {
                why = Some(format!(
                    "the function does not say which version of operator set `{}` it uses",
                    if node.domain().is_empty() { "ai.onnx" } else { node.domain() }
                ));
            }
        });
        if bodies::has_annotations(&function.node) {
            why = Some("a body in the function has quantization annotations".to_string());
        }
        why
    }

    /// Lets all calls stay if their bodies are too much.
    fn limit(&mut self) {
        let (mut nodes, mut bytes) = (0u64, 0u64);
        for function in self.all.iter().filter(|f| f.stays.is_none()) {
            let mut own = 0;
            bodies::each_node(&function.proto.node, &mut |_| own += 1);
            nodes = nodes.saturating_add(function.instances.saturating_mul(own));
            let len = function.proto.encoded_len() as u64;
            bytes = bytes.saturating_add(function.instances.saturating_mul(len));
        }
        if nodes > MOST_NODES || bytes > MOST_BYTES {
            for function in &mut self.all {
                function.stays = Some("the bodies of all calls would be too many nodes".to_string());
            }
        }
    }
}

/// Returns whether engines have operators of this domain, so that a function of it may be another name for one.
fn is_of_engines(domain: &str) -> bool {
    let is_in = |parent: &str| {
        domain.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    ["ai.onnx", "com.microsoft", "com.ms", "org.pytorch"].into_iter().any(is_in)
}

/// Returns an error about a function.
pub(super) fn invalid(function: &FunctionProto, what: impl Into<String>) -> OnnxError {
    OnnxError::invalid(format!("the function `{}.{}`", function.domain(), function.name()), what)
}
