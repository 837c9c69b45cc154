//! `crdiff export`: graphs with the files that servers and browsers want beside them.

mod sizes;
mod triton;

use std::path::{Path, PathBuf};

use self::sizes::SizeArgs;
use super::{
    DONE, Failure,
    files::replace,
    progress::{Bars, Visibility},
};
use crate::{
    deploy::{DeployError, trtexec, web},
    onnx::OnnxError,
};

/// Hand a graph over to what serves it: Triton, TensorRT, a browser.
///
/// Weights are copied, never read or converted; what is written appears complete or not at all.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crdiff export triton unet.crdiff.onnx -o models               a Triton model repository
  crdiff export triton --pipeline sd15-onnx -o models           the whole pipeline as one model
  crdiff export trtexec unet.crdiff.onnx --sizes 512x512        how to build an engine
  crdiff export web unet.crdiff.onnx -o public/unet             files for onnxruntime-web")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Triton(triton::Args),
    Trtexec(TrtexecArgs),
    Web(WebArgs),
}

/// Print the command that builds a TensorRT engine from a graph.
///
/// It names the shapes of every input that has dimensions of any size, for the given sizes of images. Each size is
/// tried on the graph's shapes first: one that is impossible is an error.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crdiff export trtexec unet.crdiff.onnx --sizes 512x512,768x512 --batch 1..2
  crdiff export trtexec unet.crdiff.onnx --plan result.json | sh         sizes of the plan
  crdiff export trtexec vae_decoder/model.onnx --sizes 512x512 -o build.sh")]
struct TrtexecArgs {
    /// The model (.onnx).
    model: PathBuf,
    /// Rows of a batch; the engine is tuned for most. Classifier-free guidance takes two for an image.
    #[arg(long, value_name = "MIN..MAX", default_value = "1..2")]
    batch: crate::deploy::Range,
    /// Take the sizes from a plan that has them, as the CR-Diff authors' result files do.
    #[arg(long, value_name = "PLAN", conflicts_with = "sizes")]
    plan: Option<PathBuf>,
    /// The engine that trtexec is to write [default: the model's name with .plan]
    #[arg(long, value_name = "FILE")]
    engine: Option<PathBuf>,
    /// Write the command to a file instead.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    sizes: SizeArgs,
}

/// Write a graph as files that onnxruntime-web can load.
///
/// In one file if it fits, else with the weights in files beside it, no file larger than a browser takes; with a
/// manifest, and `load.js`, which makes a session of them. Nothing is converted.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crdiff export web unet.crdiff.onnx -o public/unet
  crdiff export web unet.crdiff.onnx -o public/unet --max-file 100000000     where hosts have a limit")]
struct WebArgs {
    /// The model (.onnx).
    model: PathBuf,
    /// The folder to write to.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The most bytes that a file may have: Chrome's ArrayBuffers have no more than the default.
    #[arg(long, value_name = "BYTES", default_value_t = web::FILE_LIMIT)]
    max_file: u64,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    match &args.command {
        Command::Triton(args) => triton::run(args),
        Command::Trtexec(args) => trtexec(args),
        Command::Web(args) => web(args),
    }
}

impl From<DeployError> for Failure {
    fn from(error: DeployError) -> Self {
        match error {
            DeployError::Onnx(OnnxError::Stopped) => Self::Interrupted,
            other => Self::Message(other.to_string()),
        }
    }
}

fn trtexec(args: &TrtexecArgs) -> Result<u8, Failure> {
    let sizes = args.sizes.with(args.batch, args.plan.as_deref())?.ok_or_else(|| {
        let what = "say which image sizes the engine is for: --sizes 512x512,768x512, or --plan with a plan that has sizes";
        Failure::Message(what.to_string())
    })?;
    let job = trtexec::TrtexecJob { model: &args.model, sizes: &sizes, engine: args.engine.as_deref() };
    let command = trtexec::shell(&trtexec::command(&job)?);
    match &args.output {
        Some(path) => write(path, &format!("#!/bin/sh\n{command}"))?,
        None => out!("{command}"),
    }
    Ok(DONE)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    replace(path, |file| std::io::Write::write_all(file, text.as_bytes()))
        .map_err(|what| Failure::Message(format!("{}: cannot write the command: {what}", path.display())))
}

fn web(args: &WebArgs) -> Result<u8, Failure> {
    let bars = Bars::new(if args.quiet { Visibility::Hidden } else { Visibility::Shown });
    let job =
        web::WebJob { model: &args.model, output: &args.output, file_limit: args.max_file, observer: &bars };
    let bundle = web::export(&job)?;
    drop(bars);
    for note in &bundle.notes {
        anstream::eprintln!("note: {note}");
    }
    if !args.quiet {
        for (path, bytes) in &bundle.files {
            out!("{}  {bytes} bytes\n", path.display());
        }
        out!("{}  loads them\n", args.output.join("load.js").display());
    }
    Ok(DONE)
}
