//! A trial's images: drawing and scoring them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{
    SearchError, Space,
    objective::{Drawn, Objective, OpenGraph, Scored, open},
    space::{Noises, Over},
};
use crate::{
    diffusion::{
        Pipeline,
        interleave::Batching,
        pipeline::{Folder, Request, Unets},
        prediction_cache::{Lookups, PredictionCache},
        unet::Fed,
        vae::Image,
    },
    engine::{Engine, MemoryMode, SessionOptions},
    observer::Observer,
    plan::Amplify,
};

/// The score of a trial that failed: the authors' number.
pub const FAILED: f64 = -2.0;

/// One of the images that every trial draws.
#[derive(Clone, Debug, PartialEq)]
pub struct Shot {
    /// The prompt.
    pub prompt: String,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Its seed.
    pub seed: u64,
}

/// Returns the images of each trial: every prompt at every size, from every noise.
pub fn shots(space: &Space, folder: &Folder) -> Vec<Shot> {
    match &space.sampling.noises {
        Noises::Shared(seeds) => {
            let seed = |image: usize| seeds.get(image % seeds.len()).copied().unwrap_or_default();
            drawn(space, folder, seeds.len(), seed)
        }
        Noises::Own(noises) => drawn(space, folder, *noises, |image| image as u64),
    }
}

/// Returns the images by which trials are confirmed; none where the space asks for none. Their seeds go on above those of
/// [`shots`].
pub fn fresh_shots(space: &Space, folder: &Folder) -> Vec<Shot> {
    let noises = space.confirm.map_or(0, |confirm| confirm.noises);
    let first = shots(space, folder).iter().map(|shot| shot.seed + 1).max().unwrap_or_default();
    drawn(space, folder, noises, |image| first + image as u64)
}

/// Returns every prompt at every size, `noises` times. `seed` is asked with an image's place among them.
fn drawn(space: &Space, folder: &Folder, noises: usize, seed: impl Fn(usize) -> u64) -> Vec<Shot> {
    let sizes = match space.sampling.sizes.as_slice() {
        [] => vec![folder.default_size],
        sizes => sizes.to_vec(),
    };
    let mut shots = Vec::new();
    for prompt in &space.prompts {
        for (height, width) in &sizes {
            for _ in 0..noises {
                let seed = seed(shots.len());
                shots.push(Shot { prompt: prompt.clone(), height: *height, width: *width, seed });
            }
        }
    }
    shots
}

/// The networks that are run for a trial.
#[derive(Clone, Debug)]
pub struct Networks {
    /// The graphs.
    pub unets: Unets,
    /// The masked weights that the trial's graph is fed beside a UNet's inputs.
    pub fed: Arc<Fed>,
    /// How they are mixed.
    pub amplify: Amplify,
}

impl Networks {
    /// Returns a message without the names of the trial's files.
    pub(super) fn unnamed(&self, message: &str) -> String {
        let unnamed = |message: String, path: &PathBuf| {
            message.replace(&path.display().to_string(), "the trial's graph")
        };
        self.unets.given().fold(message.to_string(), unnamed)
    }
}

/// An image's scores.
#[derive(Clone, Debug, PartialEq)]
pub struct ShotScore {
    /// By the objective.
    pub objective: Scored,
    /// By each metric.
    pub metrics: Vec<(String, f64)>,
}

/// The scores of a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Over all images; [`FAILED`] if one of them failed.
    pub score: f64,
    /// Each image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<f64>,
    /// Means over the images: the objective's parts and the metrics.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl Scores {
    /// Returns the scores of a trial that failed.
    pub fn failed(why: impl ToString) -> Self {
        Self { score: FAILED, scores: Vec::new(), metrics: BTreeMap::new(), failed: Some(why.to_string()) }
    }

    /// Returns the scores of a trial's images, in their order.
    pub fn of(shots: &[ShotScore], over: Over) -> Self {
        let scores: Vec<f64> = shots.iter().map(|shot| shot.objective.score).collect();
        let mut metrics: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for (name, value) in shots.iter().flat_map(|shot| shot.objective.parts.iter().chain(&shot.metrics)) {
            let (sum, count) = metrics.entry(name.clone()).or_default();
            (*sum, *count) = (*sum + value, *count + 1.0);
        }
        let score = match over {
            Over::Mean => scores.iter().sum::<f64>() / scores.len().max(1) as f64,
            Over::Min => scores.iter().copied().reduce(f64::min).unwrap_or(FAILED),
        };
        let metrics = metrics.into_iter().map(|(name, (sum, count))| (name, sum / count)).collect();
        Self { score, scores, metrics, failed: None }
    }
}

/// Draws and scores images, one after the other.
pub struct Worker {
    pipeline: Pipeline,
    request: Request,
    objective: Box<dyn Objective>,
    metrics: Vec<(String, Box<dyn Objective>)>,
    time: WorkerTime,
    scratch: TempDir,
}

/// Where a worker's time went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerTime {
    /// In the dense network.
    pub dense: Duration,
    /// In trials' networks.
    pub trials: Duration,
    /// In text encoders and tokenizers.
    pub text: Duration,
    /// In the VAE.
    pub decoding: Duration,
    /// Scoring.
    pub objective: Duration,
    /// Loading the pipeline's own models.
    pub loading: Duration,
    /// Loading trials' graphs.
    pub loading_trials: Duration,
    /// The questions that the cache was asked.
    pub lookups: Lookups,
}

impl WorkerTime {
    /// Returns the time spent running models.
    pub fn models(&self) -> Duration {
        self.dense + self.trials + self.text + self.decoding
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Self) {
        self.dense += other.dense;
        self.trials += other.trials;
        self.text += other.text;
        self.decoding += other.decoding;
        self.objective += other.objective;
        self.loading += other.loading;
        self.loading_trials += other.loading_trials;
        self.lookups.add(other.lookups);
    }
}

impl Worker {
    /// Opens the pipeline in `folder` for a worker of its own. `cache` is that of all workers; `graph` opens what scores by a
    /// graph.
    ///
    /// # Errors
    /// [`SearchError`] if the pipeline or the objective cannot be opened.
    pub fn open(
        space: &Space,
        folder: &Folder,
        engine: Box<dyn Engine>,
        options: SessionOptions,
        cache: Arc<PredictionCache>,
        graph: OpenGraph<'_>,
    ) -> Result<Self, SearchError> {
        let batching = match options.memory {
            MemoryMode::Low => Batching::InTurn,
            MemoryMode::Fast => Batching::Together,
        };
        let mut pipeline = Pipeline::open(&folder.path, engine, options, Unets::Dense)?;
        pipeline.set_cache(cache);
        let objective = open(&space.objective, &space.folder, graph)?;
        let metric = |(name, spec): &(String, _)| Ok((name.clone(), open(spec, &space.folder, graph)?));
        let metrics = space.metrics.iter().map(metric).collect::<Result<_, SearchError>>()?;
        let scratch = tempfile::Builder::new().prefix("crdiff-search-").tempdir();
        let scratch = scratch.map_err(|e| SearchError::io("create a folder in", &std::env::temp_dir(), e))?;
        let mut request = Request::new("", 0, 0);
        let sampling = &space.sampling;
        request.negative_prompts = sampling.negative_prompt.iter().cloned().collect();
        request.steps = sampling.steps;
        request.guidance = sampling.guidance;
        request.scheduler = sampling.scheduler;
        request.scheduler_config = sampling.scheduler_options.clone();
        request.batching = batching;
        Ok(Self { pipeline, request, objective, metrics, time: WorkerTime::default(), scratch })
    }

    /// Draws an image.
    ///
    /// # Errors
    /// [`SearchError::Pipeline`], [`SearchError::Stopped`].
    pub fn draw(
        &mut self,
        networks: &Networks,
        shot: &Shot,
        observer: &dyn Observer,
    ) -> Result<Image, SearchError> {
        self.pipeline.set_unets(networks.unets.clone());
        self.pipeline.feed(Arc::clone(&networks.fed));
        let request = &mut self.request;
        request.prompts = vec![shot.prompt.clone()];
        (request.height, request.width, request.seeds) = (shot.height, shot.width, vec![shot.seed]);
        request.amplify = networks.amplify.clone();
        let output = self.pipeline.run(request, observer);
        let output = output.map_err(|error| match error {
            crate::diffusion::PipelineError::Stopped => SearchError::Stopped,
            other => other.into(),
        })?;
        let (timings, time) = (&output.timings, &mut self.time);
        let first =
            if matches!(networks.unets, Unets::Instead(_)) { &mut time.trials } else { &mut time.dense };
        *first += timings.networks.dense;
        time.trials += timings.networks.pruned;
        time.text += timings.text;
        time.decoding += timings.decoding;
        time.loading += timings.loading.saturating_sub(timings.loading_given);
        time.loading_trials += timings.loading_given;
        time.lookups.add(timings.lookups);
        let none = || SearchError::Values("the pipeline made no image".to_string());
        output.images.into_iter().next().ok_or_else(none)
    }

    /// Scores an image.
    ///
    /// # Errors
    /// [`SearchError::Objective`].
    pub fn score(&mut self, image: &Image, prompt: &str) -> Result<ShotScore, SearchError> {
        let started = Instant::now();
        let path = self.scratch.path().join("image.png");
        let drawn = Drawn::new(image, prompt, &path);
        let scored = self.objective.score(&drawn).and_then(|objective| {
            let mut metrics = Vec::with_capacity(self.metrics.len());
            for (name, metric) in &mut self.metrics {
                metrics.push((name.clone(), metric.score(&drawn)?.score));
            }
            Ok(ShotScore { objective, metrics })
        });
        self.time.objective += started.elapsed();
        scored
    }

    /// Returns where the time went so far.
    pub fn time(&self) -> &WorkerTime {
        &self.time
    }
}
