//! Selectors: which modules a rule means, and which names are near to one that matches nothing.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::glob::{Glob, Segment, segment_matches};

/// Which modules, or which modules' weights, a rule means.
#[derive(Debug, Clone, PartialEq)]
pub enum Selector {
    /// Every module that any of the globs matches.
    Globs(Vec<Glob>),
    /// The targets of CR-Diff in one group: modules whose path contains `attn` or `ff` but not `attn2`. Only
    /// Linear and Conv2d weights are meant; that takes the model, so the resolver checks it.
    CrDiff(Group),
}

/// The part of the network that one CR-Diff ratio is for (arXiv 2604.05524).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// `down_blocks`, or `input_blocks` in the original LDM names.
    Down,
    /// `mid_block`, or `middle_block`.
    Mid,
    /// `up_blocks`, or `output_blocks`.
    Up,
    /// The whole network, `attn2` included: the form for diffusion transformers.
    All,
}

impl Selector {
    /// Returns the same JSON for all selectors that mean the same.
    pub(crate) fn canonical(&self) -> Value {
        match self {
            Self::Globs(globs) => {
                let mut globs: Vec<&str> = globs.iter().map(Glob::text).collect();
                globs.sort_unstable();
                globs.dedup();
                json!(globs)
            }
            Self::CrDiff(group) => json!({ "crdiff": group.name() }),
        }
    }

    /// Returns whether the module path `path` is selected.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Globs(globs) => globs.iter().any(|glob| glob.matches(path)),
            Self::CrDiff(group) => group.targets(path),
        }
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Globs(globs) => match globs.as_slice() {
                [glob] => glob.text().serialize(serializer),
                globs => serializer.collect_seq(globs.iter().map(Glob::text)),
            },
            Self::CrDiff(group) => serializer.collect_str(&format_args!("crdiff.{}", group.name())),
        }
    }
}

impl JsonSchema for Selector {
    fn schema_name() -> Cow<'static, str> {
        "Globs".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let glob = json!({ "type": "string", "minLength": 1 });
        schemars::json_schema!({
            "description": "A glob or several. Globs work on whole segments of a module path: `*` is one segment or part \
                of one, `**` any number of them, `{a,b}` either.",
            "anyOf": [glob, { "type": "array", "items": glob, "minItems": 1 }]
        })
    }
}

impl Group {
    /// Returns whether a module somewhere in the one at `within` may be one that [`Group::targets`].
    pub fn reaches(self, within: &str) -> bool {
        match self.roots() {
            None => true,
            Some(roots) => {
                let root = within.split('.').next().unwrap_or_default();
                (root.is_empty() || roots.contains(&root)) && !within.contains("attn2")
            }
        }
    }

    /// Returns the modules at the top that the group consists of; `None` for all.
    fn roots(self) -> Option<[&'static str; 2]> {
        match self {
            Self::Down => Some(["down_blocks", "input_blocks"]),
            Self::Mid => Some(["mid_block", "middle_block"]),
            Self::Up => Some(["up_blocks", "output_blocks"]),
            Self::All => None,
        }
    }

    /// Returns whether CR-Diff prunes the weight of the module at `path` as a part of this group.
    pub fn targets(self, path: &str) -> bool {
        let meant = path.contains("attn") || path.contains("ff");
        match self.roots() {
            None => meant,
            Some(roots) => {
                let root = path.split('.').next().unwrap_or_default();
                roots.contains(&root) && meant && !path.contains("attn2")
            }
        }
    }

    /// Returns the group's name in plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Mid => "mid",
            Self::Up => "up",
            Self::All => "all",
        }
    }
}

/// How many names [`nearest`] gives at most.
const MAX_NEAREST: usize = 3;
/// How many alternatives of a glob are compared; more would only say the same again.
const MAX_COMPARED: usize = 16;
/// The distance past which a name is no longer like the pattern: a segment and a bit.
const FAR: f64 = 1.2;
/// A name is left out when the best one is nearer by more than this.
const WORSE: f64 = 0.3;
/// The cost of an index other than the one asked for: less than a segment too many.
const OTHER_INDEX: f64 = 0.7;

/// Returns the up to three names of `candidates` that are most like the glob `pattern`, best first.
///
/// Names are compared segment by segment, so `mid_block.attention.0` finds `mid_block.attentions.0` and not a
/// name that only shares letters with it. A text that is no glob is compared as it stands.
pub fn nearest<'a>(pattern: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let alternatives = match Glob::weight(pattern, 0.into()) {
        Ok(glob) => glob.alternatives().to_vec(),
        Err(_) => vec![pattern.split('.').map(|segment| Segment::One(segment.to_owned())).collect()],
    };
    let mut found: Vec<(f64, &str)> = candidates
        .into_iter()
        .filter_map(|candidate| {
            let names: Vec<&str> = candidate.split('.').collect();
            let distances = alternatives.iter().take(MAX_COMPARED).map(|pattern| distance(pattern, &names));
            let best = distances.min_by(f64::total_cmp)?;
            (best <= FAR).then_some((best, candidate))
        })
        .collect();
    found.sort_by(|a, b| {
        a.0.total_cmp(&b.0).then_with(|| a.1.len().cmp(&b.1.len())).then_with(|| a.1.cmp(b.1))
    });
    found.dedup_by(|a, b| a.1 == b.1);
    let best = found.first().map_or(0.0, |first| first.0);
    found
        .into_iter()
        .take_while(|(cost, _)| *cost <= best + WORSE)
        .take(MAX_NEAREST)
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// Returns the edit distance over segments: a segment too many or too few costs 1, another one what the two differ by.
fn distance(pattern: &[Segment], names: &[&str]) -> f64 {
    let mut row: Vec<f64> = (0..=names.len()).map(|count| count as f64).collect();
    for segment in pattern {
        let mut next = Vec::with_capacity(row.len());
        let mut left = f64::INFINITY;
        let mut diagonal = f64::INFINITY;
        for (column, &above) in row.iter().enumerate() {
            let cost = match segment {
                Segment::AnyNumber => above.min(left),
                Segment::One(text) => {
                    let name = column.checked_sub(1).and_then(|index| names.get(index));
                    let replaced = name.map_or(f64::INFINITY, |name| diagonal + difference(text, name));
                    replaced.min(above + 1.0).min(left + 1.0)
                }
            };
            next.push(cost);
            left = cost;
            diagonal = above;
        }
        row = next;
    }
    row.last().copied().unwrap_or(f64::INFINITY)
}

/// Returns how unlike a segment of a glob and a name are, from 0 (it matches) to 1.
fn difference(pattern: &str, name: &str) -> f64 {
    if segment_matches(pattern, name) {
        return 0.0;
    }
    let is_index = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if is_index(pattern) && is_index(name) {
        return OTHER_INDEX;
    }
    1.0 - strsim::normalized_damerau_levenshtein(&pattern.replace('*', ""), name)
}
