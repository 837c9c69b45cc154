//! `lora`: adds the low-rank sums of a LoRA file to the weights that its keys name.

mod file;
mod keys;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use miette::SourceSpan;
use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

pub use file::{Factor, LoraFile, LoraLayer};

use self::keys::Part;
use super::{Change, Edit, Fate, Merge, Model, RuleKind, Syntax};
use crate::{
    analysis::weights::{MatrixLayout, Weight},
    plan::{
        Located, PlanError, Problem,
        read::{choice, fields, finite, number, or_default, wrong_type},
        yaml::{self, Node},
    },
};

/// Add a LoRA to the weights that its keys name: `W + scale * alpha / rank * up * down`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraRule {
    /// The word that starts the rule.
    #[serde(skip)]
    pub span: SourceSpan,
    /// The safetensors file, with key names of kohya's scripts, PEFT or diffusers; relative to the plan's folder.
    #[serde(serialize_with = "text")]
    #[schemars(with = "String")]
    pub file: (String, SourceSpan),
    /// The factor on all of it; 1 by default.
    #[serde(default = "one")]
    pub scale: Located<f64>,
    /// alpha of layers, where neither the file nor a configuration beside it says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<Located<f64>>,
    /// Keys that name no weight of the network: an `error` (the default), or a note of the report (`warn`).
    #[serde(default)]
    pub missing: Missing,
    /// The file, once it is found.
    #[serde(skip)]
    pub(crate) opened: Option<Arc<LoraFile>>,
    /// The number of the text encoder that the rule is for, from 1. Without it, shapes tell which one a text encoder is.
    #[serde(skip)]
    pub(crate) text_encoder: Option<u8>,
}

/// The fate of keys that name no weight of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// They are an error.
    #[default]
    Error,
    /// The report says which they are.
    Warn,
}

fn one() -> Located<f64> {
    Located { value: 1.0, span: 0.into() }
}

fn text<S: serde::Serializer>(file: &(String, SourceSpan), serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&file.0)
}

impl Syntax for LoraRule {
    const NAME: &'static str = "lora";
    const KEYS: &'static [&'static str] = &["file", "scale", "alpha", "missing"];
    const EXAMPLE: &'static str = "lora: { file: ..., scale: 0.8 }";
    const ALWAYS: bool = true;

    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self> {
        let rule = fields(node, "`lora`", Self::KEYS, problems)?;
        let help = Some("`file: style.safetensors`, from the folder of the plan");
        let file = rule.require("file", help, problems).and_then(|node| match &node.value {
            yaml::Value::Text(path) if !path.is_empty() => Some((path.clone(), node.span)),
            _ => {
                problems.push(wrong_type(node, "`file`", "the path of a safetensors file"));
                None
            }
        });
        let scale = match rule.get("scale") {
            Some(node) => finite(node, "`scale`", problems),
            None => Some(Located { value: 1.0, span }),
        };
        let alpha = match rule.get("alpha") {
            Some(node) => {
                number(node, "`alpha`", "a number above 0", |alpha| alpha > 0.0, problems).map(Some)
            }
            None => Some(None),
        };
        let words = [("error", Missing::Error), ("warn", Missing::Warn)];
        let missing = or_default(rule.get("missing"), |node| choice(node, "`missing`", &words, problems));
        let (file, missing) = (file?, missing?);
        Some(Self { span, file, scale: scale?, alpha: alpha?, missing, opened: None, text_encoder: None })
    }
}

impl RuleKind for LoraRule {
    fn span(&self) -> SourceSpan {
        self.span
    }

    fn noun(&self) -> &'static str {
        "a LoRA"
    }

    fn canonical(&self) -> Value {
        let file = self.opened.as_deref();
        let alpha = self.alpha.map(|alpha| alpha.value).or_else(|| file?.stated_alpha());
        json!([Self::NAME, file.map(LoraFile::digest), self.scale.value + 0.0, alpha])
    }

    fn open(&mut self, folder: &Path, problems: &mut Vec<Problem>) {
        let (name, at) = (self.file.0.clone(), self.file.1);
        let mut refuse = |reason: String| problems.push(Problem::BadFile { file: name.clone(), reason, at });
        match LoraFile::open(&folder.join(&name)) {
            Err(reason) => refuse(reason),
            Ok(file) if self.alpha.is_none() && file.lacks_alpha() => refuse(
                "nothing says its alpha, as PEFT has it in adapter_config.json beside the file: add it, or say \
                 `alpha: N` in the rule"
                    .into(),
            ),
            Ok(file) if self.alpha.is_some() && file.layers().iter().all(|layer| layer.alpha.is_some()) => {
                refuse("each of its layers has an alpha: leave `alpha` out of the rule".into());
            }
            Ok(file) => self.opened = Some(Arc::new(file)),
        }
    }

    fn resolve(&self, model: &Model<'_>, errors: &mut Vec<PlanError>) -> Vec<Change> {
        let Some(file) = &self.opened else { return Vec::new() };
        let network = Network::of(model);
        let part = self.text_encoder.map_or_else(|| network.part(file), Part::Text);
        let (here, elsewhere): (Vec<usize>, Vec<usize>) = (0..file.layers().len()).partition(|index| {
            let named = file.layers()[*index].part;
            named == part || named == Part::Any
        });
        let mut notes = left_out(file, &elsewhere);
        let not_editable =
            |path: &str, reason: String| PlanError::not_editable(model.source, self.file.1, path, reason);
        let (mut edits, mut missing) = (Vec::new(), Vec::new());
        let mut taken: FxHashMap<&str, &str> = FxHashMap::default();
        for index in here {
            let layer = &file.layers()[index];
            let weight = match network.find(layer) {
                Find::Weight(weight) => weight,
                Find::Refused(path, reason) => {
                    errors.push(not_editable(path, reason));
                    continue;
                }
                Find::Nothing => {
                    missing.push(layer);
                    continue;
                }
            };
            if let Some(other) = taken.insert(&weight.path, &layer.down.name) {
                errors.push(not_editable(
                    &weight.path,
                    format!("`{other}` and `{}` both name it", layer.down.name),
                ));
            }
            if !fits(layer, weight) {
                let reason = format!(
                    "the factors in the file, {:?} and {:?}, do not fit its weight of {:?}",
                    layer.down.dims, layer.up.dims, weight.dims
                );
                errors.push(not_editable(&weight.path, reason));
                continue;
            }
            edits.push(Edit::Merge(Merge {
                weight: weight.clone(),
                file: Arc::clone(file),
                layer: index,
                alpha: file.alpha(layer, self.alpha.map(|alpha| alpha.value)),
                scale: self.scale.value,
            }));
        }
        match self.missing {
            Missing::Error => errors.extend(self.not_found(model, &network, &missing)),
            Missing::Warn => {
                notes.extend(missing.iter().map(|layer| format!("`{}` names no weight", layer.down.name)))
            }
        }
        vec![Change {
            rule: Self::NAME,
            span: self.span,
            subject: self.file.0.clone(),
            module: None,
            how: ("scale", self.scale.value.to_string().into()),
            done: "merged",
            undone: "is not merged",
            fate: Fate::Changed,
            note: (!notes.is_empty()).then(|| notes.join("; ")),
            edits,
        }]
    }
}

impl LoraRule {
    /// Returns whether each layer of the file is for a text encoder.
    pub(crate) fn is_for_text_encoders(&self) -> bool {
        let mut layers = self.opened.iter().flat_map(|file| file.layers()).peekable();
        layers.peek().is_some() && layers.all(|layer| matches!(layer.part, Part::Text(_)))
    }

    /// Returns how many layers the file has for the text encoder with this number.
    pub(crate) fn text_layers(&self, number: u8) -> usize {
        let layers = self.opened.iter().flat_map(|file| file.layers());
        layers.filter(|layer| layer.part == Part::Text(number)).count()
    }

    /// Returns the errors for layers that no weight was found for.
    fn not_found<'a>(
        &'a self,
        model: &'a Model<'_>,
        network: &'a Network<'_>,
        missing: &'a [&LoraLayer],
    ) -> impl Iterator<Item = PlanError> + 'a {
        const SHOWN: usize = 4;
        missing.iter().take(SHOWN).enumerate().map(move |(at, layer)| {
            let near = network.nearest(layer).map(|path| format!("the nearest module is `{path}`; "));
            let more = match missing.len() {
                n if n > SHOWN && at + 1 == SHOWN => format!(" ({} more like it)", n - SHOWN),
                _ => String::new(),
            };
            let help = format!("{}`missing: warn` leaves such keys out{more}", near.unwrap_or_default());
            let (pattern, at) = (layer.down.name.clone(), self.file.1);
            PlanError::new(model.source, Problem::NoMatch { pattern, help: Some(help), at })
        })
    }
}

/// Returns the error for a rule none of whose keys is for the network, in a plan that has nothing else for it.
pub(super) fn no_key(model: &Model<'_>, change: &Change) -> PlanError {
    let left_out = change.note.as_deref().unwrap_or("it has none");
    let reason = format!("none of its keys is for this network: {left_out}");
    let problem = Problem::BadFile { file: change.subject.clone(), reason, at: change.span };
    PlanError::new(model.source, problem)
}

/// Returns what is left out of `file`, as layers of other networks.
fn left_out(file: &LoraFile, layers: &[usize]) -> Vec<String> {
    let mut parts: BTreeMap<Part, usize> = BTreeMap::new();
    for index in layers {
        *parts.entry(file.layers()[*index].part).or_default() += 1;
    }
    let said = |(part, count): (Part, usize)| match count {
        1 => format!("1 layer of {} is left out", part.name()),
        count => format!("{count} layers of {} are left out", part.name()),
    };
    parts.into_iter().map(said).collect()
}

/// The weights of a network by the names that keys have for them.
struct Network<'a> {
    by_name: BTreeMap<String, Vec<&'a Weight>>,
    blocked: BTreeMap<String, (&'a str, &'a str)>,
    /// Resnets in a down block.
    layers: usize,
    is_text: bool,
}

/// The result of a search for the weight of a layer.
enum Find<'a> {
    Weight(&'a Weight),
    /// A module that cannot be changed, and why.
    Refused(&'a str, String),
    Nothing,
}

impl<'a> Network<'a> {
    fn of(model: &Model<'a>) -> Self {
        let weights = &model.analysis.weights;
        let mut by_name: BTreeMap<String, Vec<&Weight>> = BTreeMap::new();
        for weight in &weights.editable {
            by_name.entry(keys::flat(&weight.path)).or_default().push(weight);
        }
        let blocked = weights.blocked.iter();
        let blocked = blocked.map(|b| (keys::flat(&b.path), (b.path.as_str(), b.reason.as_str()))).collect();
        let resnet = |layer: usize| model.analysis.modules.named(&format!("down_blocks.0.resnets.{layer}"));
        let layers = (0..).take_while(|layer| resnet(*layer).is_some()).count();
        let is_text = model.analysis.graph.inputs().any(|io| io.info.name() == "input_ids");
        Self { by_name, blocked, layers, is_text }
    }

    /// Returns which part of `file` is this network's. Which text encoder it is, shapes tell.
    fn part(&self, file: &LoraFile) -> Part {
        if !self.is_text {
            return Part::Denoiser;
        }
        let fitting = |part: Part| {
            let layers = file.layers().iter().filter(|layer| layer.part == part);
            layers.filter(|l| matches!(self.find(l), Find::Weight(weight) if fits(l, weight))).count()
        };
        (1..=3).map(Part::Text).rev().max_by_key(|part| fitting(*part)).unwrap_or(Part::Text(1))
    }

    fn find(&self, layer: &LoraLayer) -> Find<'a> {
        let names = keys::names(layer.part, &layer.module, self.layers);
        if let Some(found) = names.iter().find_map(|name| self.by_name.get(name)) {
            let [weight] = found[..] else {
                let path = found.first().map_or("", |weight| &weight.path);
                return Find::Refused(path, "it has several weights, and the file one sum".into());
            };
            return match &weight.merged_with {
                Some(other) => Find::Refused(
                    &weight.path,
                    format!("one multiplication serves it and `{other}`, and the file has a sum for each"),
                ),
                None => Find::Weight(weight),
            };
        }
        match names.iter().find_map(|name| self.blocked.get(name)) {
            Some((path, reason)) => Find::Refused(path, (*reason).to_string()),
            None => Find::Nothing,
        }
    }

    /// Returns the path of the module that the name of `layer` is most like.
    fn nearest(&self, layer: &LoraLayer) -> Option<&'a str> {
        let name = keys::flat(&layer.module);
        let similarity = |other: &str| strsim::normalized_damerau_levenshtein(&name, other);
        let all = self.by_name.iter().rev().map(|(other, weights)| (similarity(other), weights));
        let (_, weights) = all.max_by(|a, b| a.0.total_cmp(&b.0))?;
        weights.first().map(|weight| weight.path.as_str())
    }
}

/// Returns whether the factors of `layer` make a sum of the shape of `weight`. A kernel of one element may be written
/// out or not, on both sides.
fn fits(layer: &LoraLayer, weight: &Weight) -> bool {
    let dims: Vec<u64> = weight.dims.iter().map(|dim| dim.unsigned_abs()).collect();
    let kernel = |dims: &[u64]| dims.get(2..).filter(|kernel| *kernel != [1, 1]).unwrap_or_default().to_vec();
    let (outputs, inputs, own) = match (weight.layout, dims.as_slice()) {
        (MatrixLayout::InputFirst, [inputs, outputs]) => (*outputs, *inputs, Vec::new()),
        (MatrixLayout::OutputFirst, [outputs, inputs, ..]) => (*outputs, *inputs, kernel(&dims)),
        _ => return false,
    };
    layer.down.dims.get(1) == Some(&inputs)
        && layer.up.dims.first() == Some(&outputs)
        && kernel(&layer.down.dims) == own
}
