//! An outcome as SARIF 2.1.0 (OASIS, `sarif-schema-2.1.0.json`).

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{Finding, Outcome, PlanLocation};

const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

pub(super) fn render(outcome: &Outcome) -> String {
    let rule = format!("crdiff/{}", outcome.command);
    let results: Vec<Value> =
        outcome.findings.iter().map(|finding| result(outcome, finding, &rule)).collect();
    let facts: Map<String, Value> = outcome.summary.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    let log = json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "crdiff",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": [{ "id": rule, "shortDescription": { "text": format!("what `crdiff {}` found", outcome.command) } }],
            }},
            "columnKind": "unicodeCodePoints",
            "results": results,
            "properties": { "subject": outcome.subject, "holds": outcome.holds, "summary": facts },
        }],
    });
    serde_json::to_string_pretty(&log).unwrap_or_default()
}

fn result(outcome: &Outcome, finding: &Finding, rule: &str) -> Value {
    let physical = match &finding.plan {
        Some(place) => at_plan(place),
        None => json!({ "artifactLocation": { "uri": uri(&outcome.subject) } }),
    };
    let mut location = json!({ "physicalLocation": physical });
    let named = [("module", &finding.module), ("member", &finding.node), ("resource", &finding.tensor)];
    let logical: Vec<Value> = named
        .into_iter()
        .filter_map(|(kind, name)| Some(json!({ "fullyQualifiedName": name.as_ref()?, "kind": kind })))
        .collect();
    if !logical.is_empty() {
        location["logicalLocations"] = logical.into();
    }
    let message = match &finding.help {
        Some(help) => format!("{}. {help}", finding.message),
        None => finding.message.clone(),
    };
    json!({
        "ruleId": rule,
        "level": finding.severity.name(),
        "message": { "text": message },
        "locations": [location],
    })
}

fn at_plan(place: &PlanLocation) -> Value {
    json!({
        "artifactLocation": { "uri": uri(&place.file) },
        "region": {
            "startLine": place.line,
            "startColumn": place.column,
            "endLine": place.end_line,
            "endColumn": place.end_column,
        },
    })
}

/// Returns a path as a URI reference (RFC 3986): what may not stand in one is percent-encoded.
fn uri(path: &str) -> String {
    let mut uri = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(byte.into());
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}
