//! The loop that stays on the device against the one on the host, on the CPU: the same graphs and the same code that a
//! GPU runs, with the engine's buffers in host memory.

mod graphs;

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use crdiff::{
    diffusion::{
        Pipeline,
        interleave::Batching,
        pipeline::{Place, Request, Unets},
    },
    engine::{DeviceTensor, Engine, EngineError, EngineKind, Feed, OrtEngine, Session, SessionOptions},
    plan,
};

use crate::{
    common::{
        ort::ort_library,
        watched::{Watch, WatchedEngine},
    },
    pipelines::support::{Runner, prepare},
};

fn ort() -> OrtEngine {
    OrtEngine::open(&ort_library()).unwrap()
}

fn request(scheduler: &str, amplify: &str) -> Request {
    let mut request = Request::new("the cat", 32, 40);
    (request.steps, request.seeds, request.negative_prompts) = (5, vec![3], vec!["dog".to_string()]);
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
        self.0.load(path, &options.clone().fixed_dims(Default::default()))
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
            pipeline.run(&request, &()).unwrap()
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
    let error = pipeline.run(&request, &()).unwrap_err().to_string();
    assert!(error.contains("device memory"), "{error}");
}

/// The buffers that a run read and wrote.
#[derive(Clone, Debug)]
struct Run {
    network: bool,
    read: Vec<(String, Range<usize>)>,
    wrote: Vec<(String, Range<usize>)>,
}

fn place(tensor: &DeviceTensor) -> Range<usize> {
    let bytes = usize::try_from(tensor.data_type().bits().unwrap() / 8).unwrap();
    let start = tensor.address();
    start..start + bytes * tensor.dims().iter().product::<usize>()
}

impl Watch for Mutex<Vec<Run>> {
    fn run_into(
        &self,
        _: &dyn Session,
        network: bool,
        inputs: &[(&str, Feed<'_>)],
        outputs: &[(&str, &mut DeviceTensor)],
    ) {
        let read = inputs.iter().filter_map(|(name, feed)| match feed {
            Feed::Device(tensor) => Some((name.to_string(), place(tensor))),
            Feed::Host(_) => None,
        });
        let wrote = outputs.iter().map(|(name, tensor)| (name.to_string(), place(tensor)));
        let run = Run { network, read: read.collect(), wrote: wrote.collect() };
        self.lock().unwrap().push(run);
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
        let log = Arc::new(Mutex::new(Vec::<Run>::new()));
        let engine = Box::new(WatchedEngine(ort(), Arc::clone(&log)));
        let unets = Unets::WithPruned(prepared.pruned.clone());
        let mut pipeline =
            Pipeline::open(&prepared.pipeline, engine, SessionOptions::default(), unets).unwrap();
        let mut request = request("PNDMScheduler", amplify);
        (request.place, request.batching) = (Place::Device, batching);
        pipeline.run(&request, &()).unwrap();
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
            // A reader finds what its own writer last wrote there, whole.
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
