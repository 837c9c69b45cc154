//! Samples of the weights that a graph shares with other files. By them an engine notices that such a file has become
//! another one, without reading all of it.
//!
//! A graph that shares weights says where in the other file each tensor begins. If the model is exported again, other bytes
//! lie there. So the first and the last bytes of each tensor are hashed when the graph is written, and again when it is
//! loaded: milliseconds for gigabytes. Times of change and lengths would not do: a copy has another time, and a file with
//! other weights the same length. A change between the ends of a tensor is not noticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use prost::Message as _;
use sha2::{Digest, Sha256};

use super::{location, nested::external_tensors};
use crate::{
    hex::hex,
    onnx::{DataFile, OnnxError, Payload, Source, model_field, open, proto::StringStringEntryProto},
};

/// The entry of `metadata_props` with a line for each file: a digest of the ranges, one of the samples, and the location.
pub const KEY: &str = "crdiff.shared";
/// How many bytes are taken from each end of a tensor.
const SAMPLE: u64 = 64;

/// Tensors in one file, by offset and length.
type Ranges = BTreeSet<(u64, u64)>;

/// The tensors that a graph shares, by the location of their file.
#[derive(Debug, Default)]
pub struct Shared(BTreeMap<String, (Arc<DataFile>, Ranges)>);

impl Shared {
    /// Adds a tensor of `len` bytes at `offset` of `file`, which the graph refers to by `location`.
    pub fn add(&mut self, location: &str, file: &Arc<DataFile>, offset: u64, len: u64) {
        if let Some((_, ranges)) = self.0.get_mut(location) {
            ranges.insert((offset, len));
        } else {
            self.0.insert(location.to_string(), (Arc::clone(file), Ranges::from([(offset, len)])));
        }
    }

    /// Returns the value of [`KEY`]; `None` if nothing is shared.
    ///
    /// # Errors
    /// [`OnnxError::Io`] if a file cannot be read.
    pub fn stated(&self) -> Result<Option<String>, OnnxError> {
        let line = |(location, (file, ranges)): (&String, &(Arc<DataFile>, Ranges))| {
            Ok(format!("{} {} {location}", places(ranges), samples(file, ranges)?))
        };
        let lines: Vec<String> = self.0.iter().map(line).collect::<Result<_, OnnxError>>()?;
        Ok((!lines.is_empty()).then(|| lines.join("\n")))
    }
}

/// Opens the model at `path`, whose weights are going to be used.
///
/// # Errors
/// As [`open`], and [`OnnxError::Invalid`] if it shares weights with a file that has become another one, or cannot be read.
pub fn open_with_weights(path: impl AsRef<Path>) -> Result<Source, OnnxError> {
    let source = open(path)?;
    check(&source)?;
    Ok(source)
}

/// Checks that the files that a graph shares weights with are those that it was compiled with, as far as samples tell. A
/// graph whose weights another program has moved says nothing of them any more.
fn check(source: &Source) -> Result<(), OnnxError> {
    let entries = source.fields_of(model_field::METADATA_PROPS).map(|field| field.value());
    let mut entries = entries.filter_map(|entry| StringStringEntryProto::decode(entry).ok());
    let Some(stated) = entries.find(|entry| entry.key() == KEY) else { return Ok(()) };
    let external = external_tensors(source)?;
    for line in stated.value().lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(known), Some(expected), Some(at)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let ranges: Ranges = external
            .iter()
            .filter(|header| location(header) == Some(at))
            .filter_map(|header| match &header.payload {
                Payload::External(range) => Some((range.offset, header.byte_len().or(range.length)?)),
                Payload::Raw(_) | Payload::Typed => None,
            })
            .collect();
        if places(&ranges) != known {
            continue;
        }
        let path = source.data.path(at)?;
        let refused = |what: String| {
            let what = format!("{what}: compile it again, with `--weights copy` to need no other file");
            OnnxError::invalid(path.display().to_string(), what)
        };
        match DataFile::open(&path).and_then(|file| samples(&file, &ranges)) {
            Ok(found) if found == expected => {}
            Ok(_) => {
                let what = "its weights are not those that the graph which shares them was compiled with";
                return Err(refused(what.to_string()));
            }
            Err(error) => {
                return Err(refused(format!("it does not have the weights that a graph shares ({error})")));
            }
        }
    }
    Ok(())
}

/// Returns a digest of where tensors are.
fn places(ranges: &Ranges) -> String {
    let mut hash = Sha256::new();
    for (offset, len) in ranges {
        hash.update(offset.to_le_bytes());
        hash.update(len.to_le_bytes());
    }
    hex(&hash.finalize()[..8])
}

/// Returns a digest of both ends of each tensor.
fn samples(file: &DataFile, ranges: &Ranges) -> Result<String, OnnxError> {
    let mut hash = Sha256::new();
    let mut buffer = [0; SAMPLE as usize];
    for (offset, len) in ranges {
        let sampled = SAMPLE.min(*len);
        let end = offset.saturating_add(len - sampled);
        for at in [*offset, end] {
            let bytes = &mut buffer[..sampled as usize];
            file.read_at(at, bytes)?;
            hash.update(bytes);
            if *len <= SAMPLE {
                break;
            }
        }
    }
    Ok(hex(&hash.finalize()[..16]))
}
