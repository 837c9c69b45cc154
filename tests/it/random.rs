//! Random numbers and guidance against torch's and numpy's own (`fixtures/random_goldens.py`,
//! `fixtures/guidance_goldens.py`).

use crdiff::diffusion::guidance::{self, GuidanceError};
use crdiff::diffusion::random::{NumpyRandomState, TorchGenerator};
use half::f16;
use ndarray::Array1;
use ndarray_npy::{NpzReader, ReadableElement};
use serde::Deserialize;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Draws {
    seeds: Vec<u64>,
    numpy_seeds: Vec<u32>,
    draws: Vec<(usize, String)>,
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn array<T: ReadableElement + Clone>(npz: &mut NpzReader<File>, name: &str) -> Vec<T> {
    let values: Array1<T> = npz.by_name(name).unwrap();
    values.to_vec()
}

fn npz(path: &str) -> NpzReader<File> {
    NpzReader::new(File::open(fixture(path)).unwrap()).unwrap()
}

fn draws() -> Draws {
    serde_json::from_str(&fs::read_to_string(fixture("random/draws.json")).unwrap()).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn torch_draws_are_equal_bit_for_bit() {
    let Draws { seeds, draws, .. } = draws();
    let mut goldens = npz("random/draws.npz");
    for seed in seeds {
        let golden: Vec<f32> = array(&mut goldens, &format!("torch.{seed}"));
        let mut generator = TorchGenerator::new(seed);
        let mut from = 0;
        for (i, (count, kind)) in draws.iter().enumerate() {
            let mut values = vec![0.0; *count];
            if kind == "float16" {
                let mut half = vec![f16::ZERO; *count];
                generator.randn_f16(&mut half);
                values = half.into_iter().map(f16::to_f32).collect();
            } else {
                generator.randn(&mut values);
            }
            assert_eq!(
                bits(&values),
                bits(&golden[from..from + count]),
                "seed {seed}, draw {i}: {count} {kind}"
            );
            from += count;
        }
        assert_eq!(from, golden.len());
    }
}

#[test]
fn latents_of_a_whole_image_are_equal_bit_for_bit() {
    let golden: Vec<f32> = array(&mut npz("random/draws.npz"), "latents.0");
    let mut latents = vec![0.0; 4 * 64 * 64];
    TorchGenerator::new(0).randn(&mut latents);
    assert_eq!(bits(&latents), bits(&golden));
}

#[test]
fn numpy_draws_are_equal_bit_for_bit() {
    let mut goldens = npz("random/draws.npz");
    for seed in draws().numpy_seeds {
        let golden: Vec<f64> = array(&mut goldens, &format!("numpy.{seed}"));
        let mut values = vec![0.0; golden.len()];
        // In two calls: the spare number of the first odd draw belongs to the second.
        let (first, second) = values.split_at_mut(33);
        let mut generator = NumpyRandomState::new(seed);
        generator.randn(first);
        generator.randn(second);
        assert_eq!(values, golden, "seed {seed}");
    }
}

#[test]
fn guidance_and_amplification_equal_torch() {
    let mut goldens = npz("guidance/golden.npz");
    let mut golden = |name: &str| array::<f32>(&mut goldens, name);
    let conditional = golden("conditional");

    let mut guided = golden("unconditional");
    guidance::guide(&mut guided, &conditional, 7.5).unwrap();
    assert_eq!(guided, golden("guided"));

    let mut batch = [golden("unconditional"), conditional.clone()].concat();
    let (first, second) = guidance::split_batch(&mut batch).unwrap();
    guidance::guide(first, second, 7.5).unwrap();
    assert_eq!(first, guided);

    guidance::rescale(&mut guided, &conditional, 2, 0.7).unwrap();
    for (ours, theirs) in guided.iter().zip(golden("rescaled")) {
        assert!((ours - theirs).abs() <= 1e-6 * theirs.abs().max(1.0), "{ours} is not {theirs}");
    }

    let (dense, pruned) = (golden("dense"), golden("pruned"));
    let mut amplified = vec![0.0; dense.len()];
    guidance::amplify(&dense, &pruned, 1.5, &mut amplified).unwrap();
    assert_eq!(amplified, golden("amplified"));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let lengths = GuidanceError::Lengths { first: 4, second: 3 };
    assert_eq!(guidance::guide(&mut [0.0; 4], &[0.0; 3], 1.0), Err(lengths));
    assert_eq!(guidance::amplify(&[0.0; 4], &[0.0; 4], 1.0, &mut [0.0; 3]), Err(lengths));
    assert_eq!(guidance::rescale(&mut [0.0; 4], &[0.0; 3], 1, 1.0), Err(lengths));
    for batch in [0, 3, 4] {
        let refused = GuidanceError::Batch { length: 4, batch };
        assert_eq!(guidance::rescale(&mut [0.0; 4], &[0.0; 4], batch, 1.0), Err(refused));
    }
    let odd = GuidanceError::Batch { length: 3, batch: 2 };
    assert_eq!(guidance::split_batch(&mut [0.0; 3]).map(|_| ()), Err(odd));
}
