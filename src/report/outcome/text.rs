//! An outcome for people.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

use super::{Outcome, Severity};

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DOUBTFUL: Style = AnsiColor::Yellow.on_default().bold();
const ASIDE: Style = Style::new().dimmed();

pub(super) fn render(outcome: &Outcome) -> String {
    let mut text = String::new();
    let style = if outcome.holds { GOOD } else { BAD };
    let _ = writeln!(text, "{style}{}{style:#}: {}", outcome.verdict, outcome.subject);
    for finding in &outcome.findings {
        let style = match finding.severity {
            Severity::Error => BAD,
            Severity::Warning => DOUBTFUL,
            Severity::Note => ASIDE,
        };
        let _ = writeln!(text, "{style}{}{style:#}: {}", finding.severity.name(), finding.message);
        let place = finding.plan.as_ref().map(|p| format!("{}:{}:{}", p.file, p.line, p.column));
        let details = [
            ("in", &finding.module),
            ("node", &finding.node),
            ("tensor", &finding.tensor),
            ("plan", &place),
            ("help", &finding.help),
        ];
        for (what, value) in details {
            if let Some(value) = value {
                let _ = writeln!(text, "  {ASIDE}{what}{ASIDE:#} {value}");
            }
        }
    }
    for (what, value) in &outcome.summary {
        let _ = writeln!(text, "{what}: {value}");
    }
    text
}
