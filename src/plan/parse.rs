//! The parser of plans: from text to a [`Plan`].

use super::diagnostics::{PlanError, PlanSource, Problem};
use super::model::{Amplify, AmplifyWeight, Cache, Mode, Plan, Runtime, digest};
use super::read::{Fields, fields, list, wrong_type_help};
use super::yaml::{Node, Value};
use super::{amplify, crdiff_rules, yaml};
use crate::rules::{self, Rule, Section};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The size of the largest file that is taken for a plan.
pub const MAX_BYTES: u64 = 1 << 20;

const KEYS: [&str; 7] = ["version", "always", "rules", "crdiff", "amplify", "cache", "runtime"];

/// Parses a plan, or a result file of the CR-Diff authors' search. `name` is what errors call it. Files that rules name are
/// looked for in the working folder.
///
/// # Errors
/// Everything that is wrong with the plan and can be seen without a model, all of it at once where one mistake
/// doesn't hide the next.
pub fn parse(name: &str, text: &str) -> Result<Plan, PlanError> {
    let size = text.len() as u64;
    if size > MAX_BYTES {
        return Err(PlanError::new(&PlanSource::new(name, ""), Problem::TooBig { size, max: MAX_BYTES }));
    }
    of_source(PlanSource::new(name, text))
}

/// Parses the plan that is the whole text of `source`.
///
/// # Errors
/// As [`parse`].
pub(crate) fn of_source(source: PlanSource) -> Result<Plan, PlanError> {
    let root = yaml::read(source.text()).map_err(|problem| PlanError::new(&source, problem))?;
    from_node(source, &root)
}

/// Parses the plan at `root`, somewhere in the text of `source`.
pub(crate) fn from_node(source: PlanSource, root: &Node) -> Result<Plan, PlanError> {
    let mut problems = Vec::new();
    let meaning = match &root.value {
        Value::Null => {
            problems.push(Problem::Empty);
            None
        }
        Value::Map(entries) if crdiff_rules::is_result(entries) => crdiff_rules::read(root, &mut problems),
        _ => document(root, &mut problems),
    };
    let mut meaning = meaning;
    for rule in meaning.iter_mut().flat_map(|meaning| meaning.always.iter_mut().chain(&mut meaning.rules)) {
        rule.open(source.folder(), &mut problems);
    }
    match (PlanError::from_problems(&source, problems), meaning) {
        (Some(error), _) => Err(error),
        (None, Some(Meaning { always, rules, amplify, cache, runtime })) => {
            let digest = digest(&always, &rules, &amplify, cache.as_ref());
            Ok(Plan { always, rules, amplify, cache, runtime, digest, source })
        }
        (None, None) => Err(PlanError::new(&source, Problem::Empty)),
    }
}

/// Reads and parses the plan at `path`, whatever its extension. Files that rules name are looked for beside it.
///
/// # Errors
/// As [`parse`], and for a file that can't be read, is larger than [`MAX_BYTES`] or isn't UTF-8.
pub fn load(path: impl AsRef<Path>) -> Result<Plan, PlanError> {
    let path = path.as_ref();
    let name = path.display().to_string();
    let fail = |problem| PlanError::new(&PlanSource::new(&name, ""), problem);
    let unreadable = |error: std::io::Error| fail(Problem::Unreadable { reason: format!("{name}: {error}") });

    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let size = file.metadata().map_err(unreadable)?.len();
    // A pipe has no size, so what is read is limited as well.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let size = size.max(bytes.len() as u64);
    if size > MAX_BYTES {
        return Err(fail(Problem::TooBig { size, max: MAX_BYTES }));
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| fail(Problem::NotUtf8 { offset: error.valid_up_to(), help: not_utf8(&bytes) }))?;
    of_source(PlanSource::new(&name, text).in_folder_of(path))
}

/// Returns what a file that isn't UTF-8 probably is.
fn not_utf8(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "it is UTF-16; save it as UTF-8",
        _ => "is this the plan, and not the model?",
    }
}

/// A plan but for its text.
pub(super) struct Meaning {
    pub always: Vec<Rule>,
    pub rules: Vec<Rule>,
    pub amplify: Amplify,
    pub cache: Option<Cache>,
    pub runtime: Runtime,
}

fn document(root: &Node, problems: &mut Vec<Problem>) -> Option<Meaning> {
    let plan = fields(root, "the plan", &KEYS, problems)?;
    for problem in problems.iter_mut() {
        if let Problem::UnknownKey { key, help, .. } = problem
            && let Some(misplaced) = rules::misplaced(key)
        {
            *help = misplaced;
        }
    }
    version(&plan, problems);
    let mut section = |section: Section, key: &'static str, what: &'static str| {
        let node = given(&plan, key);
        if let Some(map) = node.filter(|node| matches!(node.value, Value::Map(_))) {
            let help = "each rule is an item of the list: write `- bypass: ...` and `- prune: ...`";
            problems.push(wrong_type_help(map, what, "a list", help));
            return Vec::new();
        }
        let items = node.and_then(|node| list(node, what, problems)).unwrap_or_default();
        items.iter().filter_map(|item| rules::read(section, item, problems)).collect::<Vec<Rule>>()
    };
    let always = section(Section::Always, "always", "`always`");
    let mut all = section(Section::Rules, "rules", "`rules`");
    if let Some(node) = given(&plan, "crdiff") {
        all.extend(crdiff_rules::crdiff(node, problems));
    }
    let amplify = match (plan.entry("amplify"), given(&plan, "amplify")) {
        (Some((key, _)), Some(node)) => amplify::amplify(key.span, node, problems),
        _ => Some(Amplify::default()),
    };
    if let Some(amplify) = &amplify {
        check_mode(&all, amplify, problems);
    }
    let cache = given(&plan, "cache").map(|node| amplify::cache(node, problems));
    let runtime =
        given(&plan, "runtime").map_or(Some(Runtime::default()), |node| amplify::runtime(node, problems));
    let cache = match cache {
        Some(cache) => Some(cache?),
        None => None,
    };
    Some(Meaning { always, rules: all, amplify: amplify?, cache, runtime: runtime? })
}

/// Returns the value of a section. `rules:` with nothing after it is a section left out.
fn given<'a>(plan: &Fields<'a>, key: &str) -> Option<&'a Node> {
    plan.get(key).filter(|node| !matches!(node.value, Value::Null))
}

fn version(plan: &Fields<'_>, problems: &mut Vec<Problem>) {
    let Some(node) = plan.require("version", Some("start the plan with `version: 1`"), problems) else {
        return;
    };
    let found = match &node.value {
        Value::Integer(1) => return,
        Value::Integer(version) => version.to_string(),
        Value::Float(version) if *version == 1.0 => return,
        Value::Float(version) => version.to_string(),
        _ => {
            problems.push(super::read::wrong_type(node, "`version`", "a number"));
            return;
        }
    };
    problems.push(Problem::Version { found, at: node.span });
}

/// Checks `mode: weights`, which makes one network out of two, and takes masks to amplify and one number to do it with.
fn check_mode(rules: &[Rule], amplify: &Amplify, problems: &mut Vec<Problem>) {
    let (Mode::Weights, Some(mode)) = (amplify.mode, amplify.span) else { return };
    let mut conflict = |message: &str, help: &str, other| {
        problems.push(Problem::conflict(message, Some(help), mode, other));
    };
    if !matches!(amplify.weight.value, AmplifyWeight::Constant(_)) {
        conflict(
            "`mode: weights` takes one `weight` for all steps",
            "the weights can't change from step to step; use `mode: outputs`",
            amplify.weight.span,
        );
    }
    if amplify.every.value.get() > 1 {
        conflict(
            "`mode: weights` has no difference to keep between steps",
            "leave `every` out, or use `mode: outputs`",
            amplify.every.span,
        );
    }
    for rule in rules {
        match rule.kind().scale() {
            None => conflict(
                &format!("`mode: weights` can't amplify {}", rule.kind().noun()),
                "only pruned weights can be amplified within the weights; use `mode: outputs`",
                rule.kind().span(),
            ),
            Some(scale) if scale.value != 0.0 => conflict(
                "`mode: weights` sets the scale of masked weights to (1 - w), so a rule can't",
                "leave `scale` out, or use `mode: outputs`",
                scale.span,
            ),
            Some(_) => {}
        }
    }
}
