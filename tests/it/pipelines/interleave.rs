//! Which network runs when, on what, and that no buffer is read after it was overwritten.

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
};

use crdiff::{
    diffusion::{
        amplify::mixes,
        interleave::{Batching, Branches, Guidance, Interleave, Networks},
        sampler::{Config, Row, Table},
        unet::{Conditioning, Unet},
    },
    engine::{Dim, EngineError, EngineKind, HostTensor, Session, TensorInfo},
    onnx::DataType,
    plan::{self, Amplify},
};

/// A run of a fake network.
#[derive(Clone, Debug, PartialEq)]
struct Run {
    network: char,
    sample: Vec<f32>,
    timestep: f32,
    /// Where the sample and the output lay.
    read: Range<usize>,
    wrote: Range<usize>,
}

type Log = Arc<Mutex<Vec<Run>>>;

/// A network that returns `factor * sample + context`, and writes down what it saw.
struct Fake {
    network: char,
    factor: f32,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    log: Log,
}

fn info(name: &str, dims: &[&str]) -> TensorInfo {
    let dims = dims.iter().map(|name| Dim::Named((*name).to_string())).collect();
    TensorInfo { name: name.to_string(), data_type: DataType::FLOAT, dims: Some(dims) }
}

fn place(values: &[f32]) -> Range<usize> {
    let range = values.as_ptr_range();
    range.start as usize..range.end as usize
}

impl Fake {
    fn unet(network: char, factor: f32, log: &Log) -> Unet {
        let image = ["batch", "channels", "height", "width"];
        let context = info("encoder_hidden_states", &["batch", "tokens", "width"]);
        let fake = Self {
            network,
            factor,
            inputs: vec![info("sample", &image), info("timestep", &[]), context],
            outputs: vec![info("out_sample", &image)],
            log: Arc::clone(log),
        };
        Unet::new(Box::new(fake), Path::new("fake.onnx")).unwrap()
    }
}

impl Session for Fake {
    fn kind(&self) -> EngineKind {
        EngineKind::Rten
    }

    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(
        &mut self,
        inputs: &[(&str, &HostTensor)],
        _: Option<&[&str]>,
    ) -> Result<Vec<(String, HostTensor)>, EngineError> {
        let input = |name: &str| inputs.iter().find(|(known, _)| *known == name).unwrap().1;
        let (sample, context) = (input("sample"), input("encoder_hidden_states"));
        let values = sample.as_f32().unwrap();
        let each = values.len() / sample.dims()[0];
        let contexts = context.as_f32().unwrap();
        assert_eq!(context.dims()[0], sample.dims()[0]);
        let output: Vec<f32> =
            values.iter().enumerate().map(|(i, value)| self.factor * value + contexts[i / each]).collect();
        let run = Run {
            network: self.network,
            sample: values.to_vec(),
            timestep: input("timestep").as_f32().unwrap()[0],
            read: place(values),
            wrote: place(&output),
        };
        self.log.lock().unwrap().push(run);
        Ok(vec![("out_sample".to_string(), HostTensor::new(sample.dims(), output)?)])
    }
}

const SAMPLE: [usize; 4] = [2, 1, 1, 2];
const DENSE: f32 = 0.5;
const PRUNED: f32 = 0.25;

fn context(values: &[f32]) -> Conditioning {
    let context = HostTensor::new([values.len(), 1, 1], values.to_vec()).unwrap();
    Conditioning { context, pooled: None, time_ids: None, timestep_cond: None }
}

fn table(steps: usize) -> Table {
    let config = Config::from_json(r#"{"_class_name": "EulerDiscreteScheduler"}"#).unwrap();
    Table::new(&config, steps, 0.0).unwrap()
}

fn amplify(text: &str) -> Amplify {
    plan::parse("plan.yaml", &format!("version: 1\namplify: {text}\nrules: []")).unwrap().amplify
}

struct Outcome {
    outputs: Vec<Vec<f32>>,
    runs: Vec<Run>,
}

impl Outcome {
    /// The networks in the order they ran.
    fn order(&self) -> String {
        self.runs.iter().map(|run| run.network).collect()
    }
}

const GUIDED: Guidance = Guidance { scale: 3.0, rescale: 0.0, batching: Batching::Together };
const CONDITIONAL: f32 = 0.125;
const UNCONDITIONAL: f32 = -1.0;

/// Calls an interleaving for each row, each time with another input.
fn run(amplify: &Amplify, rows: &[Row], guidance: Option<Guidance>) -> Outcome {
    let log = Log::default();
    let mut networks = Networks::Pair {
        dense: Box::new(Fake::unet('d', DENSE, &log)),
        pruned: Box::new(Fake::unet('p', PRUNED, &log)),
    };
    let both = context(&[UNCONDITIONAL, UNCONDITIONAL, CONDITIONAL, CONDITIONAL]);
    let branches = Branches {
        unconditional: guidance.map(|_| context(&[UNCONDITIONAL; 2])),
        conditional: context(&[CONDITIONAL; 2]),
        together: guidance.map(|_| both),
    };
    let mixes = mixes(amplify, rows).unwrap();
    let guidance = guidance.unwrap_or(Guidance { scale: 1.0, ..GUIDED });
    let mut interleave =
        Interleave::new(&mut networks, mixes, amplify.on, guidance, &branches, SAMPLE).unwrap();
    let outputs = rows
        .iter()
        .enumerate()
        .map(|(call, row)| {
            let mut output = vec![0.0; 4];
            interleave.call(call, row, &input(call), &mut output).unwrap();
            output
        })
        .collect();
    drop(interleave);
    let runs = log.lock().unwrap().clone();
    Outcome { outputs, runs }
}

fn input(call: usize) -> Vec<f32> {
    let call = call as f32;
    vec![call + 1.0, -call, 2.0, call - 3.0]
}

fn expect(outcome: &Outcome, call: usize, of: impl Fn(f32) -> f32) {
    let expected: Vec<f32> = input(call).into_iter().map(of).collect();
    for (value, expected) in outcome.outputs[call].iter().zip(&expected) {
        assert!(
            (value - expected).abs() < 1e-5,
            "call {call}: {:?} is not {expected:?}",
            outcome.outputs[call]
        );
    }
}

/// The guided output of networks that amount to these factors without and with the prompt.
fn guided(unconditional: f32, conditional: f32, scale: f32) -> impl Fn(f32) -> f32 {
    move |value| {
        let (without, with) = (unconditional * value + UNCONDITIONAL, conditional * value + CONDITIONAL);
        without + scale * (with - without)
    }
}

#[test]
fn amplified_outputs_then_guidance() {
    let mixed = DENSE + 1.5 * (PRUNED - DENSE);
    for batching in [Batching::Together, Batching::InTurn] {
        let guidance = Guidance { batching, ..GUIDED };
        let outcome = run(&amplify("{weight: 1.5}"), table(3).rows(), Some(guidance));
        assert_eq!(
            outcome.order(),
            if batching == Batching::Together { "dp".repeat(3) } else { "ddpp".repeat(3) }
        );
        (0..3).for_each(|call| expect(&outcome, call, guided(mixed, mixed, 3.0)));
    }
    let outcome = run(&amplify("{weight: 1.5}"), table(3).rows(), None);
    (0..3).for_each(|call| expect(&outcome, call, |value| mixed * value + CONDITIONAL));
}

#[test]
fn a_weight_of_zero_never_runs_the_pruned_network_and_of_one_never_the_dense_one() {
    let rows = table(4);
    let outcome = run(&amplify("{weight: 0}"), rows.rows(), Some(GUIDED));
    assert_eq!(outcome.order(), "dddd");
    let outcome = run(&amplify("{weight: 1}"), rows.rows(), Some(GUIDED));
    assert_eq!(outcome.order(), "pppp");
    expect(&outcome, 2, guided(PRUNED, PRUNED, 3.0));
    let outcome = run(&amplify("{weight: 1, every: 2}"), rows.rows(), Some(GUIDED));
    assert_eq!(outcome.order(), "pppp");
    let outcome = run(&amplify("{weight: [0, 1, 0, 2]}"), rows.rows(), None);
    assert_eq!(outcome.order(), "dpddp");
}

#[test]
fn the_prompt_alone_can_be_amplified() {
    let mixed = DENSE + 2.0 * (PRUNED - DENSE);
    let outcome = run(&amplify("{weight: 2, on: cond}"), table(2).rows(), Some(GUIDED));
    assert_eq!(outcome.order(), "dpdp");
    // The pruned network sees the branch with the prompt only.
    assert_eq!((outcome.runs[0].sample.len(), outcome.runs[1].sample.len()), (8, 4));
    (0..2).for_each(|call| expect(&outcome, call, guided(DENSE, mixed, 3.0)));
    let outcome = run(&amplify("{weight: 1, on: cond}"), table(1).rows(), Some(GUIDED));
    assert_eq!(outcome.order(), "dp");
    assert_eq!((outcome.runs[0].sample.len(), outcome.runs[1].sample.len()), (4, 4));
    expect(&outcome, 0, guided(DENSE, PRUNED, 3.0));
}

#[test]
fn the_last_difference_is_kept_between() {
    let outcome = run(&amplify("{weight: 2, every: 2}"), table(4).rows(), None);
    assert_eq!(outcome.order(), "dpddpd");
    for (call, from) in [(0, 0), (1, 0), (2, 2), (3, 2)] {
        let difference: Vec<f32> = input(from).iter().map(|value| (PRUNED - DENSE) * value).collect();
        let expected = input(call);
        for ((value, input), difference) in outcome.outputs[call].iter().zip(&expected).zip(&difference) {
            assert!((value - (DENSE * input + CONDITIONAL + 2.0 * difference)).abs() < 1e-5);
        }
    }
}

/// Optimum lets a network write its output over its sample, so that a second network on the same sample reads the
/// first one's output.
#[test]
fn no_buffer_is_read_after_it_was_overwritten() {
    let mixed = |weight: f32| DENSE + weight * (PRUNED - DENSE);
    let (constant, listed) = ([mixed(1.5); 4], [0.0, 1.0, 2.0, 3.0].map(mixed));
    let cases = [
        ("{weight: 1.5}", constant, constant),
        ("{weight: 1.5, on: cond}", [DENSE; 4], constant),
        ("{weight: [0, 1, 2, 3]}", listed, listed),
        ("{weight: [0, 1, 2, 3], on: cond}", [DENSE; 4], listed),
    ];
    let table = table(4);
    for ((text, without, with), batching) in
        cases.iter().flat_map(|case| [(case, Batching::Together), (case, Batching::InTurn)])
    {
        let outcome = run(&amplify(text), table.rows(), Some(Guidance { batching, ..GUIDED }));
        for (i, run) in outcome.runs.iter().enumerate() {
            let call = table.rows().iter().position(|row| row.timestep as f32 == run.timestep).unwrap();
            // Whoever runs, first or last, sees the samples of this call as they were.
            for sample in run.sample.chunks(4) {
                assert_eq!(sample, input(call), "{text}: run {i}");
            }
            let apart = run.read.end <= run.wrote.start || run.wrote.end <= run.read.start;
            assert!(apart, "{text}: run {i} writes where it reads");
        }
        // And no output was lost before it was mixed.
        for call in 0..4 {
            expect(&outcome, call, guided(without[call], with[call], 3.0));
        }
    }
}

#[test]
fn one_network_is_run_as_it_is() {
    let log = Log::default();
    let mut networks = Networks::One(Box::new(Fake::unet('f', DENSE, &log)));
    let branches = Branches { unconditional: None, conditional: context(&[CONDITIONAL; 2]), together: None };
    let mut interleave =
        Interleave::new(&mut networks, Vec::new(), plan::On::Both, GUIDED, &branches, SAMPLE).unwrap();
    let mut output = vec![0.0; 4];
    interleave.call(0, &table(1).rows()[0], &input(0), &mut output).unwrap();
    assert_eq!(output[0], DENSE + CONDITIONAL);
    assert_eq!((interleave.time().dense_runs, interleave.time().pruned_runs), (1, 0));
    // A sample of another size is an error, not a panic.
    assert!(interleave.call(0, &table(1).rows()[0], &[1.0], &mut output).is_err());
}
