//! A CLIP that was exported to ONNX, with the files that transformers keeps beside it, as a scorer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::search::{
    SearchError,
    space::{ChannelOrder, Crop, ImageSpec, OnnxSpec, Resample, Resize, TextSpec},
};

/// Settings of `CLIPImageProcessor` where no file says others.
const SIDE: usize = 224;
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
const PREPROCESSOR: &str = "preprocessor_config.json";
/// Names of graphs in the layouts of Optimum and of models for browsers.
const MODELS: [&str; 2] = ["model.onnx", "onnx/model.onnx"];

/// Returns the scorer that the CLIP at `path`, a folder or a graph, is: the cosine of its two embeddings. Its paths start
/// from `folder`, as `path` does.
///
/// # Errors
/// [`SearchError::Objective`] if a file is missing or wrong.
pub(super) fn spec(path: &Path, folder: &Path) -> Result<OnnxSpec, SearchError> {
    let name = folder.join(path).display().to_string();
    let failed = |what: String| SearchError::objective(&name, what);
    let model = match folder.join(path).is_dir() {
        false => path.to_path_buf(),
        true => {
            let models = MODELS.map(|model| path.join(model));
            models.into_iter().find(|model| folder.join(model).is_file()).ok_or_else(|| {
                failed("there is no model.onnx in it; `clip` takes an export of the whole CLIP".to_string())
            })?
        }
    };
    let tokenizers = ["tokenizer.json", "vocab.json"];
    let above = model.ancestors().skip(1).take(2);
    let files = above.map(Path::to_path_buf).find(|place| has_one_of(&folder.join(place), &tokenizers));
    let files = files.ok_or_else(|| {
        failed("neither beside the graph nor above it is the tokenizer: tokenizer.json, or vocab.json and merges.txt".to_string())
    })?;
    let image = image(&folder.join(&files).join(PREPROCESSOR))?;
    let text = TextSpec {
        tokenizer: if files.as_os_str().is_empty() { PathBuf::from(".") } else { files },
        input: "input_ids".to_string(),
        mask: Some("attention_mask".to_string()),
        length: None,
        unpadded: true,
    };
    Ok(OnnxSpec {
        model,
        image,
        text: Some(text),
        output: None,
        cosine: Some(["image_embeds", "text_embeds"].map(str::to_string)),
        scale: 1.0,
        offset: 0.0,
    })
}

fn has_one_of(folder: &Path, names: &[&str]) -> bool {
    names.iter().any(|name| folder.join(name).is_file())
}

/// Returns how images are prepared: as the file at `path` says, if it is there.
fn image(path: &Path) -> Result<ImageSpec, SearchError> {
    let failed = |what: String| SearchError::objective(&path.display().to_string(), what);
    let config: Value = match path.is_file() {
        false => Value::Null,
        true => {
            let text = fs::read_to_string(path).map_err(|e| failed(format!("cannot read: {e}")))?;
            serde_json::from_str(&text).map_err(|e| failed(e.to_string()))?
        }
    };
    let wrong = |key: &str| failed(format!("`{key}` is {}, which is not supported", config[key]));
    let is_done = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(true);
    let rescale = config.get("rescale_factor").and_then(Value::as_f64).unwrap_or(1.0 / 255.0);
    if !is_done("do_rescale") || (rescale * 255.0 - 1.0).abs() > 1e-6 {
        return Err(failed("pixels must be scaled to 0..1".to_string()));
    }
    let resize = match config.get("size") {
        _ if !is_done("do_resize") => Resize::None,
        None => Resize::Shorter(SIDE),
        Some(size) => match (side(size), side(&size["shortest_edge"]), sides(size)) {
            (Some(side), ..) | (None, Some(side), _) => Resize::Shorter(side),
            (.., Some((height, width))) => Resize::Exact(height, width),
            _ => return Err(wrong("size")),
        },
    };
    let crop = match config.get("crop_size") {
        _ if !is_done("do_center_crop") => Crop::None,
        None => Crop::Center(SIDE, SIDE),
        Some(size) => match (side(size), sides(size)) {
            (Some(side), _) => Crop::Center(side, side),
            (None, Some((height, width))) => Crop::Center(height, width),
            _ => return Err(wrong("crop_size")),
        },
    };
    // The numbers of Pillow's filters.
    let resample = match config.get("resample").map(Value::as_u64) {
        None | Some(Some(3)) => Resample::Bicubic,
        Some(Some(0)) => Resample::Nearest,
        Some(Some(1)) => Resample::Lanczos,
        Some(Some(2)) => Resample::Bilinear,
        Some(_) => return Err(wrong("resample")),
    };
    let channels = |key: &str, default: [f32; 3]| match config.get(key) {
        None => Ok::<_, SearchError>(default),
        Some(given) => {
            let numbers =
                given.as_array().map(|all| all.iter().filter_map(Value::as_f64).collect::<Vec<_>>());
            let numbers = numbers.and_then(|all| <[f64; 3]>::try_from(all).ok()).ok_or_else(|| wrong(key))?;
            Ok(numbers.map(|number| number as f32))
        }
    };
    let (mean, std) = match is_done("do_normalize") {
        true => (channels("image_mean", MEAN)?, channels("image_std", STD)?),
        false => ([0.0; 3], [1.0; 3]),
    };
    let input = Some("pixel_values".to_string());
    Ok(ImageSpec { input, resize, resample, crop, mean, std, layout: ChannelOrder::Nchw })
}

fn side(value: &Value) -> Option<usize> {
    value.as_u64().filter(|side| (1..=1 << 16).contains(side)).and_then(|side| usize::try_from(side).ok())
}

fn sides(value: &Value) -> Option<(usize, usize)> {
    side(&value["height"]).zip(side(&value["width"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_prepared_as_the_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PREPROCESSOR);
        let open = |text: &str| {
            fs::write(&path, text).unwrap();
            image(&path)
        };
        let prepared = image(&folder.path().join("none.json")).unwrap();
        assert_eq!((prepared.resize, prepared.crop), (Resize::Shorter(224), Crop::Center(224, 224)));
        assert_eq!(open("{}").unwrap(), prepared);
        // As older releases of transformers write it.
        let older = r#"{"crop_size": 30, "size": 36, "resample": 2, "do_normalize": false}"#;
        let older = open(older).unwrap();
        assert_eq!((older.resize, older.crop), (Resize::Shorter(36), Crop::Center(30, 30)));
        assert_eq!((older.resample, older.mean, older.std), (Resample::Bilinear, [0.0; 3], [1.0; 3]));
        let exact = r#"{"size": {"height": 20, "width": 30}, "do_center_crop": false}"#;
        let exact = open(exact).unwrap();
        assert_eq!((exact.resize, exact.crop), (Resize::Exact(20, 30), Crop::None));
        for wrong in [r#"{"size": "big"}"#, r#"{"resample": 9}"#, r#"{"image_mean": [1]}"#, "{"] {
            let error = open(wrong).unwrap_err().to_string();
            assert!(error.contains(PREPROCESSOR), "{error}");
        }
        assert!(open(r#"{"rescale_factor": 1}"#).is_err());
    }
}
