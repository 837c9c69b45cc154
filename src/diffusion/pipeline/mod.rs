//! From a prompt to images: a pipeline folder in Optimum's layout, run by an engine, step by step as diffusers'
//! `StableDiffusionPipeline` and `StableDiffusionXLPipeline` do.

mod condition;
mod folder;
mod model;
mod networks;
mod noise;
mod preview;
mod request;
mod shapes;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

pub use crate::plan::Unets;
pub use folder::{Folder, PipelineKind};
pub use request::{Output, Place, Random, Request, Timings};

use self::{
    condition::{Prompt, Shared, branches, guidance_embedding},
    model::Model,
    noise::{Noise, Precision},
    preview::Previews,
};
use super::{
    PipelineError,
    amplify::mixes,
    call::CallTensors,
    device::{DeviceLoop, StepGraphs, StepSessions},
    feature_cache::cached_calls,
    fitting::Fitting,
    interleave::{Batching, Guidance, Interleave, Networks},
    prediction_cache::{CachedRun, PredictionCache},
    sampler::{self, Clean, Config, Row, SamplerError, SavedConfig, Table, TimestepType},
    text::{self, HiddenState, Prompter},
    unet::{Fed, Unet},
    vae::{Decoder, Image, Tiling},
};
use crate::{
    engine::{Engine, HostTensor, MemoryMode, Provider, SessionOptions},
    observer::{Event, Observer, Stage},
};

/// A pipeline: its models are loaded when they are first run.
///
/// With [`MemoryMode::Low`] text encoders and the VAE are let go after each use.
pub struct Pipeline {
    folder: Folder,
    engine: Box<dyn Engine>,
    options: SessionOptions,
    /// For the models that run once: CUDA graphs are for those that run again on the same tensors.
    plain: SessionOptions,
    unets: Unets,
    /// The file of the dense network.
    dense: PathBuf,
    /// The shallow graphs' files by those of the full ones.
    shallow: BTreeMap<PathBuf, PathBuf>,
    /// The masked weights that the network that is not the pipeline's own is fed beside a UNet's inputs.
    fed: Arc<Fed>,
    networks: Option<Networks>,
    /// Networks that are loaded, but not of this run.
    idle: Vec<Unet>,
    cache: Option<Arc<PredictionCache>>,
    /// The sizes that networks are known to run at.
    fitting: Fitting,
    /// The sizes that the networks were loaded for, where that matters.
    fitted: Option<shapes::Sizes>,
    steps: StepSessions,
    prompters: Vec<Prompter>,
    encoders: Vec<Model>,
    decoder: Model,
    loading: Duration,
    loading_given: Duration,
}

impl Pipeline {
    /// Reads the configs and tokenizers of a pipeline; `options` are for all its models.
    ///
    /// # Errors
    /// [`PipelineError`] if a file is missing or wrong, or the pipeline is of a kind that isn't supported.
    pub fn open(
        path: &Path,
        engine: Box<dyn Engine>,
        options: SessionOptions,
        unets: Unets,
    ) -> Result<Self, PipelineError> {
        let folder = Folder::open(path)?;
        let text = folder.text();
        let prompters = text.iter().map(|(tokenizer, encoder)| Prompter::open(tokenizer, encoder));
        let prompters = prompters.collect::<Result<_, _>>()?;
        let encoders = folder.text_encoders().into_iter().map(Model::new).collect();
        let decoder = Model::new(folder.decoder());
        let providers = options.providers.iter().cloned().map(Provider::without_cuda_graphs).collect();
        let plain = SessionOptions { providers, ..options.clone() };
        Ok(Self {
            dense: folder.unet(),
            folder,
            engine,
            options,
            plain,
            unets,
            shallow: BTreeMap::new(),
            fed: Arc::default(),
            networks: None,
            idle: Vec::new(),
            cache: None,
            fitting: Fitting::default(),
            fitted: None,
            steps: StepSessions::default(),
            prompters,
            encoders,
            decoder,
            loading: Duration::ZERO,
            loading_given: Duration::ZERO,
        })
    }

    /// Returns the description of the pipeline by its folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Makes images. `observer` hears of stages, calls and warnings, and can stop the run between calls.
    ///
    /// # Errors
    /// [`PipelineError`]: the request doesn't fit the pipeline, an engine fails, a network's output is not finite, or
    /// [`PipelineError::Stopped`].
    pub fn run(&mut self, request: &Request, observer: &dyn Observer) -> Result<Output, PipelineError> {
        let config = scheduler(&self.folder.scheduler, request)?;
        let table = Table::new(&config, request.steps, request.eta)?;
        let sample = self.sample_dims(request)?;
        (self.loading, self.loading_given) = (Duration::ZERO, Duration::ZERO);
        let cache = self.cache.clone();
        let cache = cache.as_deref().map(CachedRun::new);

        let mixed = match self.unets.are_mixed() {
            true => mixes(&request.amplify, table.rows())?,
            false => Vec::new(),
        };
        let cached =
            request.cache.as_ref().map(|cache| cached_calls(cache, table.rows())).unwrap_or_default();
        self.check_sizes(sample)?;
        let networks = self.networks(request, sample, &mixed, observer);
        let networks = networks.map_err(|error| self.folder.explain_size(error, sample))?;
        let distilled = check_networks(&networks, &self.folder, &table, sample, observer)?;
        let guided = request.guidance > 1.0 && distilled.is_none();

        observer.tell(Event::Begun(Stage::Text))?;
        let (started, loaded) = (Instant::now(), self.loading);
        let (conditional, unconditional) = self.prompts(request, guided, cache.as_ref(), observer)?;
        let text = started.elapsed().saturating_sub(self.loading - loaded);

        let mut noise = {
            let precision =
                if conditional.iter().any(Prompt::is_half) { Precision::Half } else { Precision::Single };
            Noise::new(request, precision, sample, table.draws())?
        };
        let size = [request.height as f32, request.width as f32];
        let shared = Shared {
            images: request.images(),
            time_ids: (self.folder.kind == PipelineKind::StableDiffusionXl)
                .then(|| [size[0], size[1], 0.0, 0.0, size[0], size[1]]),
            timestep_cond: distilled.map(|width| guidance_embedding(request.guidance, width)),
        };
        let branches = branches(&conditional, unconditional.as_deref(), &shared)?;

        observer.tell(Event::Begun(Stage::Sampling))?;
        let started = Instant::now();
        let on_device = self.samples_on_device(request);
        let networks = self.networks.insert(networks);
        let guidance = Guidance {
            scale: request.guidance as f32,
            rescale: request.guidance_rescale as f32,
            batching: batching(request, networks),
        };
        let mut latents = noise.first(request, sample)?;
        let scale = table.init_noise_sigma() as f32;
        latents.iter_mut().for_each(|value| *value *= scale);
        let (calls, steps) = (table.rows().len(), request.steps);
        let clean = Clean::of(&config)?;
        let mut previews = request.preview.map(|every| Previews {
            every: every.get(),
            clean,
            decoder: &mut self.decoder,
            vae: &self.folder.vae,
            engine: &*self.engine,
            options: &self.plain,
            loading: &mut self.loading,
            sample,
            tiling: request.tiling,
            last: None,
        });
        let mut told = |call: usize, row: &Row, tensors: CallTensors<'_>| {
            let (step, timestep) = (row.step, row.timestep);
            observer.tell(Event::Call { call, calls, step, steps, timestep })?;
            let images = previews.as_mut().map(|previews| previews.after(row, tensors)).transpose()?;
            for (index, Image { height, width, pixels }) in images.flatten().iter().flatten().enumerate() {
                observer.tell(Event::Preview { step, index, height: *height, width: *width, pixels })?;
            }
            Ok(())
        };
        let on = request.amplify.on;
        let (sampled, networks_time) = if on_device {
            let graphs = StepGraphs::new(&*self.engine, &self.options, &mut self.steps);
            let device = DeviceLoop::new(networks, graphs, mixed, on, guidance, &branches, sample)?;
            let mut device = device.with_features(cached);
            let sampled = device.run(&table, &mut latents, |values| noise.fill(values), told);
            (sampled, device.time())
        } else {
            // A network in the place of the dense one is the plan's own.
            let cache = cache.as_ref().filter(|_| !matches!(self.unets, Unets::Instead(_)));
            let interleave = Interleave::new(networks, mixed, on, guidance, &branches, sample)?;
            let mut interleave = interleave.with_cache(cache).with_features(cached);
            let mut call = 0;
            let sampled = sampler::run(
                &table,
                &mut latents,
                |values| noise.fill(values),
                |row, input, output| {
                    interleave.call(call, row, input, output)?;
                    told(call, row, &mut || Ok([input.to_vec(), output.to_vec()]))?;
                    call += 1;
                    Ok(())
                },
            );
            (sampled, interleave.time())
        };
        sampled.map_err(|error| self.folder.explain_size(error, sample))?;
        if !latents.iter().all(|value| value.is_finite()) {
            let hint = "; a network in half precision may overflow: export it in float32".to_string();
            return Err(PipelineError::NotFinite { stage: "the UNet", hint });
        }
        let sampling = started.elapsed();

        let (started, loaded) = (Instant::now(), self.loading);
        let images = match request.decode {
            true => self.decode(&latents, sample, request.tiling, observer)?,
            false => Vec::new(),
        };
        let decoding = started.elapsed().saturating_sub(self.loading - loaded);
        let timings = Timings {
            loading: self.loading,
            loading_given: self.loading_given,
            text,
            sampling,
            networks: networks_time,
            decoding,
            lookups: cache.map(|cache| cache.lookups()).unwrap_or_default(),
        };
        let latents = HostTensor::new(sample, latents)?;
        Ok(Output { latents, images, timings, scheduler: table.class() })
    }

    /// Returns the dimensions of the batch of latents for a request.
    fn sample_dims(&self, request: &Request) -> Result<[usize; 4], PipelineError> {
        let factor = self.folder.vae.factor;
        let (height, width) = (request.height, request.width);
        self.folder.check_size(height, width)?;
        if request.images() == 0 {
            return Err(PipelineError::Request("a batch has at least one image".to_string()));
        }
        let dims = [request.images(), self.folder.vae.channels, height / factor, width / factor];
        let values = dims.iter().try_fold(2usize, |n, dim| n.checked_mul(*dim));
        if values.is_none_or(|n| n > isize::MAX as usize / 64) {
            return Err(PipelineError::Request(format!(
                "{} images of {height}x{width} are too many",
                request.images()
            )));
        }
        Ok(dims)
    }

    fn samples_on_device(&self, request: &Request) -> bool {
        match request.place {
            Place::Automatic => self.options.runs_on_a_device(),
            Place::Host => false,
            Place::Device => true,
        }
    }

    /// Returns the prompts, and with guidance the negative ones: as many, or one for all.
    fn prompts(
        &mut self,
        request: &Request,
        guided: bool,
        cache: Option<&CachedRun<'_>>,
        observer: &dyn Observer,
    ) -> Result<(Vec<Prompt>, Option<Vec<Prompt>>), PipelineError> {
        let state = match (self.folder.kind, request.clip_skip) {
            (PipelineKind::StableDiffusion, None) => HiddenState::Last,
            (PipelineKind::StableDiffusion, Some(_)) => {
                let what = "`clip_skip` needs the last norm of the text encoder on its own, which exports of Stable \
                            Diffusion 1 and 2 don't have";
                return Err(PipelineError::Request(what.to_string()));
            }
            (PipelineKind::StableDiffusionXl, skip) => {
                HiddenState::FromEnd(skip.unwrap_or(0).saturating_add(2))
            }
        };
        let (prompts, negative) = (&request.prompts, &request.negative_prompts);
        if ![0, 1, prompts.len()].contains(&negative.len()) {
            let (given, wanted) = (negative.len(), prompts.len());
            let what = format!("{given} negative prompts for {wanted} prompts; give one, or one for each");
            return Err(PipelineError::Request(what));
        }
        let conditional = prompts.iter().map(|prompt| self.encode(prompt, state, cache, observer));
        let conditional: Vec<Prompt> = conditional.collect::<Result<_, _>>()?;
        // As diffusers, `clip_skip` is for the prompt only.
        let state = if state == HiddenState::Last { state } else { HiddenState::FromEnd(2) };
        let unconditional = match negative.as_slice() {
            _ if !guided => None,
            [] if self.folder.zeros_for_empty_prompt => {
                Some(conditional.iter().map(Prompt::zeros).collect::<Result<_, _>>()?)
            }
            [] => Some(vec![self.encode("", state, cache, observer)?]),
            negative => {
                let encoded = negative.iter().map(|prompt| self.encode(prompt, state, cache, observer));
                Some(encoded.collect::<Result<_, _>>()?)
            }
        };
        if self.options.memory == MemoryMode::Low {
            self.encoders.iter_mut().for_each(|encoder| encoder.session = None);
        }
        Ok((conditional, unconditional))
    }

    fn encode(
        &mut self,
        prompt: &str,
        state: HiddenState,
        cache: Option<&CachedRun<'_>>,
        observer: &dyn Observer,
    ) -> Result<Prompt, PipelineError> {
        let mut encoded = Vec::with_capacity(self.encoders.len());
        for (prompter, encoder) in self.prompters.iter().zip(&mut self.encoders) {
            let tokens = prompter.tokens(prompt)?;
            // Both tokenizers of SDXL cut at the same place; once is enough.
            if encoded.is_empty()
                && let Some(warning) = tokens.cut_warning()
            {
                observer.tell(Event::Warning(&warning))?;
            }
            let path = encoder.path.clone();
            let mut encode = || {
                let session = encoder.session(&*self.engine, &self.plain, &mut self.loading)?;
                text::encode(session, &path, &tokens.ids, state)
            };
            encoded.push(match cache {
                Some(cache) => cache.text(&path, &tokens.ids, state, encode)?,
                None => encode()?,
            });
        }
        Prompt::join(encoded)
    }

    fn decode(
        &mut self,
        latents: &[f32],
        [_, channels, height, width]: [usize; 4],
        tiling: Tiling,
        observer: &dyn Observer,
    ) -> Result<Vec<Image>, PipelineError> {
        observer.tell(Event::Begun(Stage::Decoding))?;
        let mut images = Vec::new();
        for latents in latents.chunks_exact(channels * height * width) {
            let image = match self.decode_one(latents, height, width, tiling) {
                Err(PipelineError::NotFinite { stage, .. }) => {
                    let Some(path) = self.folder.decoder_fp32() else {
                        let hint = "; a decoder in half precision overflows on some latents: put one in float32 \
                                    into vae_decoder_fp32/model.onnx";
                        return Err(PipelineError::NotFinite { stage, hint: hint.to_string() });
                    };
                    let what =
                        "the VAE gave values that are not finite; decoding again with vae_decoder_fp32";
                    observer.tell(Event::Warning(what))?;
                    self.decoder = Model::new(path);
                    self.decode_one(latents, height, width, tiling)?
                }
                other => other?,
            };
            images.push(image);
        }
        if self.options.memory == MemoryMode::Low && self.cache.is_none() {
            self.decoder.session = None;
        }
        Ok(images)
    }

    fn decode_one(
        &mut self,
        latents: &[f32],
        height: usize,
        width: usize,
        tiling: Tiling,
    ) -> Result<Image, PipelineError> {
        let path = self.decoder.path.clone();
        let session = self.decoder.session(&*self.engine, &self.plain, &mut self.loading)?;
        Decoder { session, model: &path, config: &self.folder.vae }.decode(latents, height, width, tiling)
    }
}

/// Returns the scheduler's settings for a request.
fn scheduler(saved: &SavedConfig, request: &Request) -> Result<Config, SamplerError> {
    saved.config(request.scheduler)?.with_options(&request.scheduler_config)
}

/// Checks the networks against the folder; returns the width of the embedded guidance scale, for distilled ones.
fn check_networks(
    networks: &Networks,
    folder: &Folder,
    table: &Table,
    [_, _, height, width]: [usize; 4],
    observer: &dyn Observer,
) -> Result<Option<usize>, PipelineError> {
    let unets: Vec<&Unet> = match networks {
        Networks::One(unet) => vec![unet],
        Networks::Pair { dense, pruned } => vec![dense, pruned],
    };
    let mut distilled = None;
    for unet in unets {
        let graph = |what: String| PipelineError::Graph { model: unet.model().to_string(), what };
        if let Some(channels) = unet.channels().filter(|channels| *channels != folder.vae.channels) {
            let what = format!(
                "it takes {channels} channels, but the VAE has {}: only text to image is supported",
                folder.vae.channels
            );
            return Err(graph(what));
        }
        if let Some((fixed_height, fixed_width)) = unet.fixed_size().filter(|fixed| *fixed != (height, width))
        {
            let factor = folder.vae.factor;
            let what = format!(
                "it was exported for one size, {}x{} pixels (latents of {fixed_height}x{fixed_width}), not for {}x{}",
                fixed_height * factor,
                fixed_width * factor,
                height * factor,
                width * factor,
            );
            return Err(graph(what));
        }
        let whole = table.timestep_type() == TimestepType::Int64
            || table.rows().iter().all(|row| row.timestep.fract() == 0.0);
        if unet.takes_whole_timesteps() && !whole {
            let what = format!(
                "{} takes whole timesteps only; those of {} are cut off",
                unet.model(),
                table.class()
            );
            observer.tell(Event::Warning(&what))?;
        }
        distilled = unet.timestep_cond().transpose()?;
    }
    Ok(distilled)
}

/// Returns how branches are batched: as asked, but for a network that takes only one batch.
fn batching(request: &Request, networks: &Networks) -> Batching {
    let (Networks::One(unet) | Networks::Pair { dense: unet, .. }) = networks;
    match unet.fixed_batch() {
        Some(batch) if batch == request.images() => Batching::InTurn,
        Some(_) => Batching::Together,
        None => request.batching,
    }
}
