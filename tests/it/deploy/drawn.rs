//! Images of the pipelines in `fixtures/pipelines`, drawn by diffusers, as requests to the loop for Triton and its answers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crdiff::{
    diffusion::{random::TorchGenerator, text::ClipTokenizer},
    engine::{HostTensor, io},
};
use serde_json::{Map, Value, json};

/// The goldens of a pipeline.
pub struct Golden {
    pub index: Value,
    tensors: Vec<(String, HostTensor)>,
    folder: PathBuf,
}

impl Golden {
    pub fn open(pipeline: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pipelines").join(pipeline);
        let index = fs::read_to_string(folder.join("golden/index.json")).unwrap();
        let tensors = io::read_npz(&folder.join("golden/golden.npz")).unwrap();
        Self { index: serde_json::from_str(&index).unwrap(), tensors, folder }
    }

    fn tensor(&self, name: &str) -> &HostTensor {
        &self.tensors.iter().find(|(known, _)| known == name).unwrap().1
    }

    /// Returns the request for a case; tensors that it feeds as files go to `work`.
    pub fn request(&self, name: &str, work: &Path) -> Value {
        let case = self.index["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap();
        let get = |key: &str| case.get(key).unwrap_or(&self.index["defaults"][key]);
        let mut inputs = Map::new();
        let encoders = if self.folder.join("text_encoder_2").exists() { 2 } else { 1 };
        for (prefix, text) in [("", get("prompt")), ("negative_", get("negative"))] {
            let Some(text) = text.as_str() else { continue };
            for suffix in ["", "_2"].iter().take(encoders) {
                let tokenizer = ClipTokenizer::open(&self.folder.join(format!("tokenizer{suffix}"))).unwrap();
                let ids = tokenizer.encode(text).unwrap().ids;
                let dims = [1, ids.len()];
                inputs.insert(
                    format!("{prefix}input_ids{suffix}"),
                    json!({ "type": "TYPE_INT64", "dims": dims, "values": ids }),
                );
            }
        }
        let latents = self.tensor(&format!("{name}/latents")).dims().to_vec();
        let mut noise = vec![0f32; latents.iter().product()];
        TorchGenerator::new(get("seeds")[0].as_u64().unwrap()).randn(&mut noise);
        let file = work.join(format!("{}.npy", name.replace('/', "-")));
        io::write_npy(&file, &HostTensor::new(latents, noise).unwrap()).unwrap();
        inputs.insert("latents".to_string(), json!({ "file": file }));
        let one = |kind: &str, value: &Value| json!({ "type": kind, "dims": [1], "values": [value] });
        inputs.insert("steps".to_string(), one("TYPE_INT32", get("steps")));
        inputs.insert("guidance_scale".to_string(), one("TYPE_FP32", get("guidance")));
        Value::Object(inputs)
    }

    /// Checks the latents and the images of a case: latents within 1e-4 of the largest latent, pixels within 1, as the
    /// runner is held to.
    pub fn check(&self, case: &str, found: &[HostTensor; 2]) {
        let expected = self.tensor(&format!("{case}/latents")).to_f32();
        let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
        let off = |(a, b): (&f32, &f32)| (a - b).abs() / largest;
        let latents = found[0].to_f32().iter().zip(&expected).map(off).fold(0f32, f32::max);
        let image = self.tensor(&format!("{case}/image"));
        assert_eq!(found[1].dims(), image.dims(), "{case}");
        let pixels = found[1].to_i64().iter().zip(image.to_i64()).map(|(a, b)| (a - b).abs()).max().unwrap();
        assert!(latents <= 1e-4 && pixels <= 1, "{case}: latents {latents:.2e}, pixels {pixels}");
    }

    /// Cases of DDIM, dense ones or amplified ones.
    pub fn cases(&self, kind: &str) -> Vec<&str> {
        let all = self.index["cases"].as_array().unwrap().iter();
        let names = all.filter_map(|case| case["name"].as_str());
        let cases: Vec<&str> =
            names.filter(|name| name.starts_with("ddim/") && name.contains(kind)).collect();
        assert!(cases.len() >= 2, "{cases:?}");
        cases
    }
}

/// Returns what was written at `output` for a request: what was said of it, and the latents and images of one without error.
pub fn answer(output: &Path) -> (Value, Option<[HostTensor; 2]>) {
    let path = |ending: &str| output.with_added_extension(ending);
    let said: Value = serde_json::from_str(&fs::read_to_string(path("json")).unwrap()).unwrap();
    let tensors = said
        .get("error")
        .is_none()
        .then(|| ["final_latents.npy", "images.npy"].map(|name| io::read_npy(&path(name)).unwrap()));
    (said, tensors)
}
