//! Faults planted into merged weights: each must be found.

use std::{fs, path::Path};

use crdiff::{
    analysis::{modules, weights},
    compile::Target,
    onnx::WeightPolicy,
    plan::Plan,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::support::{Folder, in_torch_order, load, lora};

const MODEL: &str = "sd15-mini/torchscript/unet.onnx";
const SQUARE: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v";

/// Writes kohya's file changed by `change`, which gets each tensor's name, dimensions and elements; `false` leaves it out.
fn changed(to: &Path, change: impl Fn(&str, &mut Vec<usize>, &mut Vec<f32>) -> bool) {
    let bytes = fs::read(lora("kohya.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let elements = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let (mut dims, mut elements) = (view.shape().to_vec(), elements.collect());
        if change(&name, &mut dims, &mut elements) {
            let bytes: Vec<u8> = elements.iter().flat_map(|element: &f32| element.to_le_bytes()).collect();
            tensors.push((name, dims, bytes));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, dims, bytes)| (name.clone(), TensorView::new(Dtype::F32, dims.clone(), bytes).unwrap()));
    fs::write(to, safetensors::serialize(views, &None).unwrap()).unwrap();
}

/// Compiles with a wrong file, in a plan of the same digest but for the file's, and checks that the plan of the right one
/// does not prove it, for a weight of `module`.
fn is_found(module: &str, keys: &str, change: impl Fn(&str, &mut Vec<usize>, &mut Vec<f32>) -> bool) {
    let folder = Folder::of(MODEL);
    let right = folder.always(&format!("file: {}, scale: 0.8", lora("kohya.safetensors").display()));
    let wrong_file = folder.path().join("wrong.safetensors");
    changed(&wrong_file, change);
    let wrong = folder.always(&format!("file: wrong.safetensors, scale: 0.8{keys}"));
    folder.proven(&right, Target::Dense);
    let (output, _) = folder.compile(&wrong, Target::Dense);
    let differences = folder.verdict(&output, &right).differences;
    let modules: Vec<&str> = differences.iter().filter_map(|found| found.module.as_deref()).collect();
    assert_eq!(modules, [module], "{differences:#?}");
}

#[test]
fn alpha_is_forgotten() {
    is_found("mid_block.attentions.0.transformer_blocks.0.attn1.to_v", "", |name, _, elements| {
        if name == format!("{SQUARE}.alpha") {
            elements[0] = 8.0;
        }
        true
    });
}

#[test]
fn factors_are_swapped_on_a_square_weight() {
    let bytes = fs::read(lora("kohya.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let of = |part: &str| {
        let view = file.tensor(&format!("{SQUARE}.lora_{part}.weight")).unwrap();
        let elements: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (view.shape().to_vec(), elements)
    };
    let (down, up) = (of("down"), of("up"));
    assert_eq!((down.0[1], down.0[0]), (up.0[0], up.0[1]), "the weight is square");
    // A transposed product: down's transpose in the place of up, and the other way round.
    let transposed = |(dims, elements): &(Vec<usize>, Vec<f32>)| -> Vec<f32> {
        (0..dims[1])
            .flat_map(|column| (0..dims[0]).map(move |row| elements[row * dims[1] + column]))
            .collect()
    };
    let (new_down, new_up) = (transposed(&up), transposed(&down));
    is_found("mid_block.attentions.0.transformer_blocks.0.attn1.to_v", "", |name, _, elements| {
        match name.strip_prefix(SQUARE) {
            Some(".lora_down.weight") => elements.clone_from(&new_down),
            Some(".lora_up.weight") => elements.clone_from(&new_up),
            _ => {}
        }
        true
    });
}

#[test]
fn the_scale_of_one_layer_is_off() {
    is_found("down_blocks.0.resnets.0.conv1", "", |name, _, elements| {
        if name == "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight" {
            elements.iter_mut().for_each(|element| *element *= 1.0 + f32::EPSILON * 4.0);
        }
        true
    });
}

#[test]
fn a_layer_is_left_out() {
    is_found("mid_block.attentions.0.transformer_blocks.0.attn1.to_v", "", |name, _, _| {
        !name.starts_with(SQUARE)
    });
}

#[test]
fn one_element_is_off() {
    let folder = Folder::of(MODEL);
    let plan = folder.always(&format!("file: {}", lora("kohya.safetensors").display()));
    let output = folder.path().join("copy/compiled.onnx");
    fs::create_dir(output.parent().unwrap()).unwrap();
    compile_copy(&folder, &plan, &output);
    assert!(folder.verdict(&output, &plan).is_proven());
    let graph = load(&output);
    let all = weights::weights(&graph, &modules::modules(&graph));
    let weight = all.editable.iter().find(|w| w.path == "down_blocks.0.downsamplers.0.conv").unwrap();
    let header = &graph.initializer(weight.initializer).unwrap().header;
    let reader = graph.weight_reader(header).unwrap();
    let crdiff::ir::WeightReader::File { file, offset, .. } = reader else { panic!("{reader:?}") };
    let mut bytes = fs::read(&file.path).unwrap();
    bytes[offset as usize + 40] ^= 1;
    fs::write(&file.path, bytes).unwrap();
    let differences = folder.verdict(&output, &plan).differences;
    let found: Vec<_> = differences.iter().map(|found| (found.element, found.module.as_deref())).collect();
    assert_eq!(found, [(Some(10), Some("down_blocks.0.downsamplers.0.conv"))], "{differences:#?}");
}

/// With a mask in the same network the mask is that of the merged weights; from both networks, with any target.
#[test]
fn masks_are_of_what_is_merged() {
    let folder = Folder::of(MODEL);
    let file = lora("kohya.safetensors");
    let file = file.display();
    let (lora, prune) =
        (format!("lora: {{ file: {file} }}"), "prune: { weights: '**.attn1.**', ratio: 0.4 }");
    let module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_v";
    let merged = folder.proven(&folder.always(&format!("file: {file}")), Target::Dense);
    let merged = in_torch_order(&merged, module);
    for (always, rules, targets) in [
        (
            format!("[{{ {lora} }}]"),
            format!("[{{ {prune} }}]"),
            &[Target::Pruned, Target::Fused, Target::Dense, Target::Amplified][..],
        ),
        (
            "[]".to_string(),
            format!("[{{ {lora} }}, {{ {prune} }}]"),
            &[Target::Pruned, Target::Fused, Target::FusedWithInput],
        ),
        ("[]".to_string(), format!("[{{ {lora} }}]"), &[Target::Pruned, Target::Fused]),
        (
            format!("[{{ {lora} }}]"),
            format!("[{{ {lora} }}]"),
            &[Target::Pruned, Target::Fused, Target::Dense],
        ),
    ] {
        let plan = folder.plan(&format!("version: 1\nalways: {always}\nrules: {rules}")).unwrap();
        for target in targets {
            let output = folder.proven(&plan, *target);
            if *target == Target::Pruned && rules.contains("prune") {
                let pruned = in_torch_order(&output, module);
                let pairs = pruned.as_chunks::<4>().0.iter().zip(merged.as_chunks::<4>().0);
                let kept =
                    pairs.filter(|(new, _)| **new != [0; 4]).inspect(|(new, old)| assert_eq!(new, old));
                assert!((1..144).contains(&kept.count()));
            }
        }
    }
}

fn compile_copy(folder: &Folder, plan: &Plan, output: &Path) {
    use crdiff::compile::{Job, compile_file};
    let job = Job::new(&folder.model, plan).target(Target::Dense).output(output).weights(WeightPolicy::Copy);
    compile_file(&job, &()).unwrap();
}
