//! `temperature`: multiplies the logits of attentions, by a number or by how many tokens there are beside those of the
//! trained size.

use miette::SourceSpan;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Change, Edit, Fate, Model, RuleKind, Size, Syntax, attention, modules};
use crate::{
    analysis::{Analysis, attention::Attention, modules::ModuleId, skip::Illegal},
    ir::{Template, TemplateOperand, ValueId, int_attribute},
    onnx::DataType,
    plan::{
        Located, PlanError, Problem, Selector,
        read::{fields, number},
        yaml::Node,
    },
};

/// Multiply the logits of attentions, or their results.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = one_of_them)]
pub struct TemperatureRule {
    /// The word that starts the rule.
    #[serde(skip)]
    pub span: SourceSpan,
    /// The modules of the attentions, such as `**.attn1`.
    pub modules: Selector,
    /// The latent size of the training, height x width. Logits are multiplied by sqrt(log N / log T), N and T the number
    /// of keys at the size that runs and at this one: by 1 where the two are the same (Jin et al., 2023).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained: Option<Located<Size>>,
    /// The number that logits are multiplied by, at every size.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub factor: Option<Located<f64>>,
    /// The number that the attention's result is multiplied by, before its output projection (InfoScale).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub output_factor: Option<Located<f64>>,
}

/// Asks for one of the keys that change something.
fn one_of_them(schema: &mut Schema) {
    let required = |key: &str| json!({ "required": [key] });
    let keys = ["trained", "factor", "output_factor"].map(required);
    schema.insert("anyOf".into(), json!(keys));
    schema.insert("not".into(), json!({ "required": ["trained", "factor"] }));
}

impl Syntax for TemperatureRule {
    const NAME: &'static str = "temperature";
    const KEYS: &'static [&'static str] = &["modules", "trained", "factor", "output_factor"];
    const EXAMPLE: &'static str = "temperature: { modules: ..., trained: 64x64 }";
    const ALWAYS: bool = true;

    fn is_choice(analysis: &Analysis<'_>, module: ModuleId) -> bool {
        attention::is_one(analysis, module)
    }

    fn read(span: SourceSpan, node: &Node, problems: &mut Vec<Problem>) -> Option<Self> {
        let rule = fields(node, "`temperature`", Self::KEYS, problems)?;
        let modules = modules(&rule, problems);
        let (trained, factor) = (rule.entry("trained"), rule.entry("factor"));
        let output_factor = rule.entry("output_factor");
        if let (Some((trained, _)), Some((factor, _))) = (trained, factor) {
            let message = "a temperature has `trained` or `factor`".to_owned();
            let help = Some("`trained` makes the factor of the number of tokens");
            problems.push(Problem::conflict(message, help, trained.span, factor.span));
            return None;
        }
        if trained.or(factor).or(output_factor).is_none() {
            let help = Some("`trained: 64x64` is the latent size of the training");
            rule.report_missing(&["trained", "factor", "output_factor"], help, problems);
            return None;
        }
        let mut positive = |node: &Node, what| {
            let is_factor = |factor: f64| factor.is_finite() && factor > 0.0 && factor as f32 != 1.0;
            number(node, what, "a number above 0, and not 1, which changes nothing", is_factor, problems)
        };
        let factor = factor.map(|(_, node)| positive(node, "`factor`"));
        let output_factor = output_factor.map(|(_, node)| positive(node, "`output_factor`"));
        let trained = trained.map(|(_, node)| Size::read(node, "`trained`", problems));
        Some(Self {
            span,
            modules: modules?,
            trained: trained.map_or(Some(None), |read| read.map(Some))?,
            factor: factor.map_or(Some(None), |read| read.map(Some))?,
            output_factor: output_factor.map_or(Some(None), |read| read.map(Some))?,
        })
    }
}

impl RuleKind for TemperatureRule {
    fn span(&self) -> SourceSpan {
        self.span
    }

    fn noun(&self) -> &'static str {
        "a temperature"
    }

    fn canonical(&self) -> Value {
        json!([Self::NAME, self.modules.canonical(), self.trained, self.factor, self.output_factor])
    }

    fn resolve(&self, model: &Model<'_>, errors: &mut Vec<PlanError>) -> Vec<Change> {
        let edits = |attention: &Attention| self.edits(model.analysis, attention);
        let change = |subject: String, module: ModuleId, edits: Vec<Edit>| Change {
            rule: Self::NAME,
            span: self.span,
            subject,
            module: Some(module),
            how: self.how(),
            done: "temperature",
            undone: "has the temperature that it had",
            fate: Fate::Changed,
            note: None,
            edits,
        };
        attention::changes(model, &self.modules, edits, change, errors)
    }
}

impl TemperatureRule {
    fn how(&self) -> (&'static str, std::borrow::Cow<'static, str>) {
        let output = self.output_factor.map(|factor| factor.value.to_string());
        let also = output.as_ref().map_or(String::new(), |factor| format!(", output_factor {factor}"));
        match (&self.trained, &self.factor) {
            (Some(size), _) => ("trained", format!("{}{also}", size.value).into()),
            (None, Some(factor)) => ("factor", format!("{}{also}", factor.value).into()),
            (None, None) => ("output_factor", output.unwrap_or_default().into()),
        }
    }

    /// Returns what changes one attention.
    fn edits(&self, analysis: &Analysis<'_>, attention: &Attention) -> Result<Vec<Edit>, Illegal> {
        let mut edits = Vec::new();
        if self.trained.is_some() || self.factor.is_some() {
            let logits = attention.logits(analysis)?;
            let mut template = Template::default();
            let factor = match (&self.trained, &self.factor) {
                (Some(size), _) => {
                    let trained = tokens(analysis, attention, size.value)?;
                    let now = template.size(logits.keys.0, logits.keys.1);
                    by_tokens(&mut template, now, trained, logits.data_type)
                }
                (None, factor) => {
                    TemplateOperand::float(factor.map_or(1.0, |factor| factor.value), logits.data_type)
                }
            };
            let factor = factor.ok_or_else(|| no_float(analysis, attention))?;
            multiply(&mut template, logits.value, factor);
            edits.push(Edit::Splice(analysis.splice(logits.at, template)?));
        }
        if let Some(factor) = &self.output_factor {
            let no_type = || no_float(analysis, attention);
            let [out] = attention.out[..] else {
                let count = attention.out.len();
                let reason = format!("its result is read by {count} output projections, not by one");
                return Err(Illegal::new(reason));
            };
            let data_type = analysis.shapes.data_type(out.input).ok_or_else(no_type)?;
            let factor = TemplateOperand::float(factor.value, data_type).ok_or_else(no_type)?;
            let mut template = Template::default();
            multiply(&mut template, out.input, factor);
            edits.push(Edit::Splice(analysis.splice(vec![(out.node, 0)], template)?));
        }
        Ok(edits)
    }
}

fn multiply(template: &mut Template, value: ValueId, factor: TemplateOperand) {
    template.add("Mul", [TemplateOperand::Value(value), factor], Vec::new());
}

fn no_float(analysis: &Analysis<'_>, attention: &Attention) -> Illegal {
    Illegal::at(analysis.graph, attention.node, "has logits of no known float type")
}

/// Adds sqrt(log `now` / log `trained`) to `template`, as sqrt(1 + log(`now` / `trained`) / log `trained`): whatever an
/// engine's logarithm rounds to, it is 0 of 1, so that the factor is exactly 1 at the trained size. `Relu` keeps
/// rounding from making it the root of less than 0 for one token.
fn by_tokens(
    template: &mut Template,
    now: TemplateOperand,
    trained: i64,
    data_type: DataType,
) -> Option<TemplateOperand> {
    let single = |number| TemplateOperand::float(number, DataType::FLOAT);
    let trained = trained as f64;
    let to = |data_type: DataType| vec![int_attribute("to", data_type.0.into())];
    let now = template.add("Cast", [now], to(DataType::FLOAT));
    let ratio = template.add("Div", [now, single(trained)?], Vec::new());
    let logarithm = template.add("Log", [ratio], Vec::new());
    let scaled = template.add("Mul", [logarithm, single(trained.ln().recip())?], Vec::new());
    let sum = template.add("Add", [scaled, single(1.0)?], Vec::new());
    let above = template.add("Relu", [sum], Vec::new());
    let factor = template.add("Sqrt", [above], Vec::new());
    Some(match data_type {
        DataType::FLOAT => factor,
        other => template.add("Cast", [factor], to(other)),
    })
}

/// Returns the number of keys of `attention` at the latent size `trained`.
fn tokens(analysis: &Analysis<'_>, attention: &Attention, trained: Size) -> Result<i64, Illegal> {
    let reason = |reason: &str| Illegal::at(analysis.graph, attention.node, reason);
    let facts = attention.facts(analysis.graph, &analysis.shapes);
    let keys = facts.keys.ok_or_else(|| reason("has a number of keys that is not known"))?;
    if keys.constant().is_some() {
        return Err(reason(
            "has the same number of keys at every size, so it has no temperature by size: give it a `factor`",
        ));
    }
    let at = |size: Size, sequence: i64| {
        let (height, width) = (i64::from(size.height), i64::from(size.width));
        let sizes = crate::analysis::shapes::bind_sizes(analysis.graph, 1, height, width, sequence);
        let size = |name: &str| sizes.iter().find(|(bound, _)| bound == name).map(|(_, size)| *size);
        keys.evaluate(&size)
    };
    let (one, other) = (at(trained, 64), at(trained, 96));
    let larger = Size { height: trained.height.saturating_mul(2), ..trained };
    match one {
        _ if one != other => Err(reason(
            "has keys of the text, whose number says nothing about the size of the image: give it a `factor`",
        )),
        None => Err(reason("has a number of keys that no latent size tells")),
        _ if at(larger, 64) == one => Err(reason(
            "has as many keys at every latent size, so it has no temperature by size: give it a `factor`",
        )),
        Some(tokens) if tokens < 2 => {
            Err(reason("has no more than one key at the trained size, and log 1 is 0"))
        }
        Some(tokens) => Ok(tokens),
    }
}
