//! Pipeline folders as people have them: download caches, older layouts, fixed sizes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use crdiff::{
    diffusion::{
        Pipeline,
        pipeline::{Folder, Request, Unets},
    },
    engine::SessionOptions,
    ir::Graph,
    onnx::{self, WeightPolicy, WriteOptions, proto},
    plan,
    search::compile::Compiler,
};
use prost::Message;
use serde_json::Value;

use crate::pipelines::support::{Golden, Prepared, Runner, prepare};

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

/// A UNet with its weights in `name` beside it.
fn external(pipeline: &Path) {
    let model = pipeline.join("unet/model.onnx");
    let graph = Graph::load(onnx::open(&model).unwrap()).unwrap();
    let output = pipeline.join("unet/other.onnx");
    let policy = WeightPolicy::Split(u64::MAX);
    let options = WriteOptions::new(&output, policy);
    onnx::write(&graph, &options).unwrap();
    fs::remove_file(&model).unwrap();
    fs::rename(output, model).unwrap();
}

/// The pipeline as a download cache holds it: every file is a link into `blobs`, where it has another name.
fn hub(prepared: &Prepared) -> PathBuf {
    external(&prepared.pipeline);
    let root = prepared.pipeline.with_file_name("hub");
    fs::create_dir_all(root.join("blobs")).unwrap();
    for (i, file) in files(&prepared.pipeline).into_iter().enumerate() {
        let blob = root.join(format!("blobs/{i:04}"));
        fs::rename(&file, &blob).unwrap();
        let link = root.join("snapshots/rev").join(file.strip_prefix(&prepared.pipeline).unwrap());
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(blob, link).unwrap();
    }
    root
}

fn crdiff(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
    command.current_dir(folder).env("XDG_CACHE_HOME", folder.join("cache"));
    command
}

#[test]
fn a_download_cache_runs_and_nothing_is_written_into_it() {
    let prepared = prepare("sd15");
    let folder = prepared.pipeline.parent().unwrap();
    let ratios = Golden::open("sd15").index["prune"].to_string();
    fs::write(folder.join("plan.yaml"), format!("version: 1\ncrdiff: {ratios}\n")).unwrap();
    let run = |pipeline: &str, more: &[&str]| {
        let mut command = crdiff(folder);
        command.args([
            "run",
            pipeline,
            "--plan",
            "plan.yaml",
            "--prompt",
            "the cat",
            "--size",
            "32x40",
            "--steps",
            "3",
        ]);
        let output = command.args(["--engine", "rten"]).args(more).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run("pipeline", &["-o", "a.png"]).0, Some(0));
    let root = hub(&prepared);
    let before = files(&root);
    let snapshot = "hub/snapshots/rev";
    for (name, more) in [("b.png", &[][..]), ("c.png", &["--memory", "low"][..])] {
        let (code, said) = run(snapshot, &[&["-o", name], more].concat());
        assert_eq!(code, Some(0), "{said}");
    }
    let pixels = |name: &str| crate::pipelines::command::Png::open(&folder.join(name)).pixels;
    assert!(pixels("a.png") == pixels("b.png"));
    let (code, said) = run(snapshot, &["-o", "d.png", "--compiled", "beside"]);
    assert!(code == Some(2) && said.contains("keep compiled plans in the cache"), "{said}");

    let mut bench = crdiff(folder);
    bench.args([
        "bench",
        snapshot,
        "--plan",
        "plan.yaml",
        "--size",
        "32x40",
        "--steps",
        "1",
        "--runs",
        "1",
        "--json",
    ]);
    let output = bench.args(["--engine", "rten"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // A search's trials too.
    let plan = plan::load(folder.join("plan.yaml")).unwrap();
    let mut compiler = Compiler::open(&root.join("snapshots/rev/unet/model.onnx")).unwrap();
    let trial = compiler.compile(&plan, &()).unwrap();
    let Unets::WithPruned(graph) = &trial.unets else { panic!("{:?}", trial.unets) };
    Runner::Rten.engine().load(graph, &SessionOptions::default()).unwrap();
    drop((trial, compiler));

    // The compiler shares nothing from there, and says what would do.
    let compile = |more: &[&str]| {
        let mut command = crdiff(folder);
        command
            .args(["compile", "hub/snapshots/rev/unet/model.onnx", "plan.yaml"])
            .args(more)
            .output()
            .unwrap()
    };
    let refused = compile(&[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("`--weights copy`"), "{said}");
    assert_eq!(files(&root), before);
    assert!(compile(&["--weights", "copy", "-o", "copy.onnx"]).status.success());
    let compare =
        ["compare", "hub/snapshots/rev/unet/model.onnx", "copy.onnx", "--size", "8x8", "--engine", "rten"];
    assert_eq!(
        crdiff(folder).args(compare).output().unwrap().status.code(),
        Some(1),
        "they are compared, and differ"
    );
    assert_eq!(files(&root), before);
}

/// diffusers' own ONNX export has no configs beside its models.
#[test]
fn the_layout_of_onnx_stable_diffusion_pipeline_runs() {
    let prepared = prepare("sd15");
    let draw = || {
        let (engine, options) = (Runner::Rten.engine(), SessionOptions::default());
        let mut pipeline = Pipeline::open(&prepared.pipeline, engine, options, Unets::Dense).unwrap();
        let mut request = Request::new("the cat", 32, 40);
        request.steps = 2;
        pipeline.run(&request, &()).unwrap().images
    };
    let expected = draw();
    for part in ["unet", "vae_decoder", "text_encoder"] {
        fs::remove_file(prepared.pipeline.join(part).join("config.json")).unwrap();
    }
    let error = Folder::open(&prepared.pipeline).unwrap_err().to_string();
    assert!(error.contains("vae_decoder/config.json"), "{error}");
    let path = prepared.pipeline.join("model_index.json");
    let mut index: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    index["_class_name"] = "OnnxStableDiffusionPipeline".into();
    fs::write(&path, index.to_string()).unwrap();
    external(&prepared.pipeline);
    let folder = Folder::open(&prepared.pipeline).unwrap();
    // This decoder enlarges four times; one whose shapes say nothing, eight times.
    assert_eq!((folder.vae.scaling_factor, folder.vae.factor, folder.vae.channels), (0.18215, 4, 4));
    assert!(draw() == expected);
    fs::write(prepared.pipeline.join("vae_decoder/model.onnx"), "").unwrap();
    let folder = Folder::open(&prepared.pipeline).unwrap();
    assert_eq!((folder.vae.factor, folder.default_size), (8, (512, 512)));
}

#[test]
fn a_unet_of_one_size_draws_that_size() {
    let prepared = prepare("sd15");
    let path = prepared.pipeline.join("unet/model.onnx");
    let mut model = proto::ModelProto::decode(onnx::open(&path).unwrap().bytes).unwrap();
    let graph = model.graph.as_mut().unwrap();
    for io in graph.input.iter_mut().chain(&mut graph.output) {
        let Some(proto::type_proto::Value::TensorType(tensor)) =
            io.r#type.as_mut().and_then(|t| t.value.as_mut())
        else {
            continue;
        };
        for dim in tensor.shape.iter_mut().flat_map(|shape| &mut shape.dim) {
            use proto::tensor_shape_proto::dimension::Value::{DimParam, DimValue};
            let size = match &dim.value {
                Some(DimParam(name)) => match name.as_str() {
                    "batch_size" => 2,
                    "height" => 12,
                    "width" => 16,
                    _ => 77,
                },
                _ => continue,
            };
            dim.value = Some(DimValue(size));
        }
    }
    fs::write(&path, model.encode_to_vec()).unwrap();
    let folder = Folder::open(&prepared.pipeline).unwrap();
    assert_eq!(folder.default_size, (48, 64));
    let (engine, options) = (Runner::Rten.engine(), SessionOptions::default());
    let mut pipeline = Pipeline::open(&prepared.pipeline, engine, options, Unets::Dense).unwrap();
    let mut request = Request::new("the cat", 48, 64);
    request.steps = 1;
    pipeline.run(&request, &()).unwrap();
    request.height = 32;
    let error = pipeline.run(&request, &()).unwrap_err().to_string();
    let expected = "it was exported for one size, 48x64 pixels (latents of 12x16), not for 32x64";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_scheduler_that_is_not_supported_is_replaced_and_a_broken_one_is_named() {
    let prepared = prepare("sd15");
    let path = prepared.pipeline.join("scheduler/scheduler_config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("PNDMScheduler", "LMSDiscreteScheduler")).unwrap();
    let (engine, options) = (Runner::Rten.engine(), SessionOptions::default());
    let mut pipeline = Pipeline::open(&prepared.pipeline, engine, options, Unets::Dense).unwrap();
    let mut request = Request::new("the cat", 32, 40);
    request.steps = 1;
    let error = pipeline.run(&request, &()).unwrap_err().to_string();
    assert!(
        error.contains("`LMSDiscreteScheduler` is not supported; supported are DDIMScheduler")
            && error.contains("name one of them (--scheduler)"),
        "{error}"
    );
    request.set_scheduler("euler".parse().unwrap());
    pipeline.run(&request, &()).unwrap();
    fs::write(&path, text.replacen(',', ",,", 1)).unwrap();
    let error = Folder::open(&prepared.pipeline).unwrap_err().to_string();
    assert!(error.contains("scheduler/scheduler_config.json"), "{error}");
}
