//! How close two models' outputs are, for people and as an [`Outcome`].

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::{
    outcome::{Finding, Outcome, Severity},
    table::Cells,
};
use crate::numeric::{Metrics, OutputComparison, bisect::Divergence};

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// A whole comparison.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CompareReport {
    /// The reference: the first model, or the folder with the stored outputs.
    pub expected: String,
    /// The model that was judged.
    pub actual: String,
    /// The engine that ran, and why it.
    pub engine: String,
    /// Every output on every case.
    pub outputs: Vec<OutputComparison>,
    /// The result of `--bisect`: the case and output that it looked at, and the first tensor that diverges, if any
    /// does.
    pub bisected: Option<(String, String, Option<Divergence>)>,
}

impl CompareReport {
    /// A comparison of the outputs of `actual` with those of `expected`, by an engine and the reason for it.
    pub fn new(expected: String, actual: String, engine: String, outputs: Vec<OutputComparison>) -> Self {
        Self { expected, actual, engine, outputs, bisected: None }
    }

    /// Returns whether every output is close enough.
    pub fn holds(&self) -> bool {
        self.outputs.iter().all(|o| o.within)
    }

    fn verdict(&self) -> &'static str {
        let exact = |o: &OutputComparison| o.metrics.is_some_and(|m| m.max_abs == 0.0);
        match (self.holds(), self.outputs.iter().all(exact)) {
            (true, true) => "equal",
            (true, false) => "within tolerance",
            (false, _) => "out of tolerance",
        }
    }
}

/// Returns the comparison as an outcome: a finding for each output, a note where it is close enough.
pub fn outcome(report: &CompareReport) -> Outcome {
    let mut findings: Vec<Finding> = report.outputs.iter().map(finding).collect();
    findings.sort_by_key(|f| f.severity == Severity::Note);
    if let Some((_, _, divergence)) = &report.bisected {
        let found = divergence.as_ref();
        findings.push(Finding {
            message: bisected_text(divergence.as_ref()),
            severity: Severity::Note,
            module: found.map(|d| d.module.clone()).filter(|m| !m.is_empty()),
            node: found.map(|d| d.node.clone()),
            tensor: found.map(|d| d.tensor.clone()),
            ..Finding::default()
        });
    }
    Outcome {
        command: "compare".into(),
        subject: report.actual.clone(),
        holds: report.holds(),
        verdict: report.verdict().into(),
        summary: vec![
            ("compared with".into(), report.expected.clone()),
            ("engine".into(), report.engine.clone()),
        ],
        findings,
    }
}

/// Returns the same as text with ANSI colours, at most `width` columns wide: print it through `anstream`.
pub fn text(report: &CompareReport, width: Option<u16>) -> String {
    let mut text = String::new();
    let style = if report.holds() { GOOD } else { BAD };
    let _ = writeln!(text, "{style}{}{style:#}: {} -> {}", report.verdict(), report.expected, report.actual);
    let header = ["case", "output", "max abs", "allowed", "max rel", "cosine", "PSNR dB", ""];
    let rows = report.outputs.iter().map(|output| {
        let mut row = vec![output.case.clone(), output.output.clone()];
        match &output.metrics {
            Some(m) => row.extend([
                format!("{:.2e}", m.max_abs),
                format!("{:.2e}", allowed(output, m)),
                format!("{:.2e}", m.max_rel),
                format!("{:.6}", m.cosine),
                format!("{:.1}", m.psnr),
            ]),
            None => row.extend(["-"; 5].map(String::from)),
        }
        row.push(if output.within { "ok".into() } else { "FAIL".into() });
        row
    });
    let cells = Cells { header: &header, rows: rows.collect(), spare: &[4, 6, 5] };
    let _ = writeln!(text, "{}", cells.table(2, width));
    for output in &report.outputs {
        if let Some(problem) = &output.problem {
            let _ = writeln!(text, "{} `{}`: {problem}", output.case, output.output);
        }
    }
    if let Some((case, output, divergence)) = &report.bisected {
        let _ = writeln!(text, "{case} `{output}`: {}", bisected_text(divergence.as_ref()));
        if let Some(d) = divergence {
            let module = if d.module.is_empty() { "outside of modules" } else { &d.module };
            let _ = writeln!(text, "  in {module}\n  {}\n  tensor `{}`", d.node, d.tensor);
        }
    }
    let _ = writeln!(text, "engine: {}", report.engine);
    text
}

fn allowed(output: &OutputComparison, metrics: &Metrics) -> f64 {
    output.tolerance.absolute + output.tolerance.relative * metrics.magnitude
}

fn finding(output: &OutputComparison) -> Finding {
    let what = match (&output.metrics, &output.problem) {
        (Some(m), _) => format!(
            "max abs {:.3e} of allowed {:.3e}, max rel {:.3e}, cosine {:.6}, PSNR {:.1} dB",
            m.max_abs,
            allowed(output, m),
            m.max_rel,
            m.cosine,
            m.psnr
        ),
        (None, problem) => problem.clone().unwrap_or_default(),
    };
    Finding {
        message: format!("{} `{}`: {what}", output.case, output.output),
        severity: if output.within { Severity::Note } else { Severity::Error },
        tensor: Some(output.output.clone()),
        ..Finding::default()
    }
}

fn bisected_text(divergence: Option<&Divergence>) -> String {
    match divergence {
        None => "no tensor that both models have diverges".into(),
        Some(d) => {
            let off = d.metrics.map_or("its dimensions differ".into(), |m| {
                format!("max abs {:.2e} at magnitude {:.2e}", m.max_abs, m.magnitude)
            });
            format!("the first tensor that diverges, found in {} rounds: {off}", d.rounds)
        }
    }
}
