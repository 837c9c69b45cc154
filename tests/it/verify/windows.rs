//! An attention within windows, written with Einsum: proven, and by its definition the same network on each window alone.

use std::{fs, path::Path};

use crdiff::engine::{Engine, HostTensor, RtenEngine, SessionOptions};
use prost::Message;

use super::support::{plan, verdict};
use crate::common::{compiled::compiled, edit::changed, onnx_text::parse_model};

/// Channels, and height and width of an image of 2x2 windows.
const CHANNELS: usize = 4;
const SIZE: usize = 8;

/// One attention over the pixels of `sample`, of two heads, as guided-diffusion writes it: tokens last, by Einsum.
fn network(product: &str) -> String {
    let weights = |rows: usize, seed: usize| -> String {
        let all: Vec<String> = (0..rows * CHANNELS)
            .map(|at| format!("{:.3}", ((at * 7 + seed) * 37 % 101) as f32 / 40.0 - 1.2))
            .collect();
        all.join(", ")
    };
    format!(
        "<ir_version: 8, opset_import: [\"\" : 18]>
g (float[1,4,H,W] sample) => (float[1,4,H,W] out)
<float[12,4,1,1] w = {{{}}}, float[4,4,1,1] o = {{{}}}, float scale = {{0.8408964}},
 int64[3] flat = {{1,12,-1}}, int64[3] heads = {{2,2,-1}}, int64[3] joined = {{1,4,-1}}>
{{
  [\"/middle_block.1/qkv/Conv\"] qkv = Conv<strides = [1,1], pads = [0,0,0,0], dilations = [1,1], group = 1>(sample, w)
  [\"/middle_block.1/Reshape\"] all = Reshape(qkv, flat)
  [\"/middle_block.1/Split\"] q, k, v = Split<axis = 1, num_outputs = 3>(all)
  [\"/middle_block.1/attention/Mul\"] qs = Mul(q, scale)
  [\"/middle_block.1/attention/Reshape\"] qh = Reshape(qs, heads)
  [\"/middle_block.1/attention/Mul_1\"] ks = Mul(k, scale)
  [\"/middle_block.1/attention/Reshape_1\"] kh = Reshape(ks, heads)
  [\"/middle_block.1/attention/Reshape_2\"] vh = Reshape(v, heads)
  [\"/middle_block.1/attention/Einsum\"] scores = Einsum<equation = \"bct,bcs->bts\">(qh, kh)
  [\"/middle_block.1/attention/Softmax\"] map = Softmax<axis = -1>(scores)
  [\"/middle_block.1/attention/Einsum_1\"] attended = Einsum<equation = \"{product}\">({})
  [\"/middle_block.1/Reshape_1\"] merged = Reshape(attended, joined)
  [\"/middle_block.1/Shape\"] image = Shape(sample)
  [\"/middle_block.1/Reshape_3\"] context = Reshape(merged, image)
  [\"/middle_block.1/proj_out/Conv\"] projected = Conv<strides = [1,1], pads = [0,0,0,0], dilations = [1,1], group = 1>(context, o)
  [\"/middle_block.1/Add\"] out = Add(sample, projected)
}}",
        weights(3 * CHANNELS, 1),
        weights(CHANNELS, 5),
        if product.starts_with("bts") { "map, vh" } else { "vh, map" },
    )
}

/// Rows and columns of an image, around its edges.
fn part(image: &[f32], size: usize, at: [usize; 2], of: usize) -> Vec<f32> {
    let channels = image.chunks(size * size);
    let rows = channels.flat_map(|channel| {
        (0..of * of).map(move |i| channel[(at[0] + i / of) % size * size + (at[1] + i % of) % size])
    });
    rows.collect()
}

#[test]
fn tokens_on_the_last_axis() {
    let image: Vec<f32> =
        (0..CHANNELS * SIZE * SIZE).map(|at| ((at * 53) % 97) as f32 / 48.0 - 1.0).collect();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    let run = |path: &Path, pixels: &[f32], size: usize| -> Vec<f32> {
        let sample = HostTensor::new([1, CHANNELS, size, size], pixels.to_vec()).unwrap();
        let mut session = RtenEngine.load(path, &SessionOptions::default()).unwrap();
        session.run(&[("sample", &sample)], None).unwrap().swap_remove(0).1.to_f32()
    };
    for product in ["bts,bcs->bct", "bcs,bts->bct"] {
        fs::write(&model, parse_model(&network(product)).unwrap().encode_to_vec()).unwrap();
        for (shift, pixels) in [(0.0, 0), (0.25, 1), (0.5, 2)] {
            let rule = format!("modules: middle_block.1, map: window, windows: 2x2, shift: {shift}");
            let text = format!("version: 1\nrules: [{{ attention: {{ {rule} }} }}]");
            let windowed = compiled(&model, &text, folder.path());
            let is_proven = |path: &Path| verdict(&model, path, &plan(&text)).is_proven();
            assert!(is_proven(&windowed));
            for (attribute, other) in [("equation", product.replace("bct", "btc")), ("perm", String::new())] {
                let faulty = changed(&windowed, folder.path(), |graph| {
                    let mut attributes = graph.node.iter_mut().rev().flat_map(|node| &mut node.attribute);
                    let found = attributes.find(|a| a.name() == attribute).unwrap();
                    match attribute {
                        "perm" => found.ints.swap(2, 3),
                        _ => found.s = Some(other.into_bytes().into()),
                    }
                });
                assert!(!is_proven(&faulty), "another {attribute} was not found");
            }
            let found = run(&windowed, &image, SIZE);
            let half = SIZE / 2;
            for corner in [[0, 0], [0, half], [half, 0], [half, half]] {
                let at = corner.map(|edge| edge + pixels);
                let alone = run(&model, &part(&image, SIZE, at, half), half);
                let here = part(&found, SIZE, at, half);
                assert!(
                    here.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5),
                    "{product}, {shift}, {at:?}"
                );
            }
        }
    }
}
