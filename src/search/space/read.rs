//! From the text of a space to a [`Space`].

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    Choose, Member, ObjectiveSpec, Setting, Space, SpaceError, Template, VariableKind,
    objective::{METRIC, OBJECTIVE, metric, top},
    sampling::{self, PROMPTS, SAMPLING},
    strategy::{self, BUDGET, CONFIRM},
    syntax::{Range, Reader, entries, section},
    variables::{self, check_names, variables},
};
use crate::plan::{
    MAX_BYTES, PlanError, PlanSource, Problem,
    yaml::{Node, Value, read},
};

section! {
    /// A space as it is written.
    SPACE = "crdiff search space", "the space";
    version or "start the space with `version: 1`": Number(Range::whole("1", 1.0, 1.0)),
        "The version of the language.";
    variables or "": Named(&variables::FORM), "The variables, by name. In the plan, `$name` stands for one.";
    plan or "a plan in which a value may be `$name`": Foreign,
        "A plan (plan.schema.json) in which a value may be `$name`. A set of modules that stands in a list becomes a \
         part of it; a rule whose target is an empty set is left out.";
    prompts or "a list, or a file with a prompt a line": PROMPTS,
        "A list of prompts, or a file with a prompt a line (empty lines and lines that start with # are left out).";
    sampling: Mapping(&SAMPLING), "How images are drawn.";
    budget: Mapping(&BUDGET),
        "When the search ends: at the first of these [default: 120 trials; a grid has all its points].";
    confirm: Mapping(&CONFIRM),
        "Once the budget is used up, the best trials and the dense network are drawn again from noises that no trial began \
         with, and the plan is the one that scores best there [default: they are not].";
    strategy: strategy::FORM, "How points are chosen [default: annealing].";
    seed: Number(Range::whole("a whole number from 0 to 4294967295", 0.0, 4_294_967_295.0)),
        "The seed of the strategy [default: 0].";
    objective or "": Mapping(&OBJECTIVE), "How an image is scored; higher is better.";
    metrics: Named(&Mapping(&METRIC)), "The measurements beside the objective, by name.";
}

/// Returns the JSON Schema of spaces.
pub fn json_schema() -> serde_json::Value {
    SPACE.schema()
}

/// Reads and parses the space at `path`, and the file of prompts that it names.
///
/// # Errors
/// [`SpaceError`] with everything that is wrong and can be seen without a model.
pub fn load(path: &Path) -> Result<Space, SpaceError> {
    parse(&path.display().to_string(), &text(path)?, folder_of(path))
}

fn text(path: &Path) -> Result<String, SpaceError> {
    let fail = |what: String| SpaceError::File { path: path.to_path_buf(), what };
    let length = fs::metadata(path).map_err(|e| fail(format!("cannot read: {e}")))?.len();
    if length > MAX_BYTES {
        return Err(fail(format!("it has {length} bytes; a space has at most {MAX_BYTES}")));
    }
    let bytes = fs::read(path).map_err(|e| fail(format!("cannot read: {e}")))?;
    String::from_utf8(bytes).map_err(|_| fail("it is not UTF-8 text".to_string()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// How an objective is named that is the CLIP at a path: `clip:FOLDER`.
const CLIP: &str = "clip:";

/// Reads the objective of a space, or of a file that has nothing else, and the folder that its paths start from. A `path`
/// of the form `clip:FOLDER` is the objective `clip`, from the current folder.
///
/// # Errors
/// The same as of [`load`].
pub fn load_objective(path: &Path) -> Result<(ObjectiveSpec, PathBuf), SpaceError> {
    if let Some(clip) = path.to_str().and_then(|name| name.strip_prefix(CLIP)) {
        return Ok((ObjectiveSpec::Clip(clip.into()), PathBuf::from(".")));
    }
    let (text, folder) = (text(path)?, folder_of(path));
    let source = PlanSource::new(&path.display().to_string(), &text);
    let root = read(&text).map_err(|problem| PlanError::new(&source, problem))?;
    let mut problems = Vec::new();
    let reader = Reader::part(&SPACE, &root, &mut problems);
    let node = reader.and_then(|reader| reader.fields.require("objective", None, &mut problems));
    let objective = node.and_then(|node| top(node, &mut problems));
    match (SpaceError::of(&source, problems), objective) {
        (Some(error), _) => Err(error),
        (None, Some((objective, _))) => Ok((objective, folder.to_path_buf())),
        (None, None) => Err(PlanError::new(&source, Problem::Empty).into()),
    }
}

/// Parses a space. `name` is what errors call it; relative paths in it start from `folder`.
///
/// # Errors
/// The same as of [`load`].
pub fn parse(name: &str, text: &str, folder: &Path) -> Result<Space, SpaceError> {
    let source = PlanSource::new(name, text).in_folder(folder);
    let root = read(text).map_err(|problem| PlanError::new(&source, problem))?;
    if matches!(root.value, Value::Null) {
        return Err(SpaceError::File { path: name.into(), what: "it is empty".to_string() });
    }
    let mut problems = Vec::new();
    let space = document(&root, &source, folder, &mut problems);
    match (SpaceError::of(&source, problems), space) {
        (Some(error), _) => Err(error),
        (None, Some(space)) => {
            let space = space?;
            check_plan(&space)?;
            Ok(space)
        }
        (None, None) => Err(PlanError::new(&source, Problem::Empty).into()),
    }
}

fn document(
    root: &Node,
    source: &PlanSource,
    folder: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Result<Space, SpaceError>> {
    let reader = Reader::new(&SPACE, root, problems)?;
    reader.number("version", problems);
    let declared: Vec<&str> = match reader.get("variables").map(|node| &node.value) {
        Some(Value::Map(entries)) => entries.iter().map(|(key, _)| key.name.as_str()).collect(),
        _ => Vec::new(),
    };
    let variables = reader.get("variables").map(|node| variables(node, problems));
    let plan = reader.get("plan").map(|node| Template::new(node.clone()));
    if let Some(Value::Map(entries)) = reader.get("plan").map(|node| &node.value) {
        let cache = entries.iter().find(|(key, _)| key.name == "cache");
        problems.extend(cache.map(|(key, _)| Problem::UnknownKey {
            key: key.name.clone(),
            place: "the plan of a space",
            help: "trials run whole networks; add `cache` to the plan that the search finds".into(),
            at: key.span,
        }));
    }
    if let (Some(variables), Some(plan)) = (&variables, &plan) {
        check_names(variables, &declared, plan, problems);
    }
    let prompts = reader.get("prompts").map(|node| sampling::prompts(node, folder, problems));
    let sampling = reader.section("sampling", problems).map(|reader| sampling::sampling(&reader, problems));
    let budget = reader.section("budget", problems).map(|reader| strategy::budget(&reader, problems));
    let mut budget = budget.unwrap_or_default();
    let strategy = strategy::strategy(reader.get("strategy"), &mut budget, problems);
    let confirm = reader.section("confirm", problems).and_then(|reader| strategy::confirm(&reader, problems));
    let seed = reader.number("seed", problems).unwrap_or_default() as u32;
    let objective = reader.get("objective").and_then(|node| top(node, problems));
    let metrics = reader.get("metrics").and_then(|node| entries(node, "`metrics`", problems));
    let metrics = metrics.unwrap_or_default().iter();
    let metrics =
        metrics.filter_map(|(key, node)| Some((key.name.clone(), metric(node, problems)?))).collect();
    let prompts = match prompts? {
        Ok(prompts) => prompts,
        Err(error) => return Some(Err(error)),
    };
    let (objective, over) = objective?;
    Some(Ok(Space {
        variables: variables?,
        plan: plan?,
        prompts,
        sampling: sampling.unwrap_or_default(),
        budget,
        confirm,
        strategy: strategy?,
        seed,
        objective,
        over,
        metrics,
        folder: folder.to_path_buf(),
        source: source.clone(),
    }))
}

/// Checks the plan with the variables where they start and at both ends.
fn check_plan(space: &Space) -> Result<(), SpaceError> {
    for end in 0..3 {
        let variables = space.variables.iter();
        let values: BTreeMap<&str, Setting> =
            variables.map(|variable| (variable.name.as_str(), setting(&variable.kind, end))).collect();
        space.plan.plan(&space.source, &values)?;
    }
    Ok(())
}

/// Returns the start of a variable (0), or an end of its range (1 and 2).
fn setting(kind: &VariableKind, end: usize) -> Setting {
    match kind {
        VariableKind::Number { low, high, start, .. } => Setting::Number([*start, *low, *high][end % 3]),
        VariableKind::Choice { options, start } => {
            let at = [*start, 0, options.len().saturating_sub(1)][end % 3];
            Setting::Option(options.get(at).cloned().unwrap_or_default())
        }
        VariableKind::Modules { choose, .. } if end == 1 && *choose != Choose::One => {
            Setting::Modules(Vec::new())
        }
        VariableKind::Modules { members, .. } => {
            let globs = members.iter().flat_map(|member| match member {
                Member::Each { glob, .. } => std::slice::from_ref(glob),
                Member::Together { globs, .. } => globs,
            });
            Setting::Modules(globs.cloned().collect())
        }
    }
}
