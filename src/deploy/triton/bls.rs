//! A pipeline as one model: Triton's Python backend runs the denoising loop and calls the models beside it ("business
//! logic scripting"). `bls/model.py` is the loop; what differs between pipelines is in `pipeline.json`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Entry, Served, config::Config, config::Port, config::type_name};
use crate::{
    deploy::{DeployError, atomic_dir::Staging},
    diffusion::{
        PipelineError,
        pipeline::{Folder, PipelineKind},
        sampler::{Class, Table},
    },
    engine::{Dim, TensorInfo},
    onnx::DataType,
    passes::WEIGHT_INPUT,
    plan::CACHE_NAMES,
};

/// The loop.
const MODEL_PY: &str = include_str!("bls/model.py");
/// The settings of a scheduler that the loop reads.
const SETTINGS: [&str; 10] = [
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "steps_offset",
    "timestep_spacing",
    "prediction_type",
];
/// The inputs of a UNet that the loop can feed.
const UNET_INPUTS: [&str; 6] =
    ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids", WEIGHT_INPUT];

/// A pipeline to serve as one model.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The name that requests use.
    pub name: String,
    folder: Folder,
}

impl Pipeline {
    /// Reads a pipeline's folder, laid out as Optimum does. Returns it and its models: text encoders, UNet (`unet` in
    /// its place, if there is one) and VAE decoder.
    ///
    /// # Errors
    /// [`DeployError::Pipeline`] if the folder is no pipeline, or DDIM cannot run with its scheduler's settings.
    pub fn open(name: &str, path: &Path, unet: Option<&Path>) -> Result<(Self, Vec<Entry>), DeployError> {
        let folder = Folder::open(path)?;
        let ddim = folder.scheduler.config(Some(Class::Ddim)).map_err(PipelineError::from)?;
        let ddim = ddim.with("clip_sample", false);
        Table::new(&ddim, 1, 0.0).map_err(PipelineError::from)?;
        let model = |part: &str| path.join(part).join("model.onnx");
        let entry = |name: &str, model: PathBuf| Entry { name: name.to_string(), model };
        let mut entries: Vec<Entry> =
            encoders(folder.kind).iter().map(|name| entry(name, model(name))).collect();
        entries.push(entry("unet", unet.map_or_else(|| folder.unet(), Path::to_path_buf)));
        entries.push(entry("vae_decoder", model("vae_decoder")));
        Ok((Self { name: name.to_string(), folder }, entries))
    }
}

fn encoders(kind: PipelineKind) -> &'static [&'static str] {
    match kind {
        PipelineKind::StableDiffusion => &["text_encoder"],
        PipelineKind::StableDiffusionXl => &["text_encoder", "text_encoder_2"],
    }
}

/// Writes the model of `pipeline`, which calls those in `served`.
pub(super) fn write(
    pipeline: &Pipeline,
    served: &[Served],
    staging: &Staging,
) -> Result<Served, DeployError> {
    let of = |name: &str| {
        let missing = || DeployError::Request(format!("the pipeline's `{name}` is not among the models"));
        served.iter().find(|served| served.name == name).ok_or_else(missing)
    };
    let folder = &pipeline.folder;
    let fail = |part: &str, what: String| {
        DeployError::model(
            &folder.path.join(part),
            format!("{what}, so the pipeline cannot be served as one"),
        )
    };
    let mut text = Vec::new();
    for name in encoders(folder.kind) {
        text.push(encoder(of(name)?, folder.kind).map_err(|what| fail(name, what))?);
    }
    let unet = of("unet")?;
    let vae = of("vae_decoder")?;
    let ddim = folder.scheduler.config(Some(Class::Ddim)).map_err(PipelineError::from)?;
    let settings = SETTINGS.iter().filter_map(|key| Some((key.to_string(), ddim.get(key)?.clone())));
    let description = json!({
        "text_encoders": text,
        "zeros_for_empty_prompt": folder.zeros_for_empty_prompt,
        "unet": network(unet, folder).map_err(|what| fail("unet", what))?,
        "vae": decoder(vae, folder).map_err(|what| fail("vae_decoder", what))?,
        "scheduler": settings.collect::<Map<String, Value>>(),
    });
    let mixes = unet.signature().inputs.iter().any(|input| input.name == WEIGHT_INPUT);
    let config = config(pipeline, mixes);
    let place = staging.path(&pipeline.name)?;
    let json = serde_json::to_string_pretty(&description).map_err(|e| fail("", e.to_string()))?;
    staging.write(&place.join("config.pbtxt"), &config.text())?;
    staging.write(&place.join("1/model.py"), MODEL_PY)?;
    staging.write(&place.join("1/pipeline.json"), &format!("{json}\n"))?;
    let notes = match folder.scheduler.class() {
        own if own == Class::Ddim.name() => Vec::new(),
        other => vec![format!("it samples with DDIM; the pipeline's own scheduler is {other}")],
    };
    Ok(Served { name: pipeline.name.clone(), max_batch: 0, widened: Vec::new(), notes, config })
}

/// Returns the inputs and outputs of a request.
fn config(pipeline: &Pipeline, mixes: bool) -> Config {
    let port = |name: &str, data_type, dims: &[i64], optional| Port {
        name: name.to_string(),
        data_type,
        dims: dims.to_vec(),
        optional,
    };
    let channels = i64::try_from(pipeline.folder.vae.channels).unwrap_or(-1);
    let latents = [-1, channels, -1, -1];
    let mut inputs = Vec::new();
    for (index, _) in encoders(pipeline.folder.kind).iter().enumerate() {
        let suffix = if index == 0 { String::new() } else { format!("_{}", index + 1) };
        inputs.push(port(&format!("input_ids{suffix}"), "TYPE_INT64", &[-1, -1], false));
        inputs.push(port(&format!("negative_input_ids{suffix}"), "TYPE_INT64", &[-1, -1], true));
    }
    inputs.push(port("latents", "TYPE_FP32", &latents, true));
    for name in ["height", "width", "steps"] {
        inputs.push(port(name, "TYPE_INT32", &[1], true));
    }
    inputs.push(port("seed", "TYPE_INT64", &[1], true));
    inputs.push(port("guidance_scale", "TYPE_FP32", &[1], true));
    if mixes {
        inputs.push(port(WEIGHT_INPUT, "TYPE_FP32", &[1], true));
    }
    let outputs = vec![
        port("images", "TYPE_UINT8", &[-1, -1, -1, 3], false),
        port("final_latents", "TYPE_FP32", &latents, false),
    ];
    Config::of_python(&pipeline.name, inputs, outputs)
}

fn encoder(served: &Served, kind: PipelineKind) -> Result<Value, String> {
    let signature = served.signature();
    let [input] = signature.inputs.as_slice() else {
        return Err(format!("a text encoder has one input, but this has {}", signature.inputs.len()));
    };
    let has = |name: &str| signature.outputs.iter().any(|output| output.name == name);
    let hidden = match kind {
        PipelineKind::StableDiffusion => "last_hidden_state".to_string(),
        PipelineKind::StableDiffusionXl => {
            let number =
                |output: &TensorInfo| output.name.strip_prefix("hidden_states.")?.parse::<usize>().ok();
            // The last but one: the one before the last layer.
            let last = signature.outputs.iter().filter_map(number).max().unwrap_or(0);
            format!("hidden_states.{}", last.saturating_sub(1))
        }
    };
    if !has(&hidden) {
        return Err(format!("it has no output `{hidden}`"));
    }
    Ok(json!({
        "model": served.name,
        "max_batch": served.max_batch,
        "input": input.name,
        "type": numpy_type(input)?,
        "hidden": hidden,
        "pooled": has("text_embeds").then_some("text_embeds"),
    }))
}

fn network(served: &Served, folder: &Folder) -> Result<Value, String> {
    let signature = served.signature();
    let is_kept = |port: &&TensorInfo| CACHE_NAMES.contains(&port.name.as_str());
    if let Some(port) = signature.inputs.iter().chain(&signature.outputs).find(is_kept) {
        return Err(format!(
            "it is one of the two graphs of a plan's `cache` (its port {port}), and the server's loop runs one: serve a \
             graph without `cache`, or both as models of their own, without --pipeline, for a loop that hands `{}` on",
            port.name
        ));
    }
    let sample = signature.inputs.iter().find(|input| input.name == "sample");
    let only = sample.and_then(|sample| Some([sample.fixed_dim(2)?, sample.fixed_dim(3)?]));
    let mut inputs = Map::new();
    for input in &signature.inputs {
        if !UNET_INPUTS.contains(&input.name.as_str()) {
            return Err(format!(
                "the loop cannot feed its input {input}; it knows {}",
                UNET_INPUTS.join(", ")
            ));
        }
        let layout = match (served.max_batch, input.dims.as_deref()) {
            (1.., _) => "column",
            (0, Some([Dim::Named(_) | Dim::Unknown])) => "rows",
            (0, _) => "one",
        };
        inputs.insert(input.name.clone(), json!({ "type": numpy_type(input)?, "layout": layout }));
    }
    if let Some(missing) = UNET_INPUTS.iter().take(3).find(|name| !inputs.contains_key(**name)) {
        return Err(format!("it has no input `{missing}`"));
    }
    let [output] = signature.outputs.as_slice() else {
        return Err(format!("a UNet has one output, but this has {}", signature.outputs.len()));
    };
    Ok(json!({
        "model": served.name,
        "max_batch": served.max_batch,
        "inputs": inputs,
        "output": output.name,
        "divisor": folder.downsampling,
        "only_size": only.map(|sides| sides.map(|side| side * folder.vae.factor)),
    }))
}

fn decoder(served: &Served, folder: &Folder) -> Result<Value, String> {
    let signature = served.signature();
    let ([input], [output]) = (signature.inputs.as_slice(), signature.outputs.as_slice()) else {
        return Err("a VAE decoder has one input and one output".to_string());
    };
    let vae = &folder.vae;
    Ok(json!({
        "model": served.name,
        "max_batch": served.max_batch,
        "input": input.name,
        "type": numpy_type(input)?,
        "output": output.name,
        "channels": vae.channels,
        "factor": vae.factor,
        "default_size": [folder.default_size.0, folder.default_size.1],
        "scaling_factor": vae.scaling_factor,
        "shift_factor": vae.shift_factor,
        "latents_mean": vae.latents_mean,
        "latents_std": vae.latents_std,
    }))
}

/// Returns the type of an input, if `model.py` can make arrays of it.
fn numpy_type(input: &TensorInfo) -> Result<&'static str, String> {
    let known = [DataType::FLOAT, DataType::FLOAT16, DataType::DOUBLE, DataType::INT32, DataType::INT64];
    let name = Some(input.data_type).filter(|data_type| known.contains(data_type)).and_then(type_name);
    name.ok_or_else(|| format!("the loop makes no {}, which its input {input} is", input.data_type.name()))
}
