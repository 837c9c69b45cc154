//! The command: exit codes, numbers, the tensor that diverges first.

use std::{fs, path::Path};

use bytes::Bytes;
use crdiff::{
    engine::{HostTensor, io::read_npz},
    onnx::proto::TensorProto,
};
use prost::Message;
use serde_json::Value;

use crate::{
    common::{
        compiled::compiled,
        edit::{changed, fixture, nudge, save},
        onnx_text::parse_model,
    },
    compare::{crdiff, engines, golden},
};

const MODEL: &str = "fixtures/sd15-mini/torchscript/unet.onnx";
const DYNAMO: &str = "fixtures/sd15-mini/dynamo/unet.onnx";
const INPUTS: &str = "fixtures/sd15-mini/golden/inputs.npz";

/// Runs with each engine; returns exit codes and outcomes.
fn outcomes(args: &[&str]) -> Vec<(Option<i32>, Value)> {
    let one = |engine: Vec<String>| {
        let engine = engine.iter().map(String::as_str);
        let all: Vec<&str> = args.iter().copied().chain(engine).chain(["--format", "json"]).collect();
        let found = crdiff(&all);
        let json = serde_json::from_slice(&found.stdout);
        (found.status.code(), json.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&found.stderr))))
    };
    engines().into_iter().map(one).collect()
}

#[test]
fn a_model_and_itself_and_another_export() {
    for (code, outcome) in outcomes(&[MODEL, MODEL, "--size", "8x8", "--size", "16x12", "--batch", "2"]) {
        assert_eq!((code, outcome["verdict"].as_str()), (Some(0), Some("equal")));
        assert_eq!(outcome["findings"].as_array().unwrap().len(), 2);
    }
    for (code, outcome) in outcomes(&[MODEL, DYNAMO, "--size", "8x8", "--sequence", "5"]) {
        assert_eq!((code, outcome["verdict"].as_str()), (Some(0), Some("within tolerance")), "{outcome}");
    }
}

/// Torch says how much each case changes the output at most, over the sizes that it ran.
#[test]
fn a_pruned_model_is_as_far_off_as_torchs() {
    let index: Value = serde_json::from_str(&fs::read_to_string(golden("index.json")).unwrap()).unwrap();
    let cases = index["cases"].as_array().unwrap();
    for kind in ["prune", "bypass"] {
        let case = cases.iter().find(|case| case["kind"] == kind).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let plan = serde_json::to_string(&case["plan"]).unwrap();
        let other = compiled(&fixture("sd15-mini/torchscript"), &plan, folder.path());
        let sizes: Vec<&String> = case["outputs"].as_object().unwrap().keys().collect();
        for (code, outcome) in outcomes(&[MODEL, &other.display().to_string(), "--inputs", INPUTS]) {
            assert_eq!((code, outcome["verdict"].as_str()), (Some(1), Some("out of tolerance")));
            let of_size = |size: &str| {
                let findings = outcome["findings"].as_array().unwrap();
                let mut messages = findings.iter().map(|f| f["message"].as_str().unwrap());
                let message = messages.find(|m| m.starts_with(&format!("{size} "))).unwrap();
                let number = message.split("max abs ").nth(1).unwrap().split(' ').next().unwrap();
                number.parse::<f64>().unwrap()
            };
            let most = sizes.iter().map(|size| of_size(size)).fold(0.0, f64::max);
            let torchs = case["max_change"].as_f64().unwrap();
            assert!((most - torchs).abs() < 1e-3 * torchs, "{}: {most}, torch {torchs}", case["name"]);
        }
    }
}

fn write_tensor(path: &Path, name: &str, tensor: &HostTensor) {
    let proto = TensorProto {
        name: Some(name.into()),
        data_type: Some(tensor.data_type().0),
        dims: tensor.dims().iter().map(|d| *d as i64).collect(),
        raw_data: Some(Bytes::from(tensor.to_le_bytes())),
        ..TensorProto::default()
    };
    fs::write(path, proto.encode_to_vec()).unwrap();
}

/// Torch's inputs and outputs as `test_data_set_*` folders, the second one without names.
fn data_sets(folder: &Path) {
    let (inputs, outputs) =
        (read_npz(&golden("inputs.npz")).unwrap(), read_npz(&golden("outputs.npz")).unwrap());
    for (set, size) in ["8x8", "12x8"].into_iter().enumerate() {
        let folder = folder.join(format!("test_data_set_{set}"));
        fs::create_dir(&folder).unwrap();
        let named = |name: &'static str| if set == 0 { name } else { "" };
        for (index, input) in ["sample", "timestep", "encoder_hidden_states"].into_iter().enumerate() {
            let (_, tensor) = inputs.iter().find(|(name, _)| *name == format!("{size}/{input}")).unwrap();
            write_tensor(&folder.join(format!("input_{index}.pb")), named(input), tensor);
        }
        let (_, tensor) = outputs.iter().find(|(name, _)| *name == format!("dense/{size}")).unwrap();
        write_tensor(&folder.join("output_0.pb"), named("out_sample"), tensor);
    }
}

#[test]
fn stored_outputs_of_torch() {
    let folder = tempfile::tempdir().unwrap();
    data_sets(folder.path());
    let data = folder.path().display().to_string();
    for model in [MODEL, DYNAMO, "fixtures/sd15-mini/slim/unet.onnx"] {
        for (code, outcome) in outcomes(&[model, "--data", &data]) {
            assert_eq!(code, Some(0), "{model}: {outcome}");
            assert_eq!(outcome["findings"].as_array().unwrap().len(), 2);
        }
    }
    let work = tempfile::tempdir().unwrap();
    let other =
        changed(&fixture("sd15-mini/torchscript"), work.path(), |g| nudge(g, "conv_in.weight", 3, 0.5));
    for (code, outcome) in
        outcomes(&[&other.display().to_string(), "--data", &format!("{data}/test_data_set_1")])
    {
        assert_eq!((code, outcome["verdict"].as_str()), (Some(1), Some("out of tolerance")));
    }
}

/// One changed weight in each: the module and node that use it are named, whatever the nodes are called.
#[test]
fn bisecting_names_the_module_of_a_planted_fault() {
    let faults = [
        ("torchscript", "down_blocks.0.resnets.0.conv1.weight", "down_blocks.0.resnets.0.conv1", "Conv"),
        (
            "torchscript",
            "up_blocks.1.attentions.0.proj_in.weight",
            "up_blocks.1.attentions.0.proj_in",
            "Conv",
        ),
        ("torchscript", "time_embedding.linear_2.weight", "time_embedding.linear_2", "Gemm"),
    ];
    for (export, tensor, module, op) in faults {
        let model = fixture(&format!("sd15-mini/{export}"));
        let folder = tempfile::tempdir().unwrap();
        let other = changed(&model, folder.path(), |g| nudge(g, tensor, 5, 3.0));
        let args = [model.display().to_string(), other.display().to_string()];
        for (code, outcome) in outcomes(&[&args[0], &args[1], "--size", "8x8", "--sequence", "7", "--bisect"])
        {
            assert_eq!(code, Some(1), "{outcome}");
            let found = outcome["findings"].as_array().unwrap().last().unwrap();
            assert_eq!(found["module"].as_str(), Some(module), "{outcome}");
            assert!(found["node"].as_str().unwrap().starts_with(op), "{outcome}");
        }
    }
}

#[test]
fn text_and_exit_codes() {
    let found = crdiff(&[MODEL, MODEL, "--size", "8x8", "--engine", "rten"]);
    let text = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(0));
    assert!(text.starts_with(&format!("equal: {MODEL} -> {MODEL}\n")), "{text}");
    assert!(text.contains("out_sample") && text.contains("engine: rten"), "{text}");

    let loose = changed_output(&["--rtol", "1"]);
    assert_eq!(loose.status.code(), Some(0));
    assert_eq!(changed_output(&["--atol", "0", "--rtol", "0"]).status.code(), Some(1));

    for (args, message) in [
        (vec![MODEL, "none.onnx"], "none.onnx: cannot open"),
        (vec![MODEL], "required"),
        (vec![MODEL, "--data", "src"], "src: there is no `input_0.pb` and no `test_data_set_*` folder in it"),
        (vec![MODEL, MODEL, "--rtol", "much"], "not a tolerance"),
        (vec![MODEL, MODEL, "--engine", "none"], "unknown engine `none`"),
        (vec![MODEL, MODEL, "--inputs", "fixtures/sd15-mini/golden/outputs.npz"], "is for no input"),
    ] {
        let found = crdiff(&args);
        let stderr = String::from_utf8(found.stderr).unwrap();
        assert_eq!(found.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
    }
}

fn changed_output(more: &[&str]) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    let other =
        changed(&fixture("sd15-mini/torchscript"), folder.path(), |g| nudge(g, "conv_in.weight", 3, 0.01));
    let other = other.display().to_string();
    let args: Vec<&str> =
        [MODEL, &other, "--size", "8x8", "--engine", "rten"].iter().chain(more).copied().collect();
    crdiff(&args)
}

/// Two networks that give nothing but NaN are not equal, and no distance between them is a number.
#[test]
fn nothing_to_compare() {
    let folder = tempfile::tempdir().unwrap();
    let model = parse_model(
        r#"<ir_version: 10, opset_import: ["" : 18]> m (float[1,4,8,8] sample) => (float[1,4,8,8] out) <float k = {-1.0}> {
  a = Exp(sample) b = Mul(a, k) out = Sqrt(b)
}"#,
    );
    let path = save(&model.unwrap(), folder.path(), "nan.onnx").display().to_string();
    let found = crdiff(&[&path, &path, "--size", "8x8", "--engine", "rten"]);
    let text = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(1), "{text}");
    assert!(text.contains("no element that was expected is a number"), "{text}");
    let row = text.lines().find(|line| line.contains("FAIL")).unwrap();
    assert_eq!(row.split_whitespace().filter(|cell| *cell == "-").count(), 5, "{text}");
}
