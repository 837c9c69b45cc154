//! Against plain loops over values, in the order of torch's `[out, in]` tensors.

use std::sync::Arc;

use half::{bf16, f16};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    analysis::{
        magnitude::{Magnitude, MagnitudeHistogram, PoolTensor, TieMask},
        weights::{MatrixLayout, Weight},
    },
    ir::{InitializerId, Masked, Transform, WeightReader, count_masked, for_each_piece},
    onnx::{DataType, OnnxError},
};

const TYPES: [DataType; 3] = [DataType::FLOAT, DataType::FLOAT16, DataType::BFLOAT16];

fn bytes(values: &[f32], data_type: DataType) -> Vec<u8> {
    match data_type {
        DataType::FLOAT => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DataType::FLOAT16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

fn floats(bytes: &[u8], data_type: DataType) -> Vec<f32> {
    match data_type {
        DataType::FLOAT => bytes.as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect(),
        DataType::FLOAT16 => bytes.as_chunks().0.iter().map(|w| f16::from_le_bytes(*w).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|w| bf16::from_le_bytes(*w).to_f32()).collect(),
    }
}

/// The new bytes and the number of masked elements, after checking that pieces come in order, that their size makes
/// no difference, and that the dry run counts the same.
fn run(original: Vec<u8>, transform: impl Transform + 'static, piece: usize) -> (Vec<u8>, u64) {
    let masked = Masked { original: WeightReader::Memory(original.into()), transform: Arc::new(transform) };
    let collect = |piece| {
        let mut out = Vec::new();
        let count = for_each_piece(&masked, piece, |at, bytes| {
            assert_eq!(at, out.len() as u64);
            out.extend_from_slice(bytes);
            Ok::<(), OnnxError>(())
        });
        (out, count.unwrap())
    };
    let whole = collect(usize::MAX);
    assert_eq!(collect(piece), whole);
    assert_eq!(count_masked(&masked).unwrap(), whole.1);
    whole
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// `w * scale` as torch computes it on the CPU: in float32, then rounded to the type; +0.0 for a scale of 0.
fn scaled(w: f32, scale: f32, data_type: DataType) -> f32 {
    match data_type {
        _ if scale == 0.0 => 0.0,
        DataType::FLOAT => w * scale,
        DataType::FLOAT16 => f16::from_f32(w * scale).to_f32(),
        _ => bf16::from_f32(w * scale).to_f32(),
    }
}

#[test]
fn masked_weights_become_positive_zero_and_nan_stays() {
    for data_type in TYPES {
        let before = bytes(&[1.0, -1.0, 0.5, -0.0, f32::NAN, 2.0, f32::NEG_INFINITY, -0.25], data_type);
        let mask = |t| MagnitudeMask::new("w", data_type, t, TieMask::All, 0.0).unwrap();
        let (after, count) = run(before.clone(), mask(Magnitude::of(1.0)), 4);
        let after = floats(&after, data_type);
        assert!(same(&after[..4], &[0.0; 4]) && after[4].is_nan());
        assert!(same(&after[5..], &[2.0, f32::NEG_INFINITY, 0.0]));
        assert_eq!(count, 5);
        // A threshold of NaN is above every number.
        let (after, count) = run(before, mask(Magnitude::of(f32::NAN)), 4);
        let after = floats(&after, data_type);
        assert!(after[4].is_nan() && same(&[&after[..4], &after[5..]].concat(), &[0.0; 7]));
        assert_eq!(count, 7);
    }
}

#[test]
fn zeros_count_as_masked() {
    let zeros = bytes(&[0.0, -0.0, 1.0], DataType::FLOAT);
    let mask = MagnitudeMask::new("w", DataType::FLOAT, Magnitude::of(0.0), TieMask::All, 0.0).unwrap();
    let (after, count) = run(zeros, mask, 4);
    assert!(same(&floats(&after, DataType::FLOAT), &[0.0, 0.0, 1.0]));
    assert_eq!(count, 2);
}

/// The results are torch's: `torch.tensor(w, dtype=torch.float16) * -0.5` and so on, as bits.
#[test]
fn scaling_rounds_to_nearest_even() {
    let scale = |w: u16, data_type, scale| {
        let t = Magnitude::of(f32::INFINITY);
        let mask = MagnitudeMask::new("w", data_type, t, TieMask::All, scale).unwrap();
        let (after, _) = run(w.to_le_bytes().to_vec(), mask, 2);
        u16::from_le_bytes([after[0], after[1]])
    };
    // Halves of odd subnormals lie between two float16 values.
    assert_eq!(scale(0x0001, DataType::FLOAT16, -0.5), 0x8000);
    assert_eq!(scale(0x0003, DataType::FLOAT16, -0.5), 0x8002);
    assert_eq!(scale(0x8005, DataType::FLOAT16, -0.5), 0x0002);
    assert_eq!(scale(0x7bff, DataType::FLOAT16, 2.0), 0x7c00);
    assert_eq!(scale(0x3c00, DataType::FLOAT16, 0.1), 0x2e66);
    assert_eq!(scale(0x3f81, DataType::BFLOAT16, 1.5), 0x3fc2);
    assert_eq!(scale(0xbf83, DataType::BFLOAT16, 1.5), 0xbfc4);
}

/// All values of a type at once: FNV-1a digests of `(w * scale).view(torch.int16)` for every `w` that is a number, in
/// the order of their bits, from torch 2.15.
#[test]
fn every_16_bit_value_is_scaled_as_torch_does() {
    for (data_type, infinity, scale, digest) in [
        (DataType::FLOAT16, 0x7c00, -0.5, 0x5403_b055_7d94_4bed),
        (DataType::FLOAT16, 0x7c00, 0.1, 0x1a63_986a_112e_0997),
        (DataType::FLOAT16, 0x7c00, -1.0 / 3.0, 0x3672_c8a7_7b4e_0189),
        (DataType::FLOAT16, 0x7c00, 1.7, 0x2808_d2de_32c5_ce43),
        (DataType::BFLOAT16, 0x7f80, -0.5, 0xe904_ed6f_c17b_916d),
        (DataType::BFLOAT16, 0x7f80, 0.1, 0x980f_c3c4_7373_4af1),
        (DataType::BFLOAT16, 0x7f80, -1.0 / 3.0, 0x6b5f_a763_d259_db73),
        (DataType::BFLOAT16, 0x7f80, 1.7, 0xe21e_3354_b84f_66fd),
    ] {
        let numbers = (0..=u16::MAX).filter(|w| w & 0x7fff <= infinity);
        let t = Magnitude::of(f32::INFINITY);
        let mask = MagnitudeMask::new("w", data_type, t, TieMask::All, scale).unwrap();
        let (after, _) = run(numbers.flat_map(u16::to_le_bytes).collect(), mask, 1000);
        let fnv = |hash: u64, word: &[u8; 2]| {
            (hash ^ u64::from(u16::from_le_bytes(*word))).wrapping_mul(0x0100_0000_01b3)
        };
        assert_eq!(after.as_chunks().0.iter().fold(0xcbf2_9ce4_8422_2325_u64, fnv), digest);
    }
}

#[test]
fn a_threshold_between_the_values_of_the_type_has_no_ties() {
    let before = bytes(&[1.0, 1.0, 1.001, 0.5], DataType::FLOAT16);
    let mask =
        MagnitudeMask::new("w", DataType::FLOAT16, Magnitude::of(1.0005), TieMask::First(0), 0.0).unwrap();
    let (after, count) = run(before, mask, 2);
    assert_eq!(count, 3);
    assert_eq!(floats(&after, DataType::FLOAT16)[..2], [0.0; 2]);
}

#[test]
fn only_floats_can_be_masked() {
    let error =
        MagnitudeMask::new("a.b", DataType::INT64, Magnitude::of(1.0), TieMask::All, 0.0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a.b: weights of type int64 cannot be pruned, only float32, float16 and bfloat16"
    );
}

fn weight(dims: &[i64], layout: MatrixLayout, data_type: DataType) -> Weight {
    Weight {
        path: "mid_block.proj".into(),
        uses: Vec::new(),
        initializer: InitializerId::new(0),
        data_type,
        dims: dims.to_vec(),
        layout,
        merged_with: None,
    }
}

/// Masks torch's `[out, in, kernel]` weight: sorts each group by magnitude, stably, and keeps the first ones.
fn by_sorting(weight: &[f32], input: usize, inner: usize, keep: usize, of: usize) -> Vec<bool> {
    let mut kept = vec![false; weight.len()];
    for start in 0..weight.len() {
        if !(start / inner % input).is_multiple_of(of) {
            continue;
        }
        let mut group: Vec<usize> = (0..of).map(|i| start + i * inner).collect();
        group.sort_by(|a, b| weight[*b].abs().total_cmp(&weight[*a].abs()));
        group[..keep].iter().for_each(|i| kept[*i] = true);
    }
    kept
}

#[test]
fn a_pattern_runs_along_the_inputs() {
    let transposed: Vec<f32> = [[4.0, 1.0], [3.0, -2.0], [2.0, 3.0], [-1.0, 4.0]].concat();
    let mask =
        PatternMask::new(&weight(&[4, 2], MatrixLayout::InputFirst, DataType::FLOAT), 2, 4, 0.0).unwrap();
    let (after, count) = run(bytes(&transposed, DataType::FLOAT), mask, 8);
    assert_eq!(floats(&after, DataType::FLOAT), [4.0, 0.0, 3.0, 0.0, 0.0, 3.0, 0.0, 4.0]);
    assert_eq!(count, 4);
    // The two earlier ones of equal magnitudes stay.
    let mask =
        PatternMask::new(&weight(&[1, 4], MatrixLayout::OutputFirst, DataType::FLOAT), 2, 4, -1.0).unwrap();
    let (after, _) = run(bytes(&[1.0, -1.0, 1.0, -1.0], DataType::FLOAT), mask, 8);
    assert_eq!(floats(&after, DataType::FLOAT), [1.0, -1.0, -1.0, 1.0]);
}

#[test]
fn patterns_that_do_not_fit_are_errors() {
    let new = |dims: &[i64], layout, keep, of| {
        PatternMask::new(&weight(dims, layout, DataType::FLOAT), keep, of, 0.0).unwrap_err().to_string()
    };
    let indivisible =
        "mid_block.proj: its 6 inputs cannot be divided into groups of 4, as the pattern 2:4 needs";
    assert_eq!(new(&[8, 6], MatrixLayout::OutputFirst, 2, 4), indivisible);
    assert_eq!(new(&[6, 8], MatrixLayout::InputFirst, 2, 4), indivisible);
    assert_eq!(new(&[4, 6, 2, 2], MatrixLayout::OutputFirst, 2, 4), indivisible);
    for (keep, of) in [(0, 4), (4, 4), (5, 4), (0, 0), (1, 1 << 20)] {
        assert!(new(&[8, 8], MatrixLayout::OutputFirst, keep, of).contains("is not possible"));
    }
    assert!(new(&[8], MatrixLayout::OutputFirst, 2, 4).contains("not those of a Linear"));
    assert!(new(&[8, 8, 1, 1], MatrixLayout::InputFirst, 2, 4).contains("not those of a Linear"));
}

fn any_value() -> impl Strategy<Value = f32> {
    prop_oneof![any::<u32>().prop_map(f32::from_bits), (-4i8..4).prop_map(|x| f32::from(x) / 2.0)]
}

proptest! {
    #[test]
    fn weights_at_or_below_the_threshold_are_masked(
        values in vec(any_value(), 0..200),
        t in prop_oneof![any_value(), Just(0.5f32)],
        of in 0..3usize,
        scale in prop_oneof![Just(0.0f32), Just(-0.5), -3.0f32..3.0],
        piece in 1..64usize,
    ) {
        let data_type = TYPES[of];
        let before = floats(&bytes(&values, data_type), data_type);
        prop_assume!(!t.is_nan());
        let mask = MagnitudeMask::new("w", data_type, Magnitude::of(t), TieMask::All, scale).unwrap();
        let (after, count) = run(bytes(&values, data_type), mask, piece);
        let masked = |w: &f32| w.abs() <= t.abs();
        let expected: Vec<f32> =
            before.iter().map(|w| if masked(w) { scaled(*w, scale, data_type) } else { *w }).collect();
        prop_assert!(same(&floats(&after, data_type), &floats(&bytes(&expected, data_type), data_type)));
        prop_assert_eq!(count, before.iter().filter(|w| masked(w)).count() as u64);
    }

    #[test]
    fn exactly_k_are_masked_and_they_are_the_first(
        tensors in vec((vec((-6i8..6).prop_map(|x| f32::from(x) / 4.0), 0..60), 0..3usize), 1..5),
        k in 1..120usize,
        piece in 1..32usize,
    ) {
        let data = |(values, of): &(Vec<f32>, usize)| bytes(values, TYPES[*of]);
        let pool: Vec<PoolTensor> = tensors
            .iter()
            .map(|t| PoolTensor { reader: WeightReader::Memory(data(t).into()), data_type: TYPES[t.1] })
            .collect();
        let all: Vec<f32> = tensors.iter().flat_map(|(values, _)| values.clone()).collect();
        prop_assume!(k <= all.len());
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by(|a, b| all[*a].abs().total_cmp(&all[*b].abs()));
        let mut expected = all.clone();
        order[..k].iter().for_each(|i| expected[*i] = 0.0);

        let histogram = MagnitudeHistogram::read(&pool, &()).unwrap();
        let threshold = histogram.kth(k as u64, &()).unwrap();
        let ties = histogram.ties(&threshold, &()).unwrap();
        let mut after = Vec::new();
        let mut masked = 0;
        for (tensor, ties) in tensors.iter().zip(ties) {
            let mask = MagnitudeMask::new("w", TYPES[tensor.1], threshold.t, ties, 0.0).unwrap();
            let (bytes, count) = run(data(tensor), mask, piece);
            after.extend(floats(&bytes, TYPES[tensor.1]));
            masked += count;
        }
        // A kept -0.0 stays, as it is equal to a masked one.
        prop_assert_eq!(after, expected);
        prop_assert_eq!(masked, k as u64);
    }

    #[test]
    fn patterns_keep_what_a_stable_sort_puts_first(
        (keep, of) in (1..5usize, 2..9usize).prop_filter("keeps some", |(keep, of)| keep < of),
        groups in 1..4usize,
        output in 1..80usize,
        inner in 1..5usize,
        float in 0..3usize,
        seed in vec(any_value().prop_filter("a number", |x| !x.is_nan()), 97),
        piece in 1..2000usize,
    ) {
        let data_type = TYPES[float];
        let input = groups * of;
        let values: Vec<f32> = seed.iter().cycle().take(output * input * inner).copied().collect();
        let torch = floats(&bytes(&values, data_type), data_type);
        let kept = by_sorting(&torch, input, inner, keep, of);
        let masked = |w: f32, keep: bool| if keep { w } else { 0.0 };
        let expected: Vec<f32> = torch.iter().zip(&kept).map(|(w, k)| masked(*w, *k)).collect();

        let dims = [output, input, inner, 1].map(|d| d as i64);
        let mask = PatternMask::new(&weight(&dims, MatrixLayout::OutputFirst, data_type), keep, of, 0.0).unwrap();
        let (after, count) = run(bytes(&torch, data_type), mask, piece);
        prop_assert!(same(&floats(&after, data_type), &expected));
        prop_assert_eq!(count, kept.iter().filter(|keep| !**keep).count() as u64);

        // The same weight of a Linear, as it is and transposed.
        if inner == 1 {
            let dims = [output as i64, input as i64];
            let mask = PatternMask::new(&weight(&dims, MatrixLayout::OutputFirst, data_type), keep, of, 0.0).unwrap();
            prop_assert!(same(&floats(&run(bytes(&torch, data_type), mask, piece).0, data_type), &expected));
            let transpose = |w: &[f32]| -> Vec<f32> {
                (0..w.len()).map(|i| w[i % output * input + i / output]).collect()
            };
            let dims = [input as i64, output as i64];
            let mask = PatternMask::new(&weight(&dims, MatrixLayout::InputFirst, data_type), keep, of, 0.0).unwrap();
            let (after, _) = run(bytes(&transpose(&torch), data_type), mask, piece);
            prop_assert!(same(&floats(&after, data_type), &transpose(&expected)));
        }
    }
}
