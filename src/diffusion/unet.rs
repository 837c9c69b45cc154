//! A UNet of a pipeline: its inputs as the graph declares them, fed from one description of the conditioning.

mod device;

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

pub(super) use device::Placed;
use sha2::{Digest, Sha256};

use super::{
    PipelineError,
    feature_cache::{CachedCall, Features, Shallow},
    prediction_cache::{CachedRun, Inputs},
};
use crate::{
    engine::{Dim, EngineError, HostTensor, Session, SessionOptions, ShapeRange, TensorData, TensorInfo},
    onnx::DataType,
    plan::{CACHE_NAMES, Depth},
};

/// A loaded UNet.
pub struct Unet {
    session: Box<dyn Session>,
    file: PathBuf,
    model: String,
    fed: Arc<Fed>,
    sizes: LoadedFor,
    sample: TensorInfo,
    timestep: TensorInfo,
    output: TensorInfo,
    extra: Vec<(Extra, TensorInfo)>,
    /// The outputs of a full graph that its shallow part reads.
    kept: Vec<TensorInfo>,
    shallow: Option<Shallow>,
}

/// Masked weights by the names of the graph's inputs for them: what a graph is fed beside what every UNet is.
pub type Fed = Vec<(String, HostTensor)>;

/// The sizes that a session was loaded for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LoadedFor {
    fixed: BTreeMap<String, Vec<usize>>,
    profile: BTreeMap<String, ShapeRange>,
}

impl LoadedFor {
    pub(super) fn of(options: &SessionOptions) -> Self {
        Self { fixed: options.fixed_dims.clone(), profile: options.profile.clone() }
    }
}

/// The inputs of a UNet beside the sample and the timestep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    Context,
    Pooled,
    TimeIds,
    TimestepCond,
}

pub(super) const SAMPLE: &str = "sample";
const TIMESTEP: &str = "timestep";

impl Extra {
    const ALL: [(&'static str, Self); 4] = [
        ("encoder_hidden_states", Self::Context),
        ("text_embeds", Self::Pooled),
        ("time_ids", Self::TimeIds),
        ("timestep_cond", Self::TimestepCond),
    ];
}

/// The conditioning of a batch of samples. Every tensor has the batch in front.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditioning {
    /// The text encoders' hidden states, `[batch, tokens, width]`.
    pub context: HostTensor,
    /// SDXL's pooled text, `[batch, projection]`.
    pub pooled: Option<HostTensor>,
    /// SDXL's sizes, `[batch, 6]`.
    pub time_ids: Option<HostTensor>,
    /// The embedded guidance scale of distilled networks, `[batch, width]`.
    pub timestep_cond: Option<HostTensor>,
}

/// A [`Conditioning`] in the types of one UNet, and the buffer for its sample.
pub struct Prepared {
    sample: HostTensor,
    extra: Vec<HostTensor>,
    features: Features<HostTensor>,
    /// Of `extra`, once somebody asks for it.
    digest: OnceCell<Sha256>,
}

impl Unet {
    /// Takes a session of the model at `path`.
    ///
    /// # Errors
    /// [`PipelineError::Graph`] if its inputs or outputs are not a UNet's.
    pub fn new(session: Box<dyn Session>, path: &Path) -> Result<Self, PipelineError> {
        Self::fed(session, path, Arc::default(), LoadedFor::default())
    }

    /// Does the same as [`Unet::new`] for a session that was loaded for some sizes and whose graph is fed weights.
    pub(super) fn fed(
        session: Box<dyn Session>,
        path: &Path,
        fed: Arc<Fed>,
        sizes: LoadedFor,
    ) -> Result<Self, PipelineError> {
        let model = path.display().to_string();
        let graph = |what: String| PipelineError::Graph { model: model.clone(), what };
        let find = |name: &str| {
            let found = session.inputs().iter().find(|input| input.name == name);
            found.cloned().ok_or_else(|| graph(format!("it has no input `{name}`, so it is no UNet")))
        };
        let (sample, timestep) = (find(SAMPLE)?, find(TIMESTEP)?);
        let mut extra = Vec::new();
        let is_extra = |input: &&TensorInfo| {
            ![SAMPLE, TIMESTEP].contains(&input.name.as_str())
                && fed.iter().all(|(name, _)| *name != input.name)
        };
        for input in session.inputs().iter().filter(is_extra) {
            let kind = Extra::ALL.iter().find(|(name, _)| *name == input.name).map(|(_, kind)| *kind);
            let known = || Extra::ALL.map(|(name, _)| name).join(", ");
            let kind = kind.ok_or_else(|| {
                graph(format!("input {input} is not known; a UNet takes {SAMPLE}, {TIMESTEP}, {}", known()))
            })?;
            extra.push((kind, input.clone()));
        }
        let (kept, outputs): (Vec<TensorInfo>, Vec<TensorInfo>) =
            session.outputs().iter().cloned().partition(|info| CACHE_NAMES.contains(&info.name.as_str()));
        let [output] = outputs.as_slice() else {
            let names: Vec<_> = session.outputs().iter().map(ToString::to_string).collect();
            return Err(graph(format!("a UNet has one output; this has {}", names.join(", "))));
        };
        let (output, file, shallow) = (output.clone(), path.to_path_buf(), None);
        Ok(Self { session, file, model, fed, sizes, sample, timestep, output, extra, kept, shallow })
    }

    /// Takes the session of the shallow graph at `path`, which runs in the calls that [`CachedCall`] says.
    ///
    /// # Errors
    /// [`PipelineError::Graph`] if it is not the one beside this.
    pub fn set_shallow(&mut self, session: Box<dyn Session>, path: &Path) -> Result<(), PipelineError> {
        self.shallow = Some(Shallow::new(session, path, &self.file, &self.kept)?);
        Ok(())
    }

    /// Returns whether it has its shallow graph.
    pub(super) fn has_shallow(&self) -> bool {
        self.shallow.is_some()
    }

    /// Returns the time spent in the shallow graph and its runs, since this was asked last.
    pub(super) fn take_shallow_time(&mut self) -> (Duration, usize) {
        self.shallow.as_mut().map(|shallow| std::mem::take(&mut shallow.spent)).unwrap_or_default()
    }

    /// Returns the model's file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the sizes that it was loaded for.
    pub(super) fn sizes(&self) -> &LoadedFor {
        &self.sizes
    }

    /// Feeds it other weights from now on, to the same inputs.
    pub(super) fn feed(&mut self, fed: &Arc<Fed>) {
        self.fed = Arc::clone(fed);
    }

    /// Returns the model's path.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Returns the session.
    pub fn session(&self) -> &dyn Session {
        &*self.session
    }

    /// Returns the number of channels of its samples, if the graph says it.
    pub fn channels(&self) -> Option<usize> {
        self.sample.fixed_dim(1)
    }

    /// Returns the batch that the graph was exported for, if it takes only one.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.sample.fixed_dim(0)
    }

    /// Returns height and width of the latents that the graph was exported for, if it takes only these.
    pub fn fixed_size(&self) -> Option<(usize, usize)> {
        Some((self.sample.fixed_dim(2)?, self.sample.fixed_dim(3)?))
    }

    /// Returns whether it takes SDXL's pooled text and sizes.
    pub fn takes_sizes(&self) -> bool {
        self.extra.iter().any(|(kind, _)| *kind == Extra::TimeIds)
    }

    /// Returns the width of the embedded guidance scale, if it takes one.
    pub fn timestep_cond(&self) -> Option<Result<usize, PipelineError>> {
        let (_, info) = self.extra.iter().find(|(kind, _)| *kind == Extra::TimestepCond)?;
        let width = match info.dims.as_deref() {
            Some([_, Dim::Fixed(width)]) => usize::try_from(*width).ok(),
            _ => None,
        };
        Some(width.ok_or_else(|| self.graph(format!("input {info} should be [batch, a fixed width]"))))
    }

    /// Returns whether timesteps are whole numbers to it.
    pub fn takes_whole_timesteps(&self) -> bool {
        [DataType::INT64, DataType::INT32].contains(&self.timestep.data_type)
    }

    fn graph(&self, what: String) -> PipelineError {
        PipelineError::Graph { model: self.model.clone(), what }
    }

    /// Makes ready what doesn't change from call to call. `sample` are the dimensions of the batch of samples.
    ///
    /// # Errors
    /// [`PipelineError::Graph`] if the graph takes something that there is not.
    pub fn prepare(
        &self,
        conditioning: &Conditioning,
        sample: [usize; 4],
    ) -> Result<Prepared, PipelineError> {
        let one = |(kind, info): &(Extra, TensorInfo)| {
            let tensor = match kind {
                Extra::Context => Some(&conditioning.context),
                Extra::Pooled => conditioning.pooled.as_ref(),
                Extra::TimeIds => conditioning.time_ids.as_ref(),
                Extra::TimestepCond => conditioning.timestep_cond.as_ref(),
            };
            let missing = || self.graph(format!("it takes {info}, which this kind of pipeline doesn't have"));
            Ok(tensor.ok_or_else(missing)?.cast(info.data_type)?)
        };
        let extra = self.extra.iter().map(one).collect::<Result<_, PipelineError>>()?;
        let sample = HostTensor::new(sample, vec![0f32; sample.iter().product()])?;
        Ok(Prepared { sample, extra, features: Features::default(), digest: OnceCell::new() })
    }

    /// Runs the network on `prepared.sample`'s dimensions of values, which `fill` writes. The result is a buffer of
    /// its own in float32.
    ///
    /// # Errors
    /// [`PipelineError::Engine`] if the engine fails; [`PipelineError::Graph`] if the output has another shape.
    pub fn run(
        &mut self,
        prepared: &mut Prepared,
        timestep: f64,
        fill: impl FnOnce(&mut [f32]),
    ) -> Result<Vec<f32>, PipelineError> {
        self.run_call(prepared, timestep, fill, CachedCall::Outside, None)
    }

    /// Does the same as [`Unet::run`], unless the cache knows the result, or `call` has features for the shallow graph.
    pub(super) fn run_call(
        &mut self,
        prepared: &mut Prepared,
        timestep: f64,
        fill: impl FnOnce(&mut [f32]),
        call: CachedCall,
        cache: Option<&CachedRun<'_>>,
    ) -> Result<Vec<f32>, PipelineError> {
        if let Some(values) = prepared.sample.as_f32_mut() {
            fill(values);
        }
        if self.shallow.is_some() && call != CachedCall::Outside {
            return self.predict_call(prepared, timestep, call);
        }
        prepared.features.clear();
        match cache.filter(|_| self.fed.is_empty()) {
            None => self.predict(prepared, timestep),
            Some(cache) => {
                let (file, inputs) = (self.file.clone(), self.digest(prepared, timestep));
                cache.prediction(&file, inputs, || self.predict(prepared, timestep))
            }
        }
    }

    /// Returns a digest of all that it is fed in a call.
    fn digest(&self, prepared: &Prepared, timestep: f64) -> Inputs {
        let tensor = |hash: &mut Sha256, name: &str, tensor: &HostTensor| {
            let length = |length: usize| (length as u64).to_le_bytes();
            hash.update(length(name.len()));
            hash.update(name);
            hash.update(tensor.data_type().0.to_le_bytes());
            hash.update(length(tensor.dims().len()));
            tensor.dims().iter().for_each(|dim| hash.update(length(*dim)));
            hash.update(tensor.to_le_bytes());
        };
        let extra = prepared.digest.get_or_init(|| {
            let mut hash = Sha256::new();
            for ((_, info), value) in self.extra.iter().zip(&prepared.extra) {
                tensor(&mut hash, &info.name, value);
            }
            hash
        });
        let mut hash = extra.clone();
        tensor(&mut hash, SAMPLE, &prepared.sample);
        hash.update(timestep.to_le_bytes());
        hash.finalize().into()
    }

    /// Runs the whole network, and keeps the features of `call`, or the shallow graph with those that were kept.
    fn predict_call(
        &mut self,
        prepared: &mut Prepared,
        timestep: f64,
        call: CachedCall,
    ) -> Result<Vec<f32>, PipelineError> {
        let depth = if prepared.features.serve(call) { Depth::Shallow } else { Depth::Full };
        let started = Instant::now();
        let (values, features) = self.predict_at(prepared, timestep, Some(depth))?;
        match (depth, &mut self.shallow) {
            (Depth::Shallow, Some(shallow)) => {
                shallow.spent.0 += started.elapsed();
                shallow.spent.1 += 1;
            }
            _ => {
                prepared.features.kept_in(call);
                prepared.features.values = features;
            }
        }
        Ok(values)
    }

    /// Runs the network on `prepared.sample`.
    fn predict(&mut self, prepared: &Prepared, timestep: f64) -> Result<Vec<f32>, PipelineError> {
        Ok(self.predict_at(prepared, timestep, None)?.0)
    }

    /// Runs the network, or one of its two graphs for a cache, on `prepared.sample`. Of the full one features come with the
    /// result.
    fn predict_at(
        &mut self,
        prepared: &Prepared,
        timestep: f64,
        depth: Option<Depth>,
    ) -> Result<(Vec<f32>, Vec<HostTensor>), PipelineError> {
        let converted;
        let sample = if self.sample.data_type == DataType::FLOAT {
            &prepared.sample
        } else {
            converted = prepared.sample.cast(self.sample.data_type)?;
            &converted
        };
        let timestep =
            timestep_tensor(&self.timestep, timestep, sample.dims().first().copied().unwrap_or(1))?;
        let mut inputs = vec![(SAMPLE, sample), (TIMESTEP, &timestep)];
        inputs.extend(
            self.extra.iter().zip(&prepared.extra).map(|((_, info), tensor)| (info.name.as_str(), tensor)),
        );
        inputs.extend(self.fed.iter().map(|(name, tensor)| (name.as_str(), tensor)));
        let mut wanted = vec![self.output.name.as_str()];
        let result = match (depth, &mut self.shallow) {
            (Some(Depth::Shallow), Some(shallow)) => {
                let kept = self.kept.iter().map(|info| info.name.as_str());
                inputs.extend(kept.zip(&prepared.features.values));
                shallow.session.run(&inputs, Some(&wanted))?
            }
            _ => {
                let kept = self.kept.iter().filter(|_| depth.is_some());
                wanted.extend(kept.map(|info| info.name.as_str()));
                self.session.run(&inputs, Some(&wanted))?
            }
        };
        let mut results = result.into_iter().map(|(_, tensor)| tensor);
        let output = results.next().ok_or_else(|| self.graph("it gave no output".to_string()))?;
        let features = results.collect();
        if output.dims() != prepared.sample.dims() {
            let what = format!(
                "output {} is {:?} for a sample of {:?}; it should be of the same shape",
                self.output,
                output.dims(),
                prepared.sample.dims()
            );
            return Err(self.graph(what));
        }
        let output =
            if output.data_type() == DataType::FLOAT { output } else { output.cast(DataType::FLOAT)? };
        match output.into_data() {
            TensorData::Float(values) => Ok((values, features)),
            other => Err(self.graph(format!("its output is {}", other.data_type().name()))),
        }
    }
}

/// Returns the timestep in the type and rank that the graph declares: a scalar, or one for each sample. Whole numbers
/// are cut off, as torch and numpy convert them.
fn timestep_tensor(info: &TensorInfo, timestep: f64, batch: usize) -> Result<HostTensor, EngineError> {
    let dims = match info.dims.as_deref() {
        None | Some([]) => Vec::new(),
        Some([Dim::Fixed(1)]) => vec![1],
        Some(_) => vec![batch],
    };
    let count = dims.iter().product();
    let float =
        [DataType::FLOAT, DataType::FLOAT16, DataType::BFLOAT16, DataType::DOUBLE].contains(&info.data_type);
    let tensor = match float {
        true => HostTensor::new(dims, vec![timestep; count])?,
        false => HostTensor::new(dims, vec![timestep as i64; count])?,
    };
    tensor.cast(info.data_type)
}
