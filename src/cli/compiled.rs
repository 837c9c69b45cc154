//! Compiled plans that are kept for the next run, in the user's cache or beside the model.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use sha2::{Digest, Sha256};

use super::{
    Failure,
    progress::{Bars, Visibility, interruptible},
};
use crate::{
    compile::{Hooks, Job, Stage, Target, compile_file},
    engine::fetch::user_cache,
    hex::hex,
    ir::Graph,
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

/// The values of `--compiled`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// In the user's cache, beside a copy of the model's weights that all its plans share.
    #[default]
    Cache,
    /// Beside the model (model.crdiff-*.onnx), sharing its weights.
    Beside,
}

/// The networks that run a plan.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The networks.
    pub unets: Unets,
    /// The file to load the dense network from, where it isn't the pipeline's: in low memory both networks map one file.
    pub dense: Option<PathBuf>,
}

impl Compiled {
    /// Networks beside the pipeline's own.
    pub fn of(unets: Unets) -> Self {
        Self { unets, dense: None }
    }
}

/// Compiles `plan` for the model at `path`, unless a plan that does the same to the weights was compiled before.
///
/// # Errors
/// [`Failure`] if the plan doesn't fit the model, or nothing can be written.
pub fn compiled(
    path: &Path,
    plan: &Plan,
    masks: MaskForm,
    place: Place,
    visibility: Visibility,
) -> Result<Compiled, Failure> {
    let plan = plan.for_weights();
    let model = Model::open(path)?;
    let graph = |target| {
        let store = Store { model: &model, plan: &plan, target, masks, visibility };
        match place {
            Place::Cache => store.in_cache(),
            Place::Beside => Ok((store.beside()?, None)),
        }
    };
    let mut dense = None;
    let unets = Unets::of(plan.amplify.mode, !plan.always.is_empty(), !plan.rules.is_empty());
    let unets = unets.try_map(|target| {
        let (graph, copy) = graph(target)?;
        dense = copy;
        Ok::<_, Failure>(graph)
    })?;
    // Where another dense network takes its place, the pipeline's own is not loaded.
    Ok(Compiled { unets, dense: dense.filter(|_| masks == MaskForm::Computed) })
}

/// Returns the digest of the structure and weights of the model at `path`, which the user's cache remembers.
///
/// # Errors
/// [`Failure`] if the model cannot be read.
pub fn digest(path: &Path, visibility: Visibility) -> Result<String, Failure> {
    let model = Model::open(path)?;
    let known = user_cache().map(|cache| cache.join(DIGESTS).join(&model.key));
    let read = known.as_deref().and_then(|file| fs::read_to_string(file).ok());
    if let Some(digest) = read.filter(|text| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Ok(digest);
    }
    let bars = Bars::new(visibility);
    let digest = structure::digests(&model.graph, &|bytes| bars.advance("reading weights", bytes))?.weights;
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
}

impl Model {
    fn open(path: &Path) -> Result<Self, Failure> {
        let graph = Graph::load(onnx::open(path)?)?;
        let found = path.canonicalize().map_err(|e| cannot("open", path, &e))?;
        let mut files: BTreeSet<PathBuf> = onnx::external_files(graph.source())?.into_iter().collect();
        files.insert(path.to_path_buf());
        let mut hash = Sha256::new();
        hash.update(found.as_os_str().as_encoded_bytes());
        let mut len = 0;
        for file in &files {
            let metadata = file.metadata().map_err(|e| cannot("open", file, &e))?;
            len += metadata.len();
            hash.update(metadata.len().to_le_bytes());
            let changed = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
            hash.update(changed.unwrap_or_default().as_nanos().to_le_bytes());
        }
        Ok(Self { path: path.to_path_buf(), graph, key: short(hash), len })
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }
}

/// A plan to compile, and for which model.
struct Store<'a> {
    model: &'a Model,
    plan: &'a Plan,
    target: Target,
    masks: MaskForm,
    visibility: Visibility,
}

impl Store<'_> {
    /// Returns a digest of what the plan does to the weights, and of how this release writes it.
    fn key(&self) -> String {
        let masks = match self.masks {
            MaskForm::Stored => "stored",
            MaskForm::Computed => "computed",
            MaskForm::Fed => "fed",
        };
        let mut hash = Sha256::new();
        for part in [env!("CARGO_PKG_VERSION"), &self.plan.digest, self.target.name(), masks] {
            hash.update(part);
            hash.update([0]);
        }
        short(hash)
    }

    /// Returns the plan's graph beside the model. ONNX Runtime reads external data only from below a graph's own folder,
    /// so only there can it share the model's weights.
    fn beside(&self) -> Result<PathBuf, Failure> {
        let model = self.model;
        if !onnx::can_share(&model.graph, model.folder())? {
            return Err(Failure::Message(format!(
                "{}: its weights lie in another folder (it is a link, or its data is), so a graph beside it cannot \
                 share them; leave out `--compiled beside`",
                model.path.display()
            )));
        }
        let stem = model.path.file_stem().unwrap_or_default().to_string_lossy();
        let name = format!("{stem}.crdiff-{}-{}.onnx", model.key, self.key());
        let output = model.path.with_file_name(name);
        if !output.exists() {
            self.compile(&model.path, &output)?;
        }
        Ok(output)
    }

    /// Returns the plan's graph in the user's cache, and the copy of the model that it shares weights with.
    fn in_cache(&self) -> Result<(PathBuf, Option<PathBuf>), Failure> {
        let cache = user_cache().ok_or_else(|| {
            let what = "there is no cache folder for compiled plans: set XDG_CACHE_HOME or HOME, or say --compiled beside";
            Failure::Message(what.to_string())
        })?;
        let folder = cache.join(FOLDER).join(&self.model.key);
        let (copy, output) = (folder.join(COPY), folder.join(format!("{}.onnx", self.key())));
        fs::create_dir_all(&folder).map_err(|e| cannot("create", &folder, &e))?;
        if !copy.exists() {
            self.copy(&copy)?;
        }
        if !output.exists() {
            self.compile(&copy, &output)?;
        }
        Ok((output, Some(copy)))
    }

    fn copy(&self, copy: &Path) -> Result<(), Failure> {
        if self.visibility == Visibility::Shown {
            anstream::eprintln!(
                "keeping a copy of {} in {} ({}); `--compiled beside` shares its weights instead, `crdiff cache` lists \
                 what is kept",
                self.model.path.display(),
                copy.parent().unwrap_or(copy).display(),
                bytes(self.model.len)
            );
        }
        let about = serde_json::json!({ "model": self.model.path.canonicalize().unwrap_or_default() });
        let file = copy.with_file_name(ABOUT);
        fs::write(&file, format!("{about}\n")).map_err(|e| cannot("write", &file, &e))?;
        let bars = Bars::new(self.visibility);
        let options = WriteOptions {
            output: copy,
            policy: WeightPolicy::Copy,
            progress: Some(&|bytes| bars.compiling(Stage::Writing, bytes)),
            cancelled: Some(interruptible()),
            protected: &[],
        };
        match onnx::write(&self.model.graph, &options) {
            Err(OnnxError::Cancelled) => Err(Failure::Interrupted),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }

    fn compile(&self, model: &Path, output: &Path) -> Result<(), Failure> {
        let bars = Bars::new(self.visibility);
        let job = Job {
            model,
            plan: self.plan,
            target: self.target,
            output: Some(output),
            weights: Some(WeightPolicy::Share),
            masks: self.masks,
            at: None,
            protected: Vec::new(),
        };
        let progress = |stage, bytes| bars.compiling(stage, bytes);
        compile_file(&job, Hooks { progress: &progress, stop: interruptible() })?;
        Ok(())
    }
}

fn short(hash: Sha256) -> String {
    hex(&hash.finalize()[..6])
}

fn cannot(action: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::Message(format!("{}: cannot {action}: {error}", path.display()))
}
