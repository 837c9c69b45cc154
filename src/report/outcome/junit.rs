//! An outcome as JUnit XML, in the common subset of what CI servers read (testsuites, testsuite, testcase, failure,
//! system-out).

use std::fmt::Write;

use super::{Finding, Outcome, Severity};

pub(super) fn render(outcome: &Outcome) -> String {
    let failures: Vec<&Finding> = outcome.findings.iter().filter(|f| f.severity == Severity::Error).collect();
    let suite = escape(&format!("crdiff {}", outcome.command));
    let subject = escape(&outcome.subject);
    let failed = if outcome.holds { 0 } else { failures.len().max(1) };
    let counts = format!(r#"tests="{}" failures="{failed}""#, failed.max(1));
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(xml, r#"<testsuites name="{suite}" {counts}>"#);
    let _ = writeln!(xml, r#"  <testsuite name="{suite}" {counts}>"#);
    if outcome.holds || failures.is_empty() {
        let _ = writeln!(xml, r#"    <testcase name="{}" classname="{subject}">"#, escape(&outcome.verdict));
        if !outcome.holds {
            let _ = writeln!(xml, r#"      <failure message="{}"/>"#, escape(&outcome.verdict));
        }
        let _ = writeln!(xml, "    </testcase>");
    } else {
        for finding in failures {
            let name = [&finding.module, &finding.tensor, &finding.node].into_iter().flatten().next();
            let name = escape(name.map_or(outcome.verdict.as_str(), String::as_str));
            let _ = writeln!(xml, r#"    <testcase name="{name}" classname="{subject}">"#);
            let _ = writeln!(
                xml,
                r#"      <failure message="{}">{}</failure>"#,
                escape(&finding.message),
                escape(&details(finding))
            );
            let _ = writeln!(xml, "    </testcase>");
        }
    }
    let facts = outcome.summary.iter().map(|(what, value)| format!("{what}: {value}\n"));
    let asides = outcome.findings.iter().filter(|f| f.severity != Severity::Error);
    let asides = asides.map(|f| format!("{}: {}\n", f.severity.name(), f.message));
    let out: String = asides.chain(facts).collect();
    let _ = writeln!(xml, "    <system-out>{}</system-out>", escape(&out));
    xml.push_str("  </testsuite>\n</testsuites>\n");
    xml
}

fn details(finding: &Finding) -> String {
    let place = finding.plan.as_ref().map(|p| format!("{}:{}:{}", p.file, p.line, p.column));
    let details = [
        ("module", &finding.module),
        ("node", &finding.node),
        ("tensor", &finding.tensor),
        ("plan", &place),
        ("help", &finding.help),
    ];
    details.into_iter().filter_map(|(what, value)| Some(format!("{what}: {}\n", value.as_ref()?))).collect()
}

/// Escapes text for XML. Control characters that XML 1.0 cannot hold at all become U+FFFD.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' | '\r' => escaped.push(c),
            c if c < ' ' || matches!(c, '\u{FFFE}' | '\u{FFFF}') => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}
