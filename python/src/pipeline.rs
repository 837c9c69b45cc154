//! Pipelines: from a prompt to images.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Mutex,
};

use crdiff::{
    diffusion::{
        self,
        interleave::Batching,
        pipeline::{Folder, Request, Unets},
        sampler::Preset,
        vae::Tiling,
    },
    observer::Observer,
    passes::MaskForm,
    plan::{Amplify, AmplifyWeight, Cache, Mode, Runtime, Target},
    plan_cache::{Compiled, Place, PlanCache, PlanCacheError},
};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict},
};

use crate::{
    array::{Array, to_python},
    engine::EngineOptions,
    failure::Failure,
    input::Plan,
    work::{lock, work},
};

/// A request to a pipeline.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Asked {
    prompts: Vec<String>,
    negative_prompts: Vec<String>,
    height: Option<usize>,
    width: Option<usize>,
    steps: usize,
    guidance: f64,
    guidance_rescale: f64,
    batch: usize,
    seeds: Vec<u64>,
    latents: Option<Array>,
    scheduler: Option<String>,
    eta: f64,
    clip_skip: Option<usize>,
    weight: Option<f64>,
    tile: bool,
    decode: bool,
    preview: Option<NonZeroUsize>,
}

/// The cache of compiled plans at `place`.
fn plan_cache<T>(
    place: Place,
    masks: MaskForm,
    observer: &dyn Observer,
    then: impl FnOnce(&PlanCache<'_>) -> Result<T, PlanCacheError>,
) -> Result<T, Failure> {
    Ok(then(&PlanCache { place, masks, observer })?)
}

/// Returns the networks that `plan` makes of `model`: without a plan, the dense one.
pub fn networks(
    model: &Path,
    plan: Option<&crdiff::plan::Plan>,
    place: Place,
    masks: MaskForm,
    observer: &dyn Observer,
) -> Result<Compiled, Failure> {
    match plan {
        None => Ok(Compiled::of(Unets::Dense)),
        Some(plan) => plan_cache(place, masks, observer, |cache| cache.networks(model, plan)),
    }
}

/// Where compiled plans are kept.
pub fn place(name: &str) -> Result<Place, Failure> {
    match name {
        "cache" => Ok(Place::Cache),
        "beside" => Ok(Place::Beside),
        other => Err(Failure::value(format!("compiled must be \"cache\" or \"beside\", not {other:?}"))),
    }
}

/// Returns the file of the one graph that runs a plan, and the weight to begin with, if it is an input.
#[pyfunction]
#[pyo3(signature = (model, plan, *, runtime_weight, compiled, listener))]
fn one_graph(
    py: Python<'_>,
    model: PathBuf,
    plan: &Plan,
    runtime_weight: bool,
    compiled: &str,
    listener: Option<Py<PyAny>>,
) -> PyResult<(PathBuf, Option<f64>)> {
    let plan = &plan.0;
    let target = match (plan.amplify.mode, plan.rules.is_empty(), runtime_weight) {
        (Mode::Outputs, false, true) => Target::FusedWithInput,
        (Mode::Outputs, false, false) => Target::Fused,
        (_, _, true) => {
            let what = "runtime_weight is for a dense and a pruned network; this plan makes one network";
            return Err(Failure::value(what).into_py(py));
        }
        (Mode::Outputs, true, false) => Target::Dense,
        (Mode::Weights, ..) => Target::Amplified,
    };
    let path = work(py, listener.as_ref(), |observer| {
        let place = place(compiled)?;
        plan_cache(place, MaskForm::Stored, observer, |cache| cache.graph(&model, plan, target))
    })?;
    let first = match &plan.amplify.weight.value {
        AmplifyWeight::Constant(weight) | AmplifyWeight::Ramp { from: weight, .. } => *weight,
        AmplifyWeight::Steps(weights) => weights.first().copied().unwrap_or_default(),
    };
    Ok((path, runtime_weight.then_some(first)))
}

/// A pipeline.
#[pyclass(frozen, module = "crdiff._crdiff")]
pub struct Pipeline {
    pipeline: Mutex<diffusion::Pipeline>,
    folder: Folder,
    amplify: Amplify,
    cache: Option<Cache>,
    /// Whether two networks are mixed when it runs.
    mixes: bool,
    low: bool,
    engine: String,
}

#[pymethods]
impl Pipeline {
    /// Opens the pipeline in a folder, with the networks that a plan makes.
    #[staticmethod]
    #[pyo3(signature = (folder, plan, *, engine, compiled, listener))]
    fn open(
        py: Python<'_>,
        folder: PathBuf,
        plan: Option<&Plan>,
        engine: EngineOptions,
        compiled: &str,
        listener: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let plan = plan.map(|plan| plan.0.clone());
        work(py, listener.as_ref(), |observer| {
            let place = place(compiled)?;
            let opened = Folder::open(&folder).map_err(Failure::pipeline)?;
            let networks = networks(&opened.unet(), plan.as_ref(), place, engine.masks(), observer)?;
            let texts = match &plan {
                Some(plan) => plan_cache(place, MaskForm::Stored, observer, |cache| {
                    cache.text_encoders(&opened.text_encoders(), plan)
                })?,
                None => Vec::new(),
            };
            let runtime = plan.as_ref().map_or_else(Runtime::default, |plan| plan.runtime.clone());
            let (chosen, options) = engine.open(&runtime)?;
            let mixes = networks.unets.are_mixed();
            let pipeline = diffusion::Pipeline::open(&folder, chosen.engine, options, networks.unets);
            let mut pipeline = pipeline.map_err(Failure::pipeline)?;
            if let Some(dense) = networks.dense {
                pipeline.set_dense(dense);
            }
            for (index, path) in texts {
                pipeline.set_text_encoder(index, path);
            }
            pipeline.set_shallow(networks.shallow);
            Ok(Self {
                pipeline: Mutex::new(pipeline),
                folder: opened,
                cache: plan.as_ref().and_then(|plan| plan.cache.clone()),
                amplify: plan.map(|plan| plan.amplify).unwrap_or_default(),
                mixes,
                low: engine.is_low(),
                engine: chosen.why,
            })
        })
    }

    /// The engine that runs, and why it.
    #[getter]
    fn engine(&self) -> &str {
        &self.engine
    }

    /// Height and width of the images that it was made for, in pixels.
    #[getter]
    fn default_size(&self) -> (usize, usize) {
        self.folder.default_size
    }

    /// Makes images. `listener` is called with `"loading"`, `"text"`, `"sampling"`, `"decoding"` when a stage begins, with
    /// `"step"` and the step and its timestep, and with `"warning"` and a text.
    #[pyo3(signature = (asked, *, listener))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        asked: Asked,
        listener: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let request = self.request(&asked).map_err(|failure| failure.into_py(py))?;
        let output = work(py, listener.as_ref(), |observer| {
            let mut pipeline = lock(&self.pipeline);
            pipeline.run(&request, observer).map_err(Failure::pipeline)
        })?;
        let made = PyDict::new(py);
        let images = output.images.iter();
        let images: Vec<_> =
            images.map(|image| (image.height, image.width, PyBytes::new(py, &image.pixels))).collect();
        made.set_item("images", images)?;
        made.set_item("latents", to_python(py, output.latents.dims(), &output.latents.to_f32()))?;
        made.set_item("scheduler", output.scheduler.to_string())?;
        let timings = PyDict::new(py);
        let times = &output.timings;
        for (name, time) in [
            ("loading", times.loading),
            ("text", times.text),
            ("sampling", times.sampling),
            ("dense", times.networks.dense),
            ("pruned", times.networks.pruned),
            ("decoding", times.decoding),
        ] {
            timings.set_item(name, time.as_secs_f64())?;
        }
        timings.set_item("dense_runs", times.networks.dense_runs)?;
        timings.set_item("pruned_runs", times.networks.pruned_runs)?;
        timings.set_item("dense_shallow_runs", times.networks.dense_shallow_runs)?;
        timings.set_item("pruned_shallow_runs", times.networks.pruned_shallow_runs)?;
        made.set_item("timings", timings)?;
        Ok(made)
    }
}

impl Pipeline {
    fn request(&self, asked: &Asked) -> Result<Request, Failure> {
        let (height, width) = self.folder.default_size;
        let mut request = Request::new("", asked.height.unwrap_or(height), asked.width.unwrap_or(width));
        request.prompts.clone_from(&asked.prompts);
        request.negative_prompts.clone_from(&asked.negative_prompts);
        request.steps = asked.steps;
        request.guidance = asked.guidance;
        request.guidance_rescale = asked.guidance_rescale;
        request.batch = asked.batch;
        request.seeds.clone_from(&asked.seeds);
        request.latents = asked.latents.as_ref().map(Array::tensor).transpose()?;
        if let Some(name) = &asked.scheduler {
            request.set_scheduler(name.parse::<Preset>().map_err(Failure::value)?);
        }
        request.eta = asked.eta;
        request.clip_skip = asked.clip_skip;
        request.amplify = self.amplify.clone();
        request.cache = self.cache.clone();
        match asked.weight {
            None => {}
            Some(weight) if self.mixes => request.amplify.weight.value = AmplifyWeight::Constant(weight),
            Some(_) => {
                let what = "`weight` is for a dense and a pruned network; here one network runs, which has its weight \
                            compiled in or none";
                return Err(Failure::value(what));
            }
        }
        if self.low {
            request.batching = Batching::InTurn;
        }
        if asked.tile {
            request.tiling = Tiling::Tiles;
        }
        request.decode = asked.decode;
        request.preview = asked.preview;
        Ok(request)
    }
}

pub fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Pipeline>()?;
    module.add_function(wrap_pyfunction!(one_graph, module)?)
}
