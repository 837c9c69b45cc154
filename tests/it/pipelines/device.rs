//! The loop that stays on the device against the one on the host, on the CPU: the same graphs and the same code that a
//! GPU runs, with the engine's buffers in host memory.

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use crdiff::{
    diffusion::{
        Pipeline,
        device::{
            Branch, Clip, Combine, Input, KeptDifference, Prediction, Rescale, Source, Step, StepGraph,
            operand_name,
        },
        guidance,
        interleave::Batching,
        pipeline::{Place, Request, Unets},
        sampler::{Class, Config, Operand, Table},
    },
    engine::{
        Capture, DeviceSession, DeviceTensor, Engine, EngineError, EngineKind, Feed, HostTensor, OrtEngine,
        RtenEngine, Session, SessionOptions, TensorInfo,
    },
    onnx::DataType,
    plan,
};

use crate::{
    common::ort::ort_library,
    pipelines::support::{Runner, ignore, prepare},
};

fn ort() -> OrtEngine {
    OrtEngine::open(&ort_library()).unwrap()
}

fn request(scheduler: &str, amplify: &str) -> Request {
    let mut request = Request::new("the cat", 32, 40);
    (request.steps, request.seeds, request.negative_prompt) = (5, vec![3], Some("dog".to_string()));
    request.scheduler = Some(scheduler.parse().unwrap());
    let text = format!("version: 1\namplify: {amplify}\nrules: []");
    request.amplify = plan::parse("plan.yaml", &text).unwrap().amplify;
    request
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

/// Leaves dimensions open for the loop on the device too, so that both run the same graphs.
struct OpenDimensions(OrtEngine);

impl Engine for OpenDimensions {
    fn kind(&self) -> EngineKind {
        self.0.kind()
    }

    fn version(&self) -> &str {
        self.0.version()
    }

    fn load(&self, path: &Path, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        self.0.load(path, &SessionOptions { fixed_dims: Default::default(), ..options.clone() })
    }

    fn load_bytes(&self, model: Bytes, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        self.0.load_bytes(model, options)
    }
}

#[test]
fn both_loops_make_the_same_latents() {
    let prepared = prepare("sd15");
    let unets = Unets::WithPruned(prepared.pruned.clone());
    let engine = Box::new(OpenDimensions(ort()));
    let mut pipeline = Pipeline::open(&prepared.pipeline, engine, SessionOptions::default(), unets).unwrap();
    let plain = "{weight: 1.5}";
    let mut requests: Vec<Request> = [
        // Histories of several steps, several calls a step, sums put aside, fresh noise, clipping.
        ("DPMSolverMultistepScheduler", plain),
        ("UniPCMultistepScheduler", plain),
        ("PNDMScheduler", plain),
        ("HeunDiscreteScheduler", "{weight: 2, every: 2}"),
        ("EulerAncestralDiscreteScheduler", "{weight: 2, every: 2}"),
        ("DDPMScheduler", "{weight: 1.5, during: [0.3, 0.7]}"),
        ("LCMScheduler", plain),
        ("DDIMScheduler", "{weight: 2, every: 3}"),
        ("DDIMScheduler", "{weight: 2, every: 2, on: cond}"),
        ("DDIMScheduler", "{weight: 1, on: cond}"),
        ("EulerDiscreteScheduler", "{weight: [0, 1, 2, 1.5, 0]}"),
        ("EulerDiscreteScheduler", "{weight: {from: 0, to: 2, curve: cosine}, on: cond}"),
    ]
    .map(|(scheduler, amplify)| request(scheduler, amplify))
    .into();
    let mut in_turn = request("DDIMScheduler", "{weight: 2, every: 2, on: cond}");
    in_turn.batching = Batching::InTurn;
    let mut rescaled = request("DPMSolverMultistepScheduler", plain);
    rescaled.guidance_rescale = 0.7;
    let mut unguided = request("EulerDiscreteScheduler", "{weight: 2, every: 2}");
    unguided.guidance = 1.0;
    let mut batch = request("DDIMScheduler", plain);
    (batch.batch, batch.seeds, batch.eta) = (2, vec![1, 2], 0.5);
    requests.extend([in_turn, rescaled, unguided, batch]);

    for mut request in requests {
        let outputs = [Place::Host, Place::Device].map(|place| {
            request.place = place;
            pipeline.run(&request, &mut ignore).unwrap()
        });
        let [host, device] = outputs.each_ref().map(|output| output.latents.to_f32());
        let largest = host.iter().fold(1f32, |most, value| most.max(value.abs()));
        let difference = largest_difference(&host, &device) / largest;
        // Deviations are summed in double precision on the host, in single precision on the device.
        let tolerance = if request.guidance_rescale > 0.0 { 5e-6 } else { 1e-6 };
        assert!(difference <= tolerance, "{:?}, {:?}: {difference:e}", request.scheduler, request.amplify);
        let [host, device] = outputs.each_ref().map(|output| {
            let time = output.timings.networks;
            (time.dense_runs, time.pruned_runs)
        });
        assert_eq!(host, device);
    }
}

#[test]
fn engines_without_device_memory_say_so() {
    let prepared = prepare("sd15");
    let mut pipeline =
        Pipeline::open(&prepared.pipeline, Runner::Rten.engine(), SessionOptions::default(), Unets::Dense)
            .unwrap();
    let mut request = request("DDIMScheduler", "{weight: 1}");
    request.place = Place::Device;
    let error = pipeline.run(&request, &mut ignore).unwrap_err().to_string();
    assert!(error.contains("device memory"), "{error}");
}

/// What a run read and wrote.
#[derive(Clone, Debug)]
struct Run {
    network: bool,
    read: Vec<(String, Range<usize>)>,
    wrote: Vec<(String, Range<usize>)>,
}

type Log = Arc<Mutex<Vec<Run>>>;

/// ONNX Runtime, writing down which buffers are read and written.
struct Watched(OrtEngine, Log);

struct WatchedSession {
    session: Box<dyn Session>,
    network: bool,
    log: Log,
}

impl Engine for Watched {
    fn kind(&self) -> EngineKind {
        self.0.kind()
    }

    fn version(&self) -> &str {
        self.0.version()
    }

    fn load(&self, path: &Path, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let session = self.0.load(path, options)?;
        Ok(Box::new(WatchedSession { session, network: true, log: Arc::clone(&self.1) }))
    }

    fn load_bytes(&self, model: Bytes, options: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
        let session = self.0.load_bytes(model, options)?;
        Ok(Box::new(WatchedSession { session, network: false, log: Arc::clone(&self.1) }))
    }
}

impl Session for WatchedSession {
    fn inputs(&self) -> &[TensorInfo] {
        self.session.inputs()
    }

    fn outputs(&self) -> &[TensorInfo] {
        self.session.outputs()
    }

    fn run(
        &mut self,
        inputs: &[(&str, &HostTensor)],
        outputs: Option<&[&str]>,
    ) -> Result<Vec<(String, HostTensor)>, EngineError> {
        self.session.run(inputs, outputs)
    }

    fn device(&mut self) -> Option<&mut dyn DeviceSession> {
        Some(self)
    }
}

fn place(tensor: &DeviceTensor) -> Range<usize> {
    let bytes = usize::try_from(tensor.data_type().bits().unwrap() / 8).unwrap();
    let start = tensor.address();
    start..start + bytes * tensor.dims().iter().product::<usize>()
}

impl DeviceSession for WatchedSession {
    fn allocate(&mut self, data_type: DataType, dims: &[usize]) -> Result<DeviceTensor, EngineError> {
        self.session.device().unwrap().allocate(data_type, dims)
    }

    fn run_into(
        &mut self,
        inputs: &[(&str, Feed<'_>)],
        outputs: &mut [(&str, &mut DeviceTensor)],
        capture: Option<Capture>,
    ) -> Result<(), EngineError> {
        let read = inputs.iter().filter_map(|(name, feed)| match feed {
            Feed::Device(tensor) => Some((name.to_string(), place(tensor))),
            Feed::Host(_) => None,
        });
        let wrote = outputs.iter().map(|(name, tensor)| (name.to_string(), place(tensor)));
        let run = Run { network: self.network, read: read.collect(), wrote: wrote.collect() };
        self.log.lock().unwrap().push(run);
        self.session.device().unwrap().run_into(inputs, outputs, capture)
    }

    fn run_to_host(&mut self, inputs: &[(&str, Feed<'_>)]) -> Result<Vec<(String, HostTensor)>, EngineError> {
        self.session.device().unwrap().run_to_host(inputs)
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Optimum lets a network write its output over its sample, so that a second network on the same sample reads the
/// first one's output.
#[test]
fn no_buffer_is_read_after_it_was_overwritten() {
    let prepared = prepare("sd15");
    for (amplify, batching) in [
        ("{weight: 1.5}", Batching::Together),
        ("{weight: 2, every: 2, on: cond}", Batching::Together),
        ("{weight: 2, every: 2}", Batching::InTurn),
    ] {
        let log = Log::default();
        let engine = Box::new(Watched(ort(), Arc::clone(&log)));
        let unets = Unets::WithPruned(prepared.pruned.clone());
        let mut pipeline =
            Pipeline::open(&prepared.pipeline, engine, SessionOptions::default(), unets).unwrap();
        let mut request = request("PNDMScheduler", amplify);
        (request.place, request.batching) = (Place::Device, batching);
        pipeline.run(&request, &mut ignore).unwrap();
        let runs = log.lock().unwrap().clone();
        assert!(runs.iter().filter(|run| run.network).count() >= 9);

        let last_writer = |at: usize, buffer: &Range<usize>| {
            let earlier = runs[..at].iter().enumerate().rev();
            earlier
                .flat_map(|(i, run)| run.wrote.iter().map(move |wrote| (i, wrote)))
                .find(|(_, (_, w))| overlap(w, buffer))
        };
        let mut fed = Vec::new();
        for (at, run) in runs.iter().enumerate() {
            // Nothing is written where it is read, nor twice.
            for (i, (name, wrote)) in run.wrote.iter().enumerate() {
                let others = run.read.iter().chain(&run.wrote[..i]);
                for (other, buffer) in others {
                    assert!(!overlap(wrote, buffer), "{amplify}: run {at} writes {name} over {other}");
                }
            }
            // Whatever is read is what was last written there, whole and by the one that makes it.
            for (name, buffer) in &run.read {
                let (writer, (output, written)) = last_writer(at, buffer)
                    .unwrap_or_else(|| panic!("run {at} reads {name}, which nothing wrote"));
                assert_eq!(written, buffer, "{amplify}: run {at}, {name}");
                let expected: &[&str] = match name.as_str() {
                    "in" | "latents" | "sample" if !run.network => &["next", "out"],
                    "sample" => &["sample"],
                    "timestep" => &["timestep_out"],
                    "encoder_hidden_states" => &["out"],
                    "output" => &["output"],
                    "kept" => &["keep"],
                    "kept_conditional" => &["keep_conditional"],
                    "kept_unconditional" => &["keep_unconditional"],
                    name if name.starts_with("prediction") => &["prediction"],
                    name if name.starts_with("dense") || name.starts_with("pruned") => &["out_sample"],
                    other => panic!("{other}"),
                };
                assert!(
                    expected.contains(&output.as_str()),
                    "{amplify}: run {at} reads {name} from {output}"
                );
                if name == "latents" {
                    fed.push(writer);
                }
            }
        }
        // All networks of a call start from the same latents, and those move on.
        fed.dedup();
        assert!(fed.is_sorted(), "{amplify}: {fed:?}");
        assert!(fed.len() >= 5, "{amplify}: {fed:?}");
    }
}

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
    let input = Input { sample: DataType::FLOAT, copies: 2, timestep: DataType::INT64, timestep_rank: 0 };
    let scaled: Vec<f32> = values(1, COUNT).iter().map(|value| 0.25 * value).collect();
    let fed = [("latents", latents(1)), ("timestep", HostTensor::scalar(801i64)), coefficients(&[0.25])];
    check_graph(
        &StepGraph::Input(input),
        &fed,
        &[("sample", scaled.repeat(2)), ("timestep_out", vec![801.0])],
    );
    // A network in half precision is fed halves.
    let half = Input { sample: DataType::FLOAT16, copies: 1, timestep: DataType::FLOAT16, timestep_rank: 1 };
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
