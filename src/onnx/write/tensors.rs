//! Deciding where each tensor's elements go, and encoding tensors whose place changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;

use super::{
    copy::Content,
    data::DataLayout,
    files::Target,
    message::Message,
    nested::{self, MessageKind},
    shared::Shared,
};
use crate::{
    ir::{Graph, Initializer, InitializerId, NewData},
    onnx::{
        ExternalRange, OnnxError, Payload, TensorHeader,
        proto::{StringStringEntryProto, TensorProto},
        tensor::field,
        wire::{self, Field},
    },
};

/// Tensors with fewer bytes stay inside the model: the limit of the onnx package's `size_threshold`.
const INLINE_BELOW: u64 = 1024;

/// How weights are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// Old elements stay in the files where they are, new ones go to the output's data file.
    Share,
    /// Everything inside the model.
    Inline,
    /// Everything in the output's data files, each of at most this many bytes.
    Gather(u64),
}

/// Where the elements of one tensor go.
#[derive(Debug)]
enum Elements {
    Unchanged,
    /// Unchanged, but the file is elsewhere as seen from the output.
    Moved(String),
    Inline(u64, Content),
    External(ExternalRange),
}

/// New elements in the data files of outputs that are written at once. What another graph has too is not written again
/// where weights are shared.
#[derive(Debug, Default)]
pub struct SharedNew(Vec<PlacedNew>);

/// New elements of an initializer, and their place in an output's data file.
#[derive(Debug)]
pub struct PlacedNew {
    id: InitializerId,
    elements: NewData,
    folder: PathBuf,
    range: ExternalRange,
}

impl SharedNew {
    /// Returns the place of `elements` of initializer `id` in a data file in `folder`.
    fn find(&self, id: InitializerId, elements: &NewData, folder: &Path) -> Option<&ExternalRange> {
        let is_it = |placed: &&PlacedNew| {
            placed.id == id && placed.folder == folder && placed.elements.is_same(elements)
        };
        self.0.iter().find(is_it).map(|placed| &placed.range)
    }

    /// Adds those that a further output has put into its data file.
    pub fn extend(&mut self, new: Vec<PlacedNew>) {
        self.0.extend(new);
    }
}

/// The placement of tensors, and all that it needs to remember.
#[derive(Debug)]
pub struct Placement<'a> {
    graph: &'a Graph,
    target: &'a Target,
    layout: WeightLayout,
    others: &'a SharedNew,
    /// Whether any tensor of the source is external; if not, nested messages need not be searched.
    external: bool,
    /// The output's data files; the last one grows.
    pub data: Vec<DataLayout>,
    /// Bytes that stay in each other file.
    pub shared: BTreeMap<PathBuf, u64>,
    /// The tensors that stay in other files, as they are told to be known again.
    pub sampled: Shared,
    /// The data files of other outputs that are used.
    pub reads: BTreeSet<PathBuf>,
    /// The new elements that are in the data file where weights are shared.
    pub new: Vec<PlacedNew>,
    /// Paths of shared files, as seen from the output.
    locations: BTreeMap<PathBuf, String>,
    /// Whether a location of the source leads from the output to the same file.
    still_right: BTreeMap<String, bool>,
}

impl<'a> Placement<'a> {
    /// Returns a placement with nothing placed. `others` are new elements of outputs that are written at once.
    pub fn new(
        graph: &'a Graph,
        target: &'a Target,
        others: &'a SharedNew,
        layout: WeightLayout,
        external: bool,
    ) -> Self {
        let (data, shared, sampled, reads, new, locations, still_right) = Default::default();
        Self {
            graph,
            target,
            layout,
            others,
            external,
            data,
            shared,
            sampled,
            reads,
            new,
            locations,
            still_right,
        }
    }

    /// Appends initializer `id` to its graph, as it came (`original`) unless its elements are new or move.
    ///
    /// # Errors
    /// [`OnnxError`] if its elements don't fit its shape, are missing, or cannot be reached from the output.
    pub fn initializer(
        &mut self,
        out: &mut Message<'_>,
        id: InitializerId,
        initializer: &Initializer,
        original: Option<&Field>,
    ) -> Result<(), OnnxError> {
        let header = &initializer.header;
        let elements = match &initializer.new_data {
            Some(data) => self.place_new(id, header, data)?,
            None => self.place_old(header)?,
        };
        match (encode(header, elements)?, original) {
            (Some(tensor), _) => tensor.push_to(out),
            (None, Some(field)) => out.push(&field.raw),
            (None, None) => out.push_field(super::INITIALIZER, &header.raw),
        }
        Ok(())
    }

    /// Returns `message` with the external tensors in it pointing where their elements will be; `None` if nothing
    /// changes.
    ///
    /// # Errors
    /// As [`Self::initializer`].
    pub fn nested(&mut self, message: &Bytes, kind: MessageKind) -> Result<Option<Bytes>, OnnxError> {
        if !self.external {
            return Ok(None);
        }
        nested::edit_external_tensors(message, kind, &mut |header| {
            let elements = self.place_old(&header)?;
            encode(&header, elements)?.map(|tensor| tensor.to_bytes()).transpose()
        })
    }

    fn place_new(
        &mut self,
        id: InitializerId,
        header: &TensorHeader,
        data: &NewData,
    ) -> Result<Elements, OnnxError> {
        let (len, content) = match data {
            NewData::Bytes(bytes) => (bytes.len() as u64, Content::Bytes(bytes.clone())),
            NewData::Computed(reader) => (reader.len(), Content::Computed(reader.clone())),
            NewData::Masked(masked) => (masked.original.len(), Content::Masked(id, masked.clone())),
        };
        if header.byte_len() != Some(len) {
            return Err(OnnxError::invalid(
                format!("tensor `{}`", header.name),
                format!(
                    "its new data has {len} bytes, which does not fit its type and shape {:?}",
                    header.dims
                ),
            ));
        }
        if self.layout != WeightLayout::Share {
            return self.put(&header.name, len, content);
        }
        let folder = &self.target.folder;
        if let Some(range) = self.others.find(id, data, folder) {
            self.reads.insert(self.target.beside(&range.location));
            return Ok(Elements::External(range.clone()));
        }
        let elements = self.put(&header.name, len, content)?;
        if let Elements::External(range) = &elements {
            let (elements, folder, range) = (data.clone(), folder.clone(), range.clone());
            self.new.push(PlacedNew { id, elements, folder, range });
        }
        Ok(elements)
    }

    fn place_old(&mut self, header: &TensorHeader) -> Result<Elements, OnnxError> {
        match &header.payload {
            Payload::Typed => Ok(Elements::Unchanged),
            Payload::External(range) => self.place_external(header, range),
            Payload::Raw(bytes) if (bytes.len() as u64) < INLINE_BELOW => Ok(Elements::Unchanged),
            Payload::Raw(bytes) => {
                let source = self.graph.source();
                let len = bytes.len() as u64;
                match (self.layout, &source.file, source.offset_of(bytes)) {
                    (WeightLayout::Inline, ..) => Ok(Elements::Unchanged),
                    (WeightLayout::Gather(_), Some(file), Some(at)) => {
                        self.put(&header.name, len, Content::File(Arc::clone(file), at))
                    }
                    (WeightLayout::Gather(_), ..) => {
                        self.put(&header.name, len, Content::Bytes(bytes.clone()))
                    }
                    (WeightLayout::Share, Some(file), Some(offset)) => {
                        let location = self.share(&header.name, &file.path, len)?;
                        self.sampled.add(&location, file, offset, len);
                        Ok(Elements::External(ExternalRange { location, offset, length: Some(len) }))
                    }
                    (WeightLayout::Share, ..) => Ok(Elements::Unchanged),
                }
            }
        }
    }

    fn place_external(
        &mut self,
        header: &TensorHeader,
        range: &ExternalRange,
    ) -> Result<Elements, OnnxError> {
        let files = self.graph.data_files();
        // Types whose size is not known have only what the model says.
        let stated = header.byte_len().or(range.length).ok_or_else(|| OnnxError::ExternalData {
            tensor: header.name.clone(),
            what: format!("elements of type {} need a stated length", header.data_type.name()),
        })?;
        let file = files.locate(&header.name, range, stated)?;
        if self.layout != WeightLayout::Share {
            return self.put(&header.name, stated, Content::File(file, range.offset));
        }
        let location = self.share(&header.name, &file.path, stated)?;
        let stays = self.is_still_right(&range.location, &location);
        self.sampled.add(if stays { &range.location } else { &location }, &file, range.offset, stated);
        Ok(if stays { Elements::Unchanged } else { Elements::Moved(location) })
    }

    /// Returns whether `old` means, as seen from the output, the file that lies at `location`. Models have hundreds of
    /// tensors in one file, and the answer takes a dozen system calls.
    fn is_still_right(&mut self, old: &str, location: &str) -> bool {
        if let Some(known) = self.still_right.get(old) {
            return *known;
        }
        let reached = |location: &str| self.target.folder.join(location).canonicalize().ok();
        let right = reached(old).is_some_and(|found| Some(found) == reached(location));
        self.still_right.insert(old.to_string(), right);
        right
    }

    /// Places new or copied elements.
    fn put(&mut self, tensor: &str, len: u64, content: Content) -> Result<Elements, OnnxError> {
        if self.layout == WeightLayout::Inline || len < INLINE_BELOW {
            return Ok(Elements::Inline(len, content));
        }
        let most = match self.layout {
            WeightLayout::Gather(most) => most,
            WeightLayout::Share | WeightLayout::Inline => u64::MAX,
        };
        if len > most {
            let what = format!("tensor `{tensor}` takes {len} bytes, but a file may have only {most}");
            return Err(OnnxError::output(&self.target.path, what));
        }
        if self.data.last().is_none_or(|file| file.end_with(len) > most) {
            self.data.push(DataLayout::default());
        }
        let index = self.data.len().saturating_sub(1);
        let offset = self.data.last_mut().map_or(0, |file| file.push(len, content));
        let location = self.target.data_name(index);
        Ok(Elements::External(ExternalRange { location, offset, length: Some(len) }))
    }

    /// Counts `len` bytes as shared with `file`; returns its path as seen from the output.
    fn share(&mut self, tensor: &str, file: &Path, len: u64) -> Result<String, OnnxError> {
        *self.shared.entry(file.to_path_buf()).or_default() += len;
        if let Some(location) = self.locations.get(file) {
            return Ok(location.clone());
        }
        let found = file.canonicalize().map_err(|e| OnnxError::io("find", file, e))?;
        let location = found.strip_prefix(&self.target.folder).ok().and_then(Path::to_str).ok_or_else(|| {
            OnnxError::output(
                &self.target.path,
                format!(
                    "it would share tensor `{tensor}` with {}, which is not inside the folder {}. Runtimes follow \
                     only data that lies beside or below the model: write the output there, or copy the weights \
                     instead of sharing them (`--weights copy`)",
                    found.display(),
                    self.target.folder.display()
                ),
            )
        })?;
        self.locations.insert(file.to_path_buf(), location.to_string());
        Ok(location.to_string())
    }
}

/// A `TensorProto` with other elements; everything else is as it was, in its order.
#[derive(Debug)]
struct Tensor {
    before: Vec<u8>,
    /// `raw_data`, unless the elements are external.
    raw_data: Option<(u64, Content)>,
    after: Vec<u8>,
}

fn encode(header: &TensorHeader, elements: Elements) -> Result<Option<Tensor>, OnnxError> {
    let (fields, raw_data) = match elements {
        Elements::Unchanged => return Ok(None),
        Elements::Moved(location) => return relocate(header, &location).map(Some),
        Elements::Inline(len, content) => (Vec::new(), Some((len, content))),
        Elements::External(range) => {
            let length = range.length.map(|length| ("length", length.to_string()));
            let entries = [("location", range.location), ("offset", range.offset.to_string())];
            let mut fields: Vec<Field> =
                entries.into_iter().chain(length).map(|(k, v)| entry(k, v)).collect();
            fields.push(Field::varint(field::DATA_LOCATION, 1));
            (fields, None)
        }
    };
    let raw = if header.raw.is_empty() {
        let (name, data_type) = (Some(header.name.clone()), Some(header.data_type.0));
        let dims = header.dims.clone();
        TensorProto { name, data_type, dims, ..TensorProto::default() }.encode_to_vec().into()
    } else {
        header.raw.clone()
    };
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut seen = false;
    for f in wire::split(&raw)? {
        match f.number {
            field::FLOAT_DATA
            | field::INT32_DATA
            | field::STRING_DATA
            | field::INT64_DATA
            | field::RAW_DATA
            | field::DOUBLE_DATA
            | field::UINT64_DATA
            | field::EXTERNAL_DATA
            | field::DATA_LOCATION => seen = true,
            _ if seen => after.extend_from_slice(&f.raw),
            _ => before.extend_from_slice(&f.raw),
        }
    }
    for f in fields {
        before.extend_from_slice(&f.raw);
    }
    Ok(Some(Tensor { before, raw_data, after }))
}

/// Returns the same tensor with another `location`.
fn relocate(header: &TensorHeader, location: &str) -> Result<Tensor, OnnxError> {
    let mut before = Vec::with_capacity(header.raw.len() + location.len());
    for f in wire::split(&header.raw)? {
        let names_file = f.number == field::EXTERNAL_DATA
            && StringStringEntryProto::decode(f.value()).is_ok_and(|e| e.key() == "location");
        let f = if names_file { entry("location", location.to_string()) } else { f };
        before.extend_from_slice(&f.raw);
    }
    Ok(Tensor { before, raw_data: None, after: Vec::new() })
}

fn entry(key: &str, value: String) -> Field {
    let entry = StringStringEntryProto { key: Some(key.to_string()), value: Some(value) };
    Field::message(field::EXTERNAL_DATA, &entry.encode_to_vec())
}

impl Tensor {
    fn push_to(self, out: &mut Message<'_>) {
        let head = self
            .raw_data
            .as_ref()
            .map(|(len, _)| wire::message_head(field::RAW_DATA, *len))
            .unwrap_or_default();
        let elements = self.raw_data.as_ref().map_or(0, |(len, _)| *len);
        let len = (self.before.len() + head.len() + self.after.len()) as u64 + elements;
        out.push_own(&wire::message_head(super::INITIALIZER, len));
        out.push_own(&self.before);
        out.push_own(&head);
        if let Some((len, content)) = self.raw_data {
            out.push_content(len, content);
        }
        out.push_own(&self.after);
    }

    fn to_bytes(&self) -> Result<Bytes, OnnxError> {
        let mut out = self.before.clone();
        if let Some((len, content)) = &self.raw_data {
            let mut elements = vec![0; *len as usize];
            match content {
                Content::File(file, at) => file.read_at(*at, &mut elements)?,
                Content::Bytes(bytes) => elements.copy_from_slice(bytes),
                Content::Computed(_) | Content::Masked(..) => {
                    return Err(OnnxError::invalid(
                        "a subgraph's tensor",
                        "only the main graph's can be changed",
                    ));
                }
            }
            out.extend_from_slice(&Field::message(field::RAW_DATA, &elements).raw);
        }
        out.extend_from_slice(&self.after);
        Ok(out.into())
    }
}
