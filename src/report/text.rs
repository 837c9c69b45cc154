//! Reports as tables for a terminal.

use std::fmt::Write;

use super::{CacheReport, ChangeReport, CompileReport, LoraReport, PruneReport, table::Cells};
use crate::{plan::Target, rules};

/// How a report is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The columns of the terminal, if there is one.
    pub width: Option<u16>,
    /// Whether every tensor has a line.
    pub verbose: bool,
}

/// Returns the report as text, without colours, ending in a newline.
pub fn compile(report: &CompileReport, view: View) -> String {
    let mut text = String::new();
    change_tables(&mut text, report, view);
    if !report.lora.is_empty() {
        lora_tables(&mut text, &report.lora, view);
    }
    if !report.prune.is_empty() {
        prune_tables(&mut text, &report.prune, view);
    }
    totals(&mut text, report);
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    for line in honest(report) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Adds a table for each kind of rule that changes modules.
fn change_tables(text: &mut String, report: &CompileReport, view: View) {
    for kind in rules::module_kinds() {
        let changes: Vec<_> = report.changes.iter().filter(|change| change.rule == kind).collect();
        change_table(text, &changes, report.fused.is_none(), view);
    }
}

/// Adds the table of `changes`, all of one rule. In a fused graph nothing is gone: the dense branch has it all.
fn change_table(text: &mut String, changes: &[&ChangeReport], gone: bool, view: View) {
    let Some(first) = changes.first() else { return };
    let with_macs = gone && changes.iter().any(|change| change.macs.is_some());
    let mut header = vec![first.done, "kind", first.how.0];
    if gone {
        header.extend(["nodes gone", "parameters gone"]);
    }
    if with_macs {
        header.push("MACs gone");
    }
    let rows = changes.iter().map(|change| {
        let mut row = vec![change.module.clone(), change.kind.clone(), change.how.1.to_string()];
        if gone {
            row.extend([change.nodes.to_string(), count(change.parameters)]);
        }
        if with_macs {
            row.push(change.macs.map(count).unwrap_or_default());
        }
        row
    });
    let cells = Cells { header: &header, rows: rows.collect(), spare: &[1, 5, 2] };
    let _ = writeln!(text, "{}", cells.table(3, view.width));
    for change in changes {
        if let Some(note) = &change.note {
            let _ = writeln!(text, "note: `{}`: {note}", change.module);
        }
    }
}

fn lora_tables(text: &mut String, rules: &[LoraReport], view: View) {
    let change = |change: Option<f64>| change.map_or_else(|| "-".into(), |c| format!("{:.2} %", 100.0 * c));
    let rows = rules.iter().map(|rule| {
        let (tensors, weights) = (rule.tensors.to_string(), count(rule.weights));
        vec![rule.file.clone(), rule.scale.to_string(), tensors, weights, change(rule.change)]
    });
    let header = ["merged", "scale", "tensors", "weights", "change"];
    let cells = Cells { header: &header, rows: rows.collect(), spare: &[2, 3] };
    let _ = writeln!(text, "{}", cells.table(1, view.width));
    if !view.verbose {
        return;
    }
    let rows = rules.iter().flat_map(|rule| &rule.per_tensor);
    let rows = rows.map(|tensor| vec![tensor.module.clone(), count(tensor.weights), change(tensor.change)]);
    let header = ["merged tensor", "weights", "change"];
    let cells = Cells { header: &header, rows: rows.collect(), spare: &[1] };
    let _ = writeln!(text, "{}", cells.table(1, view.width));
}

fn prune_tables(text: &mut String, rules: &[PruneReport], view: View) {
    let rows = rules.iter().map(|rule| {
        vec![
            rule.selector.clone(),
            rule.tensors.to_string(),
            count(rule.weights),
            rule.k.map(count).unwrap_or_else(|| "-".into()),
            rule.threshold.map(|t| format!("{t:.6e}")).unwrap_or_else(|| "-".into()),
            count(rule.zeros),
            percent(rule.zeros, rule.weights),
        ]
    });
    let header = ["pruned", "tensors", "weights", "k", "threshold", "masked", "share"];
    let cells = Cells { header: &header, rows: rows.collect(), spare: &[3, 4, 1] };
    let _ = writeln!(text, "{}", cells.table(1, view.width));
    if !view.verbose {
        return;
    }
    let rows = rules.iter().flat_map(|rule| &rule.per_tensor).map(|tensor| {
        let gone = if tensor.bypassed { " (bypassed)" } else { "" };
        vec![
            format!("{}{gone}", tensor.module),
            count(tensor.weights),
            count(tensor.zeros),
            percent(tensor.zeros, tensor.weights),
        ]
    });
    let header = ["tensor", "weights", "masked", "share"];
    let cells = Cells { header: &header, rows: rows.collect(), spare: &[1] };
    let _ = writeln!(text, "{}", cells.table(1, view.width));
}

fn totals(text: &mut String, report: &CompileReport) {
    let graph = &report.graph;
    let _ = writeln!(
        text,
        "nodes {} -> {}, parameters {} -> {}{}",
        graph.nodes_before,
        graph.nodes_after,
        count(graph.parameters_before),
        count(graph.parameters_after),
        match (graph.macs_before, graph.macs_after) {
            (Some(before), Some(after)) => format!(", MACs {} -> {}", count(before), count(after)),
            _ => String::new(),
        }
    );
    if let Some(CacheReport { at, shallow }) = &report.cache {
        let _ = writeln!(
            text,
            "cut at {at}: the shallow graph has {} nodes, {} parameters{}",
            shallow.nodes_after,
            count(shallow.parameters_after),
            match (graph.macs_before, shallow.macs_after) {
                (Some(whole), Some(macs)) =>
                    format!(", {} MACs ({} of the network's)", count(macs), percent(macs, whole)),
                _ => String::new(),
            }
        );
    }
    if let Some(fused) = &report.fused {
        let _ = writeln!(
            text,
            "{} of {} nodes and {} of {} parameters serve both branches",
            fused.nodes_shared,
            fused.nodes_dense,
            count(fused.parameters_shared),
            count(fused.parameters)
        );
        if let (Some(shared), Some(two), Some(time)) =
            (fused.macs_shared, fused.macs_two_runs, fused.expected_time)
        {
            let _ = writeln!(
                text,
                "{} of the {} MACs of two runs are computed once: expect {time:.2} of the time of two runs",
                count(shared),
                count(two)
            );
        }
    }
    for output in &report.outputs {
        let what = if output.identical { "identical to the input" } else { output.emit.name() };
        let depth = output.depth.map_or_else(String::new, |depth| format!(", {}", depth.name()));
        let _ = writeln!(text, "wrote {} ({what}{depth}, {} nodes)", output.path, output.nodes);
        for file in &output.reads {
            let _ = writeln!(text, "keep {file} beside it: its changed weights are read from there");
        }
    }
    let weights = &report.weights;
    if !weights.files.is_empty() {
        let _ = writeln!(
            text,
            "{} written, {} shared with files that were there",
            bytes(weights.bytes_written),
            bytes(weights.bytes_shared)
        );
    }
    for file in &weights.shared_with {
        let _ = writeln!(
            text,
            "keep {file} beside it: weights are read from there (--weights copy makes it self-contained)"
        );
    }
}

/// Returns the gains and costs, as plain sentences.
fn honest(report: &CompileReport) -> Vec<&'static str> {
    let mut lines = Vec::new();
    if report.cache.is_some() {
        lines.push(
            "Two graphs for one loop: the full one each few steps, the shallow one with what that kept in between. The \
             output of a step with the shallow one is an approximation; `crdiff run` follows the plan.",
        );
    }
    if report.prune.is_empty() && report.changes.is_empty() && report.lora.is_empty() {
        if report.cache.is_none() {
            lines.push("The plan changes nothing.");
        }
    } else if report.fused.is_some() {
        lines.push(
            "A drop-in for the original: same inputs and outputs, amplified. It costs more than the original and less \
             than two runs.",
        );
        return lines;
    }
    if report.emit == Target::Amplified {
        lines.push(
            "An approximation: to first order in the masked weights it is what the fused graph computes, at the cost of \
             one network. `crdiff compare` against the fused graph tells how far it is off.",
        );
    } else if !report.prune.is_empty() {
        lines.push(
            "Masked weights change what the network computes, not how fast or how large it is: engines multiply by \
             zeros as by any number.",
        );
    }
    if report.changes.iter().any(|change| change.gone) {
        lines.push("Bypassed modules are gone: the graph runs faster and needs less memory.");
    }
    lines
}

/// Returns a number with its thousands apart, or in millions and billions where that is enough: 68,812,800.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a size in the largest unit that leaves a number of at least 1.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ => format!("{value:.2} {}", UNITS[unit]),
    }
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".into(),
        _ => format!("{:.2} %", 100.0 * part as f64 / whole as f64),
    }
}
