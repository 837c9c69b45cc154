//! The differences between two graphs whose nodes are paired.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use rustc_hash::FxHashSet;
use serde::Serialize;

use super::{
    constants::{Constant, constant},
    fingerprint::{Fingerprints, compared, inputs, used_opsets},
    matching::Matching,
    tensors::{TensorDifference, difference, elements_text},
};
use crate::{
    analysis::modules::{ModuleId, Modules},
    ir::{Attribute, Graph, Node, NodeId, Origin, ValueId},
    observer::Progress,
    onnx::{OnnxError, TensorHeader},
    verify::{
        canonical::Canonical,
        hash::{Hash, Hasher},
    },
};

/// One difference, and where it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Path of the module; empty for the root and for the graph's interface.
    pub module: String,
    /// The node, as messages name it: the first graph's, or the second's if it was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The kind of difference.
    #[serde(flatten)]
    pub what: What,
}

/// A kind of difference. `from` is the first graph's, `to` the second's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A module with everything in it is in the first graph only.
    ModuleRemoved {
        /// Its nodes.
        nodes: usize,
    },
    /// A module with everything in it is in the second graph only.
    ModuleAdded {
        /// Its nodes.
        nodes: usize,
    },
    /// A node is in the first graph only.
    Removed,
    /// A node is in the second graph only.
    Added,
    /// An attribute of a node.
    Attribute {
        /// Its name.
        name: String,
        /// `None` if it isn't there.
        from: Option<String>,
        /// `None` if it isn't there.
        to: Option<String>,
    },
    /// A model-local function that a node calls does something else.
    Function,
    /// A node reads, or a graph output yields, another value.
    Rewired {
        /// Which operand or output.
        what: String,
        /// The first graph's value.
        from: String,
        /// The second graph's value.
        to: String,
    },
    /// Type or dimensions of a constant.
    Reshaped {
        /// Its name.
        tensor: String,
        /// `float32[8, 4]`.
        from: String,
        /// Likewise.
        to: String,
    },
    /// Elements of a constant.
    Tensor {
        /// Its name.
        tensor: String,
        /// Type and dimensions: `float32[8, 4]`.
        shape: String,
        /// How far they differ.
        #[serde(flatten)]
        difference: TensorDifference,
        /// The elements themselves, if they are few.
        values: Option<[String; 2]>,
    },
    /// An input, output or operator set of the graph.
    Interface {
        /// Which.
        what: String,
        /// `None` if it isn't there.
        from: Option<String>,
        /// `None` if it isn't there.
        to: Option<String>,
    },
}

/// Two graphs and all that is known of them; `[a, b]` throughout.
pub struct Comparison<'a, 'g> {
    pub graphs: [&'g Graph; 2],
    pub constants: [&'a [Option<Box<Constant>>]; 2],
    pub contents: [&'a [Option<Hash>]; 2],
    pub canonical: [&'a Canonical<'g>; 2],
    pub fingerprints: [&'a Fingerprints; 2],
    pub modules: [&'a Modules; 2],
    pub matching: &'a Matching,
    pub progress: Progress<'a>,
}

const A: usize = 0;
const B: usize = 1;

/// Two constants to be compared element by element.
struct Suspect {
    at: usize,
    values: [ValueId; 2],
}

impl Comparison<'_, '_> {
    /// Returns every difference.
    ///
    /// # Errors
    /// [`OnnxError`] if a tensor cannot be read.
    pub fn differences(&self) -> Result<Vec<Difference>, OnnxError> {
        let mut found: Vec<Option<Difference>> = self.interface().into_iter().map(Some).collect();
        let mut suspects = Vec::new();
        let mut known = FxHashSet::default();
        let removed_modules = self.whole_modules(A);
        let mut told = BTreeSet::new();
        for (id, node) in compared(self.graphs[A]) {
            match self.matching.of_a[id.index()] {
                Some(partner) => self.pair(id, node, partner, &mut found, &mut suspects, &mut known)?,
                None => found.extend(self.alone(A, id, node, &removed_modules, &mut told).map(Some)),
            }
        }
        let added_modules = self.whole_modules(B);
        told.clear();
        for (id, node) in compared(self.graphs[B]) {
            if self.matching.of_b[id.index()].is_none() {
                found.extend(self.alone(B, id, node, &added_modules, &mut told).map(Some));
            }
        }
        self.settle(&suspects, &mut found)?;
        Ok(found.into_iter().flatten().collect())
    }

    fn module(&self, side: usize, node: NodeId) -> String {
        self.modules[side].get(self.modules[side].of_node(node)).path.clone()
    }

    /// Compares operator sets, inputs and outputs.
    fn interface(&self) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut tell = |what: String, from: Option<String>, to: Option<String>| {
            found.push(Difference {
                module: String::new(),
                node: None,
                what: What::Interface { what, from, to },
            });
        };
        let [opsets_a, opsets_b] = self.graphs.map(used_opsets);
        for domain in opsets_a.keys().chain(opsets_b.keys()).collect::<BTreeSet<_>>() {
            let [from, to] = [&opsets_a, &opsets_b].map(|o| o.get(domain).map(i64::to_string));
            if from != to {
                let name = if domain.is_empty() { "ai.onnx" } else { domain };
                tell(format!("operator set {name}"), from, to);
            }
        }
        let [inputs_a, inputs_b] = self.graphs.map(|graph| -> BTreeMap<&str, (Hash, ValueId)> {
            inputs(graph).into_iter().map(|(v, hash)| (graph.value(v).name.as_str(), (hash, v))).collect()
        });
        for name in inputs_a.keys().chain(inputs_b.keys()).collect::<BTreeSet<_>>() {
            let (x, y) = (inputs_a.get(name), inputs_b.get(name));
            if x.map(|x| x.0) != y.map(|y| y.0) {
                let text = |side: usize, found: Option<&(Hash, ValueId)>| {
                    found.map(|(_, v)| input_text(self.graphs[side], *v))
                };
                tell(format!("input `{name}`"), text(A, x), text(B, y));
            }
        }
        let [outputs_a, outputs_b] = self.graphs.map(|graph| -> BTreeMap<&str, ValueId> {
            graph.outputs().iter().map(|io| (io.info.name(), io.value)).collect()
        });
        for name in outputs_a.keys().chain(outputs_b.keys()).collect::<BTreeSet<_>>() {
            match (outputs_a.get(name), outputs_b.get(name)) {
                (Some(x), Some(y)) => {
                    if !self.same(*x, *y) {
                        let what = What::Rewired {
                            what: format!("output `{name}`"),
                            from: self.value_text(A, Some(*x)),
                            to: self.value_text(B, Some(*y)),
                        };
                        found.push(Difference { module: String::new(), node: None, what });
                    }
                }
                (x, y) => found.push(Difference {
                    module: String::new(),
                    node: None,
                    what: What::Interface {
                        what: format!("output `{name}`"),
                        from: x.map(|_| "there".into()),
                        to: y.map(|_| "there".into()),
                    },
                }),
            }
        }
        found
    }

    /// Returns the outermost modules of one graph in which no node has a partner, with the number of their nodes.
    fn whole_modules(&self, side: usize) -> BTreeMap<ModuleId, usize> {
        let partners = [&self.matching.of_a, &self.matching.of_b][side];
        let modules = self.modules[side];
        let mut counts: BTreeMap<ModuleId, (usize, usize)> = BTreeMap::new();
        for (id, _) in compared(self.graphs[side]) {
            let mut at = Some(modules.of_node(id));
            while let Some(module) = at {
                let (alone, all) = counts.entry(module).or_default();
                *alone += usize::from(partners[id.index()].is_none());
                *all += 1;
                at = modules.get(module).parent;
            }
        }
        counts.retain(|module, (alone, all)| *module != modules.root() && alone == all);
        counts.into_iter().map(|(module, (_, all))| (module, all)).collect()
    }

    fn alone(
        &self,
        side: usize,
        id: NodeId,
        node: &Node,
        whole: &BTreeMap<ModuleId, usize>,
        told: &mut BTreeSet<ModuleId>,
    ) -> Option<Difference> {
        let modules = self.modules[side];
        // A container of nothing but one module is not named in its place.
        let (mut outermost, mut at): (Option<(ModuleId, usize)>, _) = (None, Some(modules.of_node(id)));
        while let Some(module) = at {
            let larger =
                whole.get(&module).filter(|nodes| outermost.is_none_or(|(_, inner)| **nodes > inner));
            outermost = larger.map(|nodes| (module, *nodes)).or(outermost);
            at = modules.get(module).parent;
        }
        if let Some((module, nodes)) = outermost.filter(|(_, nodes)| *nodes > 1) {
            let what = match side {
                A => What::ModuleRemoved { nodes },
                _ => What::ModuleAdded { nodes },
            };
            let module_path = modules.get(module).path.clone();
            return told.insert(module).then_some(Difference { module: module_path, node: None, what });
        }
        let what = if side == A { What::Removed } else { What::Added };
        Some(Difference { module: self.module(side, id), node: Some(node.describe()), what })
    }

    fn pair(
        &self,
        id: NodeId,
        node: &Node,
        partner: NodeId,
        found: &mut Vec<Option<Difference>>,
        suspects: &mut Vec<Suspect>,
        known: &mut FxHashSet<[ValueId; 2]>,
    ) -> Result<(), OnnxError> {
        let Some(other) = self.graphs[B].get(partner) else { return Ok(()) };
        let tell =
            |what: What| Some(Difference { module: self.module(A, id), node: Some(node.describe()), what });
        let [operator_a, operator_b] = [(A, node), (B, other)]
            .map(|(side, n)| self.canonical[side].operator(&n.domain, &n.op_type, n.overload()));
        if operator_a != operator_b {
            found.push(tell(What::Function));
        }
        let attributes = self.attributes(node, other)?;
        let bodies_differ = attributes.is_empty() && !node.captures.is_empty() && {
            let [x, y] = [(A, node), (B, other)].map(|(side, node)| {
                let class = |name: &str| Some(self.class(side, self.graphs[side].value_named(name)?));
                self.canonical[side].attributes(&node.attributes, &class)
            });
            x? != y?
        };
        found.extend(attributes.into_iter().map(tell));
        if bodies_differ {
            found.push(tell(What::Rewired {
                what: "what its subgraphs read from outside".into(),
                from: self.captures_text(A, node),
                to: self.captures_text(B, other),
            }));
        }
        for slot in 0..node.inputs.len().max(other.inputs.len()) {
            let (x, y) = (node.input(slot), other.input(slot));
            match (x, y) {
                (None, None) => continue,
                (Some(x), Some(y)) if self.same(x, y) => continue,
                _ => {}
            }
            let constants = x.zip(y).and_then(|(x, y)| {
                Some((constant(self.constants[A], x)?, constant(self.constants[B], y)?, [x, y]))
            });
            match constants {
                Some((x, y, values)) if x.overridable == y.overridable => {
                    if !known.insert(values) {
                        continue;
                    }
                    let (from, to) = (shape_text(&x.header), shape_text(&y.header));
                    let tensor = x.header.name.clone();
                    if from == to {
                        suspects.push(Suspect { at: found.len(), values });
                        found.push(tell(What::Tensor {
                            tensor,
                            shape: from,
                            difference: TensorDifference::default(),
                            values: None,
                        }));
                    } else {
                        found.push(tell(What::Reshaped { tensor, from, to }));
                    }
                }
                _ => found.push(tell(What::Rewired {
                    what: format!("operand {slot}"),
                    from: self.value_text(A, x),
                    to: self.value_text(B, y),
                })),
            }
        }
        Ok(())
    }

    fn attributes(&self, node: &Node, other: &Node) -> Result<Vec<What>, OnnxError> {
        let [ours, theirs] = [node, other].map(|node| -> BTreeMap<&str, &Attribute> {
            node.attributes.iter().map(|a| (a.name(), a)).collect()
        });
        let mut found = Vec::new();
        for name in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
            let (x, y) = (ours.get(name), theirs.get(name));
            let hash = |side: usize, attribute: Option<&&Attribute>| {
                attribute.map(|a| self.canonical[side].attribute(a)).transpose()
            };
            if hash(A, x)? != hash(B, y)? {
                let text = |a: Option<&&Attribute>| a.map(|a| attribute_text(a));
                found.push(What::Attribute { name: name.to_string(), from: text(x), to: text(y) });
            }
        }
        Ok(found)
    }

    /// Compares the elements of the suspects, and drops those that turn out to be equal.
    fn settle(&self, suspects: &[Suspect], found: &mut [Option<Difference>]) -> Result<(), OnnxError> {
        let one = |suspect: &Suspect| {
            let [x, y] = suspect.values;
            let headers = constant(self.constants[A], x).zip(constant(self.constants[B], y));
            let Some((x, y)) = headers else { return Ok(None) };
            let readers = (self.graphs[A].weight_reader(&x.header), self.graphs[B].weight_reader(&y.header));
            let (Ok(a), Ok(b)) = readers else {
                // Text has no reader; its contents were seen to differ.
                let elements = x.header.elements();
                let difference = TensorDifference { elements, differing: elements, ..Default::default() };
                return Ok(Some((difference, None)));
            };
            let data_type = x.header.data_type;
            let difference = difference(data_type, x.header.elements(), &a, &b, self.progress)?;
            let values = elements_text(data_type, &a).zip(elements_text(data_type, &b));
            Ok((difference.differing > 0).then(|| (difference, values.map(|(a, b)| [a, b]))))
        };
        let settled: Vec<_> = suspects.par_iter().map(one).collect::<Result<_, OnnxError>>()?;
        for (suspect, settled) in suspects.iter().zip(settled) {
            let Some(entry) = found.get_mut(suspect.at) else { continue };
            match (settled, entry.as_mut().map(|d| &mut d.what)) {
                (Some((new, new_values)), Some(What::Tensor { difference, values, .. })) => {
                    (*difference, *values) = (new, new_values);
                }
                _ => *entry = None,
            }
        }
        Ok(())
    }

    /// Returns whether two values are the same: computed by a pair, or in the same way from the inputs on.
    fn same(&self, x: ValueId, y: ValueId) -> bool {
        let hash = |side: usize, value: ValueId| self.fingerprints[side].values.get(value.index());
        self.class(A, x) == self.class(B, y) || hash(A, x) == hash(B, y)
    }

    /// Returns the class of a value, in terms that both graphs share.
    fn class(&self, side: usize, value: ValueId) -> Hash {
        if let Some(constant) = constant(self.constants[side], value) {
            return constant.hash(self.contents[side].get(value.index()).and_then(Option::as_ref));
        }
        match self.graphs[side].value(value).origin {
            Origin::Node { node, slot } => {
                let (owner, node) = match (side, self.matching.of_b.get(node.index()).copied().flatten()) {
                    (A, _) => (A, node),
                    (_, Some(partner)) => (A, partner),
                    (_, None) => (B, node),
                };
                let hasher = Hasher::new("computed").number(owner as u64);
                hasher.number(node.index() as u64).number(slot as u64).finish()
            }
            _ => Hasher::new("named").text(&self.graphs[side].value(value).name).finish(),
        }
    }

    fn captures_text(&self, side: usize, node: &Node) -> String {
        let all: Vec<String> = node.captures.iter().map(|v| self.value_text(side, Some(*v))).collect();
        all.join(", ")
    }

    fn value_text(&self, side: usize, value: Option<ValueId>) -> String {
        let Some(value) = value else { return "nothing".into() };
        if let Some(constant) = constant(self.constants[side], value) {
            return format!("constant `{}` {}", constant.header.name, shape_text(&constant.header));
        }
        let graph = self.graphs[side];
        let name = &graph.value(value).name;
        match graph.producer(value).and_then(|id| graph.get(id)) {
            None => format!("input `{name}`"),
            Some(node) if node.name.is_empty() => format!("`{name}` of an unnamed {}", node.op_type),
            Some(node) => format!("{} `{}`", node.op_type, node.name),
        }
    }
}

fn shape_text(header: &TensorHeader) -> String {
    let dims: Vec<String> = header.dims.iter().map(i64::to_string).collect();
    format!("{}[{}]", header.data_type.name(), dims.join(", "))
}

fn input_text(graph: &Graph, value: ValueId) -> String {
    use crate::onnx::{
        DataType,
        proto::{tensor_shape_proto::dimension, type_proto},
    };
    let info = graph.inputs().find(|io| io.value == value).and_then(|io| io.info.0.r#type.as_ref());
    let Some(type_proto::Value::TensorType(tensor)) = info.and_then(|t| t.value.as_ref()) else {
        return "no tensor".into();
    };
    let dim = |value: &Option<dimension::Value>| match value {
        Some(dimension::Value::DimValue(size)) => size.to_string(),
        Some(dimension::Value::DimParam(name)) => name.clone(),
        None => "?".into(),
    };
    let dims = tensor.shape.iter().flat_map(|s| &s.dim).map(|d| dim(&d.value)).collect::<Vec<_>>();
    format!("{}[{}]", DataType(tensor.elem_type()).name(), dims.join(", "))
}

fn attribute_text(attribute: &Attribute) -> String {
    fn list<T: ToString>(items: &[T]) -> String {
        format!("[{}]", items.iter().map(T::to_string).collect::<Vec<_>>().join(", "))
    }
    if let Some(i) = attribute.0.i {
        i.to_string()
    } else if let Some(f) = attribute.0.f {
        f.to_string()
    } else if let Some(s) = &attribute.0.s {
        format!("\"{}\"", String::from_utf8_lossy(s).escape_debug())
    } else if !attribute.0.ints.is_empty() {
        list(&attribute.0.ints)
    } else if !attribute.0.floats.is_empty() {
        list(&attribute.0.floats)
    } else if attribute.0.t.is_some() {
        "a tensor".into()
    } else if attribute.0.g.is_some() || !attribute.0.graphs.is_empty() {
        "a subgraph".into()
    } else {
        "a list".into()
    }
}
