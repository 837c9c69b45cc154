//! LoRAs that the plan adds to weights, from the bytes of their files: read, multiplied and added here once more, by the
//! definition of the sum.

use std::{collections::BTreeMap, sync::Arc};

use half::{bf16, f16};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::select::Float;
use crate::{
    analysis::weights::{MatrixLayout, Weight},
    hex::hex,
    ir::{Elements, NodeId, WeightReader},
    onnx::{DataFile, OnnxError},
    rules::{Edits, Merge},
};

/// Operands of the original that are merged weights, each with the index of what is added to it.
pub(super) type MergedOperands = FxHashMap<(NodeId, usize), usize>;

/// The sums of a plan.
#[derive(Debug, Default)]
pub(super) struct Merges<'a> {
    /// The sums of one weight, in the order in which they are added.
    all: Vec<Vec<&'a Merge>>,
    files: BTreeMap<&'a str, File>,
    /// The merged operands of the dense network.
    pub dense: MergedOperands,
    /// Those of the other network, which has the sums of both.
    pub other: MergedOperands,
}

impl<'a> Merges<'a> {
    /// Reads the headers of the files that `edits` name.
    ///
    /// # Errors
    /// [`OnnxError`] if one cannot be read, or has changed since the plan was read.
    pub fn of(edits: &'a Edits) -> Result<Self, OnnxError> {
        let mut merges = Self::default();
        let mut weights: BTreeMap<&str, (&Weight, Vec<&Merge>, usize)> = BTreeMap::new();
        for (is_always, merge) in
            edits.always.merges().map(|merge| (true, merge)).chain(edits.other.merges().map(|m| (false, m)))
        {
            let file = &merge.file;
            if !merges.files.contains_key(file.digest()) {
                merges.files.insert(file.digest(), File::open(file.path(), file.digest())?);
            }
            let entry = weights.entry(&merge.weight.path).or_insert((&merge.weight, Vec::new(), 0));
            entry.1.push(merge);
            entry.2 += usize::from(is_always);
        }
        for (weight, sums, always) in weights.into_values() {
            let mut add = |operands: &mut MergedOperands, sums: &[&'a Merge]| {
                let mut sums = sums.to_vec();
                sums.sort_by(|a, b| a.key().cmp(&b.key()));
                operands.extend(weight.uses.iter().map(|used| (*used, merges.all.len())));
                merges.all.push(sums);
            };
            if always > 0 {
                add(&mut merges.dense, &sums[..always]);
            }
            match sums.len() > always {
                true => add(&mut merges.other, &sums),
                // The same index: both networks have one weight.
                false => merges.other.extend(weight.uses.iter().map(|used| (*used, merges.all.len() - 1))),
            }
        }
        Ok(merges)
    }

    /// Returns the elements of `original`, the weight that the sums `index` are for, with these added.
    ///
    /// # Errors
    /// [`OnnxError`] if the sums do not fit it.
    pub fn merged(&self, index: usize, original: WeightReader) -> Result<WeightReader, OnnxError> {
        let sums = self.all.get(index).map(Vec::as_slice).unwrap_or_default();
        let Some(weight) = self.weight(index) else { return Ok(original) };
        let fail = |what: &str| OnnxError::invalid(format!("the weight of `{}`", weight.path), what);
        let float = Float::of(weight.data_type).ok_or_else(|| fail("it is not a float"))?;
        let dims: Vec<usize> =
            weight.dims.iter().map(|dim| usize::try_from(*dim).unwrap_or_default()).collect();
        let shape = match (weight.layout, dims.as_slice()) {
            (MatrixLayout::InputFirst, [inputs, outputs]) => {
                Shape { outputs: *outputs, inputs: *inputs, is_transposed: true }
            }
            (MatrixLayout::OutputFirst, [outputs, rest @ ..]) => {
                Shape { outputs: *outputs, inputs: rest.iter().product(), is_transposed: false }
            }
            _ => return Err(fail("it is no matrix")),
        };
        let elements = shape.outputs.saturating_mul(shape.inputs).saturating_mul(float.size());
        if original.len() != elements as u64 {
            return Err(fail("its elements are not all there"));
        }
        let sums = sums.iter().map(|merge| self.sum(merge, shape)).collect::<Result<_, _>>()?;
        Ok(WeightReader::Computed(Arc::new(Merged { original, float, shape, sums })))
    }

    /// Returns the elements of `weight` in the other network, given the original's.
    ///
    /// # Errors
    /// [`OnnxError`] if the sums do not fit it.
    pub fn merged_weight(&self, weight: &Weight, original: WeightReader) -> Result<WeightReader, OnnxError> {
        match weight.uses.first().and_then(|used| self.other.get(used)) {
            Some(index) => self.merged(*index, original),
            None => Ok(original),
        }
    }

    /// Returns the weight that the sums `index` are for.
    pub fn weight(&self, index: usize) -> Option<&'a Weight> {
        Some(&self.all.get(index)?.first()?.weight)
    }

    /// Returns the first of the sums `index`.
    pub fn first(&self, index: usize) -> Option<&'a Merge> {
        self.all.get(index)?.first().copied()
    }

    fn sum(&self, merge: &Merge, shape: Shape) -> Result<Sum, OnnxError> {
        let layer = &merge.file.layers()[merge.layer];
        let file = self.files.get(merge.file.digest());
        let file = file.ok_or_else(|| OnnxError::invalid("a LoRA file", "it was not read"))?;
        let (down, down_rows) = file.matrix(&layer.down.name)?;
        let (up, up_rows) = file.matrix(&layer.up.name)?;
        let rank = down_rows;
        if up_rows != shape.outputs
            || down.len() != rank.saturating_mul(shape.inputs)
            || up.len() != rank.saturating_mul(shape.outputs)
            || rank == 0
        {
            let place = format!("`{}` and `{}`", layer.down.name, layer.up.name);
            return Err(OnnxError::invalid(place, "they do not fit the weight"));
        }
        let alpha = match &layer.alpha {
            Some(name) => f64::from(file.matrix(name)?.0.first().copied().unwrap_or(f32::NAN)),
            None => merge.alpha,
        };
        Ok(Sum { down, up, rank, factor: (alpha / rank as f64 * merge.scale) as f32 })
    }
}

/// Inputs (times the elements of a kernel) and outputs of a weight, and whether inputs come first.
#[derive(Clone, Copy, Debug)]
struct Shape {
    outputs: usize,
    inputs: usize,
    is_transposed: bool,
}

/// One low-rank sum.
#[derive(Debug)]
struct Sum {
    down: Vec<f32>,
    up: Vec<f32>,
    rank: usize,
    factor: f32,
}

impl Sum {
    /// Returns its element for an output and an input: a dot product over the rank, each product added with one rounding.
    fn at(&self, output: usize, input: usize, inputs: usize) -> f32 {
        let up = self.up.iter().skip(output * self.rank).take(self.rank);
        let down = self.down.iter().skip(input).step_by(inputs.max(1));
        up.zip(down).fold(0.0, |sum: f32, (up, down)| up.mul_add(*down, sum)) * self.factor
    }
}

/// A weight with sums.
#[derive(Debug)]
struct Merged {
    original: WeightReader,
    float: Float,
    shape: Shape,
    sums: Vec<Sum>,
}

impl Elements for Merged {
    fn byte_len(&self) -> u64 {
        self.original.len()
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<(), OnnxError> {
        self.original.read_at(at, buffer)?;
        let size = self.float.size();
        let Shape { outputs, inputs, is_transposed } = self.shape;
        for (index, element) in buffer.chunks_exact_mut(size).enumerate() {
            let index = at as usize / size + index;
            let (output, input) = match is_transposed {
                true => (index % outputs.max(1), index / outputs.max(1)),
                false => (index / inputs.max(1), index % inputs.max(1)),
            };
            let add =
                |value: f32| self.sums.iter().fold(value, |value, sum| value + sum.at(output, input, inputs));
            match element {
                [a, b, c, d] => {
                    let value = add(f32::from_le_bytes([*a, *b, *c, *d]));
                    element.copy_from_slice(&value.to_le_bytes());
                }
                [a, b] => {
                    let value = add(self.float.widen(u16::from_le_bytes([*a, *b])));
                    let bits = match self.float {
                        Float::F16 => f16::from_f32(value).to_bits(),
                        Float::F32 | Float::Bf16 => bf16::from_f32(value).to_bits(),
                    };
                    element.copy_from_slice(&bits.to_le_bytes());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A safetensors file: eight bytes with the length of a header in JSON, and elements after it.
#[derive(Debug)]
struct File {
    data: DataFile,
    tensors: BTreeMap<String, Value>,
    /// Where elements begin.
    begin: u64,
}

impl File {
    fn open(path: &std::path::Path, digest: &str) -> Result<Self, OnnxError> {
        let fail = |what: String| OnnxError::invalid(path.display().to_string(), what);
        let data = DataFile::open(path)?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; 1 << 20];
        for at in (0..data.len).step_by(piece.len()) {
            let count = (data.len - at).min(piece.len() as u64) as usize;
            data.read_at(at, &mut piece[..count])?;
            hash.update(&piece[..count]);
        }
        if hex(&hash.finalize()) != digest {
            return Err(fail("it has changed since the plan was read".into()));
        }
        let mut len = [0; 8];
        data.read_at(0, &mut len)?;
        let begin = u64::from_le_bytes(len).saturating_add(8);
        if begin > data.len {
            return Err(fail("its header is longer than the file".into()));
        }
        let mut header = vec![0; begin as usize - 8];
        data.read_at(8, &mut header)?;
        let header: Header = serde_json::from_slice(&header).map_err(|error| fail(error.to_string()))?;
        Ok(Self { data, tensors: header.0, begin })
    }

    /// Returns the elements of a tensor, and how many rows they are: the first dimension.
    fn matrix(&self, name: &str) -> Result<(Vec<f32>, usize), OnnxError> {
        let fail = || {
            OnnxError::invalid(
                format!("tensor `{name}` of {}", self.data.path.display()),
                "it cannot be read",
            )
        };
        let info = self.tensors.get(name).ok_or_else(fail)?;
        let number = |value: &Value| value.as_u64();
        let shape: Vec<u64> = info["shape"]
            .as_array()
            .ok_or_else(fail)?
            .iter()
            .map(number)
            .collect::<Option<_>>()
            .ok_or_else(fail)?;
        let (from, to) = (number(&info["data_offsets"][0]), number(&info["data_offsets"][1]));
        let (from, to) = from.zip(to).ok_or_else(fail)?;
        let len = to.checked_sub(from).filter(|len| *len <= self.data.len).ok_or_else(fail)?;
        let mut bytes = vec![0; len as usize];
        self.data.read_at(self.begin.saturating_add(from), &mut bytes)?;
        let half = |widen: fn(u16) -> f32| {
            bytes
                .chunks_exact(2)
                .map(|bytes| widen(u16::from_le_bytes([bytes[0], bytes[1]])))
                .collect::<Vec<f32>>()
        };
        let elements = match info["dtype"].as_str().ok_or_else(fail)? {
            "F32" => {
                let single = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                bytes.chunks_exact(4).map(single).collect()
            }
            "F16" => half(|bits| f16::from_bits(bits).to_f32()),
            "BF16" => half(|bits| bf16::from_bits(bits).to_f32()),
            _ => return Err(fail()),
        };
        if elements.len() as u64 != shape.iter().product::<u64>() {
            return Err(fail());
        }
        Ok((elements, shape.first().map_or(1, |rows| *rows as usize)))
    }
}

/// The tensors of a header. A name that is there twice, readers would read differently.
struct Header(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the header of a safetensors file")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = BTreeMap::new();
                let mut names = FxHashSet::default();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("`{name}` is there twice")));
                    }
                    match name.as_str() {
                        "__metadata__" => drop(map.next_value::<IgnoredAny>()?),
                        _ => drop(tensors.insert(name, map.next_value()?)),
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Names)
    }
}
