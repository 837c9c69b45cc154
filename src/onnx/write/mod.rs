//! Writing a graph to disk.
//!
//! An unedited graph comes out byte for byte. Messages of an edited one that no pass touched are the bytes that were
//! read, and lengths are computed before anything is written, so the model is streamed, never built in memory.
//! The files appear complete or not at all ([`files::place`]). They are flushed to the disk before they get their
//! names: the system reports some full disks only then, and a model must not outlive its data in a power failure.
//! It takes 1 s after the 10 to 20 s that copying 3.4 GB takes, and 0.1 s for 475 MB of masked weights.

mod copy;
mod data;
pub(crate) mod files;
mod message;
mod model;
mod nested;
mod shared;
pub(crate) mod temporary;
mod tensors;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use copy::{Destination, MaskedCount};
use files::{Pending, Taken, Target};
use message::Message;
pub use shared::open_with_weights;
use tensors::{Placement, SharedNew, WeightLayout};

use super::{DataFile, OnnxError, Payload, Source, TensorHeader, graph_field};
use crate::{
    ir::{Graph, InitializerId},
    observer::{Observer, Progress, Stage},
};

const INITIALIZER: u32 = graph_field::INITIALIZER;

/// The longest message that protobuf decoders accept.
const MESSAGE_LIMIT: u64 = i32::MAX as u64;

/// Where the weights that no pass changed are in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightPolicy {
    /// Where they are: the output points into the source's data file, or into the source model itself. Of several outputs
    /// that are written at once into one folder, the later ones point into the data files of the earlier ones too, for
    /// the changed weights that they have in common.
    Share,
    /// In the output's own files. An output from a model in one file is one file too, if it stays below 2 GiB.
    Copy,
    /// All inside the model, which is one file.
    Inline,
    /// In data files beside the model, each of at most this many bytes; tensors below 1 KiB stay inside the model.
    Split(u64),
}

/// The graph to write, and how.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct WriteOptions<'a> {
    /// The model file. New weights go to a data file beside it, named like it with `_data` after it.
    pub output: &'a Path,
    /// How unchanged weights are written.
    pub policy: WeightPolicy,
    /// Hears of the bytes that are written. Where it says stop, [`write()`] removes what it began and returns
    /// [`OnnxError::Stopped`].
    pub observer: &'a dyn Observer,
    /// Files that must not be written over, besides the source model and its data: the plan.
    pub protected: &'a [PathBuf],
}

impl<'a> WriteOptions<'a> {
    /// Returns the options of writing to `output`, which tell nobody and protect nothing but the source.
    pub fn new(output: &'a Path, policy: WeightPolicy) -> Self {
        Self { output, policy, observer: &(), protected: &[] }
    }

    /// Sets the observer.
    #[must_use]
    pub fn observer(self, observer: &'a dyn Observer) -> Self {
        Self { observer, ..self }
    }

    /// Sets files that must not be written over.
    #[must_use]
    pub fn protected(self, protected: &'a [PathBuf]) -> Self {
        Self { protected, ..self }
    }
}

/// The written files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The files with their lengths in bytes, the model first.
    pub files: Vec<(PathBuf, u64)>,
    /// The sum of those lengths.
    pub bytes_written: u64,
    /// Bytes of weights that the output uses from other files.
    pub bytes_shared: u64,
    /// Those files.
    pub shared_with: Vec<PathBuf>,
    /// The data files of other outputs, written at once, that it uses too.
    pub reads: Vec<PathBuf>,
    /// A data file of an earlier output of this name, which this one does not use. It is left alone: another model may
    /// use it.
    pub left_over: Option<PathBuf>,
    /// How many elements of each masked initializer in these files were masked.
    pub masked: Vec<(InitializerId, u64)>,
}

/// Writes `graph` to `options.output`.
///
/// An unedited graph is copied: the model byte for byte, its data files, when it goes to another folder, under their
/// names beside it. In its own folder it keeps using the data files that are there, under [`WeightPolicy::Copy`] too.
///
/// # Errors
/// [`OnnxError::Output`] if the output must not or cannot be written there, or weights cannot be shared from there;
/// [`OnnxError::Io`] if a file cannot be read or written (a full disk, a read-only folder);
/// [`OnnxError::Stopped`]; other variants if the source's weights are missing or broken. After any error, no file
/// has changed.
pub fn write(graph: &Graph, options: &WriteOptions<'_>) -> Result<Written, OnnxError> {
    let written = write_all(&[(graph, *options)])?.pop();
    written.ok_or_else(|| OnnxError::output(options.output, "nothing was written"))
}

/// Writes several graphs, all of them or none.
///
/// # Errors
/// As [`write()`].
pub fn write_all(graphs: &[(&Graph, WriteOptions<'_>)]) -> Result<Vec<Written>, OnnxError> {
    let mut taken = Taken::default();
    let targets = graphs.iter().map(|(_, options)| Target::new(options.output));
    let targets = targets.collect::<Result<Vec<_>, _>>()?;
    let mut outputs = Vec::new();
    let mut new = SharedNew::default();
    for ((graph, options), target) in graphs.iter().zip(&targets) {
        outputs.push(begin(graph, options, target, &mut new, &mut taken)?);
    }
    let observers: Vec<&dyn Observer> = graphs.iter().map(|(_, options)| options.observer).collect();
    let mut written = finish(outputs, &observers)?;
    for (written, target) in written.iter_mut().zip(&targets) {
        let data = target.beside(&target.data_name(0));
        let is_used =
            written.files.iter().map(|(path, _)| path).chain(&written.shared_with).any(|p| *p == data);
        written.left_over = (!is_used && data.is_file()).then_some(data);
    }
    Ok(written)
}

/// Writes a graph to files under temporary names.
fn begin(
    graph: &Graph,
    options: &WriteOptions<'_>,
    target: &Target,
    new: &mut SharedNew,
    taken: &mut Taken,
) -> Result<Unplaced, OnnxError> {
    let source = graph.source();
    let external = nested::external_tensors(source)?;
    taken.add_model(source, &external, COMPILED)?;
    for path in options.protected {
        taken.add(path, "a file that this command reads");
    }
    let progress = Progress::new(options.observer, Stage::Writing);
    progress.advance(0)?;
    let keeps_layout = matches!(options.policy, WeightPolicy::Share | WeightPolicy::Copy);
    if graph.is_edited() || !keeps_layout {
        write_edited(graph, options.policy, (target, new), !external.is_empty(), taken, progress)
    } else {
        write_unedited(graph, target, &external, taken, progress)
    }
}

/// An output under temporary names.
struct Unplaced {
    model: Pending,
    data: Vec<Pending>,
    shared: BTreeMap<PathBuf, u64>,
    reads: BTreeSet<PathBuf>,
    masked: Vec<MaskedCount>,
}

/// How errors call a model and its data files.
type Called = [&'static str; 2];
const COMPILED: Called =
    ["the model that is being compiled", "a file with weights of the model that is being compiled"];
const READ: Called =
    ["a model that this command reads", "a file with weights of a model that this command reads"];

impl Taken {
    /// Protects a model that is read, and its data.
    ///
    /// # Errors
    /// [`OnnxError`] if a tensor of it is broken.
    pub(crate) fn add_source(&mut self, source: &Source) -> Result<(), OnnxError> {
        self.add_model(source, &nested::external_tensors(source)?, READ)
    }

    fn add_model(
        &mut self,
        source: &Source,
        external: &[TensorHeader],
        [model, data]: Called,
    ) -> Result<(), OnnxError> {
        if let Some(file) = &source.file {
            self.add(&file.path, model);
        }
        for path in data_files(source, external)? {
            self.add(&path, data);
        }
        Ok(())
    }

    /// Protects the files that [`write()`] makes of an output with this name.
    pub(crate) fn add_output(&mut self, output: &Path) -> Result<(), OnnxError> {
        let target = Target::new(output)?;
        self.add(output, "an output of this command");
        self.add(&target.beside(&target.data_name(0)), "a file with weights of an output of this command");
        Ok(())
    }
}

/// Returns the data files that a model names, as paths beside it.
///
/// # Errors
/// [`OnnxError`] if a tensor is broken, or a location leaves the model's folder.
pub fn external_files(source: &Source) -> Result<Vec<PathBuf>, OnnxError> {
    data_files(source, &nested::external_tensors(source)?)
}

fn data_files(source: &Source, external: &[TensorHeader]) -> Result<Vec<PathBuf>, OnnxError> {
    let locations: BTreeSet<&str> = external.iter().filter_map(location).collect();
    locations.into_iter().map(|location| source.data.path(location)).collect()
}

/// Returns whether an output in `folder` can share the weights of `graph`: links followed, they lie in it or below it.
/// They don't in a download cache, whose models and data are links to files elsewhere.
///
/// # Errors
/// As [`external_files`].
pub fn can_share(graph: &Graph, folder: &Path) -> Result<bool, OnnxError> {
    let source = graph.source();
    let mut files = external_files(source)?;
    if files.is_empty() {
        files.push(source.path());
    }
    let Ok(folder) = folder.canonicalize() else { return Ok(false) };
    Ok(files.iter().all(|file| file.canonicalize().is_ok_and(|file| file.starts_with(&folder))))
}

fn location(header: &TensorHeader) -> Option<&str> {
    match &header.payload {
        Payload::External(range) => Some(&range.location),
        Payload::Raw(_) | Payload::Typed => None,
    }
}

fn write_edited(
    graph: &Graph,
    policy: WeightPolicy,
    (target, new): (&Target, &mut SharedNew),
    external: bool,
    taken: &mut Taken,
    progress: Progress<'_>,
) -> Result<Unplaced, OnnxError> {
    let (message, placement) = lay_out(graph, policy, (target, new), external, MESSAGE_LIMIT)?;
    let model = Pending::create(&target.path, taken)?;
    let mut masked = Vec::new();
    let mut data = Vec::new();
    for (index, layout) in placement.data.iter().enumerate() {
        let file = Pending::create(&target.beside(&target.data_name(index)), taken)?;
        masked.extend(layout.write(destination(&file, progress))?);
        data.push(file);
    }
    masked.extend(message.write(destination(&model, progress))?);
    let Placement { shared, reads, new: placed, .. } = placement;
    new.extend(placed);
    Ok(Unplaced { model, data, shared, reads, masked })
}

fn destination<'a>(file: &'a Pending, progress: Progress<'a>) -> Destination<'a> {
    Destination { file: &file.file, path: &file.path, progress }
}

/// Returns the model as a message of at most `limit` bytes.
fn lay_out<'g>(
    graph: &'g Graph,
    policy: WeightPolicy,
    (target, new): (&'g Target, &'g SharedNew),
    external: bool,
    limit: u64,
) -> Result<(Message<'g>, Placement<'g>), OnnxError> {
    let layout = match policy {
        WeightPolicy::Share => WeightLayout::Share,
        WeightPolicy::Copy if external => WeightLayout::Gather(u64::MAX),
        WeightPolicy::Copy | WeightPolicy::Inline => WeightLayout::Inline,
        WeightPolicy::Split(most) => WeightLayout::Gather(most),
    };
    let fits = |message: &Message<'_>| message.len() <= limit;
    let laid_out = model::model(graph, target, new, layout, external)?;
    if fits(&laid_out.0) {
        return Ok(laid_out);
    }
    if policy == WeightPolicy::Inline {
        let what = format!(
            "with its weights inside, the model would take {} bytes, and protobuf allows {limit}; keep them in data \
             files beside it",
            laid_out.0.len()
        );
        return Err(OnnxError::output(&target.path, what));
    }
    let laid_out = match policy {
        WeightPolicy::Split(_) => laid_out,
        _ => model::model(graph, target, new, WeightLayout::Gather(u64::MAX), external)?,
    };
    if fits(&laid_out.0) {
        return Ok(laid_out);
    }
    Err(OnnxError::output(
        &target.path,
        format!(
            "without its weights the model would still take {} bytes, and protobuf allows {limit}: move what is in \
             Constant nodes and typed tensor fields to initializers with external data",
            laid_out.0.len()
        ),
    ))
}

fn write_unedited(
    graph: &Graph,
    target: &Target,
    external: &[TensorHeader],
    taken: &mut Taken,
    progress: Progress<'_>,
) -> Result<Unplaced, OnnxError> {
    let source = graph.source();
    let mut used: BTreeMap<&str, (Arc<DataFile>, u64)> = BTreeMap::new();
    for header in external {
        let Payload::External(range) = &header.payload else { continue };
        let len = header.byte_len().or(range.length).unwrap_or(0);
        let file = source.data.locate(&header.name, range, len)?;
        used.entry(&range.location).or_insert((file, 0)).1 += len;
    }
    let model = Pending::create(&target.path, taken)?;
    let mut shared = BTreeMap::new();
    let mut data = Vec::new();
    for (location, (file, len)) in used {
        let path = target.beside(location);
        let id = files::file_id(&path);
        if id.is_some() && id == files::file_id(&file.path) {
            shared.insert(path, len);
            continue;
        }
        taken.check(&path)?;
        if id.is_none() {
            let copy = Pending::create(&path, taken)?;
            destination(&copy, progress).copy(&file, 0, 0, file.len)?;
            data.push(copy);
        } else if same_content(&path, &file)? {
            shared.insert(path, len);
        } else {
            return Err(OnnxError::output(
                &path,
                "the unchanged model needs its data under this name, where another file is; choose another folder",
            ));
        }
    }
    match &source.file {
        Some(file) => destination(&model, progress).copy(file, 0, 0, source.bytes.len() as u64)?,
        None => destination(&model, progress).put(0, &source.bytes)?,
    }
    Ok(Unplaced { model, data, shared, reads: BTreeSet::new(), masked: Vec::new() })
}

/// Returns whether the file at `path` holds what `other` holds.
fn same_content(path: &Path, other: &DataFile) -> Result<bool, OnnxError> {
    let file = File::open(path).map_err(|e| OnnxError::io("open", path, e))?;
    if file.metadata().map_err(|e| OnnxError::io("read the size", path, e))?.len() != other.len {
        return Ok(false);
    }
    let (mut here, mut there) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < other.len {
        let len = (other.len - at).min(1 << 20) as usize;
        file.read_exact_at(&mut here[..len], at).map_err(|e| OnnxError::io("read", path, e))?;
        other.read_at(at, &mut there[..len])?;
        if here[..len] != there[..len] {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(true)
}

/// Gives outputs their names, once all are on the disk.
fn finish(outputs: Vec<Unplaced>, observers: &[&dyn Observer]) -> Result<Vec<Written>, OnnxError> {
    let mut all = Vec::new();
    let mut pending = Vec::new();
    for Unplaced { model, data, shared, reads, mut masked } in outputs {
        let files = std::iter::once(&model).chain(&data);
        let files =
            files.map(|file| Ok((file.path.clone(), file.len()?))).collect::<Result<Vec<_>, OnnxError>>()?;
        for file in data.iter().chain([&model]) {
            file.flush()?;
        }
        masked.sort_unstable();
        all.push(Written {
            bytes_written: files.iter().map(|(_, len)| len).sum(),
            files,
            bytes_shared: shared.values().sum(),
            shared_with: shared.into_keys().collect(),
            reads: reads.into_iter().collect(),
            left_over: None,
            masked,
        });
        pending.push((data, model));
    }
    observers.iter().try_for_each(|observer| observer.check())?;
    files::place(pending)?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_too_long_gets_a_data_file() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sd15-mini/torchscript");
        let mut graph = Graph::load(super::super::open(folder.join("unet.onnx")).unwrap()).unwrap();
        graph.edit().set_graph_name("edited");
        let target = Target::new(&folder.join("out.onnx")).unwrap();
        let new = SharedNew::default();
        let lay_out = |limit| lay_out(&graph, WeightPolicy::Copy, (&target, &new), false, limit);
        let (whole, placement) = lay_out(MESSAGE_LIMIT).unwrap();
        assert!(placement.data.is_empty());
        let (short, placement) = lay_out(whole.len() - 1).unwrap();
        assert!(short.len() < whole.len() && !placement.data.is_empty());
        let error = lay_out(short.len() - 1).unwrap_err();
        assert!(error.to_string().contains("external data"), "{error}");
    }
}
