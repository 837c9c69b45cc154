//! LoRA files: the layers of a safetensors file with low-rank factors, found by the names of its tensors.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use safetensors::{Dtype, tensor::Metadata};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::keys::{self, Part, Role};
use crate::{
    analysis::magnitude::FloatType,
    hex::hex,
    ir::WeightReader,
    onnx::{DataFile, OnnxError},
};

/// The most bytes that the header of a file may have, as for others that read safetensors.
const MAX_HEADER: u64 = 100_000_000;
/// How many keys a message names.
const SHOWN: usize = 3;

/// A file with low-rank factors, whose elements stay in it.
#[derive(Debug)]
pub struct LoraFile {
    data: Arc<DataFile>,
    digest: String,
    layers: Vec<LoraLayer>,
    alpha: DefaultAlpha,
}

impl PartialEq for LoraFile {
    fn eq(&self, other: &Self) -> bool {
        (&self.digest, &self.alpha) == (&other.digest, &other.alpha)
    }
}

/// The alpha of layers that have none of their own.
#[derive(Clone, Debug, PartialEq)]
enum DefaultAlpha {
    /// The rank, so that nothing is scaled: diffusers' files without a word about it.
    Rank,
    /// This, by the configuration of the adapter.
    Stated(f64),
    /// Nothing says: PEFT's files have it beside them.
    Unknown,
}

/// One layer of a file: `up * down`, times `alpha / rank`.
#[derive(Clone, Debug)]
pub struct LoraLayer {
    /// The network that it is for.
    pub(crate) part: Part,
    /// The module, as the keys have it.
    pub(crate) module: String,
    /// The factor from the inputs to the rank.
    pub down: Factor,
    /// The factor from the rank to the outputs.
    pub up: Factor,
    /// The name of the tensor with its alpha.
    pub alpha: Option<String>,
    /// The element of that tensor.
    alpha_value: Option<f64>,
    /// The rank.
    pub rank: u64,
}

/// A low-rank factor in a file.
#[derive(Clone, Debug)]
pub struct Factor {
    /// The name of the tensor.
    pub name: String,
    /// Its type.
    element: FloatType,
    /// Its dimensions.
    pub dims: Vec<u64>,
    /// Its elements.
    pub reader: WeightReader,
}

impl Factor {
    /// Reads its elements as float32, which holds those of each type.
    ///
    /// # Errors
    /// [`OnnxError`] if the file cannot be read.
    pub(crate) fn singles(&self) -> Result<Vec<f32>, OnnxError> {
        let mut bytes = vec![0; usize::try_from(self.reader.len()).unwrap_or_default()];
        self.reader.read_at(0, &mut bytes)?;
        Ok(self.element.singles(&bytes))
    }
}

impl LoraLayer {
    /// Returns the square of the Frobenius norm of `up * down`: the trace of the product of the factors' Gram matrices,
    /// which are as small as the rank.
    ///
    /// # Errors
    /// [`OnnxError`] if the file cannot be read.
    pub(crate) fn squared_norm(&self) -> Result<f64, OnnxError> {
        let rank = usize::try_from(self.rank).unwrap_or_default();
        let up = gram(self.up.singles()?.chunks_exact(rank.max(1)), rank);
        let down = self.down.singles()?;
        let inputs = down.len() / rank.max(1);
        let columns = (0..inputs).map(|column| down.iter().skip(column).step_by(inputs).copied().collect());
        let down = gram(columns.collect::<Vec<Vec<f32>>>().iter().map(Vec::as_slice), rank);
        Ok(up.iter().zip(&down).map(|(a, b)| a * b).sum())
    }
}

/// Returns the sum of the outer products of `rows` with themselves.
fn gram<'a>(rows: impl Iterator<Item = &'a [f32]>, rank: usize) -> Vec<f64> {
    let mut sum = vec![0.0; rank * rank];
    for row in rows {
        for (sums, factor) in sum.chunks_exact_mut(rank.max(1)).zip(row) {
            for (sum, element) in sums.iter_mut().zip(row) {
                *sum += f64::from(*factor) * f64::from(*element);
            }
        }
    }
    sum
}

/// Tensors of one layer, as they are found.
#[derive(Default)]
struct Found {
    down: Option<Factor>,
    up: Option<Factor>,
    alpha: Option<(String, f64)>,
}

impl LoraFile {
    /// Reads the header of the file at `path` and the digest of all of it.
    ///
    /// # Errors
    /// A sentence part that says what is wrong with the file.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let data = Arc::new(DataFile::open(path).map_err(|error| error.to_string())?);
        let read = |at: u64, len: u64| -> Result<Vec<u8>, String> {
            let mut bytes = vec![0; usize::try_from(len).map_err(|_| "it is too large")?];
            data.read_at(at, &mut bytes).map_err(|error| error.to_string())?;
            Ok(bytes)
        };
        let not_one = || "it is no safetensors file".to_string();
        let len = read(0, 8.min(data.len))?.first_chunk().copied().map(u64::from_le_bytes);
        let len = len.filter(|len| *len <= MAX_HEADER && len + 8 <= data.len).ok_or_else(not_one)?;
        let header: Metadata = serde_json::from_slice(&read(8, len)?)
            .map_err(|error| format!("it is no safetensors file: its header is wrong ({error})"))?;
        let mut found: BTreeMap<(Part, String), Found> = BTreeMap::new();
        let (mut unknown, mut others) = (Vec::new(), BTreeMap::new());
        let tensors: BTreeMap<_, _> = header.tensors().into_iter().collect();
        for (name, info) in &tensors {
            let Some(key) = keys::read(name) else {
                unknown.push(name.as_str());
                continue;
            };
            if let Role::Other(method) = key.role {
                others.entry(method).or_insert_with(Vec::new).push(name.as_str());
                continue;
            }
            let element = match info.dtype {
                Dtype::F32 => FloatType::F32,
                Dtype::F16 => FloatType::F16,
                Dtype::BF16 => FloatType::Bf16,
                other => {
                    return Err(format!(
                        "`{name}` has type {other:?}; factors are float32, float16 or bfloat16"
                    ));
                }
            };
            let dims: Vec<u64> = info.shape.iter().map(|dim| *dim as u64).collect();
            let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            let bytes = dims.iter().try_fold(element.size() as u64, |n, dim| n.checked_mul(*dim));
            let inside = to.checked_add(len + 8).is_some_and(|end| end <= data.len);
            if to.checked_sub(from) != bytes || !inside {
                return Err(format!("the elements of `{name}` are not all there: is the file whole?"));
            }
            let (file, offset) = (Arc::clone(&data), len + 8 + from);
            let factor = Factor {
                name: name.clone(),
                element,
                dims,
                reader: WeightReader::File { file, offset, len: to - from },
            };
            let entry = found.entry((key.part, key.module.clone())).or_default();
            let again = match key.role {
                Role::Down => entry.down.replace(factor).map(|other| other.name),
                Role::Up => entry.up.replace(factor).map(|other| other.name),
                _ => {
                    let values = element.singles(&read(offset, to - from)?);
                    let [alpha] = values[..] else {
                        return Err(format!("`{name}` has {} elements, not one", values.len()));
                    };
                    entry.alpha.replace((name.clone(), alpha.into())).map(|other| other.0)
                }
            };
            if let Some(other) = again {
                return Err(format!("`{other}` and `{name}` are the same factor of one layer"));
            }
        }
        if let Some((method, keys)) = others.first_key_value() {
            return Err(format!("{} of {method}, which is not supported: only LoRA is", some(keys)));
        }
        if !unknown.is_empty() {
            return Err(format!("{} no part of a LoRA", some(&unknown)));
        }
        if found.is_empty() {
            return Err("there are no tensors in it".into());
        }
        let layers = found.into_iter().map(|((part, module), found)| found.layer(part, module));
        let layers: Vec<LoraLayer> = layers.collect::<Result<_, _>>()?;
        let alpha = match header.metadata().as_ref().and_then(|entries| entries.get("lora_adapter_metadata"))
        {
            Some(text) => of_metadata(text)?,
            None if tensors.keys().any(|name| name.starts_with(keys::PEFT)) => of_config(path)?,
            None => DefaultAlpha::Rank,
        };
        let digest = digest(&data)?;
        Ok(Self { data, digest, layers, alpha })
    }

    /// Returns the SHA-256 of the file, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns where the file is.
    pub fn path(&self) -> &Path {
        &self.data.path
    }

    /// Returns its layers, in the order of their names.
    pub fn layers(&self) -> &[LoraLayer] {
        &self.layers
    }

    /// Returns whether there is no saying what alpha is for layers that have none of their own.
    pub(super) fn lacks_alpha(&self) -> bool {
        self.alpha == DefaultAlpha::Unknown && self.layers.iter().any(|layer| layer.alpha.is_none())
    }

    /// Returns the alpha of `layer`; `given` is the rule's, for layers without one.
    pub(super) fn alpha(&self, layer: &LoraLayer, given: Option<f64>) -> f64 {
        match (layer.alpha_value, given, &self.alpha) {
            (Some(own), ..) => own,
            (None, Some(given), _) => given,
            (None, None, DefaultAlpha::Stated(alpha)) => *alpha,
            (None, None, DefaultAlpha::Rank | DefaultAlpha::Unknown) => layer.rank as f64,
        }
    }

    /// Returns what is said of alpha beside the tensors, for a digest.
    pub(super) fn stated_alpha(&self) -> Option<f64> {
        match self.alpha {
            DefaultAlpha::Stated(alpha) => Some(alpha),
            DefaultAlpha::Rank | DefaultAlpha::Unknown => None,
        }
    }
}

impl Found {
    fn layer(self, part: Part, module: String) -> Result<LoraLayer, String> {
        let (Some(down), Some(up)) = (self.down, self.up) else {
            return Err(format!("the layer `{module}` is not whole: down, up or both factors are missing"));
        };
        let of = |factor: &Factor| format!("`{}` {:?}", factor.name, factor.dims);
        let rank = match (down.dims.as_slice(), up.dims.as_slice()) {
            ([rank, _] | [rank, _, _, _], [_, other] | [_, other, 1, 1]) if rank == other && *rank > 0 => {
                *rank
            }
            (_, [_, _, _, _]) if up.dims[2..] != [1, 1] => {
                return Err(format!("{} has a kernel: only the down factor may have one", of(&up)));
            }
            _ => return Err(format!("{} and {} are no factors of one layer", of(&down), of(&up))),
        };
        let (alpha, alpha_value) = self.alpha.unzip();
        Ok(LoraLayer { part, module, down, up, alpha, alpha_value, rank })
    }
}

/// Returns the first few of `names` and how many more there are, with the verb.
fn some(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len() {
        1 => format!("the key {} is", shown.concat()),
        n if n <= SHOWN => format!("the keys {} are", shown.join(", ")),
        n => format!("the keys {} and {} more are", shown.join(", "), n - SHOWN),
    }
}

fn digest(data: &DataFile) -> Result<String, String> {
    const PIECE: u64 = 1 << 20;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; data.len.min(PIECE) as usize];
    for at in (0..data.len).step_by(PIECE as usize) {
        let piece = &mut buffer[..(data.len - at).min(PIECE) as usize];
        data.read_at(at, piece).map_err(|error| error.to_string())?;
        hash.update(&*piece);
    }
    Ok(hex(&hash.finalize()))
}

/// Returns what diffusers writes into a file about its adapters, the networks' settings under names like
/// `unet.lora_alpha`.
fn of_metadata(text: &str) -> Result<DefaultAlpha, String> {
    let entries: Value = serde_json::from_str(text)
        .map_err(|error| format!("its metadata `lora_adapter_metadata` is no JSON ({error})"))?;
    let mut alphas = Vec::new();
    for (key, value) in entries.as_object().into_iter().flatten() {
        let key = key.rsplit('.').next().unwrap_or(key);
        alphas.extend(setting(key, value, "its metadata `lora_adapter_metadata`")?);
    }
    match alphas.as_slice() {
        [] => Ok(DefaultAlpha::Rank),
        [first, rest @ ..] if rest.iter().all(|other| other == first) => Ok(DefaultAlpha::Stated(*first)),
        _ => Err("its metadata have several values of `lora_alpha`, which is not supported".into()),
    }
}

/// Returns what PEFT has written beside the file at `path`.
fn of_config(path: &Path) -> Result<DefaultAlpha, String> {
    const NAME: &str = "adapter_config.json";
    let Ok(text) = std::fs::read_to_string(path.with_file_name(NAME)) else {
        return Ok(DefaultAlpha::Unknown);
    };
    let entries: Value =
        serde_json::from_str(&text).map_err(|error| format!("{NAME} beside it is no JSON ({error})"))?;
    let mut stated = DefaultAlpha::Unknown;
    for (key, value) in entries.as_object().into_iter().flatten() {
        if let Some(alpha) = setting(key, value, NAME)? {
            stated = DefaultAlpha::Stated(alpha);
        }
    }
    Ok(stated)
}

/// Returns alpha, if `key` says it. Settings that mean another sum are refused.
fn setting(key: &str, value: &Value, place: &str) -> Result<Option<f64>, String> {
    let is_set = match value {
        Value::Object(entries) => !entries.is_empty(),
        other => *other == Value::Bool(true),
    };
    match key {
        "lora_alpha" => Ok(value.as_f64()),
        "use_dora" | "use_rslora" | "alpha_pattern" | "fan_in_fan_out" | "lora_bias" if is_set => {
            Err(format!("{place} has `{key}`, which is not supported"))
        }
        _ => Ok(None),
    }
}
