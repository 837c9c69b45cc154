//! Two models compared by their outputs.

use std::path::PathBuf;

use crdiff::{
    engine::{Chosen, SessionOptions, Signature},
    numeric::{
        self, Case, NumericError, Sizes, Tolerances,
        inputs::{from_npz, seeded},
    },
    report::{
        self,
        compare::CompareReport,
        outcome::{self, Format},
    },
};
use pyo3::prelude::*;

use crate::{
    array::Array, engine::EngineOptions, failure::Failure, input::Model, report::Report, work::work,
};

/// The inputs that models are run on.
#[derive(FromPyObject)]
enum Inputs {
    /// A file of NumPy.
    File(PathBuf),
    /// Arrays by name.
    Arrays(Vec<(String, Array)>),
}

/// How inputs are made, and how far outputs may be apart.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Asked {
    inputs: Option<Inputs>,
    sizes: Vec<(i64, i64)>,
    batch: i64,
    sequence: i64,
    seed: u64,
    atol: Option<f64>,
    rtol: Option<f64>,
}

/// Runs two models on the same inputs, and compares their outputs.
#[pyfunction]
#[pyo3(signature = (a, b, asked, *, engine))]
fn compare(py: Python<'_>, a: PathBuf, b: PathBuf, asked: Asked, engine: EngineOptions) -> PyResult<Report> {
    work(py, None, |observer| {
        let (first, second) = (Model::File(a.clone()).graph()?, Model::File(b.clone()).graph()?);
        let signature = Signature::of(first.source()).map_err(|error| Failure::model(&a, &error))?;
        let cases = match &asked.inputs {
            Some(Inputs::File(path)) => from_npz(path, &signature).map_err(Failure::value)?,
            Some(Inputs::Arrays(arrays)) => {
                let inputs = arrays.iter().map(|(name, array)| Ok((name.clone(), array.tensor()?)));
                let inputs = inputs.collect::<Result<_, Failure>>()?;
                vec![Case { name: "inputs".to_string(), inputs, ..Case::default() }]
            }
            None => {
                let one = |latents: Option<(i64, i64)>| {
                    let sizes = Sizes { latents, batch: asked.batch, sequence: asked.sequence };
                    seeded(&first, &signature, &sizes, asked.seed).map_err(Failure::value)
                };
                match asked.sizes.as_slice() {
                    [] => vec![one(None)?],
                    sizes => sizes.iter().map(|size| one(Some(*size))).collect::<Result<_, _>>()?,
                }
            }
        };
        let Chosen { engine, why } = engine.choose().map_err(|error| Failure::engine(&error))?;
        let tolerances = Tolerances {
            absolute: asked.atol,
            relative: asked.rtol,
            precision: numeric::coarser(numeric::precision(&first), numeric::precision(&second)),
        };
        let run = |path| numeric::run(&*engine, path, &cases, &SessionOptions::default(), observer);
        let failed = |error| match error {
            NumericError::Engine(error) => Failure::engine(&error),
            NumericError::Stopped => Failure::Stopped,
            other => Failure::other(other),
        };
        let (expected, actual) = (run(&a).map_err(failed)?, run(&b).map_err(failed)?);
        let outputs = numeric::compare(&cases, &expected, &actual, &tolerances);
        let [a, b] = [&a, &b].map(|path| path.display().to_string());
        let report = CompareReport::new(a, b, why, outputs);
        let json = outcome::render(&report::compare::outcome(&report), Format::Json);
        Ok(Report::new(json, &report::compare::text(&report, None), report.holds(), None))
    })
}

pub fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(compare, module)?)
}
