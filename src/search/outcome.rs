//! What came of a search: the plan, and tables.

use std::fmt::Write;

use serde_json::Value;

use super::{
    SearchError, Space,
    run::{Found, plan_of},
    space::Bound,
};

/// The best trial's plan as YAML, with where it comes from in comments.
///
/// # Errors
/// [`SearchError`] if no trial worked.
pub fn plan_file(bound: &Bound<'_>, found: &Found, model: &str) -> Result<String, SearchError> {
    let best = found.best().ok_or_else(|| {
        let what = found.records.last().and_then(|record| record.scores.failed.clone()).unwrap_or_default();
        SearchError::AllFailed { trials: found.records.len() as u64, what }
    })?;
    let plan = plan_of(bound, &best.values)?;
    let yaml = serde_saphyr::to_string(&plan)
        .map_err(|e| SearchError::Values(format!("the plan cannot be written as YAML: {e}")))?;
    let Space { seed, strategy, .. } = bound.space;
    let mut text = format!(
        "# Found by crdiff search {}.\n# score: {} (trial {} of {}; dense: {})\n# strategy: {}, seed {seed}\n\
         # space: {}\n# model: {model}\n",
        env!("CARGO_PKG_VERSION"),
        best.scores.score,
        best.trial,
        found.records.len(),
        found.dense.score,
        strategy.name(),
        bound.space.digest(),
    );
    if let Value::Object(values) = &best.values {
        for (name, value) in values {
            // Into a string, which cannot fail.
            let _ = writeln!(text, "# {name}: {value}");
        }
    }
    text.push_str(&yaml);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}
