//! Outcome of a search: the plan, and tables.

use std::{fmt::Write, time::Duration};

use serde_json::Value;

use super::{
    SearchError, Space,
    confirmed::{Confirmed, ConfirmedTrial, Difference},
    run::{Found, Times, plan_of},
    space::Bound,
    trial::Scores,
};

/// Returns the best trial's plan as YAML, with where it comes from in comments.
///
/// # Errors
/// [`SearchError`] if no trial worked, or none of those that were to be confirmed.
pub fn plan_file(bound: &Bound<'_>, found: &Found) -> Result<String, SearchError> {
    let why = |scores: &Scores| scores.failed.clone().unwrap_or_default();
    let best = found.best().ok_or_else(|| match &found.confirmed {
        Some(Confirmed { trials, .. }) => SearchError::Unconfirmed {
            trials: trials.len(),
            what: trials.first().map(|trial| why(&trial.scores)).unwrap_or_default(),
        },
        None => SearchError::AllFailed {
            trials: found.records.len() as u64,
            what: found.records.last().map(|record| why(&record.scores)).unwrap_or_default(),
        },
    })?;
    let plan = plan_of(bound, &best.values)?;
    let yaml = serde_saphyr::to_string(&plan)
        .map_err(|e| SearchError::Values(format!("the plan cannot be written as YAML: {e}")))?;
    let Space { seed, strategy, .. } = bound.space;
    let mut text = format!(
        "# Found by crdiff search {}.\n# score: {} (trial {} of {}; dense: {})\n{}# strategy: {}, seed {seed}\n\
         # space: {}\n# model: {}\n",
        env!("CARGO_PKG_VERSION"),
        best.scores.score,
        best.trial,
        found.records.len(),
        found.dense.score,
        found.confirmed.as_ref().map(|confirmed| comments(found, confirmed)).unwrap_or_default(),
        strategy.name(),
        bound.space.digest(),
        found.model,
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

/// Returns what confirmation found of the plan, as comments.
fn comments(found: &Found, confirmed: &Confirmed) -> String {
    let Some(best) = confirmed.best() else { return String::new() };
    let (noises, dense) = (confirmed.noises, confirmed.dense.score);
    let score = best.scores.score;
    let mut text = format!("# confirmed: {score} (dense: {dense}; fresh noises for each prompt: {noises})\n");
    // The reason of a failure may have several lines.
    for line in verdict(found, confirmed, best).join("\n").lines() {
        // Into a string, which cannot fail.
        let _ = writeln!(text, "# {line}");
    }
    text
}

/// Returns how much better than the dense network the plan of the best confirmed trial is, in lines.
fn verdict(found: &Found, confirmed: &Confirmed, best: &ConfirmedTrial) -> Vec<String> {
    let Some(difference) = &best.difference else {
        let why = confirmed.dense.failed.as_deref().unwrap_or_default();
        return vec![format!("the dense network failed on fresh noises: {why}")];
    };
    let mut over_dense = format!("over dense: {:+.4} on fresh noises", difference.mean);
    if let Some(record) = found.best().filter(|_| found.dense.failed.is_none()) {
        // Into a string, which cannot fail.
        let _ = write!(over_dense, ", {:+.4} in the search", record.scores.score - found.dense.score);
    }
    let error = match &difference.error {
        Some(error) => {
            let of = if error.is_over_prompts { "prompts" } else { "images" };
            format!("standard error over {} {of}: {:.4}", error.count, error.value)
        }
        None => "no standard error: each score is that of one image".to_string(),
    };
    let mut lines = vec![over_dense, error];
    lines.extend(match difference {
        Difference { mean, .. } if *mean <= 0.0 => {
            Some("no confirmed trial is better than the dense network".to_string())
        }
        Difference { error: Some(_), .. } if !difference.is_clear() => {
            Some("the difference is below two standard errors: it may be chance".to_string())
        }
        _ => None,
    });
    lines
}

/// Returns the best trials and where the time went, for people.
pub fn summary(found: &Found) -> String {
    const SHOWN: usize = 5;
    let mut text = String::new();
    let ranked = found.ranked();
    let is_better = ranked.first().is_some_and(|best| best.scores.score > found.dense.score);
    let failed = found.records.len() - found.records.iter().filter(|r| r.scores.failed.is_none()).count();
    let mut line = |what: std::fmt::Arguments<'_>| {
        // Into a string, which cannot fail.
        let _ = text.write_fmt(what);
        text.push('\n');
    };
    line(format_args!("{:>7}  {:>8}  values", "trial", "score"));
    for record in ranked.into_iter().take(SHOWN) {
        line(format_args!("{:>7}  {:>8.4}  {}", record.trial, record.scores.score, values(&record.values)));
    }
    line(format_args!("{:>7}  {:>8.4}", "dense", found.dense.score));
    line(format_args!("{} trials, {failed} of them failed", found.records.len()));
    if found.dense.failed.is_none() && found.confirmed.is_none() && !is_better {
        line(format_args!(
            "no trial scores better than the dense network: the plan is the best of them all the same"
        ));
    }
    if let Some(confirmed) = &found.confirmed {
        line(format_args!(""));
        for row in confirmation(found, confirmed) {
            line(format_args!("{row}"));
        }
    }
    line(format_args!(""));
    for row in times(&found.times) {
        line(format_args!("{row}"));
    }
    text
}

/// Returns the table of confirmed trials: their scores in the search, and those by fresh images.
fn confirmation(found: &Found, confirmed: &Confirmed) -> Vec<String> {
    let number = |scores: &Scores| match scores.failed {
        None => format!("{:.4}", scores.score),
        Some(_) => "failed".to_string(),
    };
    let row = |name: &str, searched: &Scores, fresh: &Scores, difference: Option<Difference>| {
        let difference = difference.map(|difference| difference.to_string()).unwrap_or_default();
        format!("{name:>7}  {:>8}  {:>8}  {difference}", number(searched), number(fresh))
    };
    let mut rows = vec![
        format!("confirmed; fresh noises for each prompt: {}", confirmed.noises),
        format!("{:>7}  {:>8}  {:>8}  fresh, over dense +- standard error", "trial", "searched", "fresh"),
    ];
    for ConfirmedTrial { trial, scores, difference } in &confirmed.trials {
        let record = found.records.iter().find(|record| record.trial == *trial);
        let searched = record.map(|record| &record.scores);
        rows.extend(searched.map(|searched| row(&trial.to_string(), searched, scores, *difference)));
    }
    rows.push(row("dense", &found.dense, &confirmed.dense, None));
    if let Some(best) = confirmed.best() {
        rows.push(format!("the plan is that of trial {}", best.trial));
        rows.extend(verdict(found, confirmed, best));
    }
    rows.iter().map(|row| row.trim_end().to_string()).collect()
}

/// Returns the values as `down 0.312, up 0.5`.
fn values(values: &Value) -> String {
    let Some(values) = values.as_object() else { return values.to_string() };
    let one = |(name, value): (&String, &Value)| match value {
        Value::Number(number) => format!("{name} {:.4}", number.as_f64().unwrap_or_default()),
        other => format!("{name} {other}"),
    };
    values.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Returns the table of times.
fn times(times: &Times) -> Vec<String> {
    let workers = &times.workers;
    let all = times.wall * u32::try_from(times.jobs).unwrap_or(u32::MAX);
    // Trials are compiled on a thread of their own, while workers run others or wait.
    let known = workers.models() + workers.objective + workers.loading_trials + workers.loading;
    let rest = all.saturating_sub(known);
    let rows = [
        ("dense network", workers.dense),
        ("pruned networks", workers.trials),
        ("text encoders", workers.text),
        ("VAE", workers.decoding),
        ("scoring", workers.objective),
        ("loading trials", workers.loading_trials),
        ("loading the pipeline, once", workers.loading),
        ("waiting, and all else", rest),
    ];
    let percent = |time: Duration| 100.0 * time.as_secs_f64() / all.as_secs_f64().max(f64::MIN_POSITIVE);
    let mut lines: Vec<String> = rows
        .iter()
        .map(|(what, time)| format!("{what:<28}{:>10.2} s{:>7.1} %", time.as_secs_f64(), percent(*time)))
        .collect();
    let how_many = if times.jobs == 1 { String::new() } else { format!(", {} workers", times.jobs) };
    let confirmations = match times.confirmations {
        0 => String::new(),
        count => format!(", {count} confirmations"),
    };
    lines.push(format!(
        "{:<28}{:>10.2} s  ({} trials{confirmations}{how_many})",
        "together",
        all.as_secs_f64(),
        times.trials
    ));
    lines.push(format!("{:<28}{:>10.2} s  beside that", "compiling trials", times.compiling.as_secs_f64()));
    let beside = workers.loading_trials + rest;
    lines.push(format!(
        "a trial takes {:.1} % beside its model runs; {} of {} dense and text calls were remembered",
        100.0 * beside.as_secs_f64() / workers.models().as_secs_f64().max(f64::MIN_POSITIVE),
        workers.lookups.answered,
        workers.lookups.asked
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_the_time_are_a_hundred_percent_whatever_is_compiled_meanwhile() {
        let seconds = Duration::from_secs;
        let mut found =
            Times { wall: seconds(10), jobs: 2, trials: 3, compiling: seconds(9), ..Times::default() };
        found.workers.trials = seconds(11);
        found.workers.objective = seconds(4);
        let lines = times(&found);
        let shares =
            lines.iter().filter_map(|line| line.strip_suffix(" %")?.split_whitespace().last()?.parse().ok());
        let shares: Vec<f64> = shares.collect();
        assert_eq!((shares.len(), shares.iter().sum::<f64>()), (8, 100.0), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("compiling trials") && line.contains("9.00 s")));
    }
}
