//! What `run` and `bench` have in common: the engine, its options, and the UNets that a plan makes.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use sha2::{Digest, Sha256};

use super::{
    Failure,
    progress::{Bars, Visibility, interruptible},
};
use crate::{
    compile::{Hooks, Job, Target, compile_file},
    diffusion::pipeline::Unets,
    engine::{
        Chosen, EngineKind, EngineRequest, MemoryMode, Provider, ProviderKind, SessionOptions, choose,
        fetch::cache_folder,
    },
    hex::hex,
    onnx::WeightPolicy,
    passes::MaskForm,
    plan::{Mode, Plan, Runtime},
};

/// On what to run.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// The engine: ort or rten [default: ONNX Runtime where its library is found, else rten]
    #[arg(long)]
    engine: Option<EngineKind>,
    /// The ONNX Runtime library, or the folder that it is in.
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,
    /// An execution provider: cpu, cuda, tensorrt, nvtensorrtrtx. Several in order of preference [default: the plan's]
    #[arg(long, value_name = "NAME")]
    provider: Vec<ProviderKind>,
    /// An option of a provider, of the first one unless named: cuda.device_id=1.
    #[arg(long, value_name = "[PROVIDER.]KEY=VALUE")]
    provider_option: Vec<String>,
    /// low: dense and pruned networks share their weights in memory, and branches run in turn; slower.
    #[arg(long, value_enum, default_value = "fast")]
    memory: Memory,
    /// Threads within an operator [default: one a core]
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

/// `--memory`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Memory {
    /// Several times the weights, fastest.
    Fast,
    /// The weights once.
    Low,
}

impl Memory {
    fn masks(self) -> MaskForm {
        match self {
            Self::Fast => MaskForm::Stored,
            Self::Low => MaskForm::Computed,
        }
    }
}

impl EngineArgs {
    /// The memory mode.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// How masked weights are in graphs that run beside the dense one. In low memory weights of their own would be a part
    /// of the weights a second time.
    pub fn masks(&self) -> MaskForm {
        self.memory.masks()
    }

    /// The engine, and how it is to load models; what the command line doesn't say, the plan does.
    pub fn open(&self, runtime: &Runtime) -> Result<(Chosen, SessionOptions), Failure> {
        let chosen = choose(&EngineRequest { kind: self.engine, library: self.ort_lib.clone() })?;
        Ok((chosen, self.options(runtime)?))
    }

    /// How an engine is to load models.
    pub fn options(&self, runtime: &Runtime) -> Result<SessionOptions, Failure> {
        Ok(SessionOptions {
            intra_threads: self.threads,
            memory: match self.memory {
                Memory::Fast => MemoryMode::Fast,
                Memory::Low => MemoryMode::Low,
            },
            providers: self.providers(runtime)?,
            engine_cache: cache_folder().and_then(|folder| Some(folder.parent()?.join("engines"))),
            ..SessionOptions::default()
        })
    }

    fn providers(&self, runtime: &Runtime) -> Result<Vec<Provider>, Failure> {
        let mut providers: Vec<Provider> = if self.provider.is_empty() {
            let named = runtime.providers.iter().map(|name| name.value.parse::<ProviderKind>());
            named.map(|kind| Ok(kind?.into())).collect::<Result<_, Failure>>()?
        } else {
            self.provider.iter().map(|kind| (*kind).into()).collect()
        };
        for (name, options) in &runtime.options {
            let kind: ProviderKind = name.parse()?;
            match providers.iter_mut().find(|provider| provider.kind == kind) {
                Some(provider) => provider.options.extend(options.clone()),
                // The command line chose others than the plan.
                None if !self.provider.is_empty() => {}
                None => {
                    let what = format!(
                        "the plan's `runtime.options` are for {kind}, which is not in its `providers`"
                    );
                    return Err(Failure::Message(what));
                }
            }
        }
        for option in &self.provider_option {
            let usage = || Failure::Message(format!("`{option}` is no provider option: write KEY=VALUE"));
            let (key, value) = option.split_once('=').ok_or_else(usage)?;
            let prefix =
                key.split_once('.').and_then(|(name, key)| Some((name.parse::<ProviderKind>().ok()?, key)));
            let (kind, key) = prefix.map_or((None, key), |(kind, key)| (Some(kind), key));
            let provider =
                providers.iter_mut().find(|p| kind.is_none_or(|kind| p.kind == kind)).ok_or_else(|| {
                    Failure::Message(format!(
                        "`--provider-option {option}` is for a provider that isn't run; see --provider"
                    ))
                })?;
            provider.options.insert(key.to_string(), value.to_string());
        }
        providers.iter().try_for_each(Provider::check)?;
        Ok(providers)
    }
}

/// The UNets of a plan: its pruned graph beside the pipeline's own, or in its place where the plan amplifies within
/// the weights.
///
/// # Errors
/// [`Failure`] if the plan doesn't fit the model, or nothing can be written.
pub fn unets(model: &Path, plan: &Plan, memory: Memory, visibility: Visibility) -> Result<Unets, Failure> {
    let masks = memory.masks();
    Ok(match plan.amplify.mode {
        Mode::Weights => Unets::Instead(compiled(model, plan, Target::Amplified, masks, visibility)?),
        Mode::Outputs => Unets::WithPruned(compiled(model, plan, Target::Pruned, masks, visibility)?),
    })
}

/// The graph of a plan, compiled unless it already is.
///
/// It lies beside the model, as `model.crdiff-KEY.onnx`: ONNX Runtime reads external data only from below a graph's own
/// folder, so only there can it share the model's weights. Where that folder cannot be written, a copy with all its
/// weights goes to `crdiff/compiled/KEY` in the user's cache folder. The key is of the model's path, size and time of
/// change (its data files' too), the plan's digest and this program's version.
fn compiled(
    model: &Path,
    plan: &Plan,
    target: Target,
    masks: MaskForm,
    visibility: Visibility,
) -> Result<PathBuf, Failure> {
    let cannot = |action: &str, path: &Path, e: std::io::Error| {
        Failure::Message(format!("{}: cannot {action}: {e}", path.display()))
    };
    let model = model.canonicalize().map_err(|e| cannot("open", model, e))?;
    let folder = model.parent().unwrap_or(Path::new("/"));
    let stem = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let key = key(&model, &stem, plan, masks);
    let beside = folder.join(format!("{stem}.crdiff-{key}.onnx"));
    let cached = cache_folder().and_then(|folder| Some(folder.parent()?.join("compiled").join(&key)));
    let cached = cached.map(|folder| folder.join("model.onnx"));
    if let Some(known) = [Some(&beside), cached.as_ref()].into_iter().flatten().find(|path| path.exists()) {
        return Ok(known.clone());
    }
    let (output, weights) = match tempfile::tempfile_in(folder) {
        Ok(_) => (beside, WeightPolicy::Share),
        Err(reason) => {
            let output = cached.ok_or_else(|| cannot("write", folder, reason))?;
            let folder = output.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(folder).map_err(|e| cannot("create", folder, e))?;
            (output, WeightPolicy::Copy)
        }
    };
    let bars = Bars::new(visibility);
    let job = Job {
        model: &model,
        plan,
        target,
        output: Some(&output),
        weights: Some(weights),
        masks,
        at: None,
        protected: Vec::new(),
    };
    let progress = |stage, bytes| bars.compiling(stage, bytes);
    compile_file(&job, Hooks { progress: &progress, stop: interruptible() })?;
    Ok(output)
}

fn key(model: &Path, stem: &str, plan: &Plan, masks: MaskForm) -> String {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(&plan.digest);
    hash.update(format!("{masks:?}"));
    hash.update(model.as_os_str().as_encoded_bytes());
    let data = ["onnx_data", "onnx.data", "data"].map(|end| model.with_file_name(format!("{stem}.{end}")));
    for path in data.iter().map(PathBuf::as_path).chain([model]) {
        let Ok(metadata) = path.metadata() else { continue };
        hash.update(metadata.len().to_le_bytes());
        let changed = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        hash.update(changed.unwrap_or_default().as_nanos().to_le_bytes());
    }
    hex(&hash.finalize()[..6])
}
