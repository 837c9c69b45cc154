//! From the text of a space to a [`Space`].

mod objective;
mod sampling;
mod strategy;
mod variables;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value as Json;

use self::{
    objective::{metric, top},
    sampling::{prompts_of, sampling},
    strategy::{StrategyFields, budget, strategy},
    variables::{check_names, variables_of},
};
use super::{
    Budget, Choose, Member, ObjectiveSpec, Sampling, Setting, Space, SpaceError, Template, VariableKind,
};
use crate::plan::{
    MAX_BYTES, PlanError, PlanSource, Problem,
    read::{Fields, fields, number, wrong_type},
    yaml::{Key, Node, Value, read},
};

const KEYS: [&str; 10] = [
    "version",
    "variables",
    "plan",
    "prompts",
    "sampling",
    "budget",
    "strategy",
    "seed",
    "objective",
    "metrics",
];

/// Reads and parses the space at `path`, and the file of prompts that it names.
///
/// # Errors
/// [`SpaceError`] with everything that is wrong and can be seen without a model.
pub fn load(path: &Path) -> Result<Space, SpaceError> {
    let fail = |what: String| SpaceError::File { path: path.to_path_buf(), what };
    let length = fs::metadata(path).map_err(|e| fail(format!("cannot read: {e}")))?.len();
    if length > MAX_BYTES {
        return Err(fail(format!("it has {length} bytes; a space has at most {MAX_BYTES}")));
    }
    let bytes = fs::read(path).map_err(|e| fail(format!("cannot read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|_| fail("it is not UTF-8 text".to_string()))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parse(&path.display().to_string(), &text, folder)
}

/// How an objective is named that is the CLIP in a folder: `clip:FOLDER`.
const CLIP: &str = "clip:";

/// The similarity of image and prompt by a CLIP as `optimum-cli export onnx --task zero-shot-image-classification` writes
/// it. Its logits are a hundred times the cosine.
const CLIP_OBJECTIVE: &str = "objective:
  onnx:
    model: model.onnx
    image: { input: pixel_values, resize: 224, resample: bicubic, crop: 224,
             mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.26130258, 0.27577711] }
    text: { tokenizer: ., input: input_ids, mask: attention_mask }
    output: logits_per_image
    scale: 0.01
";

/// Reads the objective of a space, or of a file that has nothing else, and the folder that its paths start from. A `path`
/// of the form `clip:FOLDER` is the CLIP in that folder.
///
/// # Errors
/// As [`load`].
pub fn load_objective(path: &Path) -> Result<(ObjectiveSpec, PathBuf), SpaceError> {
    if let Some(folder) = path.to_str().and_then(|name| name.strip_prefix(CLIP)) {
        return parse_objective(path, CLIP_OBJECTIVE, Path::new(folder));
    }
    let fail = |what: String| SpaceError::File { path: path.to_path_buf(), what };
    let text = fs::read_to_string(path).map_err(|e| fail(format!("cannot read: {e}")))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parse_objective(path, &text, folder)
}

fn parse_objective(path: &Path, text: &str, folder: &Path) -> Result<(ObjectiveSpec, PathBuf), SpaceError> {
    let fail = |what: String| SpaceError::File { path: path.to_path_buf(), what };
    let source = PlanSource::new(&path.display().to_string(), text);
    let root = read(text).map_err(|problem| SpaceError::from(PlanError::new(&source, problem)))?;
    let mut problems = Vec::new();
    let objective = fields(&root, "the space", &KEYS, &mut problems)
        .and_then(|space| space.require("objective", None, &mut problems))
        .and_then(|node| top(node, &mut problems));
    match (SpaceError::of(&source, problems), objective) {
        (Some(error), _) => Err(error),
        (None, Some((objective, _))) => Ok((objective, folder.to_path_buf())),
        (None, None) => Err(fail("it has no objective".to_string())),
    }
}

/// Parses a space. `name` is what errors call it; relative paths in it start from `folder`.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, text: &str, folder: &Path) -> Result<Space, SpaceError> {
    let source = PlanSource::new(name, text);
    let failed = |problem| SpaceError::from(PlanError::new(&source, problem));
    let root = read(text).map_err(failed)?;
    let mut problems = Vec::new();
    let space = match &root.value {
        Value::Null => return Err(SpaceError::File { path: name.into(), what: "it is empty".to_string() }),
        _ => document(&root, &source, folder, &mut problems),
    };
    match (SpaceError::of(&source, problems), space) {
        (Some(error), _) => Err(error),
        (None, Some(space)) => {
            let space = space?;
            check_plan(&space)?;
            Ok(space)
        }
        (None, None) => Err(failed(Problem::Empty)),
    }
}

fn document(
    root: &Node,
    source: &PlanSource,
    folder: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Result<Space, SpaceError>> {
    let space = fields(root, "the space", &KEYS, problems)?;
    version(&space, problems);
    let variables = space.require("variables", None, problems);
    let declared: Vec<String> = match variables.map(|node| &node.value) {
        Some(Value::Map(entries)) => entries.iter().map(|(key, _)| key.name.clone()).collect(),
        _ => Vec::new(),
    };
    let variables = variables.and_then(|node| variables_of(node, problems));
    let plan = space.require("plan", Some("a plan in which a value may be `$name`"), problems);
    let plan = plan.map(|node| Template::new(node.clone()));
    if let (Some(variables), Some(plan)) = (&variables, &plan) {
        check_names(variables, &declared, plan, problems);
    }
    let prompts = space.require("prompts", Some("a list, or a file with a prompt a line"), problems);
    let prompts = prompts.and_then(|node| prompts_of(node, folder, problems));
    let sampling = match space.get("sampling") {
        Some(node) => sampling(node, problems),
        None => Some(Sampling::default()),
    };
    let is_seed = |seed: f64| (0.0..=f64::from(u32::MAX)).contains(&seed) && seed.fract() == 0.0;
    let seed = match space.get("seed") {
        Some(node) => number(node, "`seed`", "a whole number from 0 to 4294967295", is_seed, problems),
        None => Some(crate::plan::Located { value: 0.0, span: root.span }),
    };
    let strategy = match space.get("strategy") {
        Some(node) => strategy(node, problems),
        None => Some(StrategyFields::default()),
    };
    let budget = match space.get("budget") {
        Some(node) => budget(node, problems),
        None => Some(Budget::default()),
    };
    let objective = space.require("objective", None, problems).and_then(|node| top(node, problems));
    let metrics = space.get("metrics").map_or(Some(Vec::new()), |node| {
        let entries = entries(node, "`metrics`", problems)?;
        let read = |(key, node): &(Key, Node)| Some((key.name.clone(), metric(node, problems)?));
        entries.iter().map(read).collect()
    });
    let mut budget = budget?;
    let strategy = strategy?.with(&mut budget);
    let (objective, over) = objective?;
    let prompts = match prompts? {
        Ok(prompts) => prompts,
        Err(error) => return Some(Err(error)),
    };
    Some(Ok(Space {
        variables: variables?,
        plan: plan?,
        prompts,
        sampling: sampling?,
        budget,
        strategy,
        seed: seed?.value as u32,
        objective,
        over,
        metrics: metrics?,
        folder: folder.to_path_buf(),
        source: source.clone(),
    }))
}

fn version(space: &Fields<'_>, problems: &mut Vec<Problem>) {
    let Some(node) = space.require("version", Some("start the space with `version: 1`"), problems) else {
        return;
    };
    number(node, "`version`", "1", |version| version == 1.0, problems);
}

/// Returns the entries of a mapping with free keys, none twice.
fn entries<'a>(node: &'a Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<&'a [(Key, Node)]> {
    let Value::Map(map) = &node.value else {
        problems.push(wrong_type(node, what, "a mapping"));
        return None;
    };
    let names: Vec<&str> = map.iter().map(|(key, _)| key.name.as_str()).collect();
    // Any key is known here; a key that is there twice still is a mistake.
    let _ = fields(node, what, &names, problems);
    Some(map)
}

fn scalar(node: &Node, problems: &mut Vec<Problem>) -> Option<Json> {
    match &node.value {
        Value::Bool(flag) => Some((*flag).into()),
        Value::Integer(number) => i64::try_from(*number).ok().map(Json::from),
        Value::Float(number) if number.is_finite() => Some((*number).into()),
        Value::Text(text) => Some(text.as_str().into()),
        _ => {
            problems.push(wrong_type(node, "an option", "text, a number, true or false"));
            None
        }
    }
}

/// Reads text.
fn text(node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<String> {
    match &node.value {
        Value::Text(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        _ => {
            problems.push(wrong_type(node, what, "text"));
            None
        }
    }
}

/// Checks the plan with the variables where they start and at both ends.
fn check_plan(space: &Space) -> Result<(), SpaceError> {
    let ends: [fn(&VariableKind) -> Setting; 3] = [start, low, high];
    for end in ends {
        let values: BTreeMap<&str, Setting> =
            space.variables.iter().map(|variable| (variable.name.as_str(), end(&variable.kind))).collect();
        space.plan.plan(&space.source, &values)?;
    }
    Ok(())
}

fn start(kind: &VariableKind) -> Setting {
    match kind {
        VariableKind::Number { start, .. } => Setting::Number(*start),
        VariableKind::Choice { options, start } => {
            Setting::Option(options.get(*start).cloned().unwrap_or_default())
        }
        VariableKind::Modules { .. } => high(kind),
    }
}

fn low(kind: &VariableKind) -> Setting {
    match kind {
        VariableKind::Number { low, .. } => Setting::Number(*low),
        VariableKind::Choice { options, .. } => Setting::Option(options.first().cloned().unwrap_or_default()),
        VariableKind::Modules { choose: Choose::One, .. } => high(kind),
        VariableKind::Modules { .. } => Setting::Modules(Vec::new()),
    }
}

fn high(kind: &VariableKind) -> Setting {
    match kind {
        VariableKind::Number { high, .. } => Setting::Number(*high),
        VariableKind::Choice { options, .. } => Setting::Option(options.last().cloned().unwrap_or_default()),
        VariableKind::Modules { members, .. } => {
            let globs = members.iter().flat_map(|member| match member {
                Member::Each { glob, .. } => vec![glob.clone()],
                Member::Together { globs, .. } => globs.clone(),
            });
            Setting::Modules(globs.collect())
        }
    }
}
