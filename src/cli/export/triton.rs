//! `crdiff export triton`: a model repository.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::sizes::SizeArgs;
use crate::{
    cli::{
        DONE, Failure,
        progress::{Bars, Visibility},
    },
    deploy::{
        Range,
        triton::{
            Accelerator, Devices, Entry, Pipeline, Precision, Served, Serving, TensorRt, TritonJob, export,
        },
    },
};

/// Write a Triton model repository: each graph with its weights and a config.pbtxt for the onnxruntime backend.
///
/// Requests are joined into batches where every input can have a row for each. A scalar `timestep` or `poa_weight` gets
/// one where the graph spreads it over the batch itself; else max_batch_size is 0, and the note says why.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crdiff export triton unet.crdiff.onnx -o models
  crdiff export triton unet=unet.crdiff.onnx vae_decoder/model.onnx -o models --gpus 0,1
  crdiff export triton unet.onnx -o models --accelerator tensorrt --sizes 512x512,768x768
  crdiff export triton --pipeline sd15-onnx unet.crdiff.onnx -o models --name sd15")]
pub(super) struct Args {
    /// The models (.onnx), each named after its file, or after its folder where that is model.onnx.
    #[arg(value_name = "[NAME=]MODEL", required_unless_present = "pipeline")]
    models: Vec<String>,
    /// The repository. Models that are in it stay.
    #[arg(short, long, value_name = "REPO")]
    output: PathBuf,
    /// A pipeline's folder: text encoders, UNet and VAE decoder, and a model in Python that runs the denoising loop over
    /// them. A MODEL then takes the place of its UNet.
    #[arg(long, value_name = "DIR")]
    pipeline: Option<PathBuf>,
    /// The name of the pipeline as one model.
    #[arg(long, default_value = "pipeline", requires = "pipeline")]
    name: String,
    /// The most rows of a batch; 0 to join no requests.
    #[arg(long, value_name = "N", default_value_t = 8)]
    max_batch: u32,
    /// How long a request may wait for others to join, in microseconds.
    #[arg(long, value_name = "US")]
    queue_delay: Option<u64>,
    /// Run on these GPUs [default: all, or the CPU where there is none]
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "cpu")]
    gpus: Vec<u32>,
    /// Run on the CPU.
    #[arg(long)]
    cpu: bool,
    /// Instances of each model on each device.
    #[arg(long, value_name = "N", default_value_t = 1)]
    instances: u32,
    /// Print nothing but errors and notes.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    accelerator: AcceleratorArgs,
    #[command(flatten)]
    sizes: SizeArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Accelerator")]
struct AcceleratorArgs {
    /// The execution accelerator on a GPU.
    #[arg(long, value_enum, default_value_t)]
    accelerator: AcceleratorKind,
    /// The precision in which TensorRT may compute [default: the graph's]
    #[arg(long, value_enum)]
    precision: Option<Floats>,
    /// The most GPU memory that a layer in TensorRT may use for itself, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    workspace: u32,
    /// A folder on the server where TensorRT's engines are kept.
    #[arg(long, value_name = "DIR")]
    engine_cache: Option<String>,
    /// A further parameter of the accelerator: trt_builder_optimization_level=5.
    #[arg(long, value_name = "KEY=VALUE", value_parser = option)]
    option: Vec<(String, String)>,
}

/// The values of `--accelerator`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum AcceleratorKind {
    /// ONNX Runtime as it is: CUDA on a GPU.
    #[default]
    None,
    /// CUDA, with options.
    Cuda,
    /// TensorRT, and CUDA for what it doesn't run.
    Tensorrt,
}

/// The values of `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Floats {
    /// Single.
    Fp32,
    /// Half where that is faster.
    Fp16,
}

fn option(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` has no `=`"))?;
    Ok((key.to_string(), value.to_string()))
}

impl Args {
    fn serving(&self) -> Result<Serving, Failure> {
        let devices = match (self.cpu, self.gpus.is_empty()) {
            (true, _) => Devices::Cpu,
            (false, true) => Devices::Any,
            (false, false) => Devices::Gpus(self.gpus.clone()),
        };
        let refuse = |what: &str| Err(Failure::Message(what.to_string()));
        let given = &self.accelerator;
        let batch = Range { min: 1, max: i64::from(self.max_batch.max(1)) };
        let sizes = self.sizes.with(batch, None)?;
        let tensorrt_only = given.precision.is_some() || given.engine_cache.is_some() || sizes.is_some();
        let options = given.option.iter().cloned().collect();
        let accelerator = match given.accelerator {
            AcceleratorKind::None | AcceleratorKind::Cuda if tensorrt_only => {
                return refuse(
                    "--precision, --engine-cache and --sizes are for TensorRT: add --accelerator tensorrt",
                );
            }
            AcceleratorKind::None if !given.option.is_empty() => {
                return refuse("--option is for an accelerator: add --accelerator cuda or tensorrt");
            }
            AcceleratorKind::None => Accelerator::None,
            AcceleratorKind::Cuda => Accelerator::Cuda(options),
            AcceleratorKind::Tensorrt => Accelerator::TensorRt(TensorRt {
                precision: given.precision.map(|precision| match precision {
                    Floats::Fp32 => Precision::Fp32,
                    Floats::Fp16 => Precision::Fp16,
                }),
                workspace: u64::from(given.workspace) << 20,
                cache: given.engine_cache.clone(),
                sizes,
                options,
            }),
        };
        let (max_batch, queue_delay, instances) = (self.max_batch, self.queue_delay, self.instances);
        Ok(Serving { max_batch, queue_delay, devices, instances, accelerator })
    }

    fn models(&self) -> Result<(Vec<Entry>, Option<Pipeline>), Failure> {
        let entries: Vec<Entry> = self.models.iter().map(|text| entry(text)).collect();
        let Some(folder) = &self.pipeline else { return Ok((entries, None)) };
        let unet = match entries.as_slice() {
            [] => None,
            [one] => Some(one.model.as_path()),
            several => {
                return Err(Failure::Message(format!(
                    "with --pipeline one MODEL takes the place of the UNet, but there are {}",
                    several.len()
                )));
            }
        };
        let (pipeline, entries) = Pipeline::open(&self.name, folder, unet)?;
        Ok((entries, Some(pipeline)))
    }
}

/// Parses `[NAME=]MODEL`; a file whose own name has a `=` is meant as it is.
fn entry(text: &str) -> Entry {
    match text.split_once('=').filter(|_| !Path::new(text).exists()) {
        Some((name, model)) => Entry { name: name.to_string(), model: model.into() },
        None => Entry::named_after(Path::new(text)),
    }
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let serving = args.serving()?;
    let (entries, pipeline) = args.models()?;
    let bars = Bars::new(if args.quiet { Visibility::Hidden } else { Visibility::Shown });
    let job = TritonJob {
        entries: &entries,
        pipeline: pipeline.as_ref(),
        serving: &serving,
        repository: &args.output,
        observer: &bars,
    };
    let served = export(&job)?;
    drop(bars);
    for served in &served {
        if !args.quiet {
            out!("{}\n", line(&args.output, served));
        }
        for note in &served.notes {
            anstream::eprintln!("note: {}: {note}", served.name);
        }
    }
    Ok(DONE)
}

fn line(repository: &Path, served: &Served) -> String {
    let batch = match served.max_batch {
        0 => "one request at a time".to_string(),
        most => format!("batches of up to {most}"),
    };
    let widened = match served.widened.as_slice() {
        [] => String::new(),
        inputs => format!("; a row for each request: {}", inputs.join(", ")),
    };
    format!("{}  {batch}{widened}", repository.join(&served.name).display())
}
