//! A batch whose rows are requests of their own: every input has the batch first.
//!
//! A server that joins requests into one batch gives each input a row a request. A UNet exported with a scalar
//! `timestep` has one for all rows, and so has a fused graph with its `poa_weight`. Where the graph spreads such a
//! scalar over the batch itself, it can as well be given one value a row: the spreading is taken out. Everything behind
//! it computes row by row already, since torch's network did.
//!
//! Two ways of spreading are known, the ones that exporters and this crate write: `Expand` to `[batch]`, after any
//! number of `Cast`, `Identity`, `Unsqueeze`, `Squeeze`, `Reshape` and `Flatten`; and arithmetic with a tensor that has
//! the batch first. A scalar that is read in any other way stays one, and the graph is not batched.

use crate::{
    analysis::shapes::{self, Dim, Shapes},
    deploy::DeployError,
    engine::{self, Signature, TensorInfo},
    ir::{EditError, Graph, NewData, Node, NodeId, NodeSpec, Origin, Place, Use, ValueId},
    onnx::{
        DataType,
        proto::{TensorShapeProto, tensor_shape_proto::Dimension, tensor_shape_proto::dimension},
    },
    passes::dce,
};

/// Suffix of the names of nodes that compute for each row what others computed for all.
const SUFFIX: &str = "_rows";
/// Sizes for dimensions other than the batch when shapes are checked at two batches: divisible by any downsampling,
/// and not more than the positions of a text encoder.
const PROBE: i64 = 64;

/// Whether a graph's rows can be requests of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batching {
    /// They can; these inputs, scalars before, now have one value a row.
    Rows(Vec<String>),
    /// They cannot, for this reason. The graph is of no use any more if it was edited.
    Whole(String),
}

/// Gives every input of `graph` a row for each row of the batch.
///
/// That the rows don't influence one another is not proven: it is so in every network that torch runs on a batch,
/// unless it normalizes over the batch.
///
/// # Errors
/// [`DeployError`] if the graph cannot be edited or its declarations are broken.
pub fn make_rows(graph: &mut Graph) -> Result<Batching, DeployError> {
    let signature = super::signature(graph)?;
    let shapes = shapes::shapes(graph);
    let batch = match batch(graph, &signature, &shapes) {
        Ok(batch) => batch,
        Err(why) => return Ok(Batching::Whole(why)),
    };
    let mut scalars = Vec::new();
    for input in &signature.inputs {
        match scalar(graph, input, &batch, &shapes) {
            Ok(None) => {}
            Ok(Some(value)) => scalars.push(value),
            Err(why) => return Ok(Batching::Whole(format!("input {input}: {why}"))),
        }
    }
    let unread = dce::Unread::of(graph);
    for value in &scalars {
        widen(graph, *value, *value, &batch, &shapes)?;
        let shape = TensorShapeProto { dim: vec![batch.stated.clone()] };
        graph.edit().set_input_shape(*value, &shape)?;
    }
    if graph.is_edited() {
        dce::run(&unread, &mut graph.edit()).map_err(|e| EditError::Unsupported(e.to_string()))?;
        let name = format!("{}{SUFFIX}", graph.name());
        graph.edit().set_graph_name(name);
        graph.check().map_err(|e| {
            EditError::Unsupported(format!("rows: the edited graph is broken ({e}); please report this"))
        })?;
    }
    if let Err(why) = outputs_follow(graph) {
        return Ok(Batching::Whole(why));
    }
    Ok(Batching::Rows(scalars.into_iter().map(|value| graph.value(value).name.clone()).collect()))
}

/// The dimension of the batch, as shapes have it and as the model states it.
struct Batch {
    dim: Dim,
    stated: Dimension,
}

/// The first dimension of the latents, or else of the first input that is no scalar.
fn batch(graph: &Graph, signature: &Signature, shapes: &Shapes) -> Result<Batch, String> {
    let has = |rank: usize| {
        let fits = move |input: &&TensorInfo| input.dims.as_ref().is_some_and(|dims| dims.len() >= rank);
        signature.inputs.iter().find(fits)
    };
    let sample = signature.inputs.iter().find(|input| input.name == "sample");
    let leading = sample.or_else(|| has(4)).or_else(|| has(1));
    let leading = leading.ok_or_else(|| "no input has a batch".to_string())?;
    let value = graph.value_named(&leading.name).and_then(|value| shapes.of(value));
    let dim = value.and_then(|shape| shape.dims.first().cloned());
    let dim = dim.ok_or_else(|| format!("input {leading}: its dimensions are not known"))?;
    if let Some(size) = dim.constant() {
        return Err(format!("input {leading}: its batch is fixed to {size}; export it with a dynamic batch"));
    }
    let named = leading.dims.as_ref().and_then(|dims| dims.first());
    let value = match named {
        Some(engine::Dim::Named(name)) => Some(dimension::Value::DimParam(name.clone())),
        _ => None,
    };
    Ok(Batch { dim, stated: Dimension { value, ..Dimension::default() } })
}

/// The value of an input that has to be widened; `None` for one with rows.
fn scalar(
    graph: &Graph,
    input: &TensorInfo,
    batch: &Batch,
    shapes: &Shapes,
) -> Result<Option<ValueId>, String> {
    let dims = input.dims.as_ref().ok_or("the model doesn't say how many dimensions it has")?;
    match dims.as_slice() {
        [] | [engine::Dim::Fixed(1)] => {
            let value = graph.value_named(&input.name).ok_or("it is not in the graph")?;
            can_widen(graph, value, batch, shapes)?;
            Ok(Some(value))
        }
        [engine::Dim::Fixed(size), ..] => Err(format!("its first dimension is fixed to {size}")),
        _ => Ok(None),
    }
}

/// What a node does with a scalar that it reads.
enum Reading {
    /// Makes another scalar of it, with this node again.
    Recomputed(ValueId),
    /// Gives it other dimensions, still of one element.
    Reshaped(ValueId),
    /// Spreads it over the batch.
    Spread(ValueId),
    /// Computes with it and a tensor of this many dimensions, the batch first.
    Elementwise(usize),
}

fn reading(
    node: &Node,
    value: ValueId,
    slot: usize,
    batch: &Batch,
    shapes: &Shapes,
) -> Result<Reading, String> {
    let refuse = || {
        let node = node.describe();
        format!("{node} reads it as one value for the whole batch")
    };
    let output = node.output(0).ok_or_else(refuse)?;
    let dims = |value: ValueId| shapes.of(value).map(|shape| shape.dims.as_slice());
    let of_one = |value: ValueId| dims(value).is_some_and(|d| d.iter().all(|d| d.constant() == Some(1)));
    let is = |types: &[&str]| types.iter().any(|op_type| node.is(op_type));
    if slot == 0 && is(&["Cast", "Identity"]) {
        return Ok(Reading::Recomputed(output));
    }
    if slot == 0 && is(&["Unsqueeze", "Squeeze", "Reshape", "Flatten"]) && of_one(output) {
        return Ok(Reading::Reshaped(output));
    }
    if slot == 0 && is(&["Expand"]) && dims(output).is_some_and(|d| *d == [batch.dim.clone()]) {
        return Ok(Reading::Spread(output));
    }
    if is(&["Mul", "Add", "Sub", "Div"]) {
        let other = node.input(1 - slot.min(1)).filter(|other| *other != value).and_then(dims);
        let result = dims(output);
        if let (Some(other), Some(result)) = (other, result)
            && other.first() == Some(&batch.dim)
            && other == result
        {
            return Ok(Reading::Elementwise(other.len()));
        }
    }
    Err(refuse())
}

fn can_widen(graph: &Graph, value: ValueId, batch: &Batch, shapes: &Shapes) -> Result<(), String> {
    for used in graph.uses(value) {
        match *used {
            Use::Operand { node, slot } => match reading(graph.node(node), value, slot, batch, shapes)? {
                Reading::Recomputed(output) | Reading::Reshaped(output) => {
                    can_widen(graph, output, batch, shapes)?;
                }
                Reading::Spread(_) | Reading::Elementwise(_) => {}
            },
            Use::Capture(node) => {
                let node = graph.node(node).describe();
                return Err(format!("{node} reads it inside of a subgraph"));
            }
            Use::Output(_) => return Err("it is an output too".to_string()),
        }
    }
    Ok(())
}

/// Makes everything that reads `value` read `rows`, which has its elements for each row, `[batch]`.
fn widen(
    graph: &mut Graph,
    value: ValueId,
    rows: ValueId,
    batch: &Batch,
    shapes: &Shapes,
) -> Result<(), DeployError> {
    for used in graph.uses(value).to_vec() {
        let Use::Operand { node, slot } = used else { continue };
        match reading(graph.node(node), value, slot, batch, shapes).map_err(EditError::Unsupported)? {
            Reading::Recomputed(output) => {
                let copy = graph.edit().copy_node(node, &[Some(rows)], SUFFIX, Place::First)?;
                let copied = result(graph, copy)?;
                widen(graph, output, copied, batch, shapes)?;
            }
            Reading::Reshaped(output) => widen(graph, output, rows, batch, shapes)?,
            Reading::Spread(output) => graph.edit().redirect(output, rows)?,
            Reading::Elementwise(rank) => {
                let column = column(graph, rows, rank)?;
                graph.edit().set_input(node, slot, column)?;
            }
        }
    }
    Ok(())
}

/// `rows` as `[batch, 1, 1, ...]` of `rank` dimensions.
fn column(graph: &mut Graph, rows: ValueId, rank: usize) -> Result<ValueId, DeployError> {
    let name = format!("{}{SUFFIX}", graph.value(rows).name);
    let dims: Vec<i64> = (0..rank).map(|axis| if axis == 0 { -1 } else { 1 }).collect();
    let bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    let length = i64::try_from(rank).unwrap_or(i64::MAX);
    let shape_name = format!("{name}/shape");
    let mut editor = graph.edit();
    let (_, shape) =
        editor.add_initializer(&shape_name, DataType::INT64, &[length], NewData::Bytes(bytes.into()));
    let inputs = [Some(rows), Some(shape)];
    let spec = NodeSpec {
        name: &format!("{name}/Reshape{SUFFIX}"),
        op_type: "Reshape",
        inputs: &inputs,
        output: &name,
        attributes: Vec::new(),
    };
    Ok(editor.add_node(spec, Place::First)?)
}

fn result(graph: &Graph, node: NodeId) -> Result<ValueId, EditError> {
    let node = graph.node(node);
    node.output(0).ok_or_else(|| EditError::Gone(format!("the result of {}", node.describe())))
}

/// Whether the outputs have as many rows as the inputs, at two batches.
fn outputs_follow(graph: &Graph) -> Result<(), String> {
    let shapes = shapes::shapes(graph);
    let fed = graph.inputs().filter(|io| matches!(graph.value(io.value).origin, Origin::Input(_)));
    let firsts: Vec<String> =
        fed.filter_map(|io| Some(shapes.of(io.value)?.dims.first()?.to_string())).collect();
    for rows in [2, 3] {
        let size = |symbol: &str| if firsts.iter().any(|first| first == symbol) { rows } else { PROBE };
        let bindings: Vec<(&str, i64)> = shapes.symbols().iter().map(|s| (s.as_ref(), size(s))).collect();
        let concrete = shapes.evaluate(&bindings);
        for io in graph.outputs() {
            let dims = concrete.of(io.value);
            if dims.and_then(|dims| dims.first()) != Some(&rows) {
                let found = dims.map_or("of unknown shape".to_string(), |dims| format!("{dims:?}"));
                return Err(format!("output `{}` is {found} for a batch of {rows}", io.info.name()));
            }
        }
    }
    match shapes.problems().next() {
        Some(note) => Err(note.what.clone()),
        None => Ok(()),
    }
}
