//! Inputs to run models on: stored tensors, or seeded ones made to fit a model's declarations.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::NumericError;
use crate::{
    analysis::shapes::bind_sizes,
    diffusion::random::TorchGenerator,
    engine::{
        Dim, HostTensor, Signature, TensorInfo,
        io::{TestDataSet, read_npz, read_test_data_set},
    },
    ir::Graph,
};

/// Inputs for one run, and the outputs that it should give if those are stored too.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// The name: the folder's, or the size.
    pub name: String,
    /// By the model's names.
    pub inputs: Vec<(String, HostTensor)>,
    /// By the model's names.
    pub expected: Vec<(String, HostTensor)>,
}

/// Returns the `test_data_set_*` folders in `folder`, or `folder` itself if it is one. Tensors without a name belong to
/// the model's inputs and outputs in their order.
///
/// # Errors
/// [`NumericError`] if there is none, or a file in one cannot be read.
pub fn from_data_sets(folder: &Path, signature: &Signature) -> Result<Vec<Case>, NumericError> {
    let fail = |what: String| NumericError::Inputs { place: folder.display().to_string(), what };
    let mut folders = vec![folder.to_path_buf()];
    if !folder.join("input_0.pb").is_file() {
        let entries = fs::read_dir(folder).map_err(|e| fail(format!("cannot read the folder: {e}")))?;
        folders = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_data_set(p)).collect();
        folders.sort_by_key(|path| (number(path), path.clone()));
    }
    if folders.is_empty() {
        return Err(fail("there is no `input_0.pb` and no `test_data_set_*` folder in it".into()));
    }
    folders.iter().map(|path| data_set(path, signature)).collect()
}

fn is_data_set(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.is_dir() && name.starts_with("test_data_set")
}

fn number(path: &Path) -> u64 {
    let name = path.to_string_lossy().into_owned();
    name.rsplit('_').next().and_then(|n| n.parse().ok()).unwrap_or(u64::MAX)
}

fn data_set(folder: &Path, signature: &Signature) -> Result<Case, NumericError> {
    let TestDataSet { inputs, outputs } = read_test_data_set(folder)?;
    let named = |tensors: Vec<(String, HostTensor)>, declared: &[TensorInfo], what: &str| {
        let one = |(index, (name, tensor)): (usize, (String, HostTensor))| {
            if declared.iter().any(|info| info.name == name) {
                return Ok((name, tensor));
            }
            match declared.get(index) {
                Some(info) if name.is_empty() => Ok((info.name.clone(), tensor)),
                _ => Err(NumericError::Inputs {
                    place: folder.display().to_string(),
                    what: format!(
                        "{what}_{index}.pb is for `{name}`, but the model has {}",
                        listed(declared, what)
                    ),
                }),
            }
        };
        tensors.into_iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()
    };
    let name = PathBuf::from(folder).file_name().map(|n| n.to_string_lossy().into_owned());
    Ok(Case {
        name: name.unwrap_or_else(|| folder.display().to_string()),
        inputs: named(inputs, &signature.inputs, "input")?,
        expected: named(outputs, &signature.outputs, "output")?,
    })
}

fn listed(declared: &[TensorInfo], what: &str) -> String {
    let all = declared.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("the {what}s {all}")
}

/// Returns the arrays of a .npz archive: one case if they are called like the model's inputs, one for each `case` if
/// they are called `case/input`.
///
/// # Errors
/// [`NumericError`] if the archive cannot be read, or an array is for no input.
pub fn from_npz(path: &Path, signature: &Signature) -> Result<Vec<Case>, NumericError> {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let mut cases: Vec<Case> = Vec::new();
    for (name, tensor) in read_npz(path)? {
        let is_input = |name: &str| signature.inputs.iter().any(|info| info.name == name);
        let (case, input) = if is_input(&name) {
            (stem.clone(), name)
        } else {
            match name.rsplit_once('/').filter(|(_, input)| is_input(input)) {
                Some((case, input)) => (case.to_string(), input.to_string()),
                None => {
                    let what = format!(
                        "array `{name}` is for no input; the model has {}",
                        listed(&signature.inputs, "input")
                    );
                    return Err(NumericError::Inputs { place: path.display().to_string(), what });
                }
            }
        };
        match cases.iter_mut().find(|c| c.name == case) {
            Some(known) => known.inputs.push((input, tensor)),
            None => cases.push(Case { name: case, inputs: vec![(input, tensor)], expected: Vec::new() }),
        }
    }
    match cases.is_empty() {
        true => Err(NumericError::Inputs { place: path.display().to_string(), what: "it is empty".into() }),
        false => Ok(cases),
    }
}

/// Sizes of seeded inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Height and width of the latents; `None` for what the model fixes, or 32x32.
    pub latents: Option<(i64, i64)>,
    /// Batch.
    pub batch: i64,
    /// Number of text tokens.
    pub sequence: i64,
}

/// Latents are this high and wide unless something else is asked for.
const DEFAULT_SIDE: i64 = 32;
/// Image pixels for each latent pixel, in every Stable Diffusion.
const PIXELS: i64 = 8;

/// Inputs that fit what `graph` declares: standard normal numbers as torch's generator draws them from `seed`, input
/// after input. Timesteps (whole numbers, and floats with at most one dimension) are between 1 and 999; `time_ids`
/// (SDXL: original size, crop, target size, in image pixels) say the size of the latents.
///
/// # Errors
/// [`NumericError`] if an input's dimensions are not known, do not follow from the sizes, or are fixed to other ones.
pub fn seeded(graph: &Graph, signature: &Signature, sizes: &Sizes, seed: u64) -> Result<Case, NumericError> {
    let (height, width) = sizes.latents.unwrap_or((DEFAULT_SIDE, DEFAULT_SIDE));
    let bindings = bind_sizes(graph, sizes.batch, height, width, sizes.sequence);
    let mut generator = TorchGenerator::new(seed);
    let mut all_dims = Vec::with_capacity(signature.inputs.len());
    for info in &signature.inputs {
        all_dims.push(dimensions(info, &bindings)?);
    }
    let latents = signature
        .inputs
        .iter()
        .position(|info| info.name == "sample")
        .or_else(|| all_dims.iter().position(|dims| dims.len() == 4))
        .and_then(|at| Some((signature.inputs.get(at)?, all_dims.get(at)?)));
    let actual = latents.and_then(|(info, dims)| Some((info, *dims.get(2)?, *dims.get(3)?)));
    if let (Some((h, w)), Some((info, rows, columns))) = (sizes.latents, actual)
        && (i64::try_from(rows), i64::try_from(columns)) != (Ok(h), Ok(w))
    {
        let what = format!("{h}x{w} was asked for, but the model fixes {info}");
        return Err(NumericError::Inputs { place: format!("input `{}`", info.name), what });
    }
    let side = |size: Option<usize>, otherwise| size.and_then(|n| i64::try_from(n).ok()).unwrap_or(otherwise);
    let height = side(actual.map(|(_, rows, _)| rows), height);
    let width = side(actual.map(|(.., columns)| columns), width);
    let mut inputs = Vec::with_capacity(all_dims.len());
    for (info, dims) in signature.inputs.iter().zip(all_dims) {
        let count = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= MAX_ELEMENTS);
        let count = count.ok_or_else(|| NumericError::Inputs {
            place: format!("input `{}`", info.name),
            what: format!("dimensions {dims:?} are too large"),
        })?;
        let mut values = vec![0f32; count];
        let is_float = matches!(info.data_type.0, 1 | 10 | 11 | 16);
        if info.name == "time_ids" && dims.last() == Some(&6) {
            let sides = [height, width, 0, 0, height, width].map(|n| (n * PIXELS) as f32);
            values = sides.iter().copied().cycle().take(count).collect();
        } else {
            generator.randn(&mut values);
            if !is_float || dims.len() < 2 {
                values.iter_mut().for_each(|x| *x = (*x * 150.0 + 500.0).round().clamp(1.0, 999.0));
            }
        }
        let tensor =
            HostTensor::new(dims, values)?.cast(info.data_type).map_err(|e| NumericError::Inputs {
                place: format!("input {info}"),
                what: format!("no tensor can be made for it ({e}); give one with --inputs"),
            })?;
        inputs.push((info.name.clone(), tensor));
    }
    let batch = if sizes.batch == 1 { String::new() } else { format!(" batch {}", sizes.batch) };
    Ok(Case { name: format!("{height}x{width}{batch}"), inputs, expected: Vec::new() })
}

/// More elements than any network takes; keeps a mistyped size from filling the memory.
const MAX_ELEMENTS: usize = 1 << 30;

fn dimensions(info: &TensorInfo, bindings: &[(String, i64)]) -> Result<Vec<usize>, NumericError> {
    let fail = |what: String| NumericError::Inputs { place: format!("input {info}"), what };
    let Some(dims) = &info.dims else {
        return Err(fail("the model doesn't say its dimensions; give a tensor with --inputs".into()));
    };
    let one = |(axis, dim): (usize, &Dim)| {
        let bound = |name: &str| bindings.iter().find(|(bound, _)| bound == name).map(|(_, size)| *size);
        let size = match dim {
            Dim::Fixed(size) => Some(*size),
            Dim::Named(name) => bound(name),
            Dim::Unknown => bound(&format!("{}.{axis}", info.name)),
        };
        size.and_then(|size| usize::try_from(size).ok()).ok_or_else(|| {
            fail(format!("dimension {axis} follows from no size; give a tensor with --inputs"))
        })
    };
    dims.iter().enumerate().map(one).collect()
}
