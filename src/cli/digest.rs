//! `crdiff digest`: digests of a graph up to names and order.

use std::path::PathBuf;

use super::{
    DONE, Failure, Json,
    progress::{Bars, Visibility},
};
use crate::{ir::Graph, onnx, verify::structure};

/// Print two digests of a model: of its structure, and of its structure and weights.
///
/// They don't depend on names of nodes and inner values, the order of nodes, metadata, or where the weights are kept:
/// models have the same digest if `crdiff diff` finds no difference (with `--structure` for the first digest). Both
/// are SHA-256, in hexadecimal.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crdiff digest unet.onnx
  crdiff digest unet.onnx --json | jq -r .weights")]
pub struct Args {
    /// The model (.onnx).
    model: PathBuf,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let graph = onnx::open(&args.model).and_then(Graph::load);
    let graph = graph.map_err(|e| Failure::Message(super::about(&args.model, &e)))?;
    let bars = Bars::new(Visibility::Shown);
    let digests = structure::digests(&graph, &bars)?;
    drop(bars);
    if args.json.is_asked() {
        let json = serde_json::to_string_pretty(&digests).map_err(|e| Failure::Message(e.to_string()))?;
        out!("{json}\n");
    } else {
        out!("structure            {}\n", digests.structure);
        out!("structure + weights  {}\n", digests.weights);
    }
    Ok(DONE)
}
