//! Against the definition, by sorting: what is proven is right, and what is right is proven unless it is one of the
//! cases that are left to others.

use half::{bf16, f16};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::*;

const TYPES: [Float; 3] = [Float::F32, Float::F16, Float::Bf16];

/// A tensor of a pool: its values, exact in its type, and what has become of it.
#[derive(Clone, Debug)]
struct Tensor {
    float: Float,
    values: Vec<f32>,
    form: Made,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Made {
    Stored,
    Computed,
    Copied,
    Gone,
}

fn encode(values: &[f32], float: Float) -> WeightReader {
    let bytes: Vec<u8> = match float {
        Float::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Float::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Float::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    };
    WeightReader::Memory(bytes.into())
}

fn rounded(value: f32, float: Float) -> f32 {
    match float {
        Float::F32 => value,
        Float::F16 => f16::from_f32(value).to_f32(),
        Float::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

/// Numbers from a linear congruential generator, roughly of a bell's shape.
fn random(count: usize, float: Float, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| rounded(uniform() + uniform() + uniform(), float)).collect()
}

/// The `k`-th smallest magnitude by sorting, NaN last.
fn kth(tensors: &[Tensor], k: u64) -> f32 {
    let mut all: Vec<f32> = tensors.iter().flat_map(|t| &t.values).map(|x| x.abs()).collect();
    all.sort_by(f32::total_cmp);
    all[k as usize - 1]
}

/// The values after masking. With exact ties the pool's first of those equal to `t` are masked, until `k` are.
fn masked(tensors: &[Tensor], k: u64, ties: Ties, scale: f32) -> Vec<Vec<f32>> {
    let t = kth(tensors, k);
    let below = tensors.iter().flat_map(|t| &t.values).filter(|x| x.abs() < t).count() as u64;
    let mut left = if ties == Ties::All { u64::MAX } else { k - below };
    let mut one = |x: &f32, float: Float| {
        let is_masked = x.abs() < t || x.abs() == t && left > 0;
        left -= u64::from(x.abs() == t && left > 0);
        match is_masked {
            true if scale == 0.0 => 0.0,
            true => rounded(x * scale, float),
            false => *x,
        }
    };
    tensors.iter().map(|tensor| tensor.values.iter().map(|x| one(x, tensor.float)).collect()).collect()
}

/// Runs the check on a pool whose tensors have become `new`, with operators that mask up to `t`.
fn checked(tensors: &[Tensor], new: &[Vec<f32>], t: f32, k: u64, ties: Ties, scale: f32) -> bool {
    let members = tensors.iter().zip(new).map(|(tensor, new)| {
        let original = encode(&tensor.values, tensor.float);
        let form = match tensor.form {
            Made::Stored => Form::Stored(encode(new, tensor.float)),
            Made::Computed => Form::Computed { t, copy: None },
            Made::Copied => Form::Computed { t, copy: Some(original.clone()) },
            Made::Gone => Form::Gone,
        };
        Member { original, float: tensor.float, form }
    });
    let pool = PoolCheck { members: members.collect(), k, ties, scale };
    proven(&[pool], Progress::none()).unwrap()[0]
}

fn stored(float: Float, values: &[f32]) -> Tensor {
    Tensor { float, values: values.to_vec(), form: Made::Stored }
}

#[test]
fn masks_by_definition_are_proven() {
    // Around the ends of blocks and pieces.
    for count in [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, PIECE / 4 + 1, PIECE / 2 + BLOCK + 1] {
        for (seed, float) in TYPES.into_iter().enumerate() {
            let tensors = [
                stored(float, &random(count, float, seed as u64)),
                stored(float, &random(100, float, 7)),
                Tensor { form: Made::Gone, ..stored(float, &random(count, float, 8)) },
            ];
            let n = 2 * count as u64 + 100;
            for k in [n / 3, n / 2, n - 1, n] {
                let t = kth(&tensors, k);
                for scale in [0.0, -0.5] {
                    let new = masked(&tensors, k, Ties::All, scale);
                    let found = checked(&tensors, &new, t, k, Ties::All, scale);
                    assert!(found, "{count} {float:?} {k} {scale}");
                }
            }
        }
    }
}

#[test]
fn masks_made_by_operators_are_proven() {
    for form in [Made::Computed, Made::Copied] {
        for float in TYPES {
            let tensors = [
                Tensor { form, ..stored(float, &random(5000, float, 1)) },
                stored(float, &random(5000, float, 2)),
                Tensor { form: Made::Gone, ..stored(float, &random(300, float, 3)) },
            ];
            let (t, new) = (kth(&tensors, 4000), masked(&tensors, 4000, Ties::All, 0.0));
            assert!(checked(&tensors, &new, t, 4000, Ties::All, 0.0));
            let next = kth(&tensors, 4100);
            assert!(!checked(&tensors, &new, next, 4000, Ties::All, 0.0), "{form:?} {float:?}");
        }
    }
    let nan = Tensor { form: Made::Computed, ..stored(Float::F32, &[1.0, 2.0, f32::NAN]) };
    let new = [vec![0.0, 2.0, f32::NAN]];
    assert!(!checked(&[nan], &new, 1.0, 1, Ties::All, 0.0), "operators drop NaN");
}

#[test]
fn one_element_too_many_or_too_few_is_not_proven() {
    for float in TYPES {
        let tensors = [stored(float, &random(9000, float, 4)), stored(float, &random(9000, float, 5))];
        let (k, right) = (6000, masked(&tensors, 6000, Ties::All, 0.0));
        let t = kth(&tensors, k);
        assert!(checked(&tensors, &right, t, k, Ties::All, 0.0));
        for (tensor, at) in [(0, 0), (0, 8999), (1, BLOCK), (1, 8999)] {
            let mut wrong = right.clone();
            let value = &mut wrong[tensor][at];
            *value = if *value == 0.0 { tensors[tensor].values[at] } else { 0.0 };
            assert!(!checked(&tensors, &wrong, t, k, Ties::All, 0.0), "{float:?} {tensor} {at}");
        }
        // A whole threshold off, in either direction.
        for other in [k - 100, k + 100] {
            let wrong = masked(&tensors, other, Ties::All, 0.0);
            assert!(!checked(&tensors, &wrong, t, k, Ties::All, 0.0), "{float:?} {other}");
        }
    }
}

#[test]
fn equal_magnitudes() {
    let all = |count: usize| vec![0.25; count];
    for float in TYPES {
        let tensors = [stored(float, &all(BLOCK + 3)), stored(float, &[0.25, -0.25])];
        let n = BLOCK as u64 + 5;
        for k in [1, n - 1, n] {
            let new = [vec![0.0; BLOCK + 3], vec![0.0; 2]];
            assert!(checked(&tensors, &new, 0.25, k, Ties::All, 0.0), "{k}");
            // Exact ties are proven only where all are masked.
            let exact = checked(&tensors, &new, 0.25, k, Ties::Exact, 0.0);
            assert_eq!(exact, k == n, "{k}");
        }
        let some = masked(&tensors, n - 1, Ties::Exact, 0.0);
        assert!(!checked(&tensors, &some, 0.25, n - 1, Ties::Exact, 0.0));
        assert!(!checked(&tensors, &some, 0.25, n - 1, Ties::All, 0.0));
        let none = [all(BLOCK + 3), vec![0.25, -0.25]];
        assert!(!checked(&tensors, &none, 0.25, 1, Ties::All, 0.0));
        let zeros = [stored(float, &[0.0; 10])];
        assert!(checked(&zeros, &[vec![0.0; 10]], 0.0, 3, Ties::All, 0.0));
    }
}

#[test]
fn special_values() {
    for float in TYPES {
        let one = |values: &[f32], new: &[f32], k| {
            checked(&[stored(float, values)], &[new.to_vec()], 1.0, k, Ties::All, 0.0)
        };
        let (nan, infinity) = (f32::NAN, f32::INFINITY);
        assert!(one(&[-0.0, 1.0, -2.0], &[0.0, 0.0, -2.0], 2));
        assert!(!one(&[-0.0, 1.0, -2.0], &[-0.0, 0.0, -2.0], 2), "-0 must become +0");
        assert!(!one(&[0.0, 1.0], &[-0.0, 1.0], 1), "+0 must stay");
        assert!(one(&[1.0, nan, 2.0], &[0.0, nan, 2.0], 1));
        assert!(!one(&[1.0, nan, 2.0], &[0.0, 0.0, 2.0], 1), "NaN is never masked");
        assert!(!one(&[1.0, nan], &[0.0, nan], 2), "the second smallest is NaN");
        assert!(one(&[1.0, -infinity], &[0.0, -infinity], 1));
        assert!(one(&[1.0, -infinity], &[0.0, 0.0], 2));
        assert!(!one(&[1.0, -infinity], &[0.0, 0.0], 1));
    }
}

#[test]
fn pools_do_not_mix() {
    let half = |values: &[f32], new: &[f32], k| {
        let form = Form::Stored(encode(new, Float::F16));
        let member = Member { original: encode(values, Float::F16), float: Float::F16, form };
        PoolCheck { members: vec![member], k, ties: Ties::All, scale: 0.0 }
    };
    let pools = [
        half(&[1.0, 2.0], &[0.0, 2.0], 1),
        half(&[1.0, 2.0], &[0.0, 0.0], 1),
        half(&[5.0, 4.0, 6.0], &[0.0, 0.0, 6.0], 2),
    ];
    assert_eq!(proven(&pools, Progress::none()).unwrap(), [true, false, true]);
}

/// Whatever few values, types, forms and faults: what is proven is as the definition has it.
#[test]
fn what_is_proven_is_right() {
    let values = prop_oneof![
        Just(0.0f32),
        Just(-0.0),
        Just(0.5),
        Just(-0.5),
        Just(1.0),
        Just(-1.5),
        Just(f32::NAN),
        Just(f32::INFINITY),
        Just(6e-8),
        -2.0..2.0f32,
    ];
    let form = prop_oneof![Just(Made::Stored), Just(Made::Stored), Just(Made::Computed), Just(Made::Gone)];
    let tensor =
        (0..3usize, proptest::collection::vec(values, 1..12), form).prop_map(|(float, values, form)| {
            let float = TYPES[float];
            Tensor { float, values: values.into_iter().map(|x| rounded(x, float)).collect(), form }
        });
    let cases = (
        proptest::collection::vec(tensor, 1..4),
        0.0..1.0f64,
        prop_oneof![Just(0.0f32), Just(0.0), Just(-0.5), Just(1.0), Just(0.75)],
        prop_oneof![Just(Ties::All), Just(Ties::Exact)],
        proptest::option::of((0..3usize, 0..12usize, prop_oneof![Just(0.0f32), Just(-0.0), Just(0.5)])),
        -1..2i64,
    );
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 4000, max_global_rejects: 20_000, failure_persistence: None, ..Config::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let counts = std::cell::Cell::new((0, 0));
    let result = runner.run(&cases, |(tensors, part, scale, ties, fault, off)| {
        // Operators only set to 0.
        let computed = tensors.iter().any(|t| t.form == Made::Computed);
        let scale = if computed { 0.0 } else { scale };
        let n = tensors.iter().map(|t| t.values.len()).sum::<usize>() as u64;
        let k = 1 + ((n - 1) as f64 * part) as u64;
        let right = masked(&tensors, k, ties, scale);
        let mut new = masked(&tensors, k.saturating_add_signed(off).clamp(1, n), ties, scale);
        if let Some((tensor, at, value)) = fault
            && let Some(element) = new.get_mut(tensor).and_then(|t| t.get_mut(at))
        {
            *element = value;
        }
        let t = kth(&tensors, k);
        prop_assume!(!computed || !t.is_nan());
        let found = checked(&tensors, &new, t, k, ties, scale);
        let (yes, no) = counts.get();
        if !found {
            counts.set((yes, no + 1));
            return Ok(());
        }
        counts.set((yes + 1, no));
        for ((tensor, new), right) in tensors.iter().zip(&new).zip(&right) {
            let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|x| x.to_bits()).collect() };
            match tensor.form {
                Made::Stored => prop_assert_eq!(bits(new), bits(right)),
                Made::Computed | Made::Copied => {
                    let kept = tensor.values.iter().map(|x| if x.abs() > t { *x } else { 0.0 });
                    prop_assert_eq!(bits(&kept.collect::<Vec<_>>()), bits(right));
                }
                Made::Gone => {}
            }
        }
        Ok(())
    });
    result.unwrap();
    let (yes, no) = counts.get();
    assert!(yes > 400 && no > 400, "{yes} proven, {no} not");
}
