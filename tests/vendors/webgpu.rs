//! The loop that stays on the device, on memory that the host cannot read: WebGPU on SwiftShader, a Vulkan on the CPU,
//! which headless Chromium has with it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crdiff::{
    compile::{Job, Target, cached_outputs, compile_file},
    diffusion::{
        Pipeline,
        interleave::NetworkTime,
        pipeline::{Place, Request, Unets},
    },
    engine::{DeviceTensor, Feed, OrtEngine, Provider, ProviderKind, Session, SessionOptions},
    onnx::{
        DataType, WeightPolicy,
        proto::{AttributeProto, NodeProto, attribute_proto::AttributeType, type_proto::Value},
    },
    plan,
};

#[path = "../it/common/edit.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod edit;
#[path = "../it/pipelines/support.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use support::{Prepared, compile, prepare};

use super::{
    alone,
    browser::swiftshader,
    common::{
        ort::ort_library,
        outputs::of_range,
        watched::{Watch, WatchedEngine},
    },
    onnxruntime, packages, passes,
};

#[test]
fn the_device_loop_runs_on_webgpu() {
    let vulkan = swiftshader();
    let mut command = alone("webgpu::both_loops_make_the_same_latents", &onnxruntime(&packages("webgpu")));
    passes(
        command
            .env("LD_LIBRARY_PATH", &vulkan)
            .env("VK_ICD_FILENAMES", vulkan.join("vk_swiftshader_icd.json")),
    );
}

fn request(scheduler: &str, amplify: &str) -> Request {
    let mut request = Request::new("the cat", 8, 16);
    (request.steps, request.seeds, request.negative_prompts) = (3, vec![3], vec!["dog".to_string()]);
    request.scheduler = Some(scheduler.parse().unwrap());
    request.decode = false;
    let text = format!("version: 1\namplify: {amplify}\nrules: []");
    request.amplify = plan::parse("plan.yaml", &text).unwrap().amplify;
    request
}

/// Everything that crosses between host and device.
#[derive(Default)]
struct Crossed {
    /// The names and sizes of inputs from the host, and how many runs of networks there were before.
    up: Vec<(String, usize, usize)>,
    down: usize,
    network_runs: usize,
}

impl Watch for Mutex<Crossed> {
    fn run_into(
        &self,
        session: &dyn Session,
        is_network: bool,
        inputs: &[(&str, Feed<'_>)],
        _: &[(&str, &mut DeviceTensor)],
    ) {
        let mut crossed = self.lock().unwrap();
        if is_network {
            let placed = session.placement();
            assert!(placed.iter().all(|p| p.provider == "WebGpuExecutionProvider"), "{placed:?}");
        }
        let before = crossed.network_runs;
        crossed.up.extend(inputs.iter().filter_map(|(name, feed)| match feed {
            Feed::Host(tensor) => Some((name.to_string(), tensor.dims().iter().product(), before)),
            Feed::Device(_) => None,
        }));
        crossed.network_runs += usize::from(is_network);
    }

    fn run_to_host(&self) {
        self.lock().unwrap().down += 1;
    }
}

/// The pipeline with a UNet whose timesteps are int64, as those of most exports are.
fn with_int64_timesteps(prepared: &Prepared) {
    let path = prepared.pipeline.join("unet/model.onnx");
    let mut model = edit::decode(&path);
    let graph = model.graph.as_mut().unwrap();
    for name in graph.node.iter_mut().flat_map(|node| &mut node.input).filter(|name| *name == "timestep") {
        *name = "timestep_as_float".to_string();
    }
    let input = graph.input.iter_mut().find(|input| input.name() == "timestep").unwrap();
    if let Some(Value::TensorType(tensor)) = &mut input.r#type.as_mut().unwrap().value {
        tensor.elem_type = Some(DataType::INT64.0);
    }
    let to = AttributeProto {
        name: Some("to".to_string()),
        i: Some(i64::from(DataType::FLOAT.0)),
        r#type: Some(AttributeType::Int as i32),
        ..Default::default()
    };
    let cast = NodeProto {
        op_type: Some("Cast".to_string()),
        input: vec!["timestep".to_string()],
        output: vec!["timestep_as_float".to_string()],
        attribute: vec![to],
        ..Default::default()
    };
    graph.node.insert(0, cast);
    edit::save(&model, path.parent().unwrap(), "model.onnx");
}

/// The same pipeline on WebGPU and on the host.
struct Both {
    device: Pipeline,
    host: Pipeline,
    crossed: Arc<Mutex<Crossed>>,
}

impl Both {
    fn open(pipeline: &Path, unets: impl Fn() -> Unets, shallow: &[(PathBuf, PathBuf)]) -> Self {
        let engine = OrtEngine::open(&ort_library()).unwrap();
        let crossed = Arc::new(Mutex::new(Crossed::default()));
        let on_webgpu = SessionOptions::default().providers(vec![Provider::from(ProviderKind::WebGpu)]);
        let counted = Box::new(WatchedEngine(engine.clone(), Arc::clone(&crossed)));
        let mut device = Pipeline::open(pipeline, counted, on_webgpu, unets()).unwrap();
        let mut host =
            Pipeline::open(pipeline, Box::new(engine), SessionOptions::default(), unets()).unwrap();
        device.set_shallow(shallow.iter().cloned().collect());
        host.set_shallow(shallow.iter().cloned().collect());
        Self { device, host, crossed }
    }

    /// Checks one request; returns how often the networks ran on WebGPU.
    fn compare(&mut self, mut request: Request, name: &str) -> NetworkTime {
        request.place = Place::Host;
        let expected = self.host.run(&request, &()).unwrap().latents.to_f32();
        request.place = Place::Device;
        *self.crossed.lock().unwrap() = Crossed::default();
        let output = self.device.run(&request, &()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = output.latents.to_f32();
        let off = of_range(&found, &expected);
        assert!(off <= 1e-3, "{name}: off by {off:e} of the range");

        let crossed = self.crossed.lock().unwrap();
        let (first, later): (Vec<_>, Vec<_>) = crossed.up.iter().partition(|(_, _, before)| *before == 0);
        assert!(first.iter().any(|(input, size, _)| input == "in" && *size == found.len()), "{first:?}");
        // Numbers alone cross after the first run of a network, and what a sampler draws.
        let large: Vec<_> = later.iter().filter(|(_, size, _)| *size > 16).collect();
        let draws = ["EulerAncestralDiscreteScheduler", "DDPMScheduler", "LCMScheduler"];
        assert_eq!(!large.is_empty(), draws.contains(&name), "{name}: {later:?}");
        assert!(large.iter().all(|(input, size, _)| input == "noise" && *size == found.len()), "{large:?}");
        assert_eq!(crossed.down, 1, "{name}: once, the final latents");
        assert!(crossed.network_runs >= 3, "{name}");
        output.timings.networks
    }
}

/// A plan that leaves a third of the nodes. SwiftShader takes its time for each.
const CUT: &str = "version: 1
rules:
  - bypass: mid_block
  - bypass: [down_blocks.0.attentions.0, up_blocks.1.attentions.0]
  - bypass: { modules: \"up_blocks.*.resnets.1\", via: shortcut }
";

#[test]
#[ignore = "the_device_loop_runs_on_webgpu runs it with the libraries that it needs"]
fn both_loops_make_the_same_latents() {
    let prepared = prepare("sd15");
    with_int64_timesteps(&prepared);
    let cut = |name: &str, more: &str| {
        let output = prepared.pruned.with_file_name(name);
        let plan = plan::parse("plan.yaml", &format!("{CUT}{more}")).unwrap();
        compile(&prepared.pipeline, &plan, Target::Pruned, &output);
        output
    };
    let dense = cut("dense.onnx", "");
    let pruned = cut("pruned.onnx", "crdiff: { down: 0.3, mid: 0.3, up: 0.3 }");
    let unets = || Unets::Pair { dense: dense.clone(), pruned: pruned.clone() };
    let mut both = Both::open(&prepared.pipeline, unets, &[]);
    for (scheduler, amplify) in [
        ("DDIMScheduler", "{weight: 1.5}"),
        ("DPMSolverMultistepScheduler", "{weight: 1.5}"),
        ("UniPCMultistepScheduler", "{weight: 1.5}"),
        ("PNDMScheduler", "{weight: 1.5}"),
        ("HeunDiscreteScheduler", "{weight: 2, every: 2}"),
        ("EulerAncestralDiscreteScheduler", "{weight: 2, every: 2}"),
        ("DDPMScheduler", "{weight: 1.5, during: [0.3, 0.7]}"),
        ("LCMScheduler", "{weight: [0, 1, 2]}"),
        ("EulerDiscreteScheduler", "{weight: 2, every: 2}"),
    ] {
        both.compare(request(scheduler, amplify), scheduler);
    }

    // Whole networks, and a cache, whose features stay on the device too. Their timesteps are float32, which it holds.
    let prepared = prepare("sd15");
    let text =
        "version: 1\ncrdiff: {down: 0.3, mid: 0.3, up: 0.3}\ncache: {at: up_blocks.1.resnets.1, every: 2}";
    let plan = plan::parse("plan.yaml", text).unwrap();
    let pairs = [Target::Dense, Target::Pruned].map(|target| {
        let (model, output) =
            (prepared.pipeline.join("unet/model.onnx"), prepared.pruned.with_file_name(target.name()));
        let job = Job::new(&model, &plan).target(target).cached().output(&output).weights(WeightPolicy::Copy);
        compile_file(&job, &()).unwrap();
        <(PathBuf, PathBuf)>::from(cached_outputs(&output))
    });
    let unets = || Unets::Pair { dense: pairs[0].0.clone(), pruned: pairs[1].0.clone() };
    let mut both = Both::open(&prepared.pipeline, unets, &pairs);
    let mut request = request("DDIMScheduler", "{weight: 1.5}");
    request.cache = plan.cache;
    let times = both.compare(request, "DDIMScheduler");
    assert_eq!((times.dense_runs, times.dense_shallow_runs, times.pruned_shallow_runs), (3, 1, 1));
}
