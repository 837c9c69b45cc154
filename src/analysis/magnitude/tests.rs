//! Thresholds against a full sort of all values.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use half::{bf16, f16};
use proptest::{collection::vec, prelude::*};

use super::{scan::PIECE, *};
use crate::observer::{Event, Observer, Stage};

/// An observer that counts bytes.
struct Count(AtomicU64);

impl Observer for Count {
    fn hear(&self, event: Event<'_>) {
        let Event::Bytes(Stage::Ranking, bytes) = event else { panic!("{event:?}") };
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn tensor(values: &[f32], data_type: DataType) -> PoolTensor {
    let bytes: Vec<u8> = match data_type {
        DataType::FLOAT => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DataType::FLOAT16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    };
    PoolTensor { reader: WeightReader::Memory(bytes.into()), data_type }
}

/// The magnitudes that the tensor's elements have once they are rounded to its type; NaN as infinity's successor.
fn values(tensor: &PoolTensor) -> Vec<f32> {
    let mut bytes = vec![0; tensor.reader.len() as usize];
    tensor.reader.read_at(0, &mut bytes).unwrap();
    match tensor.data_type {
        DataType::FLOAT => bytes.as_chunks().0.iter().map(|w| f32::from_le_bytes(*w).abs()).collect(),
        DataType::FLOAT16 => {
            bytes.as_chunks().0.iter().map(|w| f16::from_le_bytes(*w).to_f32().abs()).collect()
        }
        _ => bytes.as_chunks().0.iter().map(|w| bf16::from_le_bytes(*w).to_f32().abs()).collect(),
    }
}

/// The k-th smallest, how many are below and how many equal it; NaN last and equal to itself.
fn by_sorting(pool: &[PoolTensor], k: usize) -> (f32, u64, u64) {
    let mut all: Vec<f32> = pool.iter().flat_map(values).collect();
    all.sort_by(|a, b| a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())));
    let t = all[k - 1];
    let same = |x: &&f32| **x == t || (t.is_nan() && x.is_nan());
    let below = all.iter().take_while(|x| !same(x)).count();
    (t, below as u64, all.iter().filter(same).count() as u64)
}

fn check(pool: &[PoolTensor], ratios: &[f64]) {
    let n: usize = pool.iter().map(|t| values(t).len()).sum();
    let histogram = MagnitudeHistogram::read(pool, &()).unwrap();
    assert_eq!(histogram.len(), n as u64);
    for ratio in ratios {
        let k = (n as f64 * ratio).floor() as usize;
        let found = histogram.threshold(*ratio, &()).unwrap();
        if k == 0 {
            assert_eq!(found, None);
            continue;
        }
        let found = found.unwrap();
        let (t, below, at) = by_sorting(pool, k);
        assert_eq!((found.n, found.k), (n as u64, k as u64));
        assert!(found.t.value() == t || (t.is_nan() && found.t.is_nan()), "{} is not {t}", found.t.value());
        assert_eq!((found.below, found.at), (below, at), "at ratio {ratio}");
    }
    for k in [1, n as u64] {
        let found = histogram.kth(k, &()).unwrap();
        let (t, below, at) = by_sorting(pool, k as usize);
        assert!(found.t.value() == t || (t.is_nan() && found.t.is_nan()));
        assert_eq!((found.below, found.at), (below, at));
    }
    let summary = histogram.summary(64);
    assert!(summary.bins.len() <= 64);
    let counted: u64 = summary.bins.iter().map(|bin| bin.count).sum();
    assert_eq!(summary.zeros + summary.not_finite + counted, n as u64);
    for bin in &summary.bins {
        let inside = |x: &f32| bin.from <= *x && *x < bin.to;
        assert_eq!(bin.count, pool.iter().flat_map(values).filter(inside).count() as u64);
    }
}

const RATIOS: [f64; 8] = [0.0, 1e-9, 0.1, 0.2999999, 0.5, 0.75, 0.999, 1.0 - f64::EPSILON];
const TYPES: [DataType; 3] = [DataType::FLOAT, DataType::FLOAT16, DataType::BFLOAT16];

#[test]
fn ties_zeros_and_everything_equal() {
    for data_type in TYPES {
        check(&[tensor(&[0.0, -0.0, 0.0, -0.0, 0.0], data_type)], &RATIOS);
        check(&[tensor(&[-0.5; 37], data_type), tensor(&[0.5; 5], data_type)], &RATIOS);
        check(&[tensor(&[1.0, -1.0, 2.0, 0.5, -1.0, 1.0, 3.0], data_type)], &RATIOS);
        check(&[tensor(&[3.0], data_type)], &RATIOS);
    }
}

#[test]
fn values_at_the_ends_of_the_range() {
    let odd = [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        3e-39,
        6e-8,
        -6e-8,
        65504.0,
        f32::MAX,
        f32::MIN_POSITIVE,
        f32::from_bits(0x7f80_0001),
        f32::from_bits(0xffff_ffff),
        1.0,
        -1.0,
    ];
    let all: Vec<f64> = (0..40).map(|i| f64::from(i) / 40.0).collect();
    for data_type in TYPES {
        check(&[tensor(&odd, data_type)], &all);
        check(&[tensor(&[f32::NAN; 3], data_type)], &all);
        check(&[tensor(&[f32::INFINITY, 1.0, f32::INFINITY], data_type)], &all);
    }
    check(&TYPES.map(|data_type| tensor(&odd, data_type)), &all);
}

#[test]
fn tensors_of_many_pieces_and_odd_sizes() {
    for data_type in TYPES {
        for extra in [0, 1, 3] {
            let count = 3 * PIECE / 4 + extra;
            let many: Vec<f32> = (0..count).map(|i| ((i * 7919) % 100_003) as f32 * 1e-6 - 0.05).collect();
            check(&[tensor(&many[..7], data_type), tensor(&many, data_type)], &[0.1, 0.35, 0.9]);
        }
    }
}

#[test]
fn a_float32_between_two_float16_values() {
    let pool = [tensor(&[1.0, 1.001, 2.0], DataType::FLOAT16), tensor(&[1.0005, -3.0], DataType::FLOAT)];
    check(&pool, &[0.2, 0.4, 0.6, 0.8]);
    let t = MagnitudeHistogram::read(&pool, &()).unwrap().kth(2, &()).unwrap().t;
    assert_eq!(t.value(), 1.0005);
    assert_eq!(t.bits(DataType::FLOAT), Some(1.0005f32.to_bits()));
    assert_eq!(t.bits(DataType::FLOAT16), None);
    assert_eq!(t.floor_bits(FloatType::F16), 0x3c00);
}

#[test]
fn empty_pools() {
    for pool in [vec![], vec![tensor(&[], DataType::FLOAT)]] {
        let histogram = MagnitudeHistogram::read(&pool, &()).unwrap();
        assert!(histogram.is_empty());
        assert_eq!(histogram.threshold(0.5, &()).unwrap(), None);
        assert!(matches!(histogram.kth(1, &()), Err(MagnitudeError::Rank { k: 1, n: 0 })));
        assert_eq!(histogram.summary(64).bins, []);
    }
}

#[test]
fn what_cannot_be_done_says_so() {
    let pool = [tensor(&[1.0, 2.0], DataType::FLOAT)];
    let histogram = MagnitudeHistogram::read(&pool, &()).unwrap();
    for ratio in [1.0, -0.1, f64::NAN, f64::INFINITY] {
        assert!(matches!(histogram.threshold(ratio, &()), Err(MagnitudeError::Ratio(_))));
    }
    assert!(matches!(histogram.kth(3, &()), Err(MagnitudeError::Rank { k: 3, n: 2 })));
    let integers = PoolTensor { data_type: DataType::INT64, ..pool[0].clone() };
    let error = MagnitudeHistogram::read(&[integers], &()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "weights of type int64 cannot be pruned, only float32, float16 and bfloat16"
    );
    let cut = PoolTensor { reader: WeightReader::Memory(vec![0; 7].into()), data_type: DataType::FLOAT };
    assert!(matches!(MagnitudeHistogram::read(&[cut], &()), Err(MagnitudeError::Read(_))));
}

#[test]
fn progress_counts_every_byte_and_can_stop() {
    let pool = [tensor(&vec![0.25; PIECE], DataType::FLOAT), tensor(&[1.0; 3], DataType::FLOAT)];
    let count = Count(AtomicU64::new(0));
    let histogram = MagnitudeHistogram::read(&pool, &count).unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 4 * PIECE as u64 + 12);
    let stop = AtomicBool::new(true);
    assert!(matches!(MagnitudeHistogram::read(&pool, &stop), Err(MagnitudeError::Stopped)));
    assert!(matches!(histogram.kth(1, &stop), Err(MagnitudeError::Stopped)));
    // The second time it knows what it has counted.
    for _ in 0..2 {
        histogram.kth(1, &count).unwrap();
        assert_eq!(count.0.load(Ordering::Relaxed), 2 * (4 * PIECE as u64 + 12));
    }
}

#[test]
fn ties_are_given_out_in_the_order_of_the_pool() {
    let pool = [
        tensor(&[1.0, 0.1, -1.0], DataType::FLOAT),
        tensor(&[2.0, 3.0], DataType::FLOAT16),
        tensor(&[1.0, 1.0, -1.0], DataType::BFLOAT16),
        tensor(&[1.0], DataType::FLOAT16),
    ];
    let histogram = MagnitudeHistogram::read(&pool, &()).unwrap();
    let ties = |k| {
        let threshold = histogram.kth(k, &()).unwrap();
        assert_eq!((threshold.t.value(), threshold.below, threshold.at), (1.0, 1, 6));
        histogram.ties(&threshold, &()).unwrap()
    };
    assert_eq!(ties(2), [1, 0, 0, 0].map(TieMask::First));
    assert_eq!(ties(5), [2, 0, 2, 0].map(TieMask::First));
    assert_eq!(ties(6), [2, 0, 3, 0].map(TieMask::First));
    assert_eq!(ties(7), [TieMask::All; 4]);
}

/// The values in the comments are `torch.tensor(x, dtype=...)`'s.
#[test]
fn given_thresholds_are_rounded_to_the_type() {
    let bits = |x, data_type| Magnitude::given(x, data_type).unwrap().bits(data_type).unwrap();
    assert_eq!(bits(0.01, DataType::FLOAT), 0x3c23_d70a); // 0.009999999776482582
    assert_eq!(bits(0.05, DataType::FLOAT), 0x3d4c_cccd); // 0.05000000074505806
    assert_eq!(bits(0.01, DataType::FLOAT16), 0x211f); // 0.01000213623046875
    assert_eq!(bits(0.01, DataType::BFLOAT16), 0x3c24); // 0.010009765625
    assert_eq!(bits(0.0, DataType::FLOAT16), 0);
    assert_eq!(bits(1e9, DataType::FLOAT16), 0x7c00); // inf
    assert!(Magnitude::given(-0.1, DataType::FLOAT).is_err());
    assert!(Magnitude::given(f64::NAN, DataType::FLOAT).is_err());
}

/// Random bits hit every exponent; few distinct values make ties.
fn any_values() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        vec(any::<u32>().prop_map(f32::from_bits), 0..300),
        vec((-8i8..8).prop_map(|x| f32::from(x) / 4.0), 0..300),
        vec(-0.1f32..0.1, 0..300),
    ]
}

proptest! {
    #[test]
    fn thresholds_are_those_of_a_sort(
        tensors in vec((any_values(), 0..3usize), 1..5),
        ratios in vec(0.0..1.0f64, 1..5),
    ) {
        let pool: Vec<PoolTensor> = tensors.iter().map(|(values, of)| tensor(values, TYPES[*of])).collect();
        prop_assume!(tensors.iter().any(|(values, _)| !values.is_empty()));
        check(&pool, &ratios);
    }

    #[test]
    fn bits_of_another_type_are_the_nearest_below(bits in 0..=INFINITY) {
        let magnitude = Magnitude(bits);
        for float in [FloatType::F16, FloatType::Bf16] {
            let floor = magnitude.floor_bits(float);
            prop_assert!(float.single_bits(floor) <= bits);
            prop_assert!(bits == INFINITY || float.single_bits(floor + 1) > bits);
        }
    }
}
