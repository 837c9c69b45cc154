//! The shapes of `trtexec` commands: ONNX Runtime runs the graph at each of them.

use std::{collections::BTreeMap, path::Path};

use crdiff::{
    compile::Target,
    deploy::{DeployError, Range, Sizes, trtexec},
    engine::{Dim, HostTensor, Signature},
    onnx,
};

use crate::deploy::support::{Golden, compiled, fixture, run, session};

fn sizes(images: &[(i64, i64)], batch: Range) -> Sizes {
    Sizes { images: images.to_vec(), batch, tokens: 77, factor: 8, named: BTreeMap::new() }
}

fn command(model: &Path, sizes: &Sizes) -> Result<Vec<String>, DeployError> {
    trtexec::command(&trtexec::TrtexecJob { model, sizes, engine: None })
}

/// The value of an option.
fn option<'a>(command: &'a [String], name: &str) -> Option<&'a str> {
    command.iter().find_map(|argument| argument.strip_prefix(&format!("--{name}=")))
}

/// Runs `model` at the shapes of an option; inputs that it leaves out have fixed shapes.
fn run_at(model: &Path, shapes: &str) -> Vec<usize> {
    let given: BTreeMap<&str, Vec<usize>> = shapes
        .split(',')
        .map(|one| {
            let (name, dims) = one.split_once(':').unwrap();
            (name, dims.split('x').map(|n| n.parse().unwrap()).collect())
        })
        .collect();
    let signature = Signature::of(&onnx::open(model).unwrap()).unwrap();
    let fed: Vec<(String, HostTensor)> = signature
        .inputs
        .iter()
        .map(|input| {
            let fixed = |dim: &Dim| match dim {
                Dim::Fixed(size) => usize::try_from(*size).unwrap(),
                _ => panic!("nothing is said of {input}"),
            };
            let declared = input.dims.as_ref().unwrap();
            let dims = match given.get(input.name.as_str()) {
                Some(dims) => dims.clone(),
                None => declared.iter().map(fixed).collect(),
            };
            let zeros = vec![0f32; dims.iter().product()];
            (input.name.clone(), HostTensor::new(dims, zeros).unwrap().cast(input.data_type).unwrap())
        })
        .collect();
    assert!(given.keys().all(|name| fed.iter().any(|(input, _)| input == name)), "{shapes}");
    run(&mut *session(model), &fed).dims().to_vec()
}

#[test]
fn graphs_run_at_their_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let fused = folder.path().join("fused.onnx");
    compiled(&fixture("sd15-mini/dynamo/unet.onnx"), Target::FusedWithInput, &fused);
    let models = [
        "sd15/torchscript/unet.onnx",
        "sd21/dynamo/unet.onnx",
        "sdxl/torchscript/unet.onnx",
        "pipelines/sdxl/unet/model.onnx",
        "pipelines/sd15/vae_decoder/model.onnx",
        "pipelines/sd15/text_encoder/model.onnx",
    ];
    let batch = Range { min: 1, max: 2 };
    let asked = sizes(&[(64, 128), (128, 64)], batch);
    for model in models.map(fixture).into_iter().chain([fused]) {
        let command = command(&model, &asked).unwrap();
        assert_eq!(command[..2], ["trtexec".to_string(), format!("--onnx={}", model.display())]);
        let ran = ["minShapes", "optShapes", "maxShapes"]
            .map(|which| run_at(&model, option(&command, which).unwrap()));
        assert_eq!(ran.each_ref().map(|dims| dims[0]), [1, 2, 2], "{}", model.display());
        assert!(option(&command, "saveEngine").unwrap().ends_with(".plan"));
        assert!(option(&command, "timingCacheFile").unwrap().ends_with(".timing.cache"));
        assert!(!command.contains(&"--fp16".to_string()));
    }
}

#[test]
fn the_shapes_are_those_of_the_images() {
    let batch = Range { min: 1, max: 2 };
    let model = fixture("sd15-mini/torchscript-fp16/unet.onnx");
    let command = command(&model, &sizes(&[(512, 512), (768, 512), (512, 768)], batch)).unwrap();
    let shapes = |batch: i64, height: i64, width: i64| {
        format!("sample:{batch}x4x{height}x{width},timestep:{batch},encoder_hidden_states:{batch}x77x16")
    };
    assert_eq!(option(&command, "minShapes"), Some(shapes(1, 64, 64).as_str()));
    assert_eq!(option(&command, "optShapes"), Some(shapes(2, 64, 64).as_str()));
    assert_eq!(option(&command, "maxShapes"), Some(shapes(2, 96, 96).as_str()));
    assert!(command.contains(&"--fp16".to_string()));
}

/// A size at which ONNX Runtime runs (`export_check` of the goldens) is accepted, one at which it fails is refused.
#[test]
fn impossible_sizes_are_those_at_which_the_graph_fails() {
    let (mut accepted, mut refused) = (0, 0);
    for family in ["sd15", "sdxl", "sd21", "sd15-mini"] {
        let golden = Golden::open(family);
        for export in golden.index["export_check"].as_array().unwrap() {
            let name = export["export"].as_str().unwrap();
            let model = fixture(family).join(name).join("unet.onnx");
            for size in golden.index["sizes"].as_array().unwrap() {
                let [batch, height, width] =
                    ["batch", "height", "width"].map(|key| size[key].as_i64().unwrap());
                let checked = &export["max_abs"][size["name"].as_str().unwrap()];
                let Some(runs) = checked
                    .as_str()
                    .map(|error| !error.contains("ONNXRuntimeError"))
                    .or_else(|| checked.as_f64().map(|_| true))
                else {
                    continue;
                };
                if ["ort-fused", "dynamo-bf16", "quantized"].contains(&name) {
                    // They fail, or run, for reasons other than the size.
                    continue;
                }
                let asked =
                    Sizes { factor: 1, ..sizes(&[(height, width)], Range { min: batch, max: batch }) };
                let result = command(&model, &asked);
                let at = format!("{family}/{name} at {height}x{width}");
                match result {
                    Ok(_) => accepted += 1,
                    Err(ref error) => {
                        refused += 1;
                        assert!(error.to_string().contains("it cannot run at"), "{at}: {error}");
                    }
                }
                assert_eq!(result.is_ok(), runs, "{at}: {checked}");
            }
        }
    }
    assert!(accepted >= 40 && refused >= 3, "{accepted} accepted, {refused} refused");
}

#[test]
fn what_nothing_says_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("unet.onnx");
    let text = "<ir_version: 8, opset_import: [\"\" : 17]>
        g (float16[N, C, H, W] sample, float16[N, K] extra) => (float16[N, C, H, W] y, float16[N, K] z)
        { y = Identity(sample) z = Identity(extra) }";
    let proto = crate::common::onnx_text::parse_model(text).unwrap();
    std::fs::write(&model, prost::Message::encode_to_vec(&proto)).unwrap();
    let batch = Range { min: 1, max: 1 };
    let mut asked = sizes(&[(64, 64)], batch);
    for (name, range) in [("C", Range { min: 4, max: 4 }), ("K", Range { min: 3, max: 9 })] {
        let error = command(&model, &asked).unwrap_err().to_string();
        assert!(error.contains(&format!("--dim {name}=MIN..MAX")), "{error}");
        asked.named.insert(name.to_string(), range);
    }
    let built = command(&model, &asked).unwrap();
    assert_eq!(option(&built, "minShapes"), Some("sample:1x4x8x8,extra:1x3"));
    assert_eq!(option(&built, "maxShapes"), Some("sample:1x4x8x8,extra:1x9"));
    assert!(built.contains(&"--fp16".to_string()));
    let error = command(&model, &sizes(&[(64, 100)], batch)).unwrap_err().to_string();
    assert!(error.contains("64x100 is not divisible by 8, the pixels of a latent; try 64x104"), "{error}");
    let fixed = fixture("search/scorer.onnx");
    let error = command(&fixed, &asked).unwrap_err().to_string();
    assert!(error.contains("is fixed to"), "{error}");
}
