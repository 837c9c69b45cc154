//! Readers of `prompts:` and `sampling:`.

use std::{fs, path::Path};

use super::{entries, scalar, text};
use crate::{
    diffusion::sampler::Preset,
    plan::{
        Problem,
        read::{fields, list, number},
        yaml::{Key, Node, Value},
    },
    search::space::{Sampling, SpaceError},
};

const KEYS: [&str; 8] =
    ["size", "sizes", "steps", "guidance", "negative_prompt", "seeds", "scheduler", "scheduler_options"];

pub(super) fn prompts_of(
    node: &Node,
    folder: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Result<Vec<String>, SpaceError>> {
    let prompts: Vec<String> = match &node.value {
        Value::Text(file) => match prompt_file(&folder.join(file)) {
            Ok(prompts) => prompts,
            Err(error) => return Some(Err(error)),
        },
        _ => {
            let items = list(node, "`prompts`", problems)?;
            items.iter().map(|item| text(item, "a prompt", problems)).collect::<Option<_>>()?
        }
    };
    if prompts.is_empty() {
        let (expected, found) = ("at least one prompt".to_string(), "none".to_string());
        problems.push(Problem::OutOfRange { what: "`prompts`", expected, found, at: node.span });
        return None;
    }
    Some(Ok(prompts))
}

/// Reads a prompt a line; empty lines and those that start with `#` are left out.
fn prompt_file(path: &Path) -> Result<Vec<String>, SpaceError> {
    let text = fs::read_to_string(path).map_err(|e| SpaceError::File {
        path: path.to_path_buf(),
        what: format!("cannot read the prompts: {e}"),
    })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_string).collect())
}

pub(super) fn sampling(node: &Node, problems: &mut Vec<Problem>) -> Option<Sampling> {
    let section = fields(node, "`sampling`", &KEYS, problems)?;
    let mut sampling = Sampling::default();
    match (section.entry("size"), section.entry("sizes")) {
        (Some((one, _)), Some((many, _))) => {
            let message = "`size` is one size, `sizes` several: give one of the two";
            problems.push(Problem::conflict(message, None, one.span, many.span));
            return None;
        }
        (Some((_, node)), None) => sampling.sizes = vec![size(node, problems)?],
        (None, Some((_, node))) => {
            let items = list(node, "`sizes`", problems)?;
            sampling.sizes = items.iter().map(|item| size(item, problems)).collect::<Option<_>>()?;
        }
        (None, None) => {}
    }
    if let Some(node) = section.get("steps") {
        let allowed = |n: f64| (1.0..=10_000.0).contains(&n) && n.fract() == 0.0;
        sampling.steps = number(node, "`steps`", "a whole number from 1", allowed, problems)?.value as usize;
    }
    if let Some(node) = section.get("guidance") {
        sampling.guidance = number(node, "`guidance`", "a finite number", f64::is_finite, problems)?.value;
    }
    if let Some(node) = section.get("negative_prompt") {
        sampling.negative_prompt = Some(text(node, "`negative_prompt`", problems)?);
    }
    if let Some(node) = section.get("seeds") {
        let allowed = |n: f64| (0.0..=9e15).contains(&n) && n.fract() == 0.0;
        let items = list(node, "`seeds`", problems)?;
        let mut seed = |node| number(node, "a seed", "a whole number from 0", allowed, problems);
        let seeds = items.iter().map(|item| seed(item).map(|seed| seed.value as u64));
        sampling.seeds = seeds.collect::<Option<_>>()?;
        if sampling.seeds.is_empty() {
            let (expected, found) = ("at least one seed".to_string(), "none".to_string());
            problems.push(Problem::OutOfRange { what: "`seeds`", expected, found, at: node.span });
            return None;
        }
    }
    if let Some(node) = section.get("scheduler") {
        let name = text(node, "`scheduler`", problems)?;
        let Ok(preset) = name.parse::<Preset>() else {
            let (expected, found) = (Preset::names().join(" or "), format!("`{name}`"));
            problems.push(Problem::OutOfRange { what: "`scheduler`", expected, found, at: node.span });
            return None;
        };
        sampling.scheduler = Some(preset.class);
        sampling.scheduler_options = preset.settings;
    }
    if let Some(node) = section.get("scheduler_options") {
        let entries = entries(node, "`scheduler_options`", problems)?;
        let option = |(key, node): &(Key, Node)| Some((key.name.clone(), scalar(node, problems)?));
        let options: Option<Vec<_>> = entries.iter().map(option).collect();
        sampling.scheduler_options.extend(options?);
    }
    Some(sampling)
}

/// Parses `96x128`, `[96, 128]` or `96`: height and width in pixels.
fn size(node: &Node, problems: &mut Vec<Problem>) -> Option<(usize, usize)> {
    let side = |n: i128| usize::try_from(n).ok().filter(|n| (1..=1 << 20).contains(n));
    let found = match &node.value {
        Value::Integer(both) => side(*both).map(|n| (n, n)),
        Value::Text(text) => text.split_once('x').and_then(|(height, width)| {
            side(height.trim().parse().ok()?).zip(side(width.trim().parse().ok()?))
        }),
        Value::List(items) => match items.as_slice() {
            [Node { value: Value::Integer(height), .. }, Node { value: Value::Integer(width), .. }] => {
                side(*height).zip(side(*width))
            }
            _ => None,
        },
        _ => None,
    };
    if found.is_none() {
        let expected = "height x width in pixels, such as 96x128".to_string();
        let found = node.value.kind().to_string();
        problems.push(Problem::OutOfRange { what: "a size", expected, found, at: node.span });
    }
    found
}
