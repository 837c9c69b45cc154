//! Constants: initializers and Constant nodes alike, which differ only in how a file keeps them.

use std::os::unix::fs::MetadataExt;

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::{
    ir::{Graph, Origin, ValueId, WeightReader},
    observer::Progress,
    onnx::{DataType, OnnxError, TensorHeader},
    verify::{
        constant::{STRING, content, of_node},
        hash::{Hash, Hasher},
    },
};

/// A constant of the top-level graph.
#[derive(Clone, Debug)]
pub struct Constant {
    /// Its name (a Constant node's result's), type and dimensions.
    pub header: TensorHeader,
    /// Whether a caller may feed something else in its place.
    pub overridable: bool,
}

impl Constant {
    /// Returns whether its elements are part of the structure: shapes, axes and indices (integers, booleans, text) and
    /// single numbers are; weights are not.
    pub fn is_structural(&self) -> bool {
        let whole =
            matches!(self.header.data_type, DataType::INT32 | DataType::INT64 | DataType::BOOL | STRING);
        whole || self.header.elements() <= 1
    }

    /// Returns the hash of its type and dimensions, and of its `content` if that counts.
    pub fn hash(&self, content: Option<&Hash>) -> Hash {
        let hasher = Hasher::new("constant")
            .number(u64::from(self.overridable))
            .number(self.header.data_type.0 as u64)
            .dims(&self.header.dims);
        content.into_iter().fold(hasher, |hasher, content| hasher.bytes(content)).finish()
    }
}

/// Returns the constants of a graph that anything uses, by value.
///
/// # Errors
/// [`OnnxError`] if a Constant node's tensor is broken.
pub fn constants(graph: &Graph) -> Result<Vec<Option<Box<Constant>>>, OnnxError> {
    let mut overridable = vec![false; graph.value_capacity()];
    for io in graph.inputs() {
        overridable[io.value.index()] = true;
    }
    let mut constants = vec![None; graph.value_capacity()];
    for value in graph.value_ids().filter(|v| !graph.uses(*v).is_empty()) {
        let header = match graph.value(value).origin {
            Origin::Initializer(id) => graph.initializer(id).map(|i| i.header.clone()),
            Origin::Node { node, slot: 0 } => match graph.get(node) {
                Some(node) => of_node(node, &graph.value(value).name)?,
                None => None,
            },
            _ => None,
        };
        constants[value.index()] =
            header.map(|header| Box::new(Constant { header, overridable: overridable[value.index()] }));
    }
    Ok(constants)
}

/// Which bytes of which file hold a tensor's elements.
type Range = (u64, u64, u64, u64);

fn range(graph: &Graph, header: &TensorHeader) -> Option<Range> {
    match graph.weight_reader(header).ok()? {
        WeightReader::File { file, offset, len } => {
            let meta = file.file().metadata().ok()?;
            Some((meta.dev(), meta.ino(), offset, len))
        }
        WeightReader::Memory(_) | WeightReader::Computed(_) => None,
    }
}

/// Returns the content hashes of every constant of one graph, read in parallel.
///
/// # Errors
/// As [`content`].
pub fn contents(
    graph: &Graph,
    constants: &[Option<Box<Constant>>],
    progress: Progress<'_>,
) -> Result<Vec<Option<Hash>>, OnnxError> {
    constants
        .par_iter()
        .map(|c| c.as_ref().map(|c| content(graph, &c.header, progress)).transpose())
        .collect()
}

/// Returns the content hashes of the structural constants of one graph.
///
/// # Errors
/// As [`content`].
pub fn structural_contents(
    graph: &Graph,
    constants: &[Option<Box<Constant>>],
) -> Result<Vec<Option<Hash>>, OnnxError> {
    let one = |c: &Option<Box<Constant>>| match c {
        Some(c) if c.is_structural() => content(graph, &c.header, Progress::none()).map(Some),
        _ => Ok(None),
    };
    constants.iter().map(one).collect()
}

/// One of two graphs and its constants.
pub type Side<'a> = (&'a Graph, &'a [Option<Box<Constant>>]);

/// Stand-ins for the content hashes of two graphs: equal only for equal elements. Elements are read only of tensors
/// that might be equal to one on the other side and don't lie in the very same bytes of a file, so that equal elements
/// may also have different stand-ins.
///
/// # Errors
/// As [`content`].
pub fn shared_contents(
    a: Side<'_>,
    b: Side<'_>,
    progress: Progress<'_>,
) -> Result<[Vec<Option<Hash>>; 2], OnnxError> {
    let sides = [a, b];
    let ranges = sides.map(|(graph, constants)| -> Vec<Option<Range>> {
        constants.iter().map(|c| range(graph, &c.as_ref()?.header)).collect()
    });
    let mut seen: FxHashMap<Range, [bool; 2]> = FxHashMap::default();
    for (side, ranges) in ranges.iter().enumerate() {
        for range in ranges.iter().flatten() {
            seen.entry(*range).or_default()[side] = true;
        }
    }
    let is_shared = |range: &Option<Range>| range.is_some_and(|r| seen.get(&r) == Some(&[true, true]));
    let mut shapes: FxHashMap<(DataType, &[i64]), [bool; 2]> = FxHashMap::default();
    for (side, ((_, constants), ranges)) in sides.iter().zip(&ranges).enumerate() {
        for (constant, range) in constants.iter().zip(ranges) {
            if let Some(c) = constant.as_ref().filter(|_| !is_shared(range)) {
                shapes.entry((c.header.data_type, &c.header.dims)).or_default()[side] = true;
            }
        }
    }
    let one_side = |side: usize| -> Result<Vec<Option<Hash>>, OnnxError> {
        let (graph, constants) = sides[side];
        let one = |(index, constant): (usize, &Option<Box<Constant>>)| {
            let Some(constant) = constant else { return Ok(None) };
            let header = &constant.header;
            Ok(Some(match ranges[side].get(index).copied().flatten() {
                _ if constant.is_structural() => content(graph, header, progress)?,
                Some(range) if is_shared(&Some(range)) => {
                    let (device, inode, offset, len) = range;
                    Hasher::new("range").number(device).number(inode).number(offset).number(len).finish()
                }
                _ if shapes.get(&(header.data_type, header.dims.as_slice())) == Some(&[true, true]) => {
                    content(graph, header, progress)?
                }
                _ => Hasher::new("alone").number(side as u64).number(index as u64).finish(),
            }))
        };
        constants.par_iter().enumerate().map(one).collect()
    };
    Ok([one_side(0)?, one_side(1)?])
}

/// Returns whether `value` is a constant among `constants`.
pub fn constant(constants: &[Option<Box<Constant>>], value: ValueId) -> Option<&Constant> {
    constants.get(value.index())?.as_deref()
}
