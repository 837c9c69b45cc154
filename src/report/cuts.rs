//! The modules at which a cache can cut a network, for `crdiff inspect --cache`.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::{table::Cells, text::count};
use crate::{
    analysis::{Analysis, macs},
    ir::{InitializerId, NodeId},
};

/// A model's cuts as `crdiff inspect --cache --json` prints them.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CutsReport {
    /// The file.
    pub model: String,
    /// Latent height and width that multiply-accumulates are counted at, batch 1.
    pub latents: (i64, i64),
    /// Multiply-accumulates of the whole network.
    pub macs: u64,
    /// The cuts, in the order of the network: the last one leaves the least to run.
    pub cuts: Vec<CutReport>,
}

/// A cut, and the shallow graph that it would make.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CutReport {
    /// The module, as a plan writes it in `at`.
    pub at: String,
    /// The dimensions of what is kept.
    pub kept: String,
    /// Nodes of the shallow graph.
    pub nodes: usize,
    /// Elements of its float initializers.
    pub parameters: u64,
    /// Its multiply-accumulates.
    pub macs: u64,
    /// The share of the network's multiply-accumulates that a step with it saves.
    pub saves: f64,
}

/// Finds the cuts of a network, at latents of size `(height, width)`.
pub fn cuts(model: &str, analysis: &Analysis<'_>, latents: (i64, i64)) -> CutsReport {
    let graph = analysis.graph;
    let sizes = macs::at_size(graph, &analysis.shapes, latents);
    let each = macs::each(graph, &sizes);
    let all: u64 = each.iter().sum();
    let cut = |cut: crate::analysis::cut::Cut| {
        let near = analysis.near_side(&cut);
        let is_near = |index: usize| near.get(index).copied().unwrap_or_default();
        let nodes: Vec<NodeId> = graph.node_ids().filter(|id| is_near(id.index())).collect();
        let tensors: BTreeMap<InitializerId, u64> = nodes
            .iter()
            .flat_map(|id| graph.node(*id).operands())
            .filter_map(|value| graph.initializer_of(value))
            .filter(|(_, tensor)| tensor.header.data_type.is_weight_float())
            .map(|(id, tensor)| (id, tensor.header.elements()))
            .collect();
        let macs: u64 = nodes.iter().filter_map(|id| each.get(id.index())).sum();
        let dims: Vec<String> = cut.dims.iter().map(ToString::to_string).collect();
        let kept = sizes.of(cut.value).map(|dims| format!("{dims:?}"));
        CutReport {
            at: analysis.modules.get(cut.module).path.clone(),
            kept: kept.unwrap_or_else(|| format!("[{}]", dims.join(", "))),
            nodes: nodes.len(),
            parameters: tensors.values().sum(),
            macs,
            saves: if all == 0 { 0.0 } else { 1.0 - macs as f64 / all as f64 },
        }
    };
    let cuts = analysis.cuts().into_iter().map(cut).collect();
    CutsReport { model: model.to_string(), latents, macs: all, cuts }
}

/// Returns the report as text, ending in a newline.
pub fn text(report: &CutsReport, width: Option<u16>) -> String {
    let CutsReport { model, latents: (height, wide), macs, cuts } = report;
    let mut text = String::new();
    if cuts.is_empty() {
        let _ = writeln!(
            text,
            "{model}: no skip connection ends at a Concat before a block, so nothing can be cached"
        );
        return text;
    }
    let _ = writeln!(text, "{model}: {} MACs for latents of {height}x{wide}, batch 1", count(*macs));
    let header = ["cache: { at: ... }", "kept", "nodes left", "parameters left", "MACs left", "saved"];
    let row = |cut: &CutReport| {
        let saves = format!("{:.1} %", 100.0 * cut.saves);
        let (nodes, parameters) = (cut.nodes.to_string(), count(cut.parameters));
        vec![cut.at.clone(), cut.kept.clone(), nodes, parameters, count(cut.macs), saves]
    };
    let rows = cuts.iter().map(row).collect();
    let table = Cells { header: &header, rows, spare: &[] }.table(2, width);
    let _ = writeln!(text, "{table}");
    text
}
