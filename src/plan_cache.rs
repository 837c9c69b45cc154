//! The cache of compiled plans: what a run compiled is kept for the next, in the user's cache folder or beside the model.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    compile::{CompileError, Job, Target, cached_outputs, compile_file},
    engine::fetch::user_cache,
    hex::hex,
    ir::Graph,
    observer::{Event, Observer},
    onnx::{self, OnnxError, WeightPolicy, WriteOptions},
    passes::MaskForm,
    plan::{Plan, Unets},
    report::text::bytes,
    verify::structure,
};

/// The folder of compiled plans in the user's cache.
pub const FOLDER: &str = "compiled";
/// The folder of models' digests in the user's cache.
const DIGESTS: &str = "digests";
/// The file beside compiled plans that names their model.
pub const ABOUT: &str = "about.json";
/// The copy of the model that compiled plans in the cache share weights with.
pub const COPY: &str = "model.onnx";

/// Where compiled plans are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// In the user's cache folder, beside a copy of the model's weights that all its plans share.
    #[default]
    Cache,
    /// Beside the model (model.crdiff-*.onnx), sharing its weights.
    Beside,
}

/// Why a compiled plan could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanCacheError {
    /// The plan does not fit the model, the work was stopped, or nothing can be written.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A file or folder cannot be used.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The attempt, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no place for it.
    #[error("{0}")]
    Place(String),
}

impl From<OnnxError> for PlanCacheError {
    fn from(error: OnnxError) -> Self {
        CompileError::from(error).into()
    }
}

/// The networks that run a plan.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The networks.
    pub unets: Unets,
    /// The file to load the dense network from, where it isn't the pipeline's: in low memory both networks map one file.
    pub dense: Option<PathBuf>,
    /// The files of shallow graphs by those of the full ones among the networks, for a plan with a cache.
    pub shallow: BTreeMap<PathBuf, PathBuf>,
}

impl Compiled {
    /// Networks beside the pipeline's own.
    pub fn of(unets: Unets) -> Self {
        Self { unets, dense: None, shallow: BTreeMap::new() }
    }
}

/// The cache, and how it is used.
#[derive(Clone, Copy)]
pub struct PlanCache<'a> {
    /// Where it is.
    pub place: Place,
    /// How masked weights are in its graphs.
    pub masks: MaskForm,
    /// Observes compiling and copying. It gets a notice before a copy of a model is made, which takes room.
    pub observer: &'a dyn Observer,
}

impl PlanCache<'_> {
    /// Returns the networks that run `plan` for the model at `path`. They are compiled unless a plan that does the same to
    /// the weights was before.
    ///
    /// # Errors
    /// [`PlanCacheError`] if the plan doesn't fit the model, or nothing can be written.
    pub fn networks(&self, path: &Path, plan: &Plan) -> Result<Compiled, PlanCacheError> {
        let has_text = plan.loras_of_text_encoders().next().is_some();
        let plan = plan.for_weights();
        if has_text && plan.always.is_empty() && plan.rules.is_empty() && plan.cache.is_none() {
            return Ok(Compiled::of(Unets::Dense));
        }
        let model = Model::open(path)?;
        let graph = |target| Entry { cache: self, model: &model, plan: &plan, target }.graph();
        let (mut dense, mut shallow) = (None, BTreeMap::new());
        let unets = Unets::of_plan(&plan).try_map(|target| {
            let (graph, copy) = graph(target)?;
            dense = copy;
            Ok::<_, PlanCacheError>(match plan.cache {
                None => graph,
                Some(_) => {
                    let [full, second] = cached_outputs(&graph);
                    shallow.insert(full.clone(), second);
                    full
                }
            })
        })?;
        // Where another dense network takes its place, the pipeline's own is not loaded.
        Ok(Compiled { unets, dense: dense.filter(|_| self.masks == MaskForm::Computed), shallow })
    }

    /// Returns the text encoders among `paths` that `plan` changes: their index, and the file of what it makes of them.
    ///
    /// # Errors
    /// As [`networks`](Self::networks).
    pub fn text_encoders(
        &self,
        paths: &[PathBuf],
        plan: &Plan,
    ) -> Result<Vec<(usize, PathBuf)>, PlanCacheError> {
        let plans = (1..=u8::MAX).zip(paths).map(|(number, path)| (path, plan.for_text_encoder(number)));
        let changed = plans.enumerate().filter_map(|(index, (path, plan))| Some((index, path, plan?)));
        changed.map(|(index, path, plan)| Ok((index, self.graph(path, &plan, Target::Dense)?))).collect()
    }

    /// Returns the file of the graph that `target` is of the model at `path` and `plan`, compiled unless it was before.
    ///
    /// # Errors
    /// As [`networks`](Self::networks).
    pub fn graph(&self, path: &Path, plan: &Plan, target: Target) -> Result<PathBuf, PlanCacheError> {
        refuse_cache(plan)?;
        let model = Model::open(path)?;
        Ok(Entry { cache: self, model: &model, plan, target }.graph()?.0)
    }
}

/// Refuses a plan that takes two graphs where one is asked for.
fn refuse_cache(plan: &Plan) -> Result<(), PlanCacheError> {
    match &plan.cache {
        None => Ok(()),
        Some(cache) => Err(PlanCacheError::Place(format!(
            "this plan has a cache at `{}`, which takes two graphs and a loop that runs them in turn: run it as a \
             pipeline, or leave `cache` out",
            cache.at.value
        ))),
    }
}

/// Returns the digest of the structure and weights of the model at `path`, which the user's cache remembers.
///
/// # Errors
/// [`PlanCacheError`] if the model cannot be read.
pub fn digest(path: &Path, observer: &dyn Observer) -> Result<String, PlanCacheError> {
    let model = Model::open(path)?;
    let known = user_cache().map(|cache| cache.join(DIGESTS).join(&model.key));
    let found = known.as_deref().and_then(|file| fs::read_to_string(file).ok());
    if let Some(digest) = found.filter(|text| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Ok(digest);
    }
    let digest = structure::digests(&model.graph, observer)?.weights;
    if let Some(file) = known {
        // A cache that cannot be written costs time at the next run, nothing else.
        let _ = fs::create_dir_all(file.parent().unwrap_or(&file)).and_then(|()| fs::write(&file, &digest));
    }
    Ok(digest)
}

/// A model that plans are compiled for.
struct Model {
    /// As the user named it: a link is not followed, since its data lies beside the link.
    path: PathBuf,
    graph: Graph,
    /// A digest of its path, and of the size and the time of change of its files.
    key: String,
    /// The bytes of its files.
    len: u64,
    /// The notes that were told of what was compiled for it: of a pair both graphs have the same.
    told: RefCell<BTreeSet<String>>,
}

impl Model {
    fn open(path: &Path) -> Result<Self, PlanCacheError> {
        let graph = Graph::load(onnx::open(path)?)?;
        let found = path.canonicalize().map_err(|e| cannot("open", path, e))?;
        let mut files: BTreeSet<PathBuf> = onnx::external_files(graph.source())?.into_iter().collect();
        files.insert(path.to_path_buf());
        let mut hash = Sha256::new();
        hash.update(found.as_os_str().as_encoded_bytes());
        let mut len = 0;
        for file in &files {
            let metadata = file.metadata().map_err(|e| cannot("open", file, e))?;
            len += metadata.len();
            hash.update(metadata.len().to_le_bytes());
            let changed = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
            hash.update(changed.unwrap_or_default().as_nanos().to_le_bytes());
        }
        Ok(Self { path: path.to_path_buf(), graph, key: short(hash), len, told: RefCell::default() })
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }
}

/// A plan in the cache.
struct Entry<'a> {
    cache: &'a PlanCache<'a>,
    model: &'a Model,
    plan: &'a Plan,
    target: Target,
}

impl Entry<'_> {
    /// Returns a digest of what the plan does to the weights, and of how this release writes it.
    fn key(&self) -> String {
        let masks = match self.cache.masks {
            MaskForm::Stored => "stored",
            MaskForm::Computed => "computed",
            MaskForm::Fed => "fed",
        };
        // Only here do the two fused graphs differ in name.
        let target = match self.target {
            Target::FusedWithInput => "fused-with-input",
            other => other.name(),
        };
        let mut hash = Sha256::new();
        for part in [env!("CARGO_PKG_VERSION"), &self.plan.digest, target, masks] {
            hash.update(part);
            hash.update([0]);
        }
        short(hash)
    }

    /// Returns whether the plan's graph is at `output`; both of a cache's pair, whose names are made of it.
    fn is_there(&self, output: &Path) -> bool {
        match self.plan.cache {
            None => output.exists(),
            Some(_) => cached_outputs(output).iter().all(|output| output.exists()),
        }
    }

    /// Returns the plan's graph, and the copy of the model that it shares weights with, if there is one.
    fn graph(&self) -> Result<(PathBuf, Option<PathBuf>), PlanCacheError> {
        match self.cache.place {
            Place::Cache => self.in_cache(),
            Place::Beside => Ok((self.beside()?, None)),
        }
    }

    /// Returns the plan's graph beside the model. ONNX Runtime reads external data only from below a graph's own folder,
    /// so only there can it share the model's weights.
    fn beside(&self) -> Result<PathBuf, PlanCacheError> {
        let model = self.model;
        if !onnx::can_share(&model.graph, model.folder())? {
            return Err(PlanCacheError::Place(format!(
                "{}: its weights lie in another folder (it is a link, or its data is), so a graph beside it cannot \
                 share them; keep compiled plans in the cache",
                model.path.display()
            )));
        }
        let stem = model.path.file_stem().unwrap_or_default().to_string_lossy();
        let name = format!("{stem}.crdiff-{}-{}.onnx", model.key, self.key());
        let output = model.path.with_file_name(name);
        if !self.is_there(&output) {
            self.compile(&model.path, &output)?;
        }
        Ok(output)
    }

    /// Returns the plan's graph in the user's cache, and the copy of the model that it shares weights with.
    fn in_cache(&self) -> Result<(PathBuf, Option<PathBuf>), PlanCacheError> {
        let cache = user_cache().ok_or_else(|| {
            let what = "there is no cache folder for compiled plans: set XDG_CACHE_HOME or HOME, or keep them beside the \
                        model";
            PlanCacheError::Place(what.to_string())
        })?;
        let folder = cache.join(FOLDER).join(&self.model.key);
        let (copy, output) = (folder.join(COPY), folder.join(format!("{}.onnx", self.key())));
        fs::create_dir_all(&folder).map_err(|e| {
            PlanCacheError::Place(format!(
                "{}: cannot create: {e}; keep compiled plans beside the model, or set XDG_CACHE_HOME to a folder that can be \
                 written",
                folder.display()
            ))
        })?;
        if !copy.exists() {
            self.copy(&copy)?;
        }
        if !self.is_there(&output) {
            self.compile(&copy, &output)?;
        }
        Ok((output, Some(copy)))
    }

    fn copy(&self, copy: &Path) -> Result<(), PlanCacheError> {
        let model = self.model;
        let notice = format!(
            "keeping a copy of {} in {} ({}); beside the model, compiled plans share its weights instead",
            model.path.display(),
            copy.parent().unwrap_or(copy).display(),
            bytes(model.len)
        );
        self.cache.observer.tell(Event::Notice(&notice)).map_err(OnnxError::from)?;
        let about = serde_json::json!({ "model": model.path.canonicalize().unwrap_or_default() });
        let file = copy.with_file_name(ABOUT);
        fs::write(&file, format!("{about}\n")).map_err(|e| cannot("write", &file, e))?;
        let options = WriteOptions::new(copy, WeightPolicy::Copy).observer(self.cache.observer);
        onnx::write(&model.graph, &options)?;
        Ok(())
    }

    fn compile(&self, model: &Path, output: &Path) -> Result<(), PlanCacheError> {
        let mut job = Job::new(model, self.plan)
            .target(self.target)
            .output(output)
            .weights(WeightPolicy::Share)
            .masks(self.cache.masks);
        job.cached = self.plan.cache.is_some();
        let mut notes = compile_file(&job, self.cache.observer)?.notes;
        notes.retain(|note| self.model.told.borrow_mut().insert(note.clone()));
        for note in notes {
            self.cache.observer.tell(Event::Warning(&note)).map_err(OnnxError::from)?;
        }
        Ok(())
    }
}

fn short(hash: Sha256) -> String {
    hex(&hash.finalize()[..6])
}

fn cannot(action: &'static str, path: &Path, source: io::Error) -> PlanCacheError {
    PlanCacheError::Io { action, path: path.to_path_buf(), source }
}
