//! CR-Diff in one line, and the result file of its authors' search, as prune rules.

use super::diagnostics::Problem;
use super::model::{Amplify, Located, Runtime};
use super::parse::Meaning;
use super::read::{Fields, choice, fields, wrong_type};
use super::select::{Group, Selector};
use super::yaml::{Key, Node, Value};
use crate::rules::{
    Mask, Pool, PruneRule, Ratio, Rule, Ties,
    prune::{ratio, threshold},
};
use miette::SourceSpan;

const GROUPS: [(&str, Group); 3] = [("down", Group::Down), ("mid", Group::Mid), ("up", Group::Up)];
const RESULT_GROUPS: [(&str, Group); 3] =
    [("down_ratio", Group::Down), ("mid_ratio", Group::Mid), ("up_ratio", Group::Up)];
const PER_GROUP: &str = "best_global_params_ratio";
const SHARED: &str = "best_global_params_sd3";
const RESULT_KEYS: [&str; 5] = ["model_config", "best_avg_score", "pruning_method", PER_GROUP, SHARED];

/// Reads `crdiff:`, a ratio for each group or one for all.
pub(super) fn crdiff(node: &Node, problems: &mut Vec<Problem>) -> Vec<Rule> {
    let Some(section) = fields(node, "`crdiff`", &["down", "mid", "up", "ratio"], problems) else {
        return Vec::new();
    };
    let groups: Vec<_> =
        GROUPS.iter().filter_map(|(key, group)| section.entry(key).map(|entry| (entry, *group))).collect();
    match (section.entry("ratio"), groups.as_slice()) {
        (Some((key, _)), [((other, _), _), ..]) => {
            let message = format!("`ratio` is for the whole network, `{}` for a part of it", other.name);
            let help = Some("diffusion transformers take `ratio`, UNets `down`, `mid` and `up`");
            problems.push(Problem::conflict(message, help, key.span, other.span));
            Vec::new()
        }
        (Some((key, node)), []) => shared_rule(key, node, "`ratio`", problems).into_iter().collect(),
        (None, groups) => groups
            .iter()
            .filter_map(|((key, node), group)| group_rule(key, node, *group, Method::Ratio, problems))
            .collect(),
    }
}

/// Returns whether a mapping is a result file of the authors' search.
pub(super) fn is_result(entries: &[(Key, Node)]) -> bool {
    entries.iter().any(|(key, _)| key.name.starts_with("best_global_params"))
}

/// The meaning of the numbers of a result file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    /// Shares of a group.
    Ratio,
    /// Thresholds.
    Magnitude,
}

/// Reads a result file. Like the authors' code it takes the shared ratio for models called sd3 or flux, where
/// the file has both.
pub(super) fn read(root: &Node, problems: &mut Vec<Problem>) -> Option<Meaning> {
    let result = fields(root, "the result file", &RESULT_KEYS, problems)?;
    let methods = [("ratio", Method::Ratio), ("magnitude", Method::Magnitude)];
    let method = result
        .get("pruning_method")
        .map_or(Some(Method::Ratio), |node| choice(node, "`pruning_method`", &methods, problems))?;
    let rules = match (result.get(PER_GROUP), result.get(SHARED)) {
        (Some(_), Some(shared)) if is_transformer(&result, problems) => shared_ratio(shared, problems),
        (None, Some(shared)) => shared_ratio(shared, problems),
        (Some(groups), _) => group_ratios(groups, method, problems),
        (None, None) => {
            result.report_missing(&[PER_GROUP, SHARED], None, problems);
            Vec::new()
        }
    };
    Some(Meaning {
        always: Vec::new(),
        rules,
        amplify: Amplify::default(),
        cache: None,
        runtime: Runtime::default(),
    })
}

fn is_transformer(result: &Fields<'_>, problems: &mut Vec<Problem>) -> bool {
    let Some(config) = result.get("model_config") else { return false };
    let Value::Map(entries) = &config.value else {
        problems.push(wrong_type(config, "`model_config`", "a mapping"));
        return false;
    };
    entries.iter().any(|(key, node)| match &node.value {
        Value::Text(name) => key.name == "name" && (name.contains("sd3") || name.contains("flux")),
        _ => false,
    })
}

fn group_ratios(node: &Node, method: Method, problems: &mut Vec<Problem>) -> Vec<Rule> {
    let keys = RESULT_GROUPS.map(|(key, _)| key);
    let Some(groups) = fields(node, "`best_global_params_ratio`", &keys, problems) else { return Vec::new() };
    let mut rules = Vec::new();
    for (name, group) in RESULT_GROUPS {
        if let Some((key, node)) = groups.require_entry(name, None, problems) {
            rules.extend(group_rule(key, node, group, method, problems));
        }
    }
    rules
}

fn shared_ratio(node: &Node, problems: &mut Vec<Problem>) -> Vec<Rule> {
    let Some(shared) = fields(node, "`best_global_params_sd3`", &["shared_ratio"], problems) else {
        return Vec::new();
    };
    let entry = shared.require_entry("shared_ratio", None, problems);
    let rule = entry.and_then(|(key, node)| shared_rule(key, node, "`shared_ratio`", problems));
    rule.into_iter().collect()
}

fn group_rule(
    key: &Key,
    node: &Node,
    group: Group,
    method: Method,
    problems: &mut Vec<Problem>,
) -> Option<Rule> {
    let what = match group {
        Group::Down => "the number for `down`",
        Group::Mid => "the number for `mid`",
        Group::Up => "the number for `up`",
        Group::All => "the number for all",
    };
    let mask = match method {
        Method::Ratio => by_ratio(ratio(node, what, problems)?, Pool::Group),
        Method::Magnitude => threshold(node, what, problems)?,
    };
    Some(rule(key.span, group, mask))
}

fn shared_rule(key: &Key, node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<Rule> {
    let ratio = ratio(node, what, problems)?;
    Some(rule(key.span, Group::All, by_ratio(ratio, Pool::Tensor)))
}

fn by_ratio(ratio: Located<Ratio>, pool: Pool) -> Mask {
    Mask::Ratio { ratio, pool, ties: Ties::All }
}

fn rule(span: SourceSpan, group: Group, mask: Mask) -> Rule {
    Rule::Prune(PruneRule {
        span,
        weights: Selector::CrDiff(group),
        mask,
        scale: Located { value: 0.0, span },
    })
}
