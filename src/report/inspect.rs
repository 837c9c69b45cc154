//! The module tree of a model, for `crdiff inspect`.

use std::fmt::Write;

use comfy_table::CellAlignment;
use serde::Serialize;

use super::{
    table::{Cells, shortened},
    text::count,
};
use crate::{
    analysis::{
        Analysis,
        modules::{ModuleId, ModuleKind, Naming},
        weights::Unplaced,
    },
    plan::{Selector, Via},
};

/// A model as `crdiff inspect --json` prints it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ModelReport {
    /// The file.
    pub model: String,
    /// The naming of the modules: `diffusers`, `ldm` or `unknown`.
    pub layout: &'static str,
    /// The prefix of a wrapper module that was dropped from every path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub wrapper: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Elements of all float initializers.
    pub parameters: u64,
    /// Version of the standard operator set.
    pub opset: Option<i64>,
    /// The modules, in order, the ones around before the ones inside.
    pub modules: Vec<ModuleReport>,
    /// Layers that a rule with wildcards cannot be sure to mean or not to mean.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unplaced: Vec<UnplacedReport>,
}

/// A layer whose module is not known.
#[derive(Clone, Debug, Serialize)]
pub struct UnplacedReport {
    /// The node that multiplies by its weight.
    pub node: String,
    /// The innermost module that it lies in as far as its neighbours show.
    pub within: String,
    /// Why its module is not known.
    pub reason: String,
}

/// A module.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ModuleReport {
    /// Its path, as plans name it.
    pub path: String,
    /// How deep it lies; 0 for a child of the model.
    pub depth: usize,
    /// Its kind.
    pub kind: String,
    /// Nodes in it.
    pub nodes: usize,
    /// Float parameters in it, each counted once.
    pub parameters: u64,
    /// Its share of all parameters.
    pub share: f64,
    /// Whether it can be bypassed.
    pub bypassable: bool,
    /// Why it cannot be bypassed, or at which sizes it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether a prune rule can name it.
    pub prunable: bool,
    /// Shape of what it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Shape of what it makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Where its nodes' places are known from: `metadata`, `node names`, `parameter names`, `attention`, `residuals`,
    /// `neighbours`.
    pub evidence: String,
}

/// Which modules are reported.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Down to this depth; all if `None`.
    pub depth: Option<usize>,
    /// Only those that the selector matches.
    pub glob: Option<Selector>,
}

/// Looks at every module of the model.
pub fn inspect(name: &str, analysis: &Analysis<'_>, filter: &Filter) -> ModelReport {
    let parameters = super::compile::parameters(analysis.graph);
    let mut report = ModelReport {
        model: name.to_string(),
        layout: match analysis.modules.layout() {
            Naming::Diffusers => "diffusers",
            Naming::Ldm => "ldm",
            Naming::Unknown => "unknown",
        },
        wrapper: analysis.modules.wrapper().to_string(),
        nodes: analysis.graph.nodes().count(),
        parameters,
        opset: analysis.graph.opset(""),
        modules: Vec::new(),
        unplaced: analysis.weights.unplaced.iter().map(|u| unplaced(analysis, u)).collect(),
    };
    let mut open: Vec<(ModuleId, usize)> = children(analysis, analysis.modules.root(), 0);
    while let Some((id, depth)) = open.pop() {
        open.extend(children(analysis, id, depth + 1));
        let module = analysis.modules.get(id);
        let shown = filter.depth.is_none_or(|max| depth < max)
            && filter.glob.as_ref().is_none_or(|glob| glob.matches(&module.path));
        if shown {
            report.modules.push(entry(analysis, id, depth, parameters));
        }
    }
    report
}

fn unplaced(analysis: &Analysis<'_>, layer: &Unplaced) -> UnplacedReport {
    UnplacedReport {
        node: analysis.graph.node(layer.node).describe(),
        within: layer.within.clone(),
        reason: layer.reason.clone(),
    }
}

/// Collects the modules in `id`, last first; lists are passed over, and modules in them count as theirs.
fn children(analysis: &Analysis<'_>, id: ModuleId, depth: usize) -> Vec<(ModuleId, usize)> {
    let mut found = Vec::new();
    for child in analysis.modules.get(id).children.iter().rev() {
        if analysis.modules.get(*child).kind == ModuleKind::List {
            found.extend(children(analysis, *child, depth));
        } else {
            found.push((*child, depth));
        }
    }
    found
}

fn entry(analysis: &Analysis<'_>, id: ModuleId, depth: usize, all: u64) -> ModuleReport {
    let module = analysis.modules.get(id);
    let nodes = analysis.modules.nodes(id);
    let mut initializers: Vec<_> = nodes
        .iter()
        .flat_map(|n| analysis.graph.node(*n).operands())
        .filter_map(|v| analysis.graph.initializer_of(v))
        .filter(|(_, i)| i.header.data_type.is_weight_float())
        .map(|(id, i)| (id, i.header.elements()))
        .collect();
    initializers.sort_unstable();
    initializers.dedup();
    let parameters = initializers.iter().map(|(_, n)| n).sum();
    let (bypassable, reason) = if module.kind.is_block() {
        match analysis.bypass(id, Via::Shortcut) {
            Ok(bypass) => (true, bypass.note),
            Err(illegal) => (false, Some(illegal.reason)),
        }
    } else {
        (false, None)
    };
    let shape = |values: Vec<_>| match values[..] {
        [value] => analysis.shapes.of(value).map(ToString::to_string),
        _ => None,
    };
    let evidence = nodes.first().map(|n| analysis.modules.evidence(*n).to_string()).unwrap_or_default();
    ModuleReport {
        path: module.path.clone(),
        depth,
        kind: module.kind.to_string(),
        nodes: nodes.len(),
        parameters,
        share: if all == 0 { 0.0 } else { parameters as f64 / all as f64 },
        bypassable,
        reason,
        prunable: analysis.weights.editable.iter().any(|w| w.path == module.path),
        input: shape(analysis.inputs(id)),
        output: shape(analysis.outputs(id)),
        evidence,
    }
}

/// Returns the report as a table of at most `width` columns, ending in a newline.
pub fn text(report: &ModelReport, width: Option<u16>) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {} nodes, {} parameters, opset {}, {} names{}",
        report.model,
        report.nodes,
        count(report.parameters),
        report.opset.map_or_else(|| "?".into(), |v| v.to_string()),
        report.layout,
        match report.wrapper.as_str() {
            "" => String::new(),
            prefix => format!(", without the prefix `{prefix}`"),
        }
    );
    let mut rest = report.modules.as_slice();
    loop {
        let (rows, later) = rest.split_at(rest.len().min(ROWS));
        // Where the terminal is too narrow, the shapes of inputs and outputs are the first to go, then what a path has in
        // common with the module around it.
        let forms = [(COLUMNS.len(), Names::Paths), (5, Names::Paths), (5, Names::Tails)];
        let mut cells = forms.map(|(shown, names)| cells_of(rows, shown, names)).into_iter();
        let cells = cells.find(|cells| cells.fit(width)).unwrap_or_else(|| cells_of(rows, 5, Names::Tails));
        let mut table = cells.table(2, width);
        for column in [3, 5, 6] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Left);
            }
        }
        let _ = writeln!(text, "{table}");
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    for module in report.modules.iter().filter(|m| !m.bypassable) {
        if let Some(reason) = &module.reason {
            let line = format!("`{}` cannot be bypassed: {reason}", module.path);
            let _ = writeln!(text, "{}", shortened(&line));
        }
    }
    for layer in &report.unplaced {
        let place = if layer.within.is_empty() { "the model" } else { &layer.within };
        let line = format!("{} in `{place}` is not placed: {}", layer.node, layer.reason);
        let _ = writeln!(text, "{}", shortened(&line));
    }
    text
}

/// Rows of one table: all cells of one are in memory, and each column is as wide as its widest cell.
const ROWS: usize = 10_000;

const COLUMNS: [&str; 7] = ["module", "kind", "parameters", "bypass", "share", "input", "output"];

/// How modules are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// By their paths.
    Paths,
    /// By what their paths have beyond that of the module around them, where that is in the table.
    Tails,
}

/// Returns the first `shown` columns of some modules.
fn cells_of(modules: &[ModuleReport], shown: usize, names: Names) -> Cells<'static> {
    let mut rows = Vec::with_capacity(modules.len());
    let mut around: Vec<&str> = Vec::new();
    for module in modules {
        let is_inside =
            |outer: &&str| module.path.strip_prefix(outer).is_some_and(|tail| tail.starts_with('.'));
        while around.last().is_some_and(|outer| !is_inside(outer)) {
            around.pop();
        }
        let common = if names == Names::Tails { around.last().map_or(0, |outer| outer.len()) } else { 0 };
        around.push(&module.path);
        let name = module.path.get(common..).unwrap_or(&module.path);
        let mut row = vec![
            format!("{}{}", "  ".repeat(module.depth), shortened(name)),
            module.kind.clone(),
            count(module.parameters),
            match (module.bypassable, &module.reason) {
                (true, None) => "yes".into(),
                (true, Some(note)) => format!("yes ({note})"),
                (false, Some(_)) => "no".into(),
                (false, None) => String::new(),
            },
            format!("{:.1} %", 100.0 * module.share),
            module.input.clone().unwrap_or_default(),
            module.output.clone().unwrap_or_default(),
        ];
        row.truncate(shown);
        rows.push(row);
    }
    Cells { header: COLUMNS.get(..shown).unwrap_or(&COLUMNS), rows, spare: &[4, 1] }
}
