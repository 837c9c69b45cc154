//! `crdiff print`: a graph or some modules of it as text.

use std::{
    io::{ErrorKind, Write},
    path::PathBuf,
};

use prost::Message;
use rustc_hash::FxHashSet;

use super::{DONE, Failure};
use crate::{
    analysis::{modules, shapes},
    ir::Graph,
    onnx::{
        self,
        proto::ModelProto,
        text::{PrintOptions, print_model_with},
    },
    plan::{Glob, join, nearest},
    report::slice::slice,
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
    let about = |e| Failure::Message(super::about(&args.model, &e));
    let source = onnx::open(&args.model).map_err(about)?;
    let decoded = ModelProto::decode(source.bytes.clone());
    let graph = Graph::load(source).map_err(about)?;
    let mut model = decoded.map_err(|e| Failure::Message(super::about(&args.model, &e)))?;
    if let Some(text) = &args.module {
        let glob = Glob::module(text, (0, text.len()).into())
            .map_err(|e| Failure::Message(format!("--module {text}: {}", e.reason)))?;
        let modules = modules::modules(&graph);
        let matching = modules.iter().filter(|(_, module)| glob.matches(&module.path));
        let nodes: FxHashSet<_> = matching.flat_map(|(id, _)| modules.nodes(id)).collect();
        if nodes.is_empty() {
            let near = nearest(text, modules.iter().map(|(_, module)| module.path.as_str()));
            let hint = if near.is_empty() {
                String::new()
            } else {
                format!("; did you mean {}?", join(&near, "or"))
            };
            return Err(Failure::Message(format!("--module {text}: no module matches{hint}")));
        }
        model = slice(model, &graph, &shapes::shapes(&graph), &nodes);
    }
    let text = print_model_with(&model, PrintOptions { max_elements: args.elements, one_a_line: true });
    match writeln!(std::io::stdout().lock(), "{text}") {
        // A pager that has seen enough.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(DONE),
        result => result.map(|()| DONE).map_err(|e| Failure::Message(format!("cannot print: {e}"))),
    }
}
