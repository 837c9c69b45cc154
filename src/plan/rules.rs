//! Reading `rules:`.

use super::diagnostics::Problem;
use super::fields::{Fields, choice, fields, finite, number, unknown_key, wrong_type};
use super::glob::{BadGlob, Glob};
use super::model::{BypassRule, Located, Mask, Pattern, Pool, PruneRule, Ratio, Rule, Ties};
use super::select::Selector;
use super::tree::{Node, Value};
use crate::analysis::skip::Via;
use miette::SourceSpan;

const KINDS: [&str; 2] = ["bypass", "prune"];
const PRUNE_KEYS: [&str; 7] = ["weights", "ratio", "threshold", "pattern", "pool", "scale", "ties"];
const A_RATIO: &str = "at least 0 and below 1";
const A_THRESHOLD: &str = "0 or a finite number above";

type Compile = fn(&str, SourceSpan) -> Result<Glob, BadGlob>;

/// Reads one item of `rules:`.
pub(super) fn rule(node: &Node, problems: &mut Vec<Problem>) -> Option<Rule> {
    let Value::Map(entries) = &node.value else {
        problems.push(wrong_type(node, "a rule", "a mapping"));
        return None;
    };
    let Some((key, value)) = entries.first() else {
        let (key, help) = ("`bypass` or `prune`".to_owned(), None);
        problems.push(Problem::MissingKey { key, place: "a rule", help, at: node.span });
        return None;
    };
    for (other, _) in entries.iter().skip(1) {
        if KINDS.contains(&other.name.as_str()) {
            let help = Some("start another item of the list, with a `-`");
            problems.push(Problem::conflict(
                "a rule is one `bypass` or one `prune`",
                help,
                key.span,
                other.span,
            ));
        } else {
            problems.push(outside(other, &key.name));
        }
    }
    match key.name.as_str() {
        "bypass" => bypass(key.span, value, problems).map(Rule::Bypass),
        "prune" => prune(key.span, value, problems).map(Rule::Prune),
        _ => {
            problems.push(unknown_key(key, "a rule", &KINDS));
            None
        }
    }
}

/// A key beside `bypass` or `prune`, most likely one that belongs inside.
fn outside(key: &super::tree::Key, kind: &str) -> Problem {
    let (inside, example): (&[&str], _) = match kind {
        "bypass" => (&["modules", "via"], "bypass: { modules: ..., via: ... }"),
        _ => (&PRUNE_KEYS, "prune: { weights: ..., ratio: ... }"),
    };
    if inside.contains(&key.name.as_str()) {
        let help = format!("it belongs inside, as in `{example}`: in block style, indent it further");
        return Problem::UnknownKey { key: key.name.clone(), place: "a rule", help, at: key.span };
    }
    unknown_key(key, "a rule", &KINDS)
}

fn bypass(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<BypassRule> {
    if !matches!(node.value, Value::Map(_)) {
        let modules = selector(node, "`bypass`", Glob::module, problems)?;
        return Some(BypassRule { span, modules, via: Via::default() });
    }
    let rule = fields(node, "`bypass`", &["modules", "via"], problems)?;
    let modules = rule
        .require("modules", None, problems)
        .and_then(|node| selector(node, "`modules`", Glob::module, problems));
    let words = [("shortcut", Via::Shortcut), ("input", Via::Input), ("backbone", Via::Backbone)];
    let via = or_default(rule.get("via"), |node| choice(node, "`via`", &words, problems));
    Some(BypassRule { span, modules: modules?, via: via? })
}

fn prune(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<PruneRule> {
    let rule = fields(node, "`prune`", &PRUNE_KEYS, problems)?;
    let weights = rule
        .require("weights", Some("`weights` names the modules whose weights are meant"), problems)
        .and_then(|node| selector(node, "`weights`", Glob::weight, problems));
    let mask = mask(&rule, problems);
    let scale = match rule.get("scale") {
        Some(node) => finite(node, "`scale`", problems),
        None => Some(Located { value: 0.0, span }),
    };
    Some(PruneRule { span, weights: weights?, mask: mask?, scale: scale? })
}

fn mask(rule: &Fields<'_>, problems: &mut Vec<Problem>) -> Option<Mask> {
    let given: Vec<_> = ["ratio", "threshold", "pattern"].iter().filter_map(|key| rule.entry(key)).collect();
    let [(key, node)] = given.as_slice() else {
        match given.as_slice() {
            [(first, _), others @ ..] => problems.extend(others.iter().map(|(second, _)| {
                let message = format!("a `prune` takes `{}` or `{}`, not both", first.name, second.name);
                Problem::conflict(message, None, first.span, second.span)
            })),
            [] => rule.report_missing(&["ratio", "threshold", "pattern"], None, problems),
        }
        return None;
    };
    if key.name != "ratio" {
        for (only, _) in ["pool", "ties"].iter().filter_map(|key| rule.entry(key)) {
            let message = format!("`{}` is for `ratio`, not for `{}`", only.name, key.name);
            let help = format!("leave `{}` out", only.name);
            problems.push(Problem::conflict(message, Some(&help), key.span, only.span));
        }
    }
    match key.name.as_str() {
        "threshold" => threshold(node, "`threshold`", problems),
        "pattern" => pattern(node, problems).map(Mask::Pattern),
        _ => {
            let pools = [("group", Pool::Group), ("tensor", Pool::Tensor)];
            let pool = or_default(rule.get("pool"), |node| choice(node, "`pool`", &pools, problems));
            let kinds = [("all", Ties::All), ("exact", Ties::Exact)];
            let ties = or_default(rule.get("ties"), |node| choice(node, "`ties`", &kinds, problems));
            Some(Mask::Ratio { ratio: ratio(node, "`ratio`", problems)?, pool: pool?, ties: ties? })
        }
    }
}

fn or_default<T: Default>(node: Option<&Node>, read: impl FnOnce(&Node) -> Option<T>) -> Option<T> {
    node.map_or(Some(T::default()), read)
}

/// Reads a ratio.
pub(super) fn ratio(node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<Located<Ratio>> {
    let ratio = number(node, what, A_RATIO, |ratio| Ratio::new(ratio).is_some(), problems)?;
    Ratio::new(ratio.value).map(|value| Located { value, span: ratio.span })
}

/// Reads a threshold.
pub(super) fn threshold(node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<Mask> {
    number(node, what, A_THRESHOLD, |number| number.is_finite() && number >= 0.0, problems)
        .map(Mask::Threshold)
}

fn pattern(node: &Node, problems: &mut Vec<Problem>) -> Option<Located<Pattern>> {
    let Value::Text(text) = &node.value else {
        problems.push(wrong_type(node, "`pattern`", "text such as \"2:4\""));
        return None;
    };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u8>().ok())?;
    let parsed = text.split_once(':').and_then(|(keep, of)| Pattern::new(number(keep)?, number(of)?));
    if parsed.is_none() {
        problems.push(Problem::OutOfRange {
            what: "`pattern`",
            expected: "\"N:M\" with 0 < N < M <= 64 (N of every M weights are kept)".into(),
            found: format!("{text:?}"),
            at: node.span,
        });
    }
    parsed.map(|value| Located { value, span: node.span })
}

/// Reads a glob or a list of them.
fn selector(
    node: &Node,
    what: &'static str,
    compile: Compile,
    problems: &mut Vec<Problem>,
) -> Option<Selector> {
    let items = match &node.value {
        Value::List(items) => items.as_slice(),
        _ => std::slice::from_ref(node),
    };
    if items.is_empty() {
        let (expected, found) = ("a glob or a list of globs".to_owned(), "an empty list".to_owned());
        problems.push(Problem::OutOfRange { what, expected, found, at: node.span });
        return None;
    }
    let globs: Vec<Option<Glob>> = items.iter().map(|item| glob(item, what, compile, problems)).collect();
    globs.into_iter().collect::<Option<Vec<_>>>().map(Selector::Globs)
}

fn glob(node: &Node, what: &'static str, compile: Compile, problems: &mut Vec<Problem>) -> Option<Glob> {
    let Value::Text(text) = &node.value else {
        problems.push(wrong_type(node, what, "a glob or a list of globs"));
        return None;
    };
    match compile(text, node.span) {
        Ok(glob) => Some(glob),
        Err(BadGlob { reason, at, help }) => {
            let inside = at.zip(node.verbatim).map(|(at, start)| (start + at.start, at.len()).into());
            problems.push(Problem::BadGlob { reason, help, at: inside.unwrap_or(node.span) });
            None
        }
    }
}
