//! Outcome of a check, for people, scripts and CI: one type for `verify`, `diff` and `compare`, and four ways to
//! write it.

mod junit;
mod sarif;
mod text;

use miette::SourceSpan;
use serde::Serialize;

use crate::plan::PlanSource;

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// The subcommand: `verify`.
    pub command: String,
    /// The file that was judged.
    pub subject: String,
    /// Whether what was asked holds.
    pub holds: bool,
    /// The same in a word or two: `proven`, `not proven`, `equal`, `different`.
    pub verdict: String,
    /// Numbers and facts worth a line each: what, and how many.
    pub summary: Vec<(String, String)>,
    /// Findings, the most important first.
    pub findings: Vec<Finding>,
}

/// One thing that was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The message, as a sentence without its full stop.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
    /// The path of the module it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// The node, as messages name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The tensor's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// The rule of the plan that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanLocation>,
    /// A way to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The check does not hold.
    #[default]
    Error,
    /// It may not do what was meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// Returns the name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A place in the text of a plan. Lines and columns count from 1, columns in characters; the end is the first
/// character that does not belong to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PlanLocation {
    /// The plan's file.
    pub file: String,
    /// The line it starts in.
    pub line: usize,
    /// The column it starts at.
    pub column: usize,
    /// The line it ends in.
    pub end_line: usize,
    /// The column after its last character.
    pub end_column: usize,
}

impl PlanLocation {
    /// Returns where `span` lies in `source`. A span that reaches out of the text is cut off.
    pub fn of(source: &PlanSource, span: SourceSpan) -> Self {
        let position = |offset: usize| {
            let before = source.text().get(..source.text().floor_char_boundary(offset)).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            let line = before.matches('\n').count() + 1;
            (line, before.get(line_start..).unwrap_or_default().chars().count() + 1)
        };
        let (line, column) = position(span.offset());
        let (end_line, end_column) = position(span.offset().saturating_add(span.len()));
        Self { file: source.name().to_string(), line, column, end_line, end_column }
    }
}

/// How an outcome is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people, with ANSI colours: print it through `anstream`, which takes them out where they don't belong.
    Text,
    /// The types of this module.
    Json,
    /// JUnit XML, as CI servers read it: a test case a finding.
    Junit,
    /// SARIF 2.1.0 (OASIS), as code scanning reads it: a result a finding, at its place in the plan.
    Sarif,
}

/// Writes `outcome` in `format`, ending in a newline.
pub fn render(outcome: &Outcome, format: Format) -> String {
    let mut text = match format {
        Format::Text => text::render(outcome),
        Format::Json => serde_json::to_string_pretty(outcome).unwrap_or_default(),
        Format::Junit => junit::render(outcome),
        Format::Sarif => sarif::render(outcome),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        let text = "version: 1\nrules:\n  - bypass: \"mid ü\"\n";
        let span = text.find("\"mid").map(|at| (at, "\"mid ü\"".len())).unwrap();
        Outcome {
            command: "verify".into(),
            subject: "out dir/unet.pruned.onnx".into(),
            holds: false,
            verdict: "not proven".into(),
            summary: vec![("nodes matched".into(), "12".into())],
            findings: vec![
                Finding {
                    message: "the epsilon of <LayerNormalization> differs".into(),
                    module: Some("mid_block".into()),
                    node: Some("Add node `/mid_block/\"Add\"`".into()),
                    plan: Some(PlanLocation::of(&PlanSource::new("plan.yaml", text), span.into())),
                    help: Some("compile again".into()),
                    ..Finding::default()
                },
                Finding { message: "a note".into(), severity: Severity::Note, ..Finding::default() },
            ],
        }
    }

    #[test]
    fn columns_count_characters() {
        let location = outcome().findings[0].plan.clone().unwrap();
        assert_eq!((location.line, location.column, location.end_line, location.end_column), (3, 13, 3, 20));
    }

    #[test]
    fn spans_outside_the_text_are_cut_off() {
        let location = PlanLocation::of(&PlanSource::new("p", "ab\n"), (50, 7).into());
        assert_eq!((location.line, location.end_column), (2, 1));
    }

    #[test]
    fn text_says_the_verdict_first() {
        let text = anstream::adapter::strip_str(&render(&outcome(), Format::Text)).to_string();
        assert_eq!(
            text,
            "not proven: out dir/unet.pruned.onnx\n\
             error: the epsilon of <LayerNormalization> differs\n  \
             in mid_block\n  \
             node Add node `/mid_block/\"Add\"`\n  \
             plan plan.yaml:3:13\n  \
             help compile again\n\
             note: a note\n\
             nodes matched: 12\n"
        );
    }

    #[test]
    fn junit_escapes_and_counts() {
        let xml = render(&outcome(), Format::Junit);
        assert!(xml.contains(r#"tests="1" failures="1""#), "{xml}");
        assert!(xml.contains("&lt;LayerNormalization&gt;") && xml.contains("&quot;Add&quot;"), "{xml}");
        let proven = Outcome { holds: true, findings: Vec::new(), ..outcome() };
        assert!(render(&proven, Format::Junit).contains(r#"tests="1" failures="0""#));
    }

    #[test]
    fn sarif_points_at_the_plan() {
        let log: serde_json::Value = serde_json::from_str(&render(&outcome(), Format::Sarif)).unwrap();
        assert_eq!(log["version"], "2.1.0");
        let results = log["runs"][0]["results"].as_array().unwrap();
        let location = |i: usize| &results[i]["locations"][0]["physicalLocation"];
        assert_eq!(location(0)["artifactLocation"]["uri"], "plan.yaml");
        assert_eq!(location(0)["region"]["endColumn"], 20);
        assert_eq!(location(1)["artifactLocation"]["uri"], "out%20dir/unet.pruned.onnx");
        assert_eq!(results[1]["level"], "note");
    }
}
