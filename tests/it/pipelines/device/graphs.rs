//! The generated graphs of the loop on the device, each against its arithmetic.

use crdiff::{
    diffusion::{
        device::{
            Branch, Clip, Combine, Input, KeptDifference, Prediction, Rescale, Source, Step, StepGraph,
            operand_name,
        },
        guidance,
        sampler::{Class, Config, Operand, Table},
    },
    engine::{Engine, HostTensor, RtenEngine, SessionOptions},
    onnx::DataType,
};

use super::{largest_difference, ort};

/// Numbers that differ from place to place and between tensors.
fn values(seed: u32, count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| ((i * 37 + seed * 101) % 97) as f32 / 31.0 - 1.5).collect()
}

const DIMS: [usize; 4] = [2, 3, 2, 4];
const COUNT: usize = 48;

fn latents(seed: u32) -> HostTensor {
    HostTensor::new(DIMS, values(seed, COUNT)).unwrap()
}

/// Runs a step graph in ONNX Runtime and in rten, and compares each output with `expected`, by name.
fn check_graph(graph: &StepGraph, inputs: &[(&str, HostTensor)], expected: &[(&str, Vec<f32>)]) {
    let engines: [Box<dyn Engine>; 2] = [Box::new(ort()), Box::new(RtenEngine)];
    for engine in engines {
        let mut session = engine.load_bytes(graph.model(), &SessionOptions::default()).unwrap();
        let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let outputs = session.run(&inputs, None).unwrap_or_else(|e| panic!("{graph:?}: {e}"));
        assert_eq!(outputs.len(), expected.len(), "{graph:?}");
        for (name, expected) in expected {
            let (_, output) = outputs.iter().find(|(known, _)| known == name).unwrap();
            let difference = largest_difference(&output.to_f32(), expected);
            assert!(difference <= 2e-6, "{} {graph:?}: {name}: {difference:e}", engine.kind());
        }
    }
}

fn coefficients(values: &[f32]) -> (&'static str, HostTensor) {
    ("coefficients", HostTensor::new([values.len()], values.to_vec()).unwrap())
}

#[test]
fn graphs_of_network_inputs() {
    let input = Input { sample: DataType::FLOAT, copies: 2, timestep: Some((DataType::INT64, 0)) };
    let scaled: Vec<f32> = values(1, COUNT).iter().map(|value| 0.25 * value).collect();
    let fed = [("latents", latents(1)), ("timestep", HostTensor::scalar(801i64)), coefficients(&[0.25])];
    check_graph(
        &StepGraph::Input(input),
        &fed,
        &[("sample", scaled.repeat(2)), ("timestep_out", vec![801.0])],
    );
    // Where timesteps come from the host, the graph has none.
    let without = Input { timestep: None, ..input };
    let fed = [("latents", latents(1)), coefficients(&[0.25])];
    check_graph(&StepGraph::Input(without), &fed, &[("sample", scaled.repeat(2))]);
    // A network in half precision is fed halves.
    let half = Input { sample: DataType::FLOAT16, copies: 1, timestep: Some((DataType::FLOAT16, 1)) };
    let mut session = ort().load_bytes(StepGraph::Input(half).model(), &SessionOptions::default()).unwrap();
    let timestep = HostTensor::new([2], vec![801f32; 2]).unwrap().cast(DataType::FLOAT16).unwrap();
    let (_, scale) = coefficients(&[0.25]);
    let outputs = session
        .run(&[("latents", &latents(1)), ("timestep", &timestep), ("coefficients", &scale)], None)
        .unwrap();
    let expected = HostTensor::new(DIMS, scaled).unwrap().cast(DataType::FLOAT16).unwrap();
    assert_eq!(outputs[0].1, expected);
    assert_eq!(outputs[1].1, timestep);
}

#[test]
fn graphs_of_mixes() {
    let (weight, scale, share) = (1.5f32, 7.5f32, 0.7f32);
    let numbers = coefficients(&[weight, scale, share, 1.0 - share]);
    let both = |a: u32, b: u32| {
        HostTensor::new([4, 3, 2, 4], [values(a, COUNT), values(b, COUNT)].concat()).unwrap()
    };
    let mix = |dense: u32, pruned: u32| {
        let mut mixed = vec![0.0; COUNT];
        guidance::amplify(&values(dense, COUNT), &values(pruned, COUNT), weight, &mut mixed).unwrap();
        mixed
    };
    let guide = |mut without: Vec<f32>, with: &[f32], rescale: Rescale| {
        guidance::guide(&mut without, with, scale).unwrap();
        if rescale == Rescale::On {
            guidance::rescale(&mut without, with, 2, share).unwrap();
        }
        without
    };
    let float = DataType::FLOAT;
    let branch = |dense, pruned, difference| Branch { dense, pruned, difference };
    let unused = KeptDifference::Unused;

    // Both networks on both branches at once.
    for rescale in [Rescale::Off, Rescale::On] {
        let halves = branch(Source::Half, Source::Half, unused);
        let combine = Combine {
            dense: float,
            pruned: float,
            unconditional: Some(halves),
            conditional: halves,
            rescale,
        };
        let inputs = [("dense", both(1, 2)), ("pruned", both(3, 4)), numbers.clone()];
        let expected = guide(mix(1, 3), &mix(2, 4), rescale);
        check_graph(&StepGraph::Combine(combine), &inputs, &[("output", expected)]);
    }
    // The prompt alone is amplified, and the difference kept.
    let without = branch(Source::Half, Source::Absent, unused);
    let with = branch(Source::Half, Source::Own, KeptDifference::Written);
    let rescale = Rescale::Off;
    let combine =
        Combine { dense: float, pruned: float, unconditional: Some(without), conditional: with, rescale };
    let difference: Vec<f32> =
        values(4, COUNT).iter().zip(values(2, COUNT)).map(|(pruned, dense)| pruned - dense).collect();
    let expected = guide(values(1, COUNT), &mix(2, 4), rescale);
    let inputs = [("dense", both(1, 2)), ("pruned_conditional", latents(4)), numbers.clone()];
    let outputs = [("output", expected), ("keep_conditional", difference.clone())];
    check_graph(&StepGraph::Combine(combine), &inputs, &outputs);
    // It is read, without guidance.
    let kept = branch(Source::Own, Source::Absent, KeptDifference::Read);
    let combine = Combine { dense: float, pruned: float, unconditional: None, conditional: kept, rescale };
    let expected: Vec<f32> = values(1, COUNT)
        .iter()
        .zip(&difference)
        .map(|(dense, difference)| dense + weight * difference)
        .collect();
    let kept = ("kept_conditional", HostTensor::new(DIMS, difference).unwrap());
    let inputs = [("dense_conditional", latents(1)), kept, numbers.clone()];
    check_graph(&StepGraph::Combine(combine), &inputs, &[("output", expected)]);
    // One network alone for each branch.
    let (dense, pruned) =
        (branch(Source::Own, Source::Absent, unused), branch(Source::Absent, Source::Own, unused));
    let combine =
        Combine { dense: float, pruned: float, unconditional: Some(dense), conditional: pruned, rescale };
    let expected = guide(values(1, COUNT), &values(2, COUNT), rescale);
    let inputs = [("dense_unconditional", latents(1)), ("pruned_conditional", latents(2)), numbers];
    check_graph(&StepGraph::Combine(combine), &inputs, &[("output", expected)]);
}

#[test]
fn graphs_of_rows() {
    let operand_values = |operand: Operand| match operand {
        Operand::Sample => values(1, COUNT),
        Operand::Output => values(2, COUNT),
        Operand::Kept => values(3, COUNT),
        Operand::Noise => values(4, COUNT),
        Operand::Prediction(age) => values(5 + age as u32, COUNT),
    };
    let classes = [
        ("DDIMScheduler", 0.5),
        ("DDPMScheduler", 0.0),
        ("HeunDiscreteScheduler", 0.0),
        ("EulerAncestralDiscreteScheduler", 0.0),
        ("DPMSolverMultistepScheduler", 0.0),
        ("PNDMScheduler", 0.0),
        ("UniPCMultistepScheduler", 0.0),
        ("LCMScheduler", 0.0),
    ];
    for (class, eta) in classes {
        let config = Config::from_json(&format!(r#"{{"_class_name": "{class}"}}"#)).unwrap();
        assert_eq!(config.class(), class.parse::<Class>().unwrap());
        let table = Table::new(&config, 4, eta).unwrap();
        for row in table.rows() {
            let step =
                Step::of(row, if table.depth() > 0 { Prediction::Remembered } else { Prediction::Forgotten });
            assert_eq!(step.clip == Clip::On, row.prediction.clip.is_some());
            // The sums by hand, in double precision.
            let prediction: Vec<f64> = values(1, COUNT)
                .iter()
                .zip(values(2, COUNT))
                .map(|(sample, output)| {
                    let sum = row.prediction.sample * f64::from(*sample)
                        + row.prediction.output * f64::from(output);
                    row.prediction.clip.map_or(sum, |clip| sum.clamp(-clip, clip))
                })
                .collect();
            let sum = |terms: &[crdiff::diffusion::sampler::Term], kept: &[f64]| -> Vec<f64> {
                let mut sum = vec![0.0; COUNT];
                for term in terms {
                    let values: Vec<f64> = match term.operand {
                        Operand::Prediction(0) => prediction.clone(),
                        Operand::Kept => kept.to_vec(),
                        other => operand_values(other).into_iter().map(f64::from).collect(),
                    };
                    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += term.weight * value);
                }
                sum
            };
            let before: Vec<f64> = operand_values(Operand::Kept).into_iter().map(f64::from).collect();
            let kept = row.keep.as_ref().map(|terms| sum(terms, &before));
            let next = sum(&row.next, kept.as_deref().unwrap_or(&before));
            let mut outputs = vec![("next", next)];
            outputs.extend(kept.map(|kept| ("keep", kept)));
            if table.depth() > 0 {
                outputs.push(("prediction", prediction));
            }
            // Relative to the largest number, of which sums of large weights are made.
            let weights = Step::coefficients(row);
            let largest = weights.iter().fold(1f32, |most, weight| most.max(weight.abs()));
            let names: Vec<String> = step.inputs().into_iter().map(operand_name).collect();
            let mut inputs: Vec<(&str, HostTensor)> = names
                .iter()
                .map(String::as_str)
                .zip(step.inputs())
                .map(|(name, operand)| (name, HostTensor::new(DIMS, operand_values(operand)).unwrap()))
                .collect();
            inputs.push(coefficients(&weights));
            let graph = StepGraph::Step(step);
            let engines: [Box<dyn Engine>; 2] = [Box::new(ort()), Box::new(RtenEngine)];
            for engine in engines {
                let mut session = engine.load_bytes(graph.model(), &SessionOptions::default()).unwrap();
                let fed: Vec<_> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
                let results = session.run(&fed, None).unwrap_or_else(|e| panic!("{class} {graph:?}: {e}"));
                assert_eq!(results.len(), outputs.len());
                for (name, expected) in &outputs {
                    let (_, result) = results.iter().find(|(known, _)| known == name).unwrap();
                    let expected: Vec<f32> = expected.iter().map(|value| *value as f32).collect();
                    let difference = largest_difference(&result.to_f32(), &expected) / largest;
                    assert!(difference <= 2e-6, "{class}, {}: {name}: {difference:e}", engine.kind());
                }
            }
        }
    }
}
