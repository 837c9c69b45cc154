//! Merged weights against diffusers' `fuse_lora` and PEFT's merge: to the last bit in float32.

use std::{fs, path::Path};

use crdiff::{compile::Target, engine::io};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::support::{Folder, in_torch_order, lora};

fn index() -> Value {
    serde_json::from_str(&fs::read_to_string(lora("index.json")).unwrap()).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Merges each file that the goldens of `network` are of into the model, proves that, and compares weights.
fn check(network: &str, model: &str, style: impl Fn(&str) -> bool) {
    let folder = Folder::of(model);
    let index = index();
    let files = index[network].as_object().unwrap();
    assert!(files.keys().any(|file| style(file)));
    for (file, digests) in files.iter().filter(|(file, _)| style(file)) {
        let plan = folder.always(&format!("file: {}, scale: 0.8", lora(file).display()));
        let output = folder.proven(&plan, Target::Dense);
        let wrong: Vec<&String> = digests
            .as_object()
            .unwrap()
            .iter()
            .filter(|(module, digest)| sha256(&in_torch_order(&output, module)) != digest.as_str().unwrap())
            .map(|(module, _)| module)
            .collect();
        assert!(wrong.is_empty(), "{model}, {file}: not diffusers' bits in {wrong:#?}");
        kernels(&output, &format!("{network}/{file}/"));
    }
}

/// Compares 3x3 kernels of few channels, whose products torch adds in another order: to a few units of the last place of
/// the largest.
fn kernels(output: &Path, prefix: &str) {
    for (key, tensor) in io::read_npz(&lora("golden.npz")).unwrap() {
        let Some(module) = key.strip_prefix(prefix) else { continue };
        let ours = in_torch_order(output, module);
        let ours: Vec<f32> = ours.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let theirs = tensor.to_f32();
        let largest = theirs.iter().fold(0f32, |most, value| most.max(value.abs()));
        let apart = ours.iter().zip(&theirs).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(ours.len() == theirs.len() && apart <= 2.0 * f32::EPSILON * largest, "{key}: {apart}");
    }
}

#[test]
fn of_3x3_kernels() {
    check("pipeline", "pipelines/sd15/unet/model.onnx", |_| true);
}

#[test]
fn of_a_torchscript_export() {
    check("sd15-mini", "sd15-mini/torchscript/unet.onnx", |_| true);
}

#[test]
fn of_a_dynamo_export() {
    check("sd15-mini", "sd15-mini/dynamo/unet.onnx", |_| true);
}

#[test]
fn by_the_names_of_the_original_unet() {
    check("sdxl", "sdxl/torchscript/unet.onnx", |_| true);
}

#[test]
fn of_a_text_encoder() {
    check("text_encoder", "pipelines/sd15/text_encoder/model.onnx", |_| true);
}

/// diffusers rounds the sum and the result, this only the result: they are one step of float16 apart at most, of the larger
/// of weight and sum.
#[test]
fn in_half_precision_within_a_step() {
    let folder = Folder::of("sd15-mini/torchscript-fp16/unet.onnx");
    let plan = folder.always(&format!("file: {}, scale: 0.8", lora("kohya.safetensors").display()));
    let output = folder.proven(&plan, Target::Dense);
    let halves = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks::<2>().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect()
    };
    let mut compared = 0;
    for (key, tensor) in io::read_npz(&lora("golden.npz")).unwrap() {
        let Some(module) = key.strip_prefix("half/") else { continue };
        let (ours, before) =
            (halves(&in_torch_order(&output, module)), halves(&in_torch_order(&folder.model, module)));
        let theirs = tensor.to_f32();
        assert_eq!(ours.len(), theirs.len());
        for (index, ((ours, theirs), before)) in ours.iter().zip(&theirs).zip(&before).enumerate() {
            let largest = before.abs().max((theirs - before).abs()).max(theirs.abs());
            let step = largest.log2().floor().exp2() / 1024.0;
            assert!((ours - theirs).abs() <= step, "{module}, {index}: {ours} and {theirs}");
        }
        compared += 1;
    }
    assert_eq!(compared, 12);
}

/// The change in a report, which is computed from the factors alone, is that of the merged weights, which are diffusers'.
#[test]
fn a_report_says_how_large_changes_are() {
    let folder = Folder::of("sd15-mini/torchscript/unet.onnx");
    let plan = folder.always(&format!("file: {}, scale: 0.8", lora("kohya.safetensors").display()));
    let (output, report) = folder.compile(&plan, Target::Dense);
    let [rule] = report.lora.as_slice() else { panic!("{:?}", report.lora) };
    assert_eq!(rule.per_tensor.len(), 12);
    let mut all = (0.0, 0.0);
    for tensor in &rule.per_tensor {
        let [before, after] = [&folder.model, &output].map(|path| -> Vec<f64> {
            let bytes = in_torch_order(path, &tensor.module);
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes).into()).collect()
        });
        let change: f64 = before.iter().zip(&after).map(|(before, after)| (after - before).powi(2)).sum();
        let weight: f64 = before.iter().map(|element| element.powi(2)).sum();
        let (found, expected) = (tensor.change.unwrap(), (change / weight).sqrt());
        assert!((found / expected - 1.0).abs() < 1e-5, "{}: {found}, not {expected}", tensor.module);
        assert_eq!(tensor.weights, before.len() as u64);
        all = (all.0 + change, all.1 + weight);
    }
    let (found, expected) = (rule.change.unwrap(), (all.0 / all.1).sqrt());
    assert!((found / expected - 1.0).abs() < 1e-5, "{found}, not {expected}");
}

/// A weight of which nothing is said is where it was.
#[test]
fn only_what_is_merged_is_written() {
    let folder = Folder::of("sd15-mini/dynamo/unet.onnx");
    let plan = folder.always(&format!("file: {}", lora("kohya.safetensors").display()));
    let (output, report) = folder.compile(&plan, Target::Dense);
    let verdict = folder.verdict(&output, &plan);
    assert_eq!((verdict.proof.merged, verdict.proof.masked), (12, 0));
    assert!(report.weights.bytes_shared > 0);
    assert_eq!(report.lora.iter().map(|rule| rule.tensors).collect::<Vec<_>>(), [12]);
}
