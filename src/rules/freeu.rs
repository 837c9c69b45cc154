//! `freeu`: multiplies half of the channels of the backbone at skip connections, and the lowest frequencies of the skip.

use miette::SourceSpan;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Change, Edit, Fate, Model, RuleKind, Syntax};
use crate::{
    analysis::{
        Analysis,
        modules::ModuleId,
        skip::{Illegal, SkipConcat},
    },
    ir::{Template, TemplateOperand, TemplateTensor, ValueId, int_attribute},
    onnx::DataType,
    plan::{
        Glob, PlanError, Problem, Selector,
        read::{fields, list, number, selector},
        yaml::Node,
    },
};

/// At the skip connections on the way up, multiply the first half of the backbone's channels, and the four lowest
/// frequencies of the skip (FreeU).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FreeuRule {
    /// The word that starts the rule.
    #[serde(skip)]
    pub span: SourceSpan,
    /// The numbers that the backbone is multiplied by, one for each resolution, from the smallest up.
    #[schemars(length(min = 1))]
    pub backbone: Vec<f64>,
    /// The numbers that the lowest frequencies of the skip are multiplied by, at the same resolutions.
    #[schemars(length(min = 1))]
    pub skip: Vec<f64>,
    /// The resnets behind the skip connections that are meant; all those of the first resolutions by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Selector>,
}

impl Syntax for FreeuRule {
    const NAME: &'static str = "freeu";
    const KEYS: &'static [&'static str] = &["backbone", "skip", "blocks"];
    const EXAMPLE: &'static str = "freeu: { backbone: [1.5, 1.6], skip: [0.9, 0.2] }";
    const ALWAYS: bool = true;

    fn is_choice(analysis: &Analysis<'_>, module: ModuleId) -> bool {
        analysis.skip_concat_before(module).is_some()
    }

    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self> {
        let rule = fields(node, "`freeu`", Self::KEYS, problems)?;
        let help = Some(
            "a number for each resolution, from the smallest up: `backbone: [1.5, 1.6], skip: [0.9, 0.2]`",
        );
        let mut numbers = |key: &'static str, what: &'static str| {
            let node = rule.require(key, help, problems)?;
            let items = list(node, what, problems)?;
            let read = |item| number(item, what, "numbers from 0", |n| n.is_finite() && n >= 0.0, problems);
            let read: Vec<_> = items.iter().map(read).collect();
            read.into_iter().map(|number| Some(number?.value)).collect::<Option<Vec<f64>>>()
        };
        let (backbone, skip) = (numbers("backbone", "`backbone`"), numbers("skip", "`skip`"));
        let blocks = match rule.get("blocks") {
            Some(node) => selector(node, "`blocks`", Glob::module, problems).map(Some),
            None => Some(None),
        };
        let (backbone, skip) = (backbone?, skip?);
        let idle = |(backbone, skip): (&f64, &f64)| *backbone as f32 == 1.0 && *skip as f32 == 1.0;
        let found = match () {
            () if backbone.len() != skip.len() => {
                format!("{} numbers for the backbone and {} for the skip", backbone.len(), skip.len())
            }
            () if backbone.is_empty() => "two empty lists".to_owned(),
            () if backbone.iter().zip(&skip).any(idle) => {
                "a resolution with 1 and 1, which changes nothing".to_owned()
            }
            () => return Some(Self { span, backbone, skip, blocks: blocks? }),
        };
        let expected = "a number for the backbone and one for the skip at each resolution".to_owned();
        problems.push(Problem::OutOfRange { what: "`freeu`", expected, found, at: span });
        None
    }
}

impl RuleKind for FreeuRule {
    fn span(&self) -> SourceSpan {
        self.span
    }

    fn noun(&self) -> &'static str {
        "a FreeU"
    }

    fn canonical(&self) -> Value {
        let blocks = self.blocks.as_ref().map(Selector::canonical);
        json!([Self::NAME, self.backbone, self.skip, blocks])
    }

    fn resolve(&self, model: &Model<'_>, errors: &mut Vec<PlanError>) -> Vec<Change> {
        let analysis = model.analysis;
        let all = analysis.skip_concats();
        let is_one = |module: ModuleId| all.iter().any(|(other, _)| *other == module);
        let selected: Vec<(SourceSpan, ModuleId)> = match &self.blocks {
            Some(blocks) => model.modules(blocks, |module, _| is_one(module), errors),
            None => all.iter().map(|(module, _)| (self.span, *module)).collect(),
        };
        let mut meant = Vec::new();
        let known = errors.len();
        for (at, module) in selected {
            match all.iter().find(|(other, _)| *other == module) {
                Some((_, concat)) => meant.push((module, concat)),
                None => {
                    let path = &analysis.modules.get(module).path;
                    let reason = "no skip connection ends before it";
                    errors.push(PlanError::not_editable(model.source, at, path, reason));
                }
            }
        }
        if errors.len() > known {
            return Vec::new();
        }
        meant.sort_by_key(|(_, concat)| concat.node);
        let size = |concat: &SkipConcat| {
            analysis.shapes.of(concat.result).and_then(|s| s.dims.get(2..)).map(<[_]>::to_vec)
        };
        let mut sizes = Vec::new();
        for (_, concat) in &meant {
            let size = size(concat);
            if !sizes.contains(&size) {
                sizes.push(size);
            }
        }
        let wanted = self.backbone.len();
        if sizes.len() < wanted || (self.blocks.is_some() && sizes.len() > wanted) {
            let count = sizes.len();
            let reason = format!(
                "there are numbers for {wanted} resolutions, and skip connections end at {count} there"
            );
            let subject = match &self.blocks {
                Some(Selector::Globs(globs)) => globs.iter().map(Glob::text).collect::<Vec<_>>().join(", "),
                _ => "the network".into(),
            };
            errors.push(PlanError::not_editable(model.source, self.span, &subject, reason));
            return Vec::new();
        }
        let mut changes = Vec::new();
        for (module, concat) in meant {
            let size = size(concat);
            let level = sizes.iter().position(|known| *known == size);
            let Some((backbone, skip)) = level.and_then(|at| self.backbone.get(at).zip(self.skip.get(at)))
            else {
                continue;
            };
            let path = &analysis.modules.get(module).path;
            match edits(analysis, concat, *backbone, *skip) {
                Ok(edits) => changes.push(Change {
                    rule: Self::NAME,
                    span: self.span,
                    subject: path.clone(),
                    module: Some(module),
                    how: ("backbone", format!("{backbone}, skip {skip}").into()),
                    done: "FreeU",
                    undone: "has no FreeU",
                    fate: Fate::Changed,
                    note: None,
                    edits,
                }),
                Err(illegal) => errors.push(PlanError::not_editable(model.source, self.span, path, illegal)),
            }
        }
        changes
    }
}

/// Returns what changes the operands of one Concat.
fn edits(
    analysis: &Analysis<'_>,
    concat: &SkipConcat,
    backbone: f64,
    skip: f64,
) -> Result<Vec<Edit>, Illegal> {
    let mut edits = Vec::new();
    let mut splice = |(slot, _): (usize, ValueId), template: Option<Template>| {
        let unknown = || Illegal::at(analysis.graph, concat.node, "joins values of no known size or type");
        let template = template.ok_or_else(unknown)?;
        edits.push(Edit::Splice(analysis.splice(vec![(concat.node, slot)], template)?));
        Ok(())
    };
    if backbone as f32 != 1.0 {
        splice(concat.backbone, multiplied(analysis, concat.backbone.1, backbone))?;
    }
    if skip as f32 != 1.0 {
        splice(concat.skip, filtered(analysis, concat.skip.1, skip))?;
    }
    Ok(edits)
}

/// Multiplies the first half of the channels of `value`, and the others by 1.
fn multiplied(analysis: &Analysis<'_>, value: ValueId, by: f64) -> Option<Template> {
    let shape = analysis.shapes.of(value)?;
    let channels = shape.dims.get(1)?.constant().filter(|count| (2..1 << 20).contains(count))?;
    let data_type = shape.data_type?;
    let mut elements = Vec::new();
    for channel in 0..channels {
        let number = if channel < channels / 2 { by } else { 1.0 };
        let TemplateOperand::Tensor(TemplateTensor { bytes, .. }) =
            TemplateOperand::float(number, data_type)?
        else {
            return None;
        };
        elements.extend_from_slice(&bytes);
    }
    let mut dims = vec![1; shape.dims.len()];
    *dims.get_mut(1)? = channels;
    let factors = TemplateTensor { data_type, dims, bytes: elements.into() };
    let mut template = Template::default();
    template.add("Mul", [TemplateOperand::Value(value), TemplateOperand::Tensor(factors)], Vec::new());
    Some(template)
}

/// Multiplies the four lowest frequencies of `value`: those of index -1 and 0 in both directions, as they lie around the
/// middle of a shifted spectrum. The real part of the inverse transform of these four is C x C + S x S, with the matrices
/// C = 1 + cos(2 pi (i - j) / size) and S = sin(2 pi (i - j) / size) of each direction; of one row, -1 and 0 are one
/// frequency, and C = 1.
fn filtered(analysis: &Analysis<'_>, value: ValueId, by: f64) -> Option<Template> {
    let shape = analysis.shapes.of(value)?;
    let (data_type, 4) = (shape.data_type?, shape.dims.len()) else { return None };
    // Of no other type, so that `TemplateOperand::float` makes all numbers.
    TemplateOperand::float(by, data_type)?;
    let mut template = Template::default();
    let cast = |template: &mut Template, value, to: DataType| {
        template.add("Cast", [value], vec![int_attribute("to", to.0.into())])
    };
    let original = match data_type {
        DataType::FLOAT => TemplateOperand::Value(value),
        _ => cast(&mut template, TemplateOperand::Value(value), DataType::FLOAT),
    };
    let (height, rows) = waves(&mut template, value, 2)?;
    let (width, columns) = waves(&mut template, value, 3)?;
    let [even, odd] = rows
        .into_iter()
        .zip(columns)
        .map(|(rows, columns)| {
            let product = template.add("MatMul", [rows, original.clone()], Vec::new());
            template.add("MatMul", [product, columns], Vec::new())
        })
        .collect::<Vec<_>>()
        .try_into()
        .ok()?;
    let lowest = template.add("Add", [even, odd], Vec::new());
    let count = template.add("Mul", [height, width], Vec::new());
    let share = template.add("Div", [single(by - 1.0)?, count], Vec::new());
    let change = template.add("Mul", [lowest, share], Vec::new());
    let sum = template.add("Add", [original, change], Vec::new());
    if data_type != DataType::FLOAT {
        cast(&mut template, sum, data_type);
    }
    Some(template)
}

/// Adds the size of `value` on `axis`, and the matrices C and S of that direction.
fn waves(
    template: &mut Template,
    value: ValueId,
    axis: usize,
) -> Option<(TemplateOperand, [TemplateOperand; 2])> {
    let size = template.size(value, axis);
    let indices =
        template.add("Range", [TemplateOperand::int(0), size.clone(), TemplateOperand::int(1)], Vec::new());
    let float = || vec![int_attribute("to", DataType::FLOAT.0.into())];
    let size = template.add("Cast", [size], float());
    let row = template.add("Cast", [indices], float());
    let column = template.add("Reshape", [row.clone(), TemplateOperand::ints(&[-1, 1])], Vec::new());
    let distances = template.add("Sub", [column, row], Vec::new());
    let step = template.add("Div", [single(std::f64::consts::TAU)?, size.clone()], Vec::new());
    let angles = template.add("Mul", [distances, step], Vec::new());
    let others = template.add("Sub", [size.clone(), single(1.0)?], Vec::new());
    let any = template.add("Min", [others, single(1.0)?], Vec::new());
    let cosine = template.add("Cos", [angles.clone()], Vec::new());
    let second = template.add("Mul", [cosine, any], Vec::new());
    let even = template.add("Add", [second, single(1.0)?], Vec::new());
    let odd = template.add("Sin", [angles], Vec::new());
    Some((size, [even, odd]))
}

fn single(number: f64) -> Option<TemplateOperand> {
    TemplateOperand::float(number, DataType::FLOAT)
}
