//! Files and plans that are refused, and what is said of them.

use std::fs;

use crdiff::{compile::Target, plan};
use miette::Diagnostic;
use safetensors::{Dtype, tensor::TensorView};

use super::support::{Folder, lora};

/// Everything that is wrong with a plan or with the files that it names, with the help.
fn complaints(error: &plan::PlanError) -> Vec<String> {
    let with_help = |problem: &plan::Problem| match problem.help() {
        Some(help) => format!("{problem}; {help}"),
        None => problem.to_string(),
    };
    error.problems().map(with_help).collect()
}

/// Writes a file with tensors of these names and dimensions, all 0.5.
fn write(path: &std::path::Path, tensors: &[(&str, &[usize])]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, dims)| 0.5f32.to_le_bytes().repeat(dims.iter().product::<usize>())).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, dims), bytes)| {
        (name.to_string(), TensorView::new(Dtype::F32, dims.to_vec(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, &None).unwrap()).unwrap();
}

/// Returns the complaints about a plan with a file of `tensors`, or the notes of its report.
fn said(tensors: &[(&str, &[usize])], keys: &str) -> Vec<String> {
    let folder = Folder::of("sd15-mini/torchscript/unet.onnx");
    write(&folder.path().join("l.safetensors"), tensors);
    let plan = folder.plan(&format!("version: 1\nalways: [{{ lora: {{ file: l.safetensors{keys} }} }}]"));
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => return complaints(&error),
    };
    let graph = super::support::load(&folder.model);
    let analysis = crdiff::analysis::Analysis::of(&graph);
    match plan::resolve(&plan, &analysis) {
        Err(error) => complaints(&error),
        Ok(edits) => edits.changes().filter_map(|change| change.note.clone()).collect(),
    }
}

const Q: &str = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";

#[test]
fn other_methods_by_name() {
    for (key, method) in [
        ("lora_unet_x.dora_scale", "DoRA"),
        ("unet.mid_block.x.lora_magnitude_vector.weight", "DoRA"),
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_unet_x.lora_mid.weight", "LoCon in Tucker form"),
        ("lora_unet_x.diff", "a full difference"),
    ] {
        let expected = format!(
            "`l.safetensors` can't be used: the key `{key}` is of {method}, which is not supported: only LoRA is"
        );
        assert_eq!(said(&[(key, &[2, 2])], ""), [expected]);
    }
}

#[test]
fn files_that_are_no_lora() {
    let expected = "`l.safetensors` can't be used: the key `conv_in.weight` is no part of a LoRA";
    assert_eq!(said(&[("conv_in.weight", &[2, 2])], ""), [expected]);
    let folder = Folder::of("sd15-mini/torchscript/unet.onnx");
    fs::write(folder.path().join("l.safetensors"), "version https://git-lfs").unwrap();
    let error = folder.plan("version: 1\nalways: [{ lora: { file: l.safetensors } }]").unwrap_err();
    assert_eq!(complaints(&error), ["`l.safetensors` can't be used: it is no safetensors file"]);
    let error = folder.plan("version: 1\nalways: [{ lora: { file: nowhere.safetensors } }]").unwrap_err();
    let [complaint] = &complaints(&error)[..] else { panic!("{error}") };
    assert!(complaint.contains("nowhere.safetensors: cannot open"), "{complaint}");
}

#[test]
fn factors_that_are_not_whole_or_do_not_fit() {
    let down = format!("unet.{Q}.lora_A.weight");
    let up = format!("unet.{Q}.lora_B.weight");
    assert_eq!(
        said(&[(&down, &[2, 12])], ""),
        [format!(
            "`l.safetensors` can't be used: the layer `{Q}` is not whole: down, up or both factors are missing"
        )]
    );
    assert_eq!(
        said(&[(&down, &[2, 12]), (&up, &[12, 3])], ""),
        [format!(
            "`l.safetensors` can't be used: `{down}` [2, 12] and `{up}` [12, 3] are no factors of one layer"
        )]
    );
    assert_eq!(
        said(&[(&down, &[2, 8]), (&up, &[12, 2])], ""),
        [format!(
            "`{Q}` can't be changed: the factors in the file, [2, 8] and [12, 2], do not fit its weight of [12, 12]"
        )]
    );
}

/// Two factors of rank 2 under these names.
fn layer<'a>(
    down: &'a str,
    up: &'a str,
    inputs: &'a [usize],
    outputs: &'a [usize],
) -> Vec<(&'a str, &'a [usize])> {
    vec![(down, inputs), (up, outputs)]
}

#[test]
fn keys_that_name_no_weight() {
    let near = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn3_to_q";
    let (down, up) = (format!("{near}.lora_down.weight"), format!("{near}.lora_up.weight"));
    let mut tensors = layer(&down, &up, &[2, 12], &[12, 2]);
    let expected = format!(
        "`{down}` matches nothing in this model; the nearest module is `{Q}`; `missing: warn` leaves such keys out"
    );
    assert_eq!(said(&tensors, ""), [expected]);
    let (known_down, known_up) = (format!("unet.{Q}.lora_A.weight"), format!("unet.{Q}.lora_B.weight"));
    tensors.extend(layer(&known_down, &known_up, &[2, 12], &[12, 2]));
    assert_eq!(said(&tensors, ", missing: warn"), [format!("`{down}` names no weight")]);
    let text = "lora_te_text_model_encoder_layers_0_mlp_fc1";
    let (down, up) = (format!("{text}.lora_down.weight"), format!("{text}.lora_up.weight"));
    assert_eq!(
        said(&layer(&down, &up, &[2, 32], &[64, 2]), ""),
        [
            "`l.safetensors` can't be used: none of its keys is for this network: 1 layer of the first text encoder is left out"
        ]
    );
}

/// A plan may have a file for another network beside what is for this one.
#[test]
fn a_file_for_text_encoders_beside_other_rules() {
    let folder = Folder::of("sd15-mini/torchscript/unet.onnx");
    let text = format!(
        "version: 1\nalways: [{{ lora: {{ file: {} }} }}]\nrules: [{{ prune: {{ weights: \"{Q}\", ratio: 0.5 }} }}]",
        lora("kohya-text.safetensors").display()
    );
    let plan = folder.plan(&text).unwrap();
    let (output, report) = folder.compile(&plan, Target::Pruned);
    assert!(folder.verdict(&output, &plan).is_proven());
    assert_eq!(report.prune.len(), 1);
    let said = |note: &String| note.ends_with("layers of the first text encoder are left out");
    assert!(report.notes.iter().any(said), "{:?}", report.notes);
}

#[test]
fn one_weight_by_two_names() {
    let kohya = format!("lora_unet_{}", Q.replace('.', "_"));
    let names = ["lora_down", "lora_up"].map(|part| format!("{kohya}.{part}.weight"));
    let others = ["lora_A", "lora_B"].map(|part| format!("unet.{Q}.{part}.weight"));
    let mut tensors = layer(&names[0], &names[1], &[2, 12], &[12, 2]);
    tensors.extend(layer(&others[0], &others[1], &[2, 12], &[12, 2]));
    let [complaint] = &said(&tensors, "")[..] else { panic!("one complaint") };
    assert!(complaint.starts_with(&format!("`{Q}` can't be changed: ")), "{complaint}");
    assert!(complaint.ends_with("both name it"), "{complaint}");
}

#[test]
fn alpha_of_peft_is_beside_it() {
    let (down, up) =
        (format!("base_model.model.{Q}.lora_A.weight"), format!("base_model.model.{Q}.lora_B.weight"));
    let tensors = layer(&down, &up, &[2, 12], &[12, 2]);
    let complaints = said(&tensors, "");
    assert!(complaints[0].contains("nothing says its alpha"), "{complaints:?}");
    assert!(said(&tensors, ", alpha: 4").is_empty());
    let folder = Folder::of("sd15-mini/torchscript/unet.onnx");
    let error = folder
        .plan(&format!(
            "version: 1\nalways: [{{ lora: {{ file: {}, alpha: 4 }} }}]",
            lora("kohya.safetensors").display()
        ))
        .unwrap_err();
    assert!(complaints_of(&error).contains("each of its layers has an alpha"));
}

fn complaints_of(error: &plan::PlanError) -> String {
    complaints(error).concat()
}

#[test]
fn plans_that_contradict() {
    let folder = Folder::of("sd15-mini/torchscript/unet.onnx");
    let file = lora("kohya.safetensors");
    let plan = |text: &str| folder.plan(&text.replace("FILE", &file.display().to_string()));
    let error =
        plan("version: 1\nrules: [{ lora: { file: FILE } }]\namplify: { mode: weights }").unwrap_err();
    assert!(complaints_of(&error).contains("`mode: weights` can't amplify a LoRA"), "{error:?}");
    let both = plan(
        "version: 1\nalways: [{ prune: { weights: '**.attn1.**', ratio: 0.2 } }]\nrules: [{ lora: { file: FILE } }]",
    );
    // `prune` is for `rules`: only a kind that both networks can have would meet it.
    assert!(both.is_err());
    let plan = plan("version: 1\nrules: [{ lora: { file: FILE, scale: 0 } }]").unwrap();
    folder.proven(&plan, Target::Fused);
}

/// The order of rules means nothing, and neither does where a file lies.
#[test]
fn digests_are_of_contents() {
    let folder = Folder::of("sd15-mini/torchscript/unet.onnx");
    fs::copy(lora("kohya.safetensors"), folder.path().join("other name.safetensors")).unwrap();
    let digest = |file: &str| folder.always(&format!("file: '{file}'")).digest;
    let one = digest("other name.safetensors");
    assert_eq!(one, digest(&lora("kohya.safetensors").display().to_string()));
    fs::copy(lora("diffusers.safetensors"), folder.path().join("other name.safetensors")).unwrap();
    assert_ne!(one, digest("other name.safetensors"));
}
