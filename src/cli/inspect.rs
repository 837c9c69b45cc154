//! `crdiff inspect`: the module tree of a model.

use std::path::PathBuf;

use clap::ArgGroup;

use super::{
    DONE, Failure, Json, Size, columns,
    files::{self, Report},
    likeness, said_latents,
};
use crate::{
    analysis::Analysis,
    ir::Graph,
    onnx,
    plan::{Glob, Selector},
    report::{
        cuts, html,
        inspect::{self, Filter},
    },
};

/// Show the module tree of a model: what a plan can name, and what can be bypassed.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("sized").args(["html", "cache"]).multiple(true))]
#[command(after_help = "\
Examples:
  crdiff inspect unet.onnx --depth 2
  crdiff inspect unet.onnx --filter 'mid_block.**'
  crdiff inspect unet.onnx --html unet.html --at 64x64
  crdiff inspect unet.onnx --cache --at 64x64
  crdiff inspect unet.onnx --json | jq '.modules[] | select(.bypassable) | .path'")]
pub struct Args {
    /// The exported UNet (.onnx).
    model: PathBuf,
    /// Show modules down to this depth.
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    /// Show only modules that this glob matches, as in plans.
    #[arg(long, value_name = "GLOB")]
    filter: Option<String>,
    /// Show where a plan's `cache` can cut the network, and what that saves.
    #[arg(long, conflicts_with_all = ["depth", "filter", "html"])]
    cache: bool,
    #[command(flatten)]
    json: Json,
    /// Write a page for a browser, with an image of the network, instead of printing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["depth", "filter", "Json"])]
    html: Option<PathBuf>,
    /// Sizes and multiply-accumulates are for latents (not pixels) of this size, such as 64x64 (batch 1, 77 tokens);
    /// --latent-size is the same [default with --cache: 64x64].
    #[arg(long, value_name = "HxW", requires = "sized", alias = "latent-size")]
    at: Option<Size>,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    if let Some(path) = &args.html {
        let file = Report::create(path, &files::models(&[&args.model])?)?;
        let graph = Graph::load(onnx::open(&args.model)?)?;
        said_latents(args.at);
        let at = args.at.map(|size| (size.height, size.width));
        let model = html::Anatomy::of(&args.model.display().to_string(), &Analysis::of(&graph), at);
        file.place(&html::render(&html::inspect(model)).map_err(|e| Failure::Message(e.to_string()))?)?;
        return Ok(DONE);
    }
    if args.cache {
        let graph = Graph::load(onnx::open(&args.model)?)?;
        said_latents(args.at);
        let at = args.at.map_or((64, 64), |size| (size.height, size.width));
        let report = cuts::cuts(&args.model.display().to_string(), &Analysis::of(&graph), at);
        match args.json.is_asked() {
            true => out!(
                "{}\n",
                serde_json::to_string_pretty(&report).map_err(|e| Failure::Message(e.to_string()))?
            ),
            false => out!("{}", cuts::text(&report, columns())),
        }
        return Ok(DONE);
    }
    let glob = match &args.filter {
        None => None,
        Some(text) => {
            let glob = Glob::module(text, (0, text.len()).into())
                .map_err(|e| Failure::Message(format!("--filter {text}: {}", e.reason)))?;
            Some(Selector::Globs(vec![glob]))
        }
    };
    let graph = Graph::load(onnx::open(&args.model)?)?;
    likeness::say(&args.model, &graph);
    let filter = Filter { depth: args.depth, glob };
    let report = inspect::inspect(&args.model.display().to_string(), &Analysis::of(&graph), &filter);
    if args.json.is_asked() {
        let json = serde_json::to_string_pretty(&report).map_err(|e| Failure::Message(e.to_string()))?;
        out!("{json}\n");
    } else {
        out!("{}", inspect::text(&report, columns()));
    }
    Ok(DONE)
}
