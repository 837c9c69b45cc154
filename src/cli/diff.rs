//! `crdiff diff`: the structural differences between two models.

use std::path::{Path, PathBuf};

use super::{
    DOES_NOT_HOLD, DONE, Failure, Formats,
    files::{self, Report},
    progress::{Bars, Visibility},
};
use crate::{
    analysis::Analysis,
    ir::Graph,
    onnx,
    report::{
        diff as report, html,
        outcome::{self, Format},
    },
    verify::structure::{self, WeightComparison},
};

/// Show what is different between two models, up to names and order, by module.
///
/// Where weights are kept, names of nodes and inner values, the order of nodes, metadata and documentation don't
/// count. Weights that two models share in one file are not read. The exit code is 0 if the models are the same, 1 if
/// they differ, 2 if one cannot be read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crdiff diff unet.onnx unet.pruned.onnx              what a plan came to
  crdiff diff unet.onnx unet.pruned.onnx --html d.html the same as a page
  crdiff diff old.onnx new.onnx --structure           the same network, whatever its weights?
  crdiff diff a.onnx b.onnx --format json | jq '.findings[] | select(.tensor)'")]
pub struct Args {
    /// The first model (.onnx).
    a: PathBuf,
    /// The second model (.onnx).
    b: PathBuf,
    /// Don't compare weights, only their types and dimensions.
    #[arg(long)]
    structure: bool,
    #[command(flatten)]
    format: Formats,
    /// Write the result as a page for a browser too.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let open = |path: &Path| -> Result<Graph, Failure> {
        let graph = onnx::open(path).and_then(Graph::load);
        graph.map_err(|e| Failure::Message(super::about(path, &e)))
    };
    let (a, b) = (open(&args.a)?, open(&args.b)?);
    let page = args.html.as_deref();
    let page = page.map(|path| Report::create(path, &files::models(&[&args.a, &args.b])?)).transpose()?;
    let weights = if args.structure { WeightComparison::Ignored } else { WeightComparison::Compared };
    let bars = Bars::new(Visibility::Shown);
    let diff = structure::diff(&a, &b, weights, &bars)?;
    drop(bars);
    let graphs = [a, b];
    let [a, b] = [&args.a, &args.b].map(|path| path.display().to_string());
    if let Some(file) = page {
        let [first, second] = &graphs;
        let models = [
            html::Anatomy::of(&a, &Analysis::of(first), None),
            html::Anatomy::of(&b, &Analysis::of(second), None),
        ];
        let page = html::render(&html::diff(models, &diff)).map_err(|e| Failure::Message(e.to_string()))?;
        file.place(&page)?;
    }
    match Format::from(args.format) {
        Format::Text => out!("{}", report::text(&diff, &a, &b)),
        other => out!("{}", outcome::render(&report::outcome(&diff, &a, &b), other)),
    }
    Ok(if diff.is_same() { DONE } else { DOES_NOT_HOLD })
}
