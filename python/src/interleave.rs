//! The networks of a plan for other people's loops: samples in, amplified predictions out.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use crdiff::{
    diffusion::{
        amplify::{DifferenceSource, Mix},
        fitting::{Asked, Fitting},
        interleave::{self, Batching, Branches, Guidance, Networks},
        pipeline::Unets,
        sampler::{Prediction, Row},
        unet::{Conditioning, Unet},
    },
    engine::{Engine, SessionOptions},
    plan::On,
    plan_cache::Compiled,
};
use pyo3::{prelude::*, types::PyBytes};

use crate::{
    array::{Array, to_python},
    engine::EngineOptions,
    failure::Failure,
    input::Plan,
    pipeline::{networks, place},
    work::{lock, work},
};

/// One or two networks, loaded.
#[pyclass(frozen, module = "crdiff._crdiff")]
pub struct Interleave {
    networks: Mutex<Networks>,
    /// The sizes that they are known to run at.
    fitting: Mutex<Fitting>,
    /// w, if it is the same in every call.
    weight: Option<f64>,
    engine: String,
}

/// The inputs of a call.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Fed {
    sample: Array,
    timestep: f64,
    context: Array,
    pooled: Option<Array>,
    time_ids: Option<Array>,
    timestep_cond: Option<Array>,
}

#[pymethods]
impl Interleave {
    /// Loads the networks that a plan makes of a model.
    #[staticmethod]
    #[pyo3(signature = (model, plan, *, engine, compiled, listener))]
    fn open(
        py: Python<'_>,
        model: PathBuf,
        plan: Option<&Plan>,
        engine: EngineOptions,
        compiled: &str,
        listener: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let plan = plan.map(|plan| plan.0.clone());
        work(py, listener.as_ref(), |observer| {
            let place = place(compiled)?;
            let Compiled { unets, dense, shallow } =
                networks(&model, plan.as_ref(), place, engine.masks(), observer)?;
            if !shallow.is_empty() {
                let what =
                    "a plan with `cache` needs to know which step a call is; run it as a pipeline of crdiff";
                return Err(Failure::value(what));
            }
            let weight = match &plan {
                Some(plan) if unets.are_mixed() => plan.amplify.constant().ok(),
                _ => Some(1.0),
            };
            let runtime = plan.map(|plan| plan.runtime).unwrap_or_default();
            let (chosen, options) = engine.open(&runtime)?;
            let load = |path: &Path| load(&*chosen.engine, path, &options);
            let own = dense.as_deref().unwrap_or(&model);
            let networks = match &unets {
                Unets::Dense => Networks::One(load(own)?),
                Unets::Instead(path) => Networks::One(load(path)?),
                Unets::WithPruned(path) => Networks::Pair { dense: load(own)?, pruned: load(path)? },
                Unets::Pair { dense, pruned } => {
                    Networks::Pair { dense: load(dense)?, pruned: load(pruned)? }
                }
            };
            Ok(Self { networks: Mutex::new(networks), fitting: Mutex::default(), weight, engine: chosen.why })
        })
    }

    /// The engine that runs, and why it.
    #[getter]
    fn engine(&self) -> &str {
        &self.engine
    }

    /// The plan's weight, if it is the same in every call.
    #[getter]
    fn weight(&self) -> Option<f64> {
        self.weight
    }

    /// Runs the networks that `weight` needs, and mixes their outputs.
    fn call(&self, py: Python<'_>, fed: Fed, weight: f64) -> PyResult<(Vec<usize>, Py<PyBytes>)> {
        let (dims, values) = work(py, None, |_| self.run(&fed, weight))?;
        Ok(to_python(py, &dims, &values))
    }
}

impl Interleave {
    fn run(&self, fed: &Fed, weight: f64) -> Result<(Vec<usize>, Vec<f32>), Failure> {
        let sample = fed.sample.tensor()?;
        let dims: [usize; 4] = sample.dims().try_into().map_err(|_| {
            Failure::value(format!(
                "sample must be [batch, channels, height, width], not {:?}",
                sample.dims()
            ))
        })?;
        let tensor = |array: &Option<Array>| array.as_ref().map(Array::tensor).transpose();
        let conditional = Conditioning {
            context: fed.context.tensor()?,
            pooled: tensor(&fed.pooled)?,
            time_ids: tensor(&fed.time_ids)?,
            timestep_cond: tensor(&fed.timestep_cond)?,
        };
        let tokens = conditional.context.dims().get(1).copied().unwrap_or_default();
        let mix = match weight {
            0.0 => Mix::Dense,
            1.0 => Mix::Pruned,
            weight => Mix::Amplified { weight: weight as f32, difference: DifferenceSource::Fresh },
        };
        // Guidance is the caller's.
        let guidance = Guidance { scale: 1.0, rescale: 0.0, batching: Batching::InTurn };
        let branches = Branches { unconditional: None, conditional, together: None };
        let row = Row {
            timestep: fed.timestep,
            step: 0,
            fraction: 0.0,
            sigma: 0.0,
            input_scale: 1.0,
            prediction: Prediction { sample: 0.0, output: 1.0, clip: None },
            keep: None,
            next: Vec::new(),
        };
        let mut networks = lock(&self.networks);
        let asked = Asked { sample: dims, tokens, factor: None };
        lock(&self.fitting).check_each(&networks, asked).map_err(Failure::pipeline)?;
        let interleave =
            interleave::Interleave::new(&mut networks, vec![mix], On::Both, guidance, &branches, dims);
        let input = sample.to_f32();
        let mut output = vec![0.0; input.len()];
        interleave
            .map_err(Failure::pipeline)?
            .call(0, &row, &input, &mut output)
            .map_err(Failure::pipeline)?;
        Ok((dims.to_vec(), output))
    }
}

fn load(engine: &dyn Engine, path: &Path, options: &SessionOptions) -> Result<Box<Unet>, Failure> {
    let session = engine.load(path, options).map_err(|error| Failure::engine(&error))?;
    Unet::new(session, path).map(Box::new).map_err(Failure::pipeline)
}
