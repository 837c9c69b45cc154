//! Texts in an image: its settings, the plan and the digests of the models that made it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Failure, Settings};
use crate::{
    cli::image_file::Texts,
    diffusion::{pipeline::Output, sampler::Class},
    plan::{Amplify, AmplifyWeight, Plan},
};

/// The models and versions that made a run's images.
pub(super) struct Made {
    /// Of this program and the engine.
    pub(super) versions: Value,
    /// Digests of the models, by part.
    pub(super) models: BTreeMap<String, String>,
}

impl Settings {
    /// Returns the texts of image `index` of the batch, which `output` is of.
    pub(super) fn texts(
        &self,
        index: usize,
        made: &Made,
        plan: Option<&Plan>,
        output: Option<&Output>,
    ) -> Result<Texts, Failure> {
        let own = Self { index: Some(index), models: made.models.clone(), ..self.clone() };
        let settings = serde_json::to_string(&json!({ "settings": own, "versions": made.versions }));
        let mut others = vec![
            ("Software", format!("crdiff {}", env!("CARGO_PKG_VERSION"))),
            ("prompt", self.prompt.clone()),
            ("seed", self.seed(index).to_string()),
            ("steps", self.steps.to_string()),
            ("guidance", self.guidance.to_string()),
        ];
        others.extend(self.negative_prompt.clone().map(|text| ("negative_prompt", text)));
        others.extend(output.map(|output| ("sampler", output.scheduler.to_string())));
        others.extend(plan.map(|plan| ("plan_digest", plan.digest.clone())));
        if self.compare {
            others.push(("images", "dense, pruned, amplified".to_string()));
        }
        Ok(Texts {
            settings: settings.map_err(|e| Failure::Message(e.to_string()))?,
            parameters: self.parameters(index, made, plan, output),
            others,
        })
    }

    /// Returns the prompt, what to stay away from, and a line of settings, as web interfaces write them.
    fn parameters(&self, index: usize, made: &Made, plan: Option<&Plan>, output: Option<&Output>) -> String {
        let mut fields = vec![("Steps", self.steps.to_string())];
        if let Some(output) = output {
            fields.push(("Sampler", sampler(output.scheduler).to_string()));
        }
        fields.push(("CFG scale", self.guidance.to_string()));
        fields.push(("Seed", self.seed(index).to_string()));
        if let Some(image) = output.and_then(|output| output.images.get(index)) {
            fields.push(("Size", format!("{}x{}", image.width, image.height)));
        }
        if let Some(digest) = made.models.get("unet") {
            fields.push(("Model hash", short(digest)));
        }
        if let Some(name) = self.pipeline.file_name() {
            fields.push(("Model", quoted(&name.to_string_lossy())));
        }
        if let Some(plan) = plan {
            fields.push(("CR-Diff plan", short(&plan.digest)));
            let weight = self.weight.map_or_else(|| weight(&plan.amplify), |weight| Some(weight.to_string()));
            fields.extend(weight.map(|weight| ("CR-Diff w", weight)));
        }
        fields.push(("Version", format!("crdiff {}", env!("CARGO_PKG_VERSION"))));
        let fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        let negative = self.negative_prompt.as_ref();
        let negative = negative.map(|text| format!("Negative prompt: {text}\n")).unwrap_or_default();
        format!("{}\n{negative}{}", self.prompt, fields.join(", "))
    }
}

fn weight(amplify: &Amplify) -> Option<String> {
    match amplify.weight.value {
        AmplifyWeight::Constant(weight) => Some(weight.to_string()),
        AmplifyWeight::Ramp { .. } | AmplifyWeight::Steps(_) => None,
    }
}

/// Returns the first ten digits of a digest.
fn short(digest: &str) -> String {
    digest.chars().take(10).collect()
}

/// Returns a value in quotes where it has a comma or a colon.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n']) { json!(value).to_string() } else { value.to_string() }
}

/// Returns the name of a scheduler in web interfaces.
fn sampler(class: Class) -> &'static str {
    match class {
        Class::Ddim => "DDIM",
        Class::Ddpm => "DDPM",
        Class::Euler => "Euler",
        Class::EulerAncestral => "Euler a",
        Class::Heun => "Heun",
        Class::DpmSolverMultistep => "DPM++ 2M",
        Class::Pndm => "PLMS",
        Class::UniPc => "UniPC",
        Class::Lcm => "LCM",
    }
}
