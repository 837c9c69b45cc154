//! `crdiff print`: a graph or some modules of it as text.

use std::{
    io::{ErrorKind, Write},
    path::PathBuf,
};

use super::{DONE, Failure};
use crate::{
    onnx,
    report::print::{PrintError, print},
};

/// Print a graph, or the part of it that some modules are, in ONNX's textual syntax.
///
/// The inputs of a part are what it reads from elsewhere, its outputs what is read elsewhere. External weights are
/// printed as where they are, large ones as the beginning of their SHA-256.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crdiff print unet.onnx | less
  crdiff print unet.onnx --module 'mid_block.**.attn1'
  diff <(crdiff print unet.onnx) <(crdiff print unet.pruned.onnx)")]
pub struct Args {
    /// The model (.onnx).
    model: PathBuf,
    /// Print only the modules that this glob matches, as in plans, and what is in them.
    #[arg(long, value_name = "GLOB")]
    module: Option<String>,
    /// Print the elements of tensors with at most this many.
    #[arg(long, value_name = "N", default_value_t = 16)]
    elements: usize,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let source =
        onnx::open(&args.model).map_err(|error| Failure::Message(super::about(&args.model, &error)))?;
    let text = print(source, args.module.as_deref(), args.elements).map_err(|error| match error {
        PrintError::Module(what) => {
            Failure::Message(format!("--module {}: {what}", args.module.as_deref().unwrap_or_default()))
        }
        other => Failure::Message(super::about(&args.model, &other)),
    })?;
    match writeln!(std::io::stdout().lock(), "{text}") {
        // A pager that has seen enough.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(DONE),
        result => result.map(|()| DONE).map_err(|e| Failure::unwritten(&e)),
    }
}
