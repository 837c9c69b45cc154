//! The graphs of trials. The model is analysed once and its magnitudes are counted once for each pool; a trial then
//! takes a threshold, and only its masked tensors are made.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::SystemTime,
};

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};
use sha2::{Digest, Sha256};

use super::SearchError;
use crate::{
    analysis::{
        Analysis, Findings,
        magnitude::{MagnitudeHistogram, PoolTensor},
        weights::Weight,
    },
    compile::CompileError,
    diffusion::unet::Fed,
    engine::HostTensor,
    hex::hex,
    ir::{Graph, InitializerId, Use, for_each_piece},
    observer::Observer,
    onnx::{self, DataType, OnnxError, WeightPolicy, WriteOptions},
    passes::{self, FedWeight, MaskForm, PassError, Recipe, Stamp},
    plan::{self, Located, Plan, PlanError, Target, Unets},
    plan_cache,
    rules::{Change, Edit, EditSet, Edits, Mask, Pool, Structure, Ties, WeightEdit},
};

/// The number of bytes in which masked weights are made at a time.
const PIECE: usize = 1 << 20;
/// The prefix of trials' files.
const PREFIX: &str = ".crdiff-trial-";

/// Compiles trials of one model.
pub struct Compiler {
    /// The model.
    source: PathBuf,
    /// The model whose weights the trials share: it, or a copy.
    model: PathBuf,
    /// How trials' graphs have their masks. With [`MaskForm::Fed`] one graph serves trial after trial while they bypass and
    /// mask the same; masks that are no float32 matrices are stored all the same, because engines rearrange kernels and
    /// convert halves when they load them.
    pub masks: MaskForm,
    /// The last graph of each target.
    templates: FxHashMap<Target, Template>,
    /// Without an extension: the folder and the beginning of the files' names.
    stem: PathBuf,
    _lock: File,
    /// A copy of the model, where nothing can be written beside it.
    _copy: Option<tempfile::TempDir>,
    graph: Graph,
    findings: Arc<Findings>,
    pools: FxHashMap<Vec<InitializerId>, MagnitudeHistogram>,
    next: u64,
}

/// A trial's networks.
#[derive(Debug)]
pub struct TrialGraph {
    /// The networks that a pipeline runs.
    pub unets: Unets,
    /// The masked weights that the trial's graph, the pruned one of two, is fed beside a UNet's inputs.
    pub fed: Arc<Fed>,
    _files: Vec<Arc<Files>>,
}

impl TrialGraph {
    /// Returns the dense network alone.
    pub fn none() -> Self {
        Self { unets: Unets::Dense, fed: Arc::default(), _files: Vec::new() }
    }
}

/// The files of a graph. They are removed when nobody holds them any more.
#[derive(Debug, Default)]
struct Files(Vec<PathBuf>);

impl Drop for Files {
    fn drop(&mut self) {
        for file in &self.0 {
            // It may be gone; what stays is removed by the next search.
            let _ = fs::remove_file(file);
        }
    }
}

/// A graph that was made.
struct Made {
    output: PathBuf,
    files: Arc<Files>,
    fed: Arc<Fed>,
}

/// A graph that stores no masked weights: it serves all trials that bypass and mask the same.
struct Template {
    structure: Structure,
    weights: Vec<(String, Vec<Use>)>,
    output: PathBuf,
    files: Arc<Files>,
}

impl Compiler {
    /// Opens the model at `path`. Trials go beside it, so that they can share its weights; where that folder cannot be
    /// written or the weights are links to elsewhere, beside a copy of it in the folder for temporary files.
    ///
    /// # Errors
    /// [`SearchError`] if it cannot be read, or nothing can be written.
    pub fn open(path: &Path) -> Result<Self, SearchError> {
        let graph = Graph::load(onnx::open_with_weights(path)?)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A link is not followed: its data lies beside the link.
        let folder = folder.canonicalize().map_err(|e| SearchError::io("open", path, e))?;
        let path = folder.join(path.file_name().unwrap_or_default());
        remove_stale(&folder);
        let name = path.file_name().unwrap_or_default();
        let can_share = onnx::can_share(&graph, &folder)?;
        let (model, copy) = match tempfile::tempfile_in(&folder) {
            Ok(_) if can_share => (path.clone(), None),
            _ => {
                let copy = tempfile::Builder::new().prefix("crdiff-search-").tempdir();
                let copy = copy.map_err(|e| SearchError::io("write beside", &path, e))?;
                let model = copy.path().join(name);
                let options = WriteOptions::new(&model, WeightPolicy::Copy);
                onnx::write(&graph, &options)?;
                (model, Some(copy))
            }
        };
        let folder = model.parent().unwrap_or(Path::new("/"));
        let (stem, lock) = locked(folder)?;
        let findings = Analysis::of(&graph).findings();
        let pools = FxHashMap::default();
        Ok(Self {
            source: path,
            model,
            masks: MaskForm::Stored,
            templates: FxHashMap::default(),
            stem,
            _lock: lock,
            _copy: copy,
            graph,
            findings,
            pools,
            next: 0,
        })
    }

    /// Returns the analysed model.
    pub fn analysis(&self) -> Analysis<'_> {
        Analysis::with(&self.graph, Arc::clone(&self.findings))
    }

    /// Returns a digest of the model: its structure as the file has it, and its weights. They are read once; the user's
    /// cache has the digest until a file changes.
    ///
    /// # Errors
    /// [`SearchError`] if the model cannot be read.
    pub fn digest(&self) -> Result<String, SearchError> {
        let mut hash = Sha256::new();
        hash.update(self.graph.structure_digest());
        hash.update(plan_cache::digest(&self.source, &())?);
        Ok(hex(&hash.finalize()))
    }

    /// Returns the edits that `plan` means for the model.
    ///
    /// # Errors
    /// [`PlanError`] if it doesn't fit.
    pub fn resolve(&self, plan: &Plan) -> Result<Edits, PlanError> {
        plan::resolve(plan, &self.analysis())
    }

    /// Makes the graphs of `plan`.
    ///
    /// # Errors
    /// [`SearchError`] if the plan doesn't fit the model, or nothing can be written.
    pub fn compile(&mut self, plan: &Plan, observer: &dyn Observer) -> Result<TrialGraph, SearchError> {
        let mut edits = self.resolve(plan).map_err(|e| CompileError::Plan(Box::new(e)))?;
        let merged: FxHashSet<InitializerId> =
            edits.changes().flat_map(Change::merges).map(|merge| merge.weight.initializer).collect();
        for change in edits.always.changes.iter_mut().chain(&mut edits.other.changes) {
            self.with_thresholds(change, &merged, observer).map_err(CompileError::from)?;
        }
        if edits.changes().all(|change| change.edits.is_empty()) {
            return Ok(TrialGraph::none());
        }
        let has_edits = |set: &EditSet| set.changes.iter().any(|change| !change.edits.is_empty());
        let unets = Unets::of(plan.amplify.mode, has_edits(&edits.always), has_edits(&edits.other));
        let (mut fed, mut files) = (Arc::default(), Vec::new());
        let unets = unets.try_map(|target| {
            let made = self.graph(plan, edits.clone(), target, observer)?;
            // The last one is fed, if one is: the dense one stores what it has.
            fed = made.fed;
            files.push(made.files);
            Ok::<_, SearchError>(made.output)
        })?;
        Ok(TrialGraph { unets, fed, _files: files })
    }

    /// Makes one graph.
    fn graph(
        &mut self,
        plan: &Plan,
        mut edits: Edits,
        target: Target,
        observer: &dyn Observer,
    ) -> Result<Made, SearchError> {
        let w = target.weight(plan, &edits).map_err(CompileError::Target)?;
        match (target, w) {
            (Target::Amplified, Some(w)) => edits.amplify(w),
            (Target::Dense, _) => edits.other = EditSet::default(),
            _ => {}
        }
        let mut graph = Graph::load(onnx::open(&self.model)?)?;
        let can_feed = |weight: &Weight| weight.data_type == DataType::FLOAT && weight.dims.len() == 2;
        let masks = match self.masks {
            MaskForm::Fed if target == Target::Dense => MaskForm::Stored,
            MaskForm::Fed if !edits.weights().flat_map(|edit| &edit.weights).all(can_feed) => {
                MaskForm::Stored
            }
            masks => masks,
        };
        let source = self.graph.structure_digest();
        let stamp = Some(Stamp { plan: &plan.digest, source: &source });
        let recipe = Recipe { edits: &edits, target, w, masks, stamp, per_row: None };
        let outcome = passes::run(&mut graph, &recipe, observer).map_err(CompileError::from)?;
        let (output, files) = self.written(&graph, &edits, target, &outcome.fed, observer)?;
        let fed = outcome.fed.par_iter().map(elements).collect::<Result<_, _>>()?;
        Ok(Made { output, files, fed: Arc::new(fed) })
    }

    /// Writes `graph`, unless it is the one that the last trial ran, perhaps fed other weights.
    fn written(
        &mut self,
        graph: &Graph,
        edits: &Edits,
        target: Target,
        fed: &[FedWeight],
        observer: &dyn Observer,
    ) -> Result<(PathBuf, Arc<Files>), SearchError> {
        let structure = edits.structure();
        let weights: Vec<_> = fed.iter().map(|weight| (weight.input.clone(), weight.uses.clone())).collect();
        let stores_none = edits.weights().next().is_none() || !fed.is_empty();
        if let Some(last) = self.templates.get(&target).filter(|_| stores_none)
            && (&last.structure, &last.weights) == (&structure, &weights)
        {
            return Ok((last.output.clone(), Arc::clone(&last.files)));
        }
        self.templates.remove(&target);
        self.next += 1;
        let mut output = self.stem.clone().into_os_string();
        output.push(format!("-{}.onnx", self.next));
        let output = PathBuf::from(output);
        let options = WriteOptions::new(&output, WeightPolicy::Share).observer(observer);
        let written = match onnx::write(graph, &options) {
            Err(OnnxError::Stopped) => return Err(SearchError::Stopped),
            other => other?,
        };
        let files = Arc::new(Files(written.files.into_iter().map(|(path, _)| path).collect()));
        if stores_none {
            let (output, files) = (output.clone(), Arc::clone(&files));
            self.templates.insert(target, Template { structure, weights, output, files });
        }
        Ok((output, files))
    }

    /// Puts thresholds in the place of ratios, so that the passes need no ranks. A ratio of less than one weight leaves
    /// no edit; a ratio that only the passes can follow stays.
    fn with_thresholds(
        &mut self,
        change: &mut Change,
        merged: &FxHashSet<InitializerId>,
        observer: &dyn Observer,
    ) -> Result<(), PassError> {
        let mut edits = Vec::with_capacity(change.edits.len());
        for edit in change.edits.drain(..) {
            match edit {
                // Magnitudes are those with the LoRA, which no trial before has counted.
                Edit::Transform(ref weights)
                    if weights.weights.iter().any(|weight| merged.contains(&weight.initializer)) =>
                {
                    edits.push(edit);
                }
                Edit::Transform(weights) => self.with_threshold(weights, &mut edits, observer)?,
                Edit::Redirect(_) | Edit::Attributes(_) | Edit::Splice(_) | Edit::Merge(_) => {
                    edits.push(edit)
                }
            }
        }
        change.edits = edits;
        Ok(())
    }

    fn with_threshold(
        &mut self,
        edit: WeightEdit,
        edits: &mut Vec<Edit>,
        observer: &dyn Observer,
    ) -> Result<(), PassError> {
        let Mask::Ratio { ratio, pool, ties: Ties::All } = edit.mask else {
            edits.push(Edit::Transform(edit));
            return Ok(());
        };
        let first = edit.weights.first().map(|weight| weight.data_type);
        if edit.weights.iter().any(|weight| Some(weight.data_type) != first) {
            // A threshold of one type can lie between the values of another.
            edits.push(Edit::Transform(edit));
            return Ok(());
        }
        let pools: Vec<Vec<Weight>> = match pool {
            Pool::Group => vec![edit.weights],
            Pool::Tensor => edit.weights.chunks(1).map(<[Weight]>::to_vec).collect(),
        };
        for weights in pools {
            let histogram = self.histogram(&weights, observer)?;
            let threshold = histogram.threshold(ratio.value.get(), observer)?;
            let Some(threshold) = threshold else { continue };
            let value = f64::from(threshold.t.value());
            let mask = match value.is_nan() {
                true => edit.mask,
                false => Mask::Threshold { threshold: Located { value, span: ratio.span } },
            };
            edits.push(Edit::Transform(WeightEdit { weights, mask, scale: edit.scale }));
        }
        Ok(())
    }

    fn histogram(
        &mut self,
        weights: &[Weight],
        observer: &dyn Observer,
    ) -> Result<&MagnitudeHistogram, PassError> {
        let key: Vec<InitializerId> = weights.iter().map(|weight| weight.initializer).collect();
        if !self.pools.contains_key(&key) {
            let tensor = |weight: &Weight| -> Result<PoolTensor, OnnxError> {
                let gone = || OnnxError::invalid("an initializer", "it was removed before it was read");
                let initializer = self.graph.initializer(weight.initializer).ok_or_else(gone)?;
                let reader = self.graph.weight_reader(&initializer.header)?;
                Ok(PoolTensor { reader, data_type: weight.data_type })
            };
            let tensors = weights.iter().map(tensor).collect::<Result<Vec<_>, _>>()?;
            let histogram = MagnitudeHistogram::read(&tensors, observer)?;
            self.pools.insert(key.clone(), histogram);
        }
        let gone = || OnnxError::invalid("a pool of weights", "it is not known");
        Ok(self.pools.get(&key).ok_or_else(gone)?)
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.stem.with_extension("lock"));
    }
}

/// Returns the masked weight that a trial's graph is fed.
fn elements(weight: &FedWeight) -> Result<(String, HostTensor), SearchError> {
    let mut bytes = Vec::with_capacity(usize::try_from(weight.data.original.len()).unwrap_or_default());
    for_each_piece(&weight.data, PIECE, |_, piece| {
        bytes.extend_from_slice(piece);
        Ok::<(), OnnxError>(())
    })?;
    let dims = weight.dims.iter().map(|dim| usize::try_from(*dim).unwrap_or_default()).collect();
    Ok((weight.input.clone(), HostTensor::from_le_bytes(weight.data_type, dims, &bytes)?))
}

/// Returns a prefix for files in `folder` that no other process has, with the locked file that marks it.
fn locked(folder: &Path) -> Result<(PathBuf, File), SearchError> {
    for attempt in 0..1000u32 {
        let stem = folder.join(format!("{PREFIX}{}-{attempt}", process::id()));
        let path = stem.with_extension("lock");
        match File::create_new(&path) {
            Ok(file) => {
                file.lock().map_err(|e| SearchError::io("lock", &path, e))?;
                return Ok((stem, file));
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(SearchError::io("create", &path, e)),
        }
    }
    let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
    Err(SearchError::io("find a name for trials in", folder, source))
}

/// Removes what killed searches left: files whose lock nobody holds.
fn remove_stale(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    for lock in names.iter().filter_map(|name| name.strip_suffix(".lock")) {
        let path = folder.join(format!("{lock}.lock"));
        let Ok(file) = File::open(&path) else { continue };
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            continue;
        }
        // A search that is just beginning does not have its lock yet.
        let young = |path: &Path| {
            let changed = path.metadata().and_then(|metadata| metadata.modified()).ok();
            changed.and_then(|t| SystemTime::now().duration_since(t).ok()).is_none_or(|age| age.as_secs() < 2)
        };
        if young(&path) {
            continue;
        }
        let of_it = format!("{lock}-");
        for name in names.iter().filter(|name| name.starts_with(&of_it)) {
            let _ = fs::remove_file(folder.join(name));
        }
        let _ = fs::remove_file(&path);
    }
}
