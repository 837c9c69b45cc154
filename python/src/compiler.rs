//! The commands that run no model: compile, verify, inspect, diff, digest, print.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crdiff::{
    analysis::Analysis,
    compile::{Job, Target, compile_file, default_output},
    observer::Observer,
    onnx::WeightPolicy,
    passes::MaskForm,
    plan::{self, Glob, Selector},
    report::{
        self, CompileReport, html,
        inspect::Filter,
        outcome::{self, Format},
        print::PrintError,
        text::View,
    },
    verify::{
        conformance::{self, Required},
        structure::{self, WeightComparison},
    },
};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBytes, PyDict},
};
use serde::Serialize;

use crate::{
    failure::Failure,
    input::{Model, Plan},
    report::Report,
    work::work,
};

/// A size of latents.
type Size = Option<(i64, i64)>;

/// Returns the graph that `emit` and `poa_weight` mean together, and whether it is the two graphs of a cache.
fn target(emit: &str, poa_weight: &str) -> PyResult<(Target, bool)> {
    let (network, cached) = match emit.strip_prefix("cached") {
        Some("") => ("pruned", true),
        Some(rest) if rest != "-pruned" => (rest.strip_prefix('-').unwrap_or(emit), true),
        _ => (emit, false),
    };
    let target = match (network, poa_weight) {
        ("pruned", "baked") => Target::Pruned,
        ("fused", "baked") => Target::Fused,
        ("fused", "input") => Target::FusedWithInput,
        ("amplified", "baked") => Target::Amplified,
        ("dense", "baked") => Target::Dense,
        ("pruned" | "amplified" | "dense", "input") => {
            return Err(PyValueError::new_err(
                "poa_weight=\"input\" needs emit=\"fused\" or \"cached-fused\"",
            ));
        }
        (_, "baked" | "input") => {
            return Err(PyValueError::new_err(format!(
                "emit must be \"pruned\", \"fused\", \"amplified\" or \"dense\", or \"cached\", \"cached-fused\", \
                 \"cached-amplified\" or \"cached-dense\", not {emit:?}"
            )));
        }
        _ => {
            return Err(PyValueError::new_err(format!(
                "poa_weight must be \"baked\" or \"input\", not {poa_weight:?}"
            )));
        }
    };
    Ok((target, cached))
}

/// A value as the command line prints it.
pub fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(Failure::other)
}

/// Compiles `model` and writes `output`; without a name that is beside the model, or, for a model that is content, content
/// too. Returns the report and that content.
#[pyfunction]
#[pyo3(signature = (model, plan, output, *, emit, poa_weight, weights, at, dry_run, progress))]
#[expect(clippy::too_many_arguments, reason = "it has Python's arguments")]
fn compile(
    py: Python<'_>,
    model: Model,
    plan: &Plan,
    output: Option<PathBuf>,
    emit: &str,
    poa_weight: &str,
    weights: Option<&str>,
    at: Size,
    dry_run: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Report, Option<Py<PyBytes>>)> {
    let (target, cached) = target(emit, poa_weight)?;
    if cached && matches!(model, Model::Content(_)) {
        return Err(PyValueError::new_err(format!(
            "emit={emit:?} makes two files: give the model as a file"
        )));
    }
    let (policy, masks) = match weights {
        None => (None, MaskForm::Stored),
        Some("share") => (Some(WeightPolicy::Share), MaskForm::Stored),
        Some("copy") => (Some(WeightPolicy::Copy), MaskForm::Stored),
        Some("compact") => (None, MaskForm::Computed),
        Some(other) => {
            let what = format!("weights must be \"share\", \"copy\", \"compact\" or None, not {other:?}");
            return Err(PyValueError::new_err(what));
        }
    };
    // The file that content is written into is gone when the call ends.
    let policy = match (&model, policy) {
        (Model::File(_), policy) => policy,
        (Model::Content(_), Some(WeightPolicy::Share)) => {
            return Err(PyValueError::new_err("weights=\"share\" needs a model that is a file"));
        }
        (Model::Content(_), _) => Some(WeightPolicy::Copy),
    };
    let plan = &plan.0;
    let (report, content) = work(py, progress.as_ref(), |observer| {
        let file = File::of(&model)?;
        let default = match (target, cached) {
            (Target::Pruned, true) => file.path.clone(),
            _ => default_output(&file.path, target),
        };
        let place = output.as_deref().unwrap_or(&default);
        let job = Job::new(&file.path, plan).target(target).masks(masks).protect(plan.source.name());
        let job = if cached { job.cached() } else { job };
        let job = if dry_run { job } else { job.output(place) };
        let job = policy.map_or(job.clone(), |policy| job.clone().weights(policy));
        let job = at.map_or(job.clone(), |(height, width)| job.clone().at(height, width));
        let mut report = compile_file(&job, observer).map_err(|error| Failure::compile(&file.path, error))?;
        let content = match (file.folder, &output) {
            (None, _) | (_, Some(_)) => None,
            (Some(_), None) if dry_run => None,
            (Some(_), None) => Some(content(&mut report, place)?),
        };
        report.model = model.name().display().to_string();
        let text = report::text::compile(&report, View { width: None, verbose: false });
        let json = json(&report)?;
        let plan = plan.clone();
        let page = Box::new(move || compile_page(&model, &plan, at, report.clone()));
        Ok((Report::new(json, &text, true, Some(page)), content))
    })?;
    Ok((report, content.map(|content| PyBytes::new(py, &content).unbind())))
}

/// A model's file; content is written into one.
struct File {
    path: PathBuf,
    folder: Option<tempfile::TempDir>,
}

impl File {
    fn of(model: &Model) -> Result<Self, Failure> {
        let Model::Content(content) = model else {
            return Ok(Self { path: model.name().to_path_buf(), folder: None });
        };
        // Refuses content whose weights are elsewhere.
        model.open()?;
        let folder = tempfile::tempdir().map_err(Failure::other)?;
        let path = folder.path().join(model.name());
        fs::write(&path, content).map_err(Failure::other)?;
        Ok(Self { path, folder: Some(folder) })
    }
}

/// Takes the content of an output out of its folder, which is about to go.
fn content(report: &mut CompileReport, output: &Path) -> Result<Vec<u8>, Failure> {
    if report.weights.files.iter().any(|file| Path::new(&file.path) != output) {
        let what = "the compiled model is more than one file: name an output, and give the model as a file";
        return Err(Failure::other(what));
    }
    for path in report.outputs.iter_mut().map(|output| &mut output.path) {
        path.clear();
    }
    report.weights.files.clear();
    fs::read(output).map_err(Failure::other)
}

fn compile_page(
    model: &Model,
    plan: &plan::Plan,
    at: Size,
    report: CompileReport,
) -> Result<String, Failure> {
    let graph = model.graph()?;
    let analysis = Analysis::of(&graph);
    let mut reports = [report];
    report::compile::magnitudes(&mut reports, &analysis).map_err(Failure::other)?;
    let model = html::Anatomy::of(&model.name().display().to_string(), &analysis, at);
    html::render(&html::compile(model, plan, &reports)).map_err(Failure::other)
}

/// Proves that `compiled` is `original` plus `plan`.
#[pyfunction]
#[pyo3(signature = (original, compiled, plan, *, emit, poa_weight, per_row, progress))]
#[expect(clippy::too_many_arguments, reason = "it has Python's arguments")]
fn verify(
    py: Python<'_>,
    original: Model,
    compiled: Model,
    plan: &Plan,
    emit: Option<&str>,
    poa_weight: &str,
    per_row: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Report> {
    let target = emit.map(|emit| target(emit, poa_weight)).transpose()?;
    let required = target.map(|(target, cached)| Required { target, cached, per_row });
    let plan = &plan.0;
    work(py, progress.as_ref(), |observer| {
        let (before, after) = (original.graph()?, compiled.graph()?);
        let is_untouched = before.source().bytes == after.source().bytes;
        let verdict = conformance::verify(&before, &after, plan, required, observer)?;
        let [first, second] = [&original, &compiled].map(|model| model.name().display().to_string());
        let mut outcome = report::verify::outcome(&first, &second, &plan.source, &verdict);
        if is_untouched {
            report::verify::say_untouched(&mut outcome);
        }
        Ok(of_outcome(&outcome))
    })
}

/// An outcome, whose text and JSON the command line prints as they are.
fn of_outcome(outcome: &outcome::Outcome) -> Report {
    let [json, text] = [Format::Json, Format::Text].map(|format| outcome::render(outcome, format));
    Report::new(json, &text, outcome.holds, None)
}

/// Describes a model: its modules, and what a plan can do to them.
#[pyfunction]
#[pyo3(signature = (model, *, depth, filter, at))]
fn inspect(
    py: Python<'_>,
    model: Model,
    depth: Option<usize>,
    filter: Option<&str>,
    at: Size,
) -> PyResult<Report> {
    let glob = filter.map(|text| {
        let glob = Glob::module(text, (0, text.len()).into());
        glob.map_err(|error| PyValueError::new_err(format!("filter {text:?}: {}", error.reason)))
    });
    let glob = glob.transpose()?.map(|glob| Selector::Globs(vec![glob]));
    work(py, None, |_| {
        let graph = model.graph()?;
        let name = model.name().display().to_string();
        let report = report::inspect::inspect(&name, &Analysis::of(&graph), &Filter { depth, glob });
        drop(graph);
        let page = Box::new(move || inspect_page(&model, at));
        Ok(Report::new(json(&report)?, &report::inspect::text(&report, None), true, Some(page)))
    })
}

fn inspect_page(model: &Model, at: Size) -> Result<String, Failure> {
    let graph = model.graph()?;
    let anatomy = html::Anatomy::of(&model.name().display().to_string(), &Analysis::of(&graph), at);
    html::render(&html::inspect(anatomy)).map_err(Failure::other)
}

/// Finds what is different between two models.
#[pyfunction]
#[pyo3(signature = (a, b, *, structure, progress))]
fn diff(
    py: Python<'_>,
    a: Model,
    b: Model,
    structure: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Report> {
    work(py, progress.as_ref(), |observer| {
        let diff = differences(&a, &b, structure, observer)?;
        let [first, second] = [&a, &b].map(|model| model.name().display().to_string());
        let json = outcome::render(&report::diff::outcome(&diff, &first, &second), Format::Json);
        let text = report::diff::text(&diff, &first, &second);
        let holds = diff.is_same();
        let page = Box::new(move || {
            let graphs = (a.graph()?, b.graph()?);
            let anatomies = [
                html::Anatomy::of(&first, &Analysis::of(&graphs.0), None),
                html::Anatomy::of(&second, &Analysis::of(&graphs.1), None),
            ];
            html::render(&html::diff(anatomies, &diff)).map_err(Failure::other)
        });
        Ok(Report::new(json, &text, holds, Some(page)))
    })
}

fn differences(
    a: &Model,
    b: &Model,
    structure: bool,
    observer: &dyn Observer,
) -> Result<structure::Diff, Failure> {
    let (first, second) = (a.graph()?, b.graph()?);
    let weights = if structure { WeightComparison::Ignored } else { WeightComparison::Compared };
    structure::diff(&first, &second, weights, observer).map_err(|error| Failure::model(a.name(), &error))
}

/// Returns the digests of a model's structure, and of its structure and weights.
#[pyfunction]
#[pyo3(signature = (model, *, progress))]
fn digest(py: Python<'_>, model: Model, progress: Option<Py<PyAny>>) -> PyResult<Py<PyDict>> {
    let digests = work(py, progress.as_ref(), |observer| {
        structure::digests(&model.graph()?, observer).map_err(|error| Failure::model(model.name(), &error))
    })?;
    let dict = PyDict::new(py);
    dict.set_item("structure", digests.structure)?;
    dict.set_item("weights", digests.weights)?;
    Ok(dict.unbind())
}

/// Returns a model, or the part of it that a glob matches, in ONNX's textual syntax.
#[pyfunction]
#[pyo3(signature = (model, *, module, elements))]
fn print(py: Python<'_>, model: Model, module: Option<&str>, elements: usize) -> PyResult<String> {
    work(py, None, |_| {
        report::print::print(model.open()?, module, elements).map_err(|error| match error {
            PrintError::Onnx(error) => Failure::model(model.name(), &error),
            PrintError::Module(what) => {
                Failure::value(format!("module {:?}: {what}", module.unwrap_or_default()))
            }
            other => Failure::Other("ModelError", other.to_string(), None),
        })
    })
}

pub fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(compile, module)?)?;
    module.add_function(wrap_pyfunction!(verify, module)?)?;
    module.add_function(wrap_pyfunction!(inspect, module)?)?;
    module.add_function(wrap_pyfunction!(diff, module)?)?;
    module.add_function(wrap_pyfunction!(digest, module)?)?;
    module.add_function(wrap_pyfunction!(print, module)?)
}
