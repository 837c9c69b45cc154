//! The arithmetic between two runs of a network as small ONNX graphs, so that a GPU can do it where the tensors are.
//!
//! Each does what the host loop does, in its order and in float32: [`super::super::sampler::run`] a table's row,
//! [`super::super::guidance`] amplification and guidance. Weights are an input called `coefficients`, so that one graph
//! serves every step that has the same terms.

use bytes::Bytes;
use prost::Message;

use super::super::sampler::{Operand, Row, Term};
use crate::onnx::{DataType, Dimension, ValueInfo, proto};

/// A graph to be made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepGraph {
    /// `out` is `in`, of this type and rank: a copy to, from or on the device.
    Copy(DataType, usize),
    /// A network's input: `sample` is `latents` times the coefficient, as often in a row as there are copies;
    /// `timestep_out` is `timestep`, where the device holds one.
    Input(Input),
    /// `output`, the prediction that a sampler sees, from what the networks returned.
    Combine(Combine),
    /// A row of a sampler's table.
    Step(Step),
}

/// The parameters of [`StepGraph::Input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Input {
    /// The type of the network's samples.
    pub sample: DataType,
    /// How often the batch stands in the sample: twice where both branches of guidance run together.
    pub copies: usize,
    /// The type and rank of its timesteps, 0 for a scalar and 1 for a vector; `None` where they come from the host.
    pub timestep: Option<(DataType, usize)>,
}

/// Amplification branch by branch, then guidance. Coefficients: w, the guidance scale, the share of rescaling, 1
/// minus that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Combine {
    /// The type of what the dense network returns.
    pub dense: DataType,
    /// The type of what the pruned network returns.
    pub pruned: DataType,
    /// Without the prompt; `None` without guidance.
    pub unconditional: Option<Branch>,
    /// With the prompt.
    pub conditional: Branch,
    /// How guidance changes the deviation of its result.
    pub rescale: Rescale,
}

/// The sources of one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Branch {
    /// Where the dense network's output is.
    pub dense: Source,
    /// Where the pruned network's output is. With a dense one it is amplified, else it is taken as it is.
    pub pruned: Source,
    /// How the difference is used.
    pub difference: KeptDifference,
}

/// Where a branch's output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// It was not run.
    Absent,
    /// In a tensor of its own: `dense_unconditional`, `pruned_conditional` and so on.
    Own,
    /// In its half of `dense` or `pruned`, the unconditional branch first.
    Half,
}

/// How the difference between the networks is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeptDifference {
    /// Nothing.
    Unused,
    /// It is the output `keep_conditional` or `keep_unconditional` too.
    Written,
    /// It is the input `kept_conditional` or `kept_unconditional`, instead of a pruned output.
    Read,
}

/// Whether guidance pulls deviations back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rescale {
    /// No.
    Off,
    /// By the share in the coefficients.
    On,
}

/// The terms of a row. Coefficients: the prediction's two weights, the clip if there is one, the weights of `keep`,
/// those of `next`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// Whether predictions are clipped.
    pub clip: Clip,
    /// Whether a later row reads this prediction: then it is the output `prediction`.
    pub prediction: Prediction,
    /// The operands of the sum that is put aside, the output `keep`.
    pub keep: Option<Vec<Operand>>,
    /// The operands of the next sample, the output `next`.
    pub next: Vec<Operand>,
}

/// Whether a row clips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clip {
    /// No.
    Off,
    /// To plus and minus a coefficient.
    On,
}

/// Whether a prediction is read later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prediction {
    /// No.
    Forgotten,
    /// Yes.
    Remembered,
}

impl Step {
    /// Returns the graph of a row.
    pub fn of(row: &Row, prediction: Prediction) -> Self {
        let operands = |terms: &[Term]| terms.iter().map(|term| term.operand).collect();
        Self {
            clip: if row.prediction.clip.is_some() { Clip::On } else { Clip::Off },
            prediction,
            keep: row.keep.as_deref().map(operands),
            next: operands(&row.next),
        }
    }

    /// Returns the coefficients of a row.
    pub fn coefficients(row: &Row) -> Vec<f32> {
        let prediction = [Some(row.prediction.sample), Some(row.prediction.output), row.prediction.clip];
        let terms = row.keep.iter().flatten().chain(&row.next).map(|term| term.weight);
        prediction.into_iter().flatten().chain(terms).map(|weight| weight as f32).collect()
    }

    /// Returns the operands that are inputs, each once. Without `keep`, [`Operand::Kept`] is what an earlier row put
    /// aside.
    pub fn inputs(&self) -> Vec<Operand> {
        let read_kept = self.keep.is_none();
        let kept = self.keep.iter().flatten().copied();
        let next = self.next.iter().copied().filter(|operand| read_kept || *operand != Operand::Kept);
        let mut operands: Vec<Operand> = kept.chain(next).collect();
        if operands.contains(&Operand::Prediction(0)) || self.prediction == Prediction::Remembered {
            operands.extend([Operand::Sample, Operand::Output]);
        }
        operands.retain(|operand| *operand != Operand::Prediction(0));
        operands.sort_unstable();
        operands.dedup();
        operands
    }
}

/// Returns the name of an operand's input.
pub fn operand_name(operand: Operand) -> String {
    match operand {
        Operand::Sample => "sample".to_string(),
        Operand::Kept => "kept".to_string(),
        Operand::Output => "output".to_string(),
        Operand::Noise => "noise".to_string(),
        Operand::Prediction(age) => format!("prediction_{age}"),
    }
}

impl StepGraph {
    /// Returns the graph as an ONNX model (IR 8, opset 17).
    pub fn model(&self) -> Bytes {
        let mut builder = Builder::default();
        match self {
            Self::Copy(data_type, rank) => {
                builder.input("in", *data_type, *rank);
                builder.output("Identity", &["in"], "out", *data_type, *rank);
            }
            Self::Input(input) => builder.network_input(input),
            Self::Combine(combine) => builder.combine(combine),
            Self::Step(step) => builder.step(step),
        }
        // Engines keep what they make of a graph by its name.
        builder.finish(format!("crdiff step {self:?}"))
    }
}

/// Latents are `[batch, channels, height, width]`.
const LATENTS: usize = 4;

#[derive(Default)]
struct Builder {
    graph: proto::GraphProto,
}

impl Builder {
    fn input(&mut self, name: &str, data_type: DataType, rank: usize) {
        self.graph.input.push(described(name, data_type, rank));
    }

    /// Returns a node whose result has a name of its own.
    fn node(&mut self, operator: &str, inputs: &[&str], attributes: Vec<proto::AttributeProto>) -> String {
        let name = format!("v{}", self.graph.node.len());
        self.named(operator, inputs, &[&name], attributes);
        name
    }

    fn named(
        &mut self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: Vec<proto::AttributeProto>,
    ) {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let node = proto::NodeProto {
            name: Some(format!("n{}", self.graph.node.len())),
            op_type: Some(operator.to_string()),
            input: names(inputs),
            output: names(outputs),
            attribute: attributes,
            ..Default::default()
        };
        self.graph.node.push(node);
    }

    fn output(&mut self, operator: &str, inputs: &[&str], name: &str, data_type: DataType, rank: usize) {
        self.named(operator, inputs, &[name], Vec::new());
        self.graph.output.push(described(name, data_type, rank));
    }

    fn result(&mut self, value: &str, name: &str) {
        self.output("Identity", &[value], name, DataType::FLOAT, LATENTS);
    }

    fn op(&mut self, operator: &str, a: &str, b: &str) -> String {
        self.node(operator, &[a, b], Vec::new())
    }

    /// Returns the elements of the input `coefficients`, each as a tensor of one.
    fn coefficients(&mut self, count: usize) -> Vec<String> {
        self.input("coefficients", DataType::FLOAT, 1);
        if count == 1 {
            return vec!["coefficients".to_string()];
        }
        let sizes = proto::TensorProto {
            name: Some("ones".to_string()),
            data_type: Some(DataType::INT64.0),
            dims: vec![count as i64],
            raw_data: Some(1i64.to_le_bytes().repeat(count).into()),
            ..Default::default()
        };
        self.graph.initializer.push(sizes);
        let names: Vec<String> = (0..count).map(|i| format!("c{i}")).collect();
        let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
        self.named("Split", &["coefficients", "ones"], &outputs, vec![int("axis", 0)]);
        names
    }

    fn cast(&mut self, value: &str, from: DataType, to: DataType) -> String {
        if from == to {
            return value.to_string();
        }
        self.node("Cast", &[value], vec![int("to", i64::from(to.0))])
    }

    fn network_input(&mut self, input: &Input) {
        self.input("latents", DataType::FLOAT, LATENTS);
        self.input("coefficients", DataType::FLOAT, 1);
        let scaled = self.op("Mul", "coefficients", "latents");
        let scaled = self.cast(&scaled, DataType::FLOAT, input.sample);
        let copies = vec![scaled.as_str(); input.copies.max(1)];
        self.named("Concat", &copies, &["sample"], vec![int("axis", 0)]);
        self.graph.output.push(described("sample", input.sample, LATENTS));
        if let Some((data_type, rank)) = input.timestep {
            self.input("timestep", data_type, rank);
            self.output("Identity", &["timestep"], "timestep_out", data_type, rank);
        }
    }

    fn combine(&mut self, combine: &Combine) {
        let coefficients = self.coefficients(4);
        let [weight, scale, share, rest] = coefficients.as_slice() else { return };
        let mut halves = [None, None];
        let mut branch = |builder: &mut Self, name: &str, at: usize, branch: &Branch| {
            let sources = [(branch.dense, "dense", combine.dense), (branch.pruned, "pruned", combine.pruned)];
            let mut found = [None, None];
            for ((found, halves), (source, network, data_type)) in
                found.iter_mut().zip(&mut halves).zip(sources)
            {
                let value = match source {
                    Source::Absent => continue,
                    Source::Own => {
                        let own = format!("{network}_{name}");
                        builder.input(&own, data_type, LATENTS);
                        own
                    }
                    Source::Half => {
                        let halves: &[String; 2] = halves.get_or_insert_with(|| {
                            builder.input(network, data_type, LATENTS);
                            let names = [format!("{network}_first"), format!("{network}_second")];
                            builder.named("Split", &[network], &[&names[0], &names[1]], vec![int("axis", 0)]);
                            names
                        });
                        halves.get(at).cloned().unwrap_or_default()
                    }
                };
                *found = Some(builder.cast(&value, data_type, DataType::FLOAT));
            }
            let difference = match (&found, branch.difference) {
                (_, KeptDifference::Read) => {
                    let kept = format!("kept_{name}");
                    builder.input(&kept, DataType::FLOAT, LATENTS);
                    Some(kept)
                }
                ([Some(dense), Some(pruned)], _) => Some(builder.op("Sub", pruned, dense)),
                _ => None,
            };
            if let (KeptDifference::Written, Some(difference)) = (branch.difference, &difference) {
                builder.result(difference, &format!("keep_{name}"));
            }
            let [dense, pruned] = found;
            match (dense, difference) {
                (Some(dense), Some(difference)) => {
                    let weighted = builder.op("Mul", weight, &difference);
                    builder.op("Add", &dense, &weighted)
                }
                (Some(dense), None) => dense,
                (None, _) => pruned.unwrap_or_default(),
            }
        };
        let unconditional = combine.unconditional.map(|b| branch(self, "unconditional", 0, &b));
        let conditional = branch(self, "conditional", 1, &combine.conditional);
        let Some(unconditional) = unconditional else { return self.result(&conditional, "output") };
        let direction = self.op("Sub", &conditional, &unconditional);
        let guidance = self.op("Mul", scale, &direction);
        let guided = self.op("Add", &unconditional, &guidance);
        let guided = match combine.rescale {
            Rescale::Off => guided,
            Rescale::On => self.rescale(&guided, &conditional, share, rest),
        };
        self.result(&guided, "output");
    }

    /// Returns `share * (guided * deviation(conditional) / deviation(guided)) + (1 - share) * guided`, image by
    /// image. Whether deviations have Bessel's correction makes no difference to their ratio.
    fn rescale(&mut self, guided: &str, conditional: &str, share: &str, rest: &str) -> String {
        let deviations = [conditional, guided].map(|value| {
            let axes = || vec![ints("axes", &[1, 2, 3])];
            let mean = self.node("ReduceMean", &[value], axes());
            let centred = self.op("Sub", value, &mean);
            let squares = self.op("Mul", &centred, &centred);
            let variance = self.node("ReduceMean", &[&squares], axes());
            self.node("Sqrt", &[&variance], Vec::new())
        });
        let ratio = self.op("Div", &deviations[0], &deviations[1]);
        let scaled = self.op("Mul", guided, &ratio);
        let scaled = self.op("Mul", share, &scaled);
        let rest = self.op("Mul", rest, guided);
        self.op("Add", &scaled, &rest)
    }

    fn step(&mut self, step: &Step) {
        for operand in step.inputs() {
            self.input(&operand_name(operand), DataType::FLOAT, LATENTS);
        }
        let clips = usize::from(step.clip == Clip::On);
        let kept = step.keep.as_ref().map_or(0, Vec::len);
        let mut coefficients = self.coefficients(2 + clips + kept + step.next.len()).into_iter();
        let mut next = || coefficients.next().unwrap_or_default();
        let (of_sample, of_output) = (next(), next());
        let clip = (step.clip == Clip::On).then(&mut next);
        let terms = step.keep.iter().flatten().chain(&step.next);
        let used = terms.clone().any(|operand| *operand == Operand::Prediction(0));
        let mut prediction = String::new();
        if used || step.prediction == Prediction::Remembered {
            let sample = self.op("Mul", &of_sample, "sample");
            let output = self.op("Mul", &of_output, "output");
            prediction = self.op("Add", &sample, &output);
            if let Some(clip) = clip {
                // WebGPU has neither Max nor Min.
                let low = self.node("Neg", &[&clip], Vec::new());
                let below = self.op("Less", &prediction, &low);
                let raised = self.node("Where", &[&below, &low, &prediction], Vec::new());
                let above = self.op("Greater", &raised, &clip);
                prediction = self.node("Where", &[&above, &clip, &raised], Vec::new());
            }
        }
        if step.prediction == Prediction::Remembered {
            self.result(&prediction, "prediction");
        }
        let mut sum = |builder: &mut Self, operands: &[Operand], kept: &str| {
            let mut sum: Option<String> = None;
            for operand in operands {
                let value = match operand {
                    Operand::Prediction(0) => prediction.clone(),
                    Operand::Kept => kept.to_string(),
                    other => operand_name(*other),
                };
                let weighted = builder.op("Mul", &next(), &value);
                sum = Some(match sum {
                    Some(sum) => builder.op("Add", &sum, &weighted),
                    None => weighted,
                });
            }
            sum.unwrap_or_default()
        };
        let mut kept = "kept".to_string();
        if let Some(operands) = &step.keep {
            kept = sum(self, operands, "kept");
            self.result(&kept, "keep");
        }
        let next = sum(self, &step.next, &kept);
        self.result(&next, "next");
    }

    fn finish(mut self, name: String) -> Bytes {
        self.graph.name = Some(name);
        let opset = proto::OperatorSetIdProto { domain: None, version: Some(17) };
        let model = proto::ModelProto {
            ir_version: Some(8),
            producer_name: Some("crdiff".to_string()),
            opset_import: vec![opset],
            graph: Some(self.graph),
            ..Default::default()
        };
        model.encode_to_vec().into()
    }
}

fn described(name: &str, data_type: DataType, rank: usize) -> proto::ValueInfoProto {
    let dims = ["n", "channels", "height", "width"].iter().take(rank);
    // A dimension of a name is of one size throughout a graph, which the batch is not.
    let dim = dims.enumerate().map(|(i, dim)| match i {
        0 => Dimension::Name(format!("{name}_{dim}")),
        _ => Dimension::Name(dim.to_string()),
    });
    ValueInfo::tensor(name, data_type, Some(dim.collect())).0
}

fn int(name: &str, value: i64) -> proto::AttributeProto {
    let kind = proto::attribute_proto::AttributeType::Int as i32;
    proto::AttributeProto {
        name: Some(name.to_string()),
        i: Some(value),
        r#type: Some(kind),
        ..Default::default()
    }
}

fn ints(name: &str, values: &[i64]) -> proto::AttributeProto {
    let kind = proto::attribute_proto::AttributeType::Ints as i32;
    proto::AttributeProto {
        name: Some(name.to_string()),
        ints: values.to_vec(),
        r#type: Some(kind),
        ..Default::default()
    }
}
