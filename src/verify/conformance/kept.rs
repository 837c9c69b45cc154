//! The pair of graphs that a plan's `cache` takes: one gives the value of the cut as one more output, the other takes it
//! as one more input.
//!
//! The full graph must give as `cache` the value that the Concat of the cut reads in the network, and be that network
//! otherwise. The shallow graph must be the network in which that one operand of the Concat is the input `cache`, and
//! everything else is computed as it was. So where `cache` holds what the full graph gave for the same inputs, the
//! shallow graph computes what the network does. A fused graph has a second one, `cache_pruned`, for the pruned network,
//! exactly if that reads another value there.

use super::{Violation, interface::type_text, reach::Reach, walk::Cone};
use crate::{
    analysis::{
        cut::Cut,
        shapes::{Dim, Shapes},
    },
    ir::{Graph, GraphIo, ValueId},
    onnx::{
        DataType, OnnxError, ValueInfo,
        proto::{TypeProto, tensor_shape_proto::dimension::Value, type_proto},
    },
    plan::Depth,
};

/// The names of the kept values, in the order of the graphs: the dense (or only) network's, and the pruned one's.
const NAMES: [&str; 2] = ["cache", "cache_pruned"];

/// A cut, and which graph of the pair the compiled one is.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub depth: Depth,
    cut: Cut,
    /// The names of sizes in the original's inputs.
    named: Vec<(String, Dim)>,
    /// Inputs of the expected network, in a shallow graph.
    inputs: Vec<ValueId>,
    /// Whether the two networks read different values at the cut.
    differs: bool,
    /// Whether the compiled graph has the second one.
    has_second: bool,
}

impl Kept {
    /// Looks which graph of the pair for `cut` the graph `compiled` is; `None` if it is neither.
    pub fn of(cut: Cut, original: &Graph, compiled: &Graph, shapes: &Shapes) -> Option<Self> {
        if NAMES.iter().any(|name| original.value_named(name).is_some()) {
            return None;
        }
        let has = |list: &[&GraphIo], name: &str| list.iter().any(|io| io.info.name() == name);
        let (inputs, outputs): (Vec<&GraphIo>, Vec<&GraphIo>) =
            (compiled.inputs().collect(), compiled.outputs().iter().collect());
        let [first, second] = NAMES;
        let (depth, list) = match (has(&inputs, first), has(&outputs, first)) {
            (true, _) => (Depth::Shallow, inputs),
            (false, true) => (Depth::Full, outputs),
            (false, false) => return None,
        };
        let sizes = |io: &GraphIo| {
            let names = dims(io.info.0.r#type.as_ref()).unwrap_or_default();
            let known = shapes.of(io.value).map_or(&[][..], |shape| &shape.dims);
            let named = names.into_iter().zip(known).filter_map(|(name, dim)| match name {
                Some(Value::DimParam(name)) => Some((name, dim.clone())),
                _ => None,
            });
            named.collect::<Vec<_>>()
        };
        let named = original.inputs().flat_map(sizes).collect();
        let has_second = has(&list, second);
        Some(Self { depth, cut, named, inputs: Vec::new(), differs: false, has_second })
    }

    /// Adds the inputs of a shallow graph to the expected network.
    ///
    /// # Errors
    /// [`OnnxError`] if a name is taken.
    pub fn add_inputs(&mut self, expected: &mut Graph) -> Result<(), OnnxError> {
        for name in NAMES {
            let input = expected.edit().add_input(ValueInfo::tensor(name, self.cut.data_type, None));
            self.inputs.push(input.map_err(|error| OnnxError::invalid("the cache", error.to_string()))?);
        }
        Ok(())
    }

    /// Finds out whether both networks read one value at the cut, and in a shallow graph makes it the input.
    pub fn cut(&mut self, graph: &Graph, reach: &Reach, [pruned, dense]: [&mut Cone; 2]) {
        let Cut { node, slot, value, .. } = self.cut;
        let [a, b] = [&*pruned, &*dense].map(|cone| cone.substitution.operand(node, slot, value));
        self.differs = a != b || reach.has(graph, [pruned, dense], a);
        if let [first, second] = self.inputs[..] {
            let of_pruned = if self.differs && self.has_second { second } else { first };
            dense.substitution.cut(node, slot, first);
            pruned.substitution.cut(node, slot, of_pruned);
        }
    }

    /// Returns what the graph must have beside what the original has, an input or an output each.
    fn names(&self, fused: bool) -> &'static [&'static str] {
        if fused && self.differs { &NAMES } else { &NAMES[..1] }
    }

    /// Takes what is kept out of the inputs or outputs `found` of the compiled graph, the last ones. Reports what of it is
    /// missing or of another type. Returns their places in `found` as it was.
    pub fn take(
        &self,
        what: &str,
        found: &mut Vec<&GraphIo>,
        fused: bool,
        differences: &mut Vec<Violation>,
    ) -> Vec<usize> {
        let mut places = Vec::new();
        for name in self.names(fused).iter().rev() {
            let Some(io) = found.pop_if(|io| io.info.name() == *name) else {
                let message = format!("the {what} `{name}`, which the cache is for, is not the last");
                differences.push(Violation::first(message));
                continue;
            };
            places.insert(0, found.len());
            if let Err(why) = self.is_stated(io.info.0.r#type.as_ref()) {
                let found = type_text(io.info.0.r#type.as_ref());
                differences.push(Violation::first(format!("{what} `{name}` is {found}: {why}")));
            }
        }
        places
    }

    /// Adds the outputs at `places` of a full graph to the roots of the networks that they are of.
    pub fn roots(
        &self,
        compiled: &Graph,
        places: &[usize],
        fused: bool,
        [(pruned, has_pruned), (dense, has_dense)]: [(&mut Cone, bool); 2],
    ) {
        let Cut { node, slot, value, .. } = self.cut;
        let add = |cone: &mut Cone, place: Option<&usize>| {
            let root = place.and_then(|index| Some((compiled.outputs().get(*index)?.value, *index)));
            if let Some((found, index)) = root {
                cone.roots.push((found, cone.substitution.operand(node, slot, value), index));
            }
        };
        if has_dense {
            add(dense, places.first());
        }
        if has_pruned {
            let second = fused && self.differs;
            add(pruned, places.get(usize::from(second)));
        }
    }

    /// Checks a type: the element type, as many dimensions, the fixed sizes, and no name for a size that is another one's.
    fn is_stated(&self, stated: Option<&TypeProto>) -> Result<(), String> {
        let data_type = match stated.and_then(|t| t.value.as_ref()) {
            Some(type_proto::Value::TensorType(tensor)) => DataType(tensor.elem_type()),
            _ => return Err("it is no tensor".into()),
        };
        if data_type != self.cut.data_type {
            return Err(format!("the network has {} there", self.cut.data_type.name()));
        }
        let found = dims(stated).ok_or("it says no shape")?;
        if found.len() != self.cut.dims.len() {
            return Err(format!("the network has {} dimensions there", self.cut.dims.len()));
        }
        let mut named = self.named.clone();
        for (axis, (found, expected)) in found.into_iter().zip(&self.cut.dims).enumerate() {
            let wrong = || Err(format!("dimension {axis} is {expected} in the network"));
            match (found, expected.constant()) {
                (Some(Value::DimValue(found)), Some(size)) if found == size => {}
                (Some(Value::DimValue(_)), _) | (_, Some(_)) => return wrong(),
                (None, None) => {}
                (Some(Value::DimParam(name)), None) => {
                    if named.iter().any(|(known, dim)| *known == name && dim != expected) {
                        return wrong();
                    }
                    named.push((name, expected.clone()));
                }
            }
        }
        Ok(())
    }
}

fn dims(stated: Option<&TypeProto>) -> Option<Vec<Option<Value>>> {
    match stated?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => {
            Some(tensor.shape.as_ref()?.dim.iter().map(|dim| dim.value.clone()).collect())
        }
        _ => None,
    }
}
