//! Reading `amplify:`, `cache:` and `runtime:`.

use super::diagnostics::Problem;
use super::model::{Amplify, AmplifyWeight, Cache, Curve, During, Located, Mode, On, Runtime};
use super::read::{choice, fields, finite, list, number, range, wrong_type, wrong_type_help};
use super::yaml::{Node, Value};
use miette::SourceSpan;
use std::collections::BTreeMap;
use std::num::NonZeroU32;

const KEYS: [&str; 5] = ["mode", "weight", "during", "every", "on"];

/// Reads `amplify:`, whose key stands at `span`.
pub(super) fn amplify(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Amplify> {
    let number = match node.value {
        Value::Integer(weight) => Some(weight.to_string()),
        Value::Float(weight) => Some(weight.to_string()),
        _ => None,
    };
    if let Some(weight) = number {
        let help = format!("write `amplify: {{ weight: {weight} }}`");
        problems.push(wrong_type_help(node, "`amplify`", "a mapping", &help));
        return None;
    }
    let section = fields(node, "`amplify`", &KEYS, problems)?;
    let default = Amplify::default();
    let modes = [("outputs", Mode::Outputs), ("weights", Mode::Weights)];
    let mode =
        section.get("mode").map_or(Some(default.mode), |node| choice(node, "`mode`", &modes, problems));
    let at = section.entry("mode").map_or(span, |(_, node)| node.span);
    let located = |node: &Node, value| Located { value, span: node.span };
    let weight = match section.get("weight") {
        Some(node) => weight(node, problems).map(|value| located(node, value)),
        None => Some(Located { span, ..default.weight }),
    };
    let during = section.get("during").map_or(Some(default.during), |node| during(node, problems));
    let every = match section.get("every") {
        Some(node) => every(node, problems).map(|value| Located { value, span: node.span }),
        None => Some(Located { span, ..default.every }),
    };
    let branches = [("both", On::Both), ("cond", On::Cond)];
    let on = section.get("on").map_or(Some(default.on), |node| choice(node, "`on`", &branches, problems));
    Some(Amplify { span: Some(at), mode: mode?, weight: weight?, during: during?, every: every?, on: on? })
}

/// Reads `cache:`.
pub(super) fn cache(node: &Node, problems: &mut Vec<Problem>) -> Option<Cache> {
    let help = "write `cache: { at: up_blocks.3.resnets.2, every: 3 }`";
    if matches!(node.value, Value::Text(_) | Value::Integer(_)) {
        problems.push(wrong_type_help(node, "`cache`", "a mapping", help));
        return None;
    }
    let section = fields(node, "`cache`", &["at", "every", "during"], problems)?;
    let at = section.require("at", Some(help), problems).and_then(|node| match &node.value {
        Value::Text(path) => Some(Located { value: path.clone(), span: node.span }),
        _ => {
            problems.push(wrong_type(node, "`at`", "the path of a module"));
            None
        }
    });
    let every = section.get("every").map_or(Some(Cache::EVERY), |node| every(node, problems));
    let during = section.get("during").map_or(Some(During::default()), |node| during(node, problems));
    Some(Cache { at: at?, every: every?, during: during? })
}

fn weight(node: &Node, problems: &mut Vec<Problem>) -> Option<AmplifyWeight> {
    match &node.value {
        Value::List(items) if items.is_empty() => {
            let (expected, found) = ("a number for each step".to_owned(), "an empty list".to_owned());
            problems.push(Problem::OutOfRange { what: "`weight`", expected, found, at: node.span });
            None
        }
        Value::List(items) => {
            let steps: Vec<_> = items.iter().map(|item| finite(item, "`weight`", problems)).collect();
            let steps = steps.into_iter().map(|step| step.map(|step| step.value));
            steps.collect::<Option<Vec<_>>>().map(AmplifyWeight::Steps)
        }
        Value::Map(_) => {
            let ramp = fields(node, "`weight`", &["from", "to", "curve"], problems)?;
            let from = ramp.require("from", None, problems).and_then(|node| finite(node, "`from`", problems));
            let to = ramp.require("to", None, problems).and_then(|node| finite(node, "`to`", problems));
            let curves = [("linear", Curve::Linear), ("cosine", Curve::Cosine)];
            let curve = ramp
                .get("curve")
                .map_or(Some(Curve::default()), |node| choice(node, "`curve`", &curves, problems));
            Some(AmplifyWeight::Ramp { from: from?.value, to: to?.value, curve: curve? })
        }
        _ => finite(node, "`weight`", problems).map(|weight| AmplifyWeight::Constant(weight.value)),
    }
}

fn during(node: &Node, problems: &mut Vec<Problem>) -> Option<During> {
    if matches!(node.value, Value::Map(_)) {
        let during = fields(node, "`during`", &["sigma"], problems)?;
        let sigma = during.require("sigma", None, problems)?;
        let is_sigma = |sigma: f64| sigma.is_finite() && sigma >= 0.0;
        let (low, high) = range(sigma, "`sigma`", "0 or a finite number above", is_sigma, problems)?;
        return Some(During::Sigma { low, high });
    }
    let is_fraction = |fraction: f64| (0.0..=1.0).contains(&fraction);
    let (from, to) = range(node, "`during`", "a fraction of the steps, from 0 to 1", is_fraction, problems)?;
    Some(During::Fraction { from, to })
}

fn every(node: &Node, problems: &mut Vec<Problem>) -> Option<NonZeroU32> {
    let is_count = |number: f64| number >= 1.0 && number <= f64::from(u32::MAX) && number.fract() == 0.0;
    let every = number(node, "`every`", "a whole number from 1", is_count, problems)?;
    NonZeroU32::new(every.value as u32)
}

/// Reads `runtime:`. Providers and their options are the engine's to know; only their shape is checked.
pub(super) fn runtime(node: &Node, problems: &mut Vec<Problem>) -> Option<Runtime> {
    let section = fields(node, "`runtime`", &["providers", "options"], problems)?;
    let mut runtime = Runtime::default();
    if let Some(node) = section.get("providers") {
        for item in list(node, "`providers`", problems)? {
            match &item.value {
                Value::Text(name) => runtime.providers.push(Located { value: name.clone(), span: item.span }),
                _ => problems.push(wrong_type(item, "a provider", "a name")),
            }
        }
    }
    if let Some(node) = section.get("options") {
        for (provider, node) in entries(node, "`options`", problems) {
            let mut options = BTreeMap::new();
            for (name, node) in entries(node, "the options of a provider", problems) {
                match &node.value {
                    Value::Text(text) => options.insert(name, text.clone()),
                    Value::Bool(flag) => options.insert(name, flag.to_string()),
                    Value::Integer(number) => options.insert(name, number.to_string()),
                    Value::Float(number) => options.insert(name, number.to_string()),
                    _ => {
                        problems.push(wrong_type(node, "an option", "text, a number, true or false"));
                        None
                    }
                };
            }
            runtime.options.insert(provider, options);
        }
    }
    Some(runtime)
}

/// Returns the entries of a mapping whose keys are free.
fn entries<'a>(node: &'a Node, what: &'static str, problems: &mut Vec<Problem>) -> Vec<(String, &'a Node)> {
    let Value::Map(map) = &node.value else {
        problems.push(wrong_type(node, what, "a mapping"));
        return Vec::new();
    };
    let names: Vec<&str> = map.iter().map(|(key, _)| key.name.as_str()).collect();
    // Any key is known here; a key that is there twice still is a mistake.
    let _ = fields(node, what, &names, problems);
    map.iter().map(|(key, value)| (key.name.clone(), value)).collect()
}
