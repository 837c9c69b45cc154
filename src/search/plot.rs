//! A search as an image: the score of each trial, the best so far and what was confirmed, and the score by each variable.

use std::fmt::Write;

use serde_json::Value;

use super::{confirmed::Confirmed, journal::Record, run::Found, trial::Scores};

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 34.0;
const COLUMNS: usize = 3;
/// The colour of what was confirmed.
const FRESH: &str = "#283";

/// Draws the trials that worked, the dense pipeline and those that were confirmed as SVG.
pub fn svg(found: &Found) -> String {
    let worked: Vec<&Record> = found.records.iter().filter(|record| record.scores.failed.is_none()).collect();
    let fresh = found.confirmed.iter().flat_map(|confirmed| {
        let trials = confirmed.trials.iter().filter_map(|trial| known(&trial.scores));
        trials.chain(known(&confirmed.dense))
    });
    let scores = worked.iter().map(|record| record.scores.score).chain(known(&found.dense));
    let (low, high) = padded(scores.chain(fresh));
    let mut panels = vec![by_trial(&worked, found, (low, high))];
    let names: Vec<&String> = worked
        .first()
        .and_then(|record| record.values.as_object())
        .map(|values| values.keys().collect())
        .unwrap_or_default();
    panels.extend(names.into_iter().map(|name| by_variable(&worked, name, (low, high))));
    let columns = panels.len().min(COLUMNS);
    let rows = panels.len().div_ceil(COLUMNS);
    let (width, height) = (columns as f64 * WIDTH, rows as f64 * HEIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, panel) in panels.iter().enumerate() {
        let (x, y) = ((index % COLUMNS) as f64 * WIDTH, (index / COLUMNS) as f64 * HEIGHT);
        add(&mut svg, format_args!("<g transform=\"translate({x} {y})\">\n{panel}</g>\n"));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Returns the score, if there is one.
fn known(scores: &Scores) -> Option<f64> {
    scores.failed.is_none().then_some(scores.score)
}

fn by_trial(records: &[&Record], found: &Found, range: (f64, f64)) -> String {
    let last = records.last().map_or(1.0, |record| (record.trial as f64).max(1.0));
    let mut panel = frame("score by trial", (0.0, last), range);
    if let Some(dense) = known(&found.dense) {
        level(&mut panel, ("dense", WIDTH - RIGHT - 2.0, "end"), "#777", down(dense, range));
    }
    let mut best = f64::NEG_INFINITY;
    let mut line = String::new();
    for record in records {
        let (x, score) = (across(record.trial as f64, (0.0, last)), record.scores.score);
        dot(&mut panel, x, down(score, range));
        if best.is_finite() {
            add(&mut line, format_args!("{x:.1},{:.1} ", down(best, range)));
        }
        best = best.max(score);
        add(&mut line, format_args!("{x:.1},{:.1} ", down(best, range)));
    }
    add(
        &mut panel,
        format_args!("<polyline points=\"{line}\" fill=\"none\" stroke=\"#c33\" stroke-width=\"1.5\"/>\n"),
    );
    if let Some(confirmed) = &found.confirmed {
        fresh(&mut panel, confirmed, last, range);
    }
    panel
}

/// Draws confirmed scores as rings.
fn fresh(panel: &mut String, confirmed: &Confirmed, last: f64, range: (f64, f64)) {
    if let Some(dense) = known(&confirmed.dense) {
        // At the other end: the two are often close.
        level(panel, ("dense, fresh noises", LEFT + 4.0, "start"), FRESH, down(dense, range));
    }
    for trial in &confirmed.trials {
        let Some(score) = known(&trial.scores) else { continue };
        let (x, y) = (across(trial.trial as f64, (0.0, last)), down(score, range));
        add(
            panel,
            format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"none\" stroke=\"{FRESH}\" stroke-width=\"1.5\">\
                 <title>trial {} on fresh noises: {score:.4}</title></circle>\n",
                trial.trial
            ),
        );
    }
}

/// Draws a score that is not a trial's, as a dashed line with its name at one end.
fn level(panel: &mut String, (name, x, anchor): (&str, f64, &str), colour: &str, y: f64) {
    add(
        panel,
        format_args!(
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-dasharray=\"4 3\"/>\n\
             <text x=\"{x}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{name}</text>\n",
            WIDTH - RIGHT,
            y - 3.0
        ),
    );
}

fn by_variable(records: &[&Record], name: &str, range: (f64, f64)) -> String {
    let value = |record: &&Record| record.values.get(name).cloned().unwrap_or_default();
    let numbers: Vec<Option<f64>> = records.iter().map(|record| value(record).as_f64()).collect();
    let title = format!("score by {}", escaped(name));
    if numbers.iter().all(Option::is_some) {
        let ends = padded(numbers.iter().copied().flatten());
        let mut panel = frame(&title, ends, range);
        for (record, number) in records.iter().zip(numbers) {
            dot(&mut panel, across(number.unwrap_or_default(), ends), down(record.scores.score, range));
        }
        return panel;
    }
    // A column for each option; in a set, for each member that is in.
    let members = |value: &Value| -> Vec<String> {
        match value {
            Value::Array(items) if items.is_empty() => vec!["none".to_string()],
            Value::Array(items) => items.iter().map(text).collect(),
            other => vec![text(other)],
        }
    };
    let mut options: Vec<String> = records.iter().flat_map(|record| members(&value(record))).collect();
    options.sort_unstable();
    options.dedup();
    let ends = (-0.5, options.len() as f64 - 0.5);
    let mut panel = frame(&title, (f64::NAN, f64::NAN), range);
    for (index, option) in options.iter().enumerate() {
        let x = across(index as f64, ends);
        let short: String = option.chars().rev().take(14).collect::<Vec<_>>().into_iter().rev().collect();
        add(
            &mut panel,
            format_args!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"8\"><title>{}</title>{}</text>\n",
                HEIGHT - BOTTOM + 14.0,
                escaped(option),
                escaped(&short)
            ),
        );
        for record in records.iter().filter(|record| members(&value(record)).contains(option)) {
            dot(&mut panel, x, down(record.scores.score, range));
        }
    }
    panel
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// Returns a panel's title, axes and the ends of their ranges; none for NaN.
fn frame(title: &str, (left, right): (f64, f64), (low, high): (f64, f64)) -> String {
    let (x0, x1, y0, y1) = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP);
    let mut panel = format!(
        "<text x=\"{x0}\" y=\"16\" font-weight=\"bold\">{title}</text>\n\
         <path d=\"M{x0} {y1} V{y0} H{x1}\" fill=\"none\" stroke=\"#333\"/>\n"
    );
    for (value, y) in [(low, y0), (high, y1 + 8.0)] {
        add(
            &mut panel,
            format_args!("<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{value:.3}</text>\n", x0 - 4.0),
        );
    }
    for (value, x, anchor) in [(left, x0, "start"), (right, x1, "end")] {
        if value.is_finite() {
            let y = y0 + 14.0;
            let value = (value * 1e3).round() / 1e3;
            add(
                &mut panel,
                format_args!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{value}</text>\n"),
            );
        }
    }
    panel
}

fn dot(panel: &mut String, x: f64, y: f64) {
    add(
        panel,
        format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"#36c\" fill-opacity=\"0.6\"/>\n"),
    );
}

fn across(value: f64, (low, high): (f64, f64)) -> f64 {
    LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)
}

fn down(value: f64, (low, high): (f64, f64)) -> f64 {
    HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
}

/// Returns the range of some values, wide enough to divide by.
fn padded(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match high - low {
        width if width.is_finite() && width > 0.0 => (low, high),
        _ if low.is_finite() => (low - 0.5, low + 0.5),
        _ => (0.0, 1.0),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn add(to: &mut String, what: std::fmt::Arguments<'_>) {
    // Into a string, which cannot fail.
    let _ = to.write_fmt(what);
}
