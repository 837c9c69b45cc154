//! Differences between two graphs, for people and as an [`Outcome`].

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

use super::outcome::{Finding, Outcome};
use crate::verify::structure::{Diff, Difference, What};

const ADDED: Style = AnsiColor::Green.on_default();
const REMOVED: Style = AnsiColor::Red.on_default();
const CHANGED: Style = AnsiColor::Yellow.on_default();
const HEADING: Style = Style::new().bold();

/// Returns the differences between the models `a` and `b` (their paths) as an outcome about `b`.
pub fn outcome(diff: &Diff, a: &str, b: &str) -> Outcome {
    let mut summary = vec![("compared with".to_string(), a.to_string())];
    summary.extend(counts(diff));
    Outcome {
        command: "diff".into(),
        subject: b.to_string(),
        holds: diff.is_same(),
        verdict: verdict(diff).into(),
        summary,
        findings: diff.differences.iter().map(finding).collect(),
    }
}

/// Returns the same as text with ANSI colours, one paragraph a module: print it through `anstream`.
pub fn text(diff: &Diff, a: &str, b: &str) -> String {
    let mut text = String::new();
    let style = if diff.is_same() { ADDED.bold() } else { REMOVED.bold() };
    let _ = writeln!(text, "{style}{}{style:#}: {a} -> {b}", verdict(diff));
    let mut modules: Vec<(&str, Vec<&Difference>)> = Vec::new();
    for difference in &diff.differences {
        let heading = if difference.node.is_none() && difference.module.is_empty() {
            "the graph"
        } else if difference.module.is_empty() {
            "outside of modules"
        } else {
            &difference.module
        };
        match modules.iter_mut().find(|(known, _)| *known == heading) {
            Some((_, list)) => list.push(difference),
            None => modules.push((heading, vec![difference])),
        }
    }
    for (module, differences) in modules {
        let _ = writeln!(text, "{HEADING}{module}{HEADING:#}");
        for difference in differences {
            let (sign, style) = match difference.what {
                What::ModuleRemoved { .. } | What::Removed => ('-', REMOVED),
                What::ModuleAdded { .. } | What::Added => ('+', ADDED),
                _ => ('~', CHANGED),
            };
            let _ = writeln!(text, "  {style}{sign}{style:#} {}", message(difference));
        }
    }
    for (what, value) in counts(diff) {
        let _ = writeln!(text, "{what}: {value}");
    }
    text
}

fn verdict(diff: &Diff) -> &'static str {
    if diff.is_same() { "same" } else { "different" }
}

/// Returns the counts of differences, without those that are 0.
fn counts(diff: &Diff) -> Vec<(String, String)> {
    let count = |which: fn(&What) -> bool| diff.differences.iter().filter(|d| which(&d.what)).count();
    let numbers = [
        ("nodes removed", diff.nodes_a - diff.matched),
        ("nodes added", diff.nodes_b - diff.matched),
        ("attributes changed", count(|w| matches!(w, What::Attribute { .. } | What::Function))),
        ("operands rewired", count(|w| matches!(w, What::Rewired { .. }))),
        ("tensors changed", count(|w| matches!(w, What::Tensor { .. } | What::Reshaped { .. }))),
    ];
    let nodes = match diff.nodes_a == diff.nodes_b {
        true => diff.nodes_a.to_string(),
        false => format!("{} -> {}", diff.nodes_a, diff.nodes_b),
    };
    let mut all = vec![("nodes".to_string(), nodes)];
    all.extend(numbers.iter().filter(|(_, n)| *n > 0).map(|(what, n)| (what.to_string(), n.to_string())));
    all
}

fn finding(difference: &Difference) -> Finding {
    let tensor = match &difference.what {
        What::Tensor { tensor, .. } | What::Reshaped { tensor, .. } => Some(tensor.clone()),
        _ => None,
    };
    Finding {
        message: message(difference),
        module: Some(difference.module.clone()).filter(|m| !m.is_empty()),
        node: difference.node.clone(),
        tensor,
        ..Finding::default()
    }
}

/// Returns a difference as a sentence that names the node or tensor, but not the module.
pub(super) fn message(difference: &Difference) -> String {
    let node = difference.node.as_deref().unwrap_or_default();
    match &difference.what {
        What::ModuleRemoved { nodes } => format!("the module is removed ({nodes} nodes)"),
        What::ModuleAdded { nodes } => format!("the module is added ({nodes} nodes)"),
        What::Removed => format!("{node} is removed"),
        What::Added => format!("{node} is added"),
        What::Attribute { name, from, to } => {
            let text = |value: &Option<String>| value.clone().unwrap_or("nothing".into());
            format!("{node}: attribute `{name}` was {}, is {}", text(from), text(to))
        }
        What::Function => format!("{node}: the function that it calls does something else"),
        What::Rewired { what, from, to } if node.is_empty() => format!("{what} was {from}, is {to}"),
        What::Rewired { what, from, to } => format!("{node}: {what} was {from}, is {to}"),
        What::Reshaped { tensor, from, to } => format!("tensor `{tensor}` was {from}, is {to}"),
        What::Tensor { values: Some([from, to]), tensor, .. } => {
            format!("tensor `{tensor}` was {from}, is {to}")
        }
        What::Tensor { tensor, shape, difference, .. } => {
            let mut text = format!(
                "tensor `{tensor}` {shape}: {} of {} elements differ",
                difference.differing, difference.elements
            );
            if let (Some(max), Some(mean)) = (difference.max_abs, difference.mean_abs) {
                let _ = write!(text, ", max {max:.3e}, mean {mean:.3e}");
            }
            text
        }
        What::Interface { what, from, to } => match (from, to) {
            (Some(from), Some(to)) => format!("{what} was {from}, is {to}"),
            (Some(from), None) if from == "there" => format!("{what} is removed"),
            (None, Some(to)) if to == "there" => format!("{what} is added"),
            (Some(from), _) => format!("{what} ({from}) is removed"),
            (_, to) => format!("{what} ({}) is added", to.as_deref().unwrap_or("nothing")),
        },
    }
}
