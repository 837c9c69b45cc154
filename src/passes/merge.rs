//! Merge: adds the low-rank sums of LoRA files to weights. The sums are made only when the weights are read: for
//! thresholds, and when they are written.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use half::{bf16, f16};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    PassError,
    prune::{read_only_by, seen_by},
};
use crate::{
    analysis::{
        magnitude::FloatType,
        weights::{MatrixLayout, Weight},
    },
    ir::{EditError, Editor, Elements, Graph, InitializerId, NewData, NodeId, WeightReader},
    onnx::OnnxError,
    rules::{Factor, Merge, WeightEdit},
};

/// The initializers that hold merged weights, by the operands that read them.
#[derive(Clone, Debug, Default)]
pub(super) struct Merged(BTreeMap<(NodeId, usize), InitializerId>);

impl Merged {
    /// Returns `edit` with the initializers that hold its weights now.
    pub(super) fn current<'a>(&self, edit: &'a WeightEdit) -> Cow<'a, WeightEdit> {
        let moved = |weight: &Weight| weight.uses.first().and_then(|used| self.0.get(used)).copied();
        if edit.weights.iter().all(|weight| moved(weight).is_none()) {
            return Cow::Borrowed(edit);
        }
        let mut edit = edit.clone();
        for weight in &mut edit.weights {
            weight.initializer = moved(weight).unwrap_or(weight.initializer);
        }
        Cow::Owned(edit)
    }

    /// Adds what `other` holds, in place of what is here for the same operands.
    pub(super) fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// Returns each operand and the initializer that it is to read.
    pub(super) fn operands(&self) -> impl Iterator<Item = ((NodeId, usize), InitializerId)> {
        self.0.iter().map(|(used, initializer)| (*used, *initializer))
    }
}

/// Merges weights where they are, or in copies if others read them too.
pub(super) fn run<'a>(
    merges: impl Iterator<Item = &'a Merge>,
    editor: &mut Editor<'_>,
) -> Result<Merged, PassError> {
    let mut merged = Merged::default();
    for (weight, sums) in by_weight(merges) {
        let data = NewData::Computed(elements(editor.graph(), weight, &sums)?);
        let users: FxHashSet<(NodeId, usize)> = weight.uses.iter().copied().collect();
        let graph = editor.graph();
        let untouched = graph.initializer(weight.initializer).filter(|i| i.new_data.is_none());
        let initializer = if untouched.is_some_and(|i| read_only_by(graph, i.value, &users)) {
            editor.set_data(weight.initializer, data)?;
            weight.initializer
        } else {
            let initializer = add(editor, weight, data);
            for (node, slot) in &weight.uses {
                let value = seen_by(editor, (*node, *slot), initializer)?;
                editor.set_input(*node, *slot, value)?;
            }
            initializer
        };
        merged.0.extend(weight.uses.iter().map(|used| (*used, initializer)));
    }
    Ok(merged)
}

/// Merges in copies, which nothing reads yet, the weights that `other` changes, with the sums of both.
pub(super) fn copies<'a>(
    always: impl Iterator<Item = &'a Merge>,
    other: impl Iterator<Item = &'a Merge>,
    editor: &mut Editor<'_>,
) -> Result<Merged, PassError> {
    let other: Vec<&Merge> = other.collect();
    let changed: FxHashSet<&str> = other.iter().map(|merge| merge.weight.path.as_str()).collect();
    let both = always.filter(|merge| changed.contains(merge.weight.path.as_str()));
    let mut merged = Merged::default();
    for (weight, sums) in by_weight(both.chain(other.iter().copied())) {
        let data = NewData::Computed(elements(editor.graph(), weight, &sums)?);
        let initializer = add(editor, weight, data);
        merged.0.extend(weight.uses.iter().map(|used| (*used, initializer)));
    }
    Ok(merged)
}

fn add(editor: &mut Editor<'_>, weight: &Weight, data: NewData) -> InitializerId {
    let name = format!("{}.weight.merged", weight.path);
    editor.add_initializer(&name, weight.data_type, &weight.dims, data).0
}

/// Returns the weights in the order of the merges, each with its sums in the order in which they are added: rules have
/// none, so that of the files' digests.
fn by_weight<'a>(merges: impl Iterator<Item = &'a Merge>) -> Vec<(&'a Weight, Vec<&'a Merge>)> {
    let mut places: FxHashMap<&str, usize> = FxHashMap::default();
    let mut all: Vec<(&Weight, Vec<&Merge>)> = Vec::new();
    for merge in merges {
        let place = *places.entry(&merge.weight.path).or_insert(all.len());
        match all.get_mut(place) {
            Some((_, sums)) => sums.push(merge),
            None => all.push((&merge.weight, vec![merge])),
        }
    }
    all.iter_mut().for_each(|(_, sums)| sums.sort_by(|a, b| a.key().cmp(&b.key())));
    all
}

/// Returns the elements of `weight` with `sums` added.
fn elements(graph: &Graph, weight: &Weight, sums: &[&Merge]) -> Result<WeightReader, PassError> {
    let gone = || EditError::Gone(format!("the weight of `{}`", weight.path));
    let header = &graph.initializer(weight.initializer).ok_or_else(gone)?.header;
    let dims: Vec<usize> = weight.dims.iter().map(|dim| usize::try_from(*dim).unwrap_or_default()).collect();
    let columns = dims.iter().skip(1).product();
    let sum = |merge: &&Merge| {
        let layer = &merge.file.layers()[merge.layer];
        let rank = layer.rank as usize;
        let factor = (merge.alpha / layer.rank as f64 * merge.scale) as f32;
        LowRank { down: layer.down.clone(), up: layer.up.clone(), rank, factor }
    };
    Ok(WeightReader::Computed(Arc::new(MergedWeight {
        original: graph.weight_reader(header)?,
        float: FloatType::try_from(weight.data_type)?,
        layout: weight.layout,
        columns,
        sums: sums.iter().map(sum).collect(),
    })))
}

/// A weight with low-rank sums, computed when it is read.
#[derive(Debug)]
struct MergedWeight {
    original: WeightReader,
    float: FloatType,
    layout: MatrixLayout,
    /// Elements of a row: of what lies at one index of the first dimension.
    columns: usize,
    sums: Vec<LowRank>,
}

/// `factor * up * down`.
#[derive(Debug)]
struct LowRank {
    down: Factor,
    up: Factor,
    rank: usize,
    factor: f32,
}

/// A low-rank sum as the product of two matrices: one of a row for each row of the weight, one of a row for each rank.
struct Product {
    left: Vec<f32>,
    right: Vec<f32>,
    rank: usize,
}

impl LowRank {
    fn load(&self, layout: MatrixLayout) -> Result<Product, OnnxError> {
        let (down, up) = (self.down.singles()?, self.up.singles()?);
        let rank = self.rank;
        let (left, right) = match layout {
            MatrixLayout::OutputFirst => (up, down),
            MatrixLayout::InputFirst => (transposed(&down, rank), transposed(&up, up.len() / rank.max(1))),
        };
        Ok(Product { left, right, rank })
    }
}

/// Returns the transpose of a matrix with `rows` rows.
fn transposed(matrix: &[f32], rows: usize) -> Vec<f32> {
    let columns = matrix.len() / rows.max(1);
    (0..columns).flat_map(|column| (0..rows).map(move |row| matrix[row * columns + column])).collect()
}

impl Elements for MergedWeight {
    fn byte_len(&self) -> u64 {
        self.original.len()
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<(), OnnxError> {
        self.original.read_at(at, buffer)?;
        let size = self.float.size();
        let (first, columns) = (at as usize / size, self.columns.max(1));
        let mut elements = self.float.singles(buffer);
        let mut product = vec![0.0; columns];
        for sum in &self.sums {
            let Product { left, right, rank } = sum.load(self.layout)?;
            let mut done = 0;
            while done < elements.len() {
                let (row, column) = ((first + done) / columns, (first + done) % columns);
                let count = (columns - column).min(elements.len() - done);
                let product = &mut product[..count];
                product.fill(0.0);
                for (k, factor) in left[row * rank..(row + 1) * rank].iter().enumerate() {
                    add_scaled(product, *factor, &right[k * columns + column..][..count]);
                }
                for (element, product) in elements[done..done + count].iter_mut().zip(product) {
                    *element += *product * sum.factor;
                }
                done += count;
            }
        }
        match self.float {
            FloatType::F32 => write(buffer, elements.iter().map(|e| e.to_le_bytes())),
            FloatType::F16 => write(buffer, elements.iter().map(|e| f16::from_f32(*e).to_le_bytes())),
            FloatType::Bf16 => write(buffer, elements.iter().map(|e| bf16::from_f32(*e).to_le_bytes())),
        }
        Ok(())
    }
}

fn write<const N: usize>(buffer: &mut [u8], elements: impl Iterator<Item = [u8; N]>) {
    for (to, element) in buffer.as_chunks_mut::<N>().0.iter_mut().zip(elements) {
        *to = element;
    }
}

/// Adds `factor * row` to `sum`, with one rounding each: the order and the arithmetic of torch's matrix product.
fn add_scaled(sum: &mut [f32], factor: f32, row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features.
        return unsafe { add_scaled_fma(sum, factor, row) };
    }
    add_scaled_plain(sum, factor, row);
}

/// The same where the processor has an instruction for it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn add_scaled_fma(sum: &mut [f32], factor: f32, row: &[f32]) {
    add_scaled_plain(sum, factor, row);
}

#[inline(always)]
fn add_scaled_plain(sum: &mut [f32], factor: f32, row: &[f32]) {
    for (sum, element) in sum.iter_mut().zip(row) {
        *sum = element.mul_add(factor, *sum);
    }
}
