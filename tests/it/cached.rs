//! The two graphs of a cache: given what the full one keeps, the shallow one computes what the network does.

use std::{fs, path::Path};

use crdiff::{
    analysis::Analysis,
    compile::{CompileError, Job, Target, cached_outputs, compile_file},
    engine::{Engine, HostTensor, RtenEngine, SessionOptions, io},
    ir::Graph,
    onnx::{self, Dimension, WeightPolicy},
    plan,
    report::{CompileReport, cuts},
    verify::conformance::verify,
};
use safetensors::{Dtype, tensor::TensorView};

// Weights of `ff` are in a data file, those of `attn1` inside the model.
const RULES: &str =
    "rules:\n  - bypass: mid_block.attentions.0\n  - prune: { weights: \"**.{attn1,ff}.**\", ratio: 0.3 }\n";
const ALWAYS: &str = "always:\n  - temperature: { modules: \"**.attn1\", trained: 4x4 }\n";

type Named = Vec<(String, HostTensor)>;

fn run(model: &Path, given: &[&(String, HostTensor)]) -> Named {
    let mut session = RtenEngine.load(model, &SessionOptions::default()).unwrap();
    let fed: Named = session
        .inputs()
        .iter()
        .map(|info| {
            let (_, tensor) = given.iter().find(|(name, _)| *name == info.name).unwrap();
            (info.name.clone(), tensor.cast(info.data_type).unwrap())
        })
        .collect();
    let fed: Vec<(&str, &HostTensor)> = fed.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    session.run(&fed, None).unwrap()
}

fn off(a: &HostTensor, b: &HostTensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    a.to_f32().iter().zip(b.to_f32()).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()))
}

fn copied(export: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sd15-mini").join(export);
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Two sizes, one of which is not divisible by what the network divides by.
fn inputs() -> Vec<Named> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sd15-mini/golden/inputs.npz");
    let all = io::read_npz(&golden).unwrap();
    let of = |size: &str| -> Named {
        let strip = |(name, tensor): &(String, HostTensor)| {
            Some((name.strip_prefix(size)?.strip_prefix('/')?.to_string(), tensor.clone()))
        };
        all.iter().filter_map(strip).collect()
    };
    let both = ["8x8", "18x10"].map(of).to_vec();
    assert!(both.iter().all(|given| !given.is_empty()));
    both
}

#[test]
fn the_shallow_graph_continues_what_the_full_one_keeps() {
    let inputs = inputs();
    let cuts =
        ["up_blocks.0.resnets.0", "up_blocks.0.resnets.1", "up_blocks.1.resnets.0", "up_blocks.1.resnets.1"];
    let mut cases = Vec::new();
    for export in ["torchscript", "dynamo"] {
        let cuts = if export == "dynamo" { &cuts[3..] } else { &cuts[..] };
        cases.extend(cuts.iter().map(|at| (export, *at, "", Target::Pruned)));
        for (rules, target) in [
            (RULES.to_string(), Target::Pruned),
            (RULES.to_string(), Target::Fused),
            (format!("{ALWAYS}{RULES}"), Target::Fused),
            (format!("{ALWAYS}{RULES}"), Target::Dense),
        ] {
            let rules: &str = Box::leak(rules.into_boxed_str());
            cases.push((export, "up_blocks.1.resnets.1", rules, target));
        }
    }
    for (export, at, rules, target) in cases {
        let label = format!("{export} {at} {} {rules}", target.name());
        let folder = copied(export);
        let model = folder.path().join("unet.onnx");
        let cached = plan::parse("plan", &format!("version: 1\n{rules}cache: {{ at: {at} }}\n")).unwrap();
        let plain = plan::parse("plan", &format!("version: 1\n{rules}")).unwrap();
        let whole = folder.path().join("whole.onnx");
        compile_file(&Job::new(&model, &plain).target(target).output(&whole), &()).unwrap();
        let report =
            compile_file(&Job::new(&model, &cached).target(target).cached().output(&model), &()).unwrap();
        let cache = report.cache.unwrap();
        assert!(cache.shallow.nodes_after < report.graph.nodes_after * 4 / 5, "{label}");
        let [full, shallow] = cached_outputs(&model);
        for given in &inputs {
            let given: Vec<&(String, HostTensor)> = given.iter().collect();
            let expected = run(&whole, &given);
            let made = run(&full, &given);
            assert_eq!(made[0].1.to_f32(), expected[0].1.to_f32(), "{label}");
            let names: Vec<&str> = made.iter().skip(1).map(|(name, _)| name.as_str()).collect();
            let kept = if target.is_fused() { &["cache", "cache_pruned"][..] } else { &["cache"][..] };
            assert_eq!(names, kept, "{label}");
            let again = run(&shallow, &given.iter().copied().chain(&made).collect::<Vec<_>>());
            let apart = off(&again[0].1, &expected[0].1);
            assert!(apart <= 1e-6, "{label}: {apart:e}");
            // The given feature matters: another step's makes another output.
            let other = made.iter().map(|(name, tensor)| {
                let values: Vec<f32> = tensor.to_f32().iter().map(|value| value + 1.0).collect();
                (name.clone(), HostTensor::new(tensor.dims(), values).unwrap())
            });
            let other: Named = other.collect();
            let other = run(&shallow, &given.iter().copied().chain(&other).collect::<Vec<_>>());
            assert!(off(&other[0].1, &expected[0].1) > 1e-3, "{label}");
        }
    }
}

/// What `inspect --cache` says of a cut is what compiling it leaves.
#[test]
fn cuts_save_what_inspect_says() {
    let folder = copied("torchscript");
    let model = folder.path().join("unet.onnx");
    let graph = Graph::load(onnx::open(&model).unwrap()).unwrap();
    let found = cuts::cuts("unet.onnx", &Analysis::of(&graph), (16, 24));
    assert_eq!(found.cuts.len(), 4);
    for cut in &found.cuts {
        let plan = plan::parse("plan", &format!("version: 1\ncache: {{ at: {} }}", cut.at)).unwrap();
        let report = compile_file(&Job::new(&model, &plan).cached().at(16, 24), &()).unwrap();
        assert_eq!(report.graph.macs_before, Some(found.macs));
        let shallow = report.cache.unwrap().shallow;
        assert_eq!(
            (shallow.nodes_after, shallow.parameters_after),
            (cut.nodes, cut.parameters),
            "{}",
            cut.at
        );
        assert_eq!(shallow.macs_after, Some(cut.macs), "{}", cut.at);
        assert_eq!(cut.saves, 1.0 - cut.macs as f64 / found.macs as f64);
    }
    // The outermost saves most.
    assert!(found.cuts.last().unwrap().saves > 0.5);
}

/// A LoRA of one layer, which both graphs have.
fn lora_of_the_shallow_part() -> Vec<u8> {
    let name = "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_ff_net_0_proj";
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = [("down", [1, 8]), ("up", [64, 1])]
        .into_iter()
        .map(|(part, dims)| {
            let elements = (0..dims[0] * dims[1]).flat_map(|n| (n as f32).to_le_bytes()).collect();
            (format!("{name}.lora_{part}.weight"), dims.to_vec(), elements)
        })
        .chain([(format!("{name}.alpha"), vec![], 1f32.to_le_bytes().to_vec())])
        .collect();
    let views = tensors
        .iter()
        .map(|(name, dims, bytes)| (name, TensorView::new(Dtype::F32, dims.clone(), bytes).unwrap()));
    safetensors::serialize(views, &None).unwrap()
}

#[test]
fn shared_weights_take_no_room() {
    for export in ["torchscript", "dynamo"] {
        let folder = copied(export);
        let model = folder.path().join("unet.onnx");
        let lora = folder.path().join("lora.safetensors");
        fs::write(&lora, lora_of_the_shallow_part()).unwrap();
        let compile = |rules: &str, target: Target| {
            let text = format!("version: 1\n{rules}cache: {{ at: up_blocks.1.resnets.1 }}");
            let plan = plan::parse("plan", &text).unwrap();
            let job =
                Job::new(&model, &plan).target(target).cached().output(&model).weights(WeightPolicy::Share);
            compile_file(&job, &()).unwrap()
        };
        let written = |report: &CompileReport| -> Vec<String> {
            report.weights.files.iter().map(|file| file.path.clone()).collect()
        };
        let [full, shallow] = cached_outputs(&model).map(|path| path.display().to_string());
        // What the rules change is in the full graph's data alone.
        let data = format!("{full}_data");
        let merged = format!("always: [{{ lora: {{ file: {} }} }}]\n", lora.display());
        for (target, all) in
            [(Target::Pruned, [RULES, &merged]), (Target::Fused, [RULES, &format!("{merged}{RULES}")])]
        {
            for rules in all {
                let report = compile(rules, target);
                assert_eq!(written(&report), [&full, &data, &shallow].map(String::clone), "{export} {rules}");
                let reads: Vec<&[String]> = report.outputs.iter().map(|output| &output.reads[..]).collect();
                assert_eq!(reads, [&[][..], &[data.clone()][..]], "{export} {rules}");
            }
        }
        let report = compile("", Target::Pruned);
        assert_eq!(written(&report), [full, shallow], "{export}: no data file");
        // Tensors below 1 KiB stay in the model; none of the 145 kB of the others is written again.
        assert!(report.weights.bytes_shared > 130_000, "{export}: {}", report.weights.bytes_shared);
    }
}

/// The network that this pipeline was exported from doubles halves, so a height from below is twice the half of the
/// latent's, rounded up. The Concat runs only where that is the latent's, which servers know the sizes of.
#[test]
fn what_is_kept_has_the_sizes_of_the_skip() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pipelines/sd15/unet/model.onnx");
    let plan = plan::parse("plan", "version: 1\ncache: { at: up_blocks.1.resnets.1 }").unwrap();
    let output = folder.path().join("unet.onnx");
    compile_file(&Job::new(&model, &plan).cached().output(&output), &()).unwrap();
    let original = Graph::load(onnx::open(&model).unwrap()).unwrap();
    for path in cached_outputs(&output) {
        let graph = Graph::load(onnx::open(&path).unwrap()).unwrap();
        let cache = graph.inputs().chain(graph.outputs()).find(|io| io.info.name() == "cache").unwrap();
        let name = |name: &str| Some(Dimension::Name(name.to_string()));
        let expected = vec![name("batch_size"), Some(Dimension::Size(16)), name("height"), name("width")];
        assert_eq!(cache.info.dims(), Some(expected));
        let verdict = verify(&original, &graph, &plan, None, &()).unwrap();
        assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    }
}

#[test]
fn both_graphs_appear_or_none() {
    let folder = copied("torchscript");
    let model = folder.path().join("unet.onnx");
    let [full, shallow] = cached_outputs(&model);
    let plan = plan::parse("plan", "version: 1\ncache: { at: up_blocks.1.resnets.1 }").unwrap();
    let compile = || compile_file(&Job::new(&model, &plan).cached().output(&model), &());
    fs::create_dir(&shallow).unwrap();
    assert!(matches!(compile(), Err(CompileError::Onnx(_))));
    assert!(!full.exists());
    fs::write(&full, "older").unwrap();
    assert!(compile().is_err());
    assert_eq!(fs::read_to_string(&full).unwrap(), "older");
    fs::remove_dir(&shallow).unwrap();
    compile().unwrap();
    assert!(full.is_file() && shallow.is_file());
    // Nothing temporary is left.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    let plain = plan::parse("plan", "version: 1").unwrap();
    let error = compile_file(&Job::new(&model, &plain).cached(), &()).unwrap_err();
    assert!(error.to_string().contains("cache: { at: MODULE }"), "{error}");
}

#[test]
fn a_cut_that_cannot_be_is_refused() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sd15-mini/torchscript/unet.onnx");
    let refused = |text: &str| {
        let plan = plan::parse("plan", text).unwrap();
        let error = compile_file(&Job::new(&model, &plan), &()).unwrap_err();
        let CompileError::Plan(error) = error else { panic!("{error}") };
        let text = format!("{:?}", miette::Report::new(*error));
        // As it is before it is broken into lines.
        text.replace(['│', '\n'], " ").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (at, reason) in [
        ("mid_block.resnets.0", "its input is not the Concat of an up-block"),
        ("up_blocks.1.attentions.1", "its input is not the Concat of an up-block"),
        ("up_blocks.1", "so there is no backbone"),
    ] {
        let text = refused(&format!("version: 1\ncache: {{ at: {at} }}\n"));
        assert!(text.contains(reason), "{text}");
        for candidate in [
            "up_blocks.0.resnets.0",
            "up_blocks.0.resnets.1",
            "up_blocks.1.resnets.0",
            "up_blocks.1.resnets.1",
        ] {
            assert!(text.contains(candidate), "{text}");
        }
    }
    let text = refused("version: 1\ncache: { at: up_blocks.1.resnet.1 }\n");
    assert!(text.contains("did you mean `up_blocks.1.resnets.1`"), "{text}");
    let text = refused(
        "version: 1\nrules: [{ bypass: { modules: up_blocks.1.resnets.1, via: backbone } }]\ncache: { at: up_blocks.1.resnets.1 }\n",
    );
    assert!(text.contains("nothing would read the cache"), "{text}");
}
