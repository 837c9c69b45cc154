//! The threshold of a pool of 32 M weights in a file that is in the page cache, against numpy's and torch's ways of
//! finding it: selecting in, or sorting, an array of all magnitudes. Also masking and counting those weights.
//!
//! Whether the histogram reads at the speed of memory shows on more weights: `CRDIFF_BENCH_MILLIONS=400`.

use std::{env, fs::File, hint::black_box, io::Write, path::Path, sync::Arc, time::Duration};

use crdiff::{
    analysis::magnitude::{MagnitudeHistogram, PoolTensor, TieMask},
    ir::{Masked, WeightReader, for_each_piece},
    onnx::{DataFile, DataType, OnnxError},
    passes::mask::MagnitudeMask,
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;

const RATIO: f64 = 0.35;
const TENSORS: u64 = 32;

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(5));
    targets = threshold
}
criterion_main!(benches);

fn threshold(criterion: &mut Criterion) {
    let millions = env::var("CRDIFF_BENCH_MILLIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(32);
    let count = millions << 20;
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (data_type, size) in [(DataType::FLOAT, 4), (DataType::FLOAT16, 2)] {
        let name = data_type.name();
        let path = folder.path().join(&name);
        write_weights(&path, data_type, count);
        let bytes = count * size;
        let file = Arc::new(DataFile::open(&path).expect("the file that was just written"));
        let pool: Vec<PoolTensor> = (0..TENSORS)
            .map(|i| {
                let reader = WeightReader::File {
                    file: Arc::clone(&file),
                    offset: i * (bytes / TENSORS),
                    len: bytes / TENSORS,
                };
                PoolTensor { reader, data_type }
            })
            .collect();

        let mut group = criterion.benchmark_group(&name);
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function("threshold", |b| {
            b.iter(|| {
                let histogram = MagnitudeHistogram::read(&pool, &()).expect("a histogram");
                black_box(histogram.threshold(RATIO, &()).expect("a threshold"))
            });
        });
        group.bench_function("histogram", |b| {
            b.iter(|| black_box(MagnitudeHistogram::read(&pool, &())));
        });

        let histogram = MagnitudeHistogram::read(&pool, &()).expect("a histogram");
        let t = histogram.threshold(RATIO, &()).expect("a threshold").expect("k is not 0").t;
        for (name, scale) in [("mask", 0.0), ("mask and scale", -0.5)] {
            group.bench_function(name, |b| {
                b.iter(|| {
                    for tensor in &pool {
                        let mask = MagnitudeMask::new("w", tensor.data_type, t, TieMask::All, scale);
                        let transform = Arc::new(mask.expect("a float type"));
                        let masked = Masked { original: tensor.reader.clone(), transform };
                        let each = |_, piece: &[u8]| {
                            black_box(piece);
                            Ok::<(), OnnxError>(())
                        };
                        black_box(for_each_piece(&masked, 256 << 10, each).expect("a readable file"));
                    }
                });
            });
        }

        if millions <= 32 {
            let elements = std::fs::read(&path).expect("the file that was just written");
            let magnitudes = || -> Vec<u32> {
                match size {
                    4 => elements.as_chunks().0.iter().map(|w| u32::from_le_bytes(*w) << 1).collect(),
                    _ => elements
                        .as_chunks()
                        .0
                        .iter()
                        .map(|w| u32::from(u16::from_le_bytes(*w)) << 17)
                        .collect(),
                }
            };
            let k = (count as f64 * RATIO) as usize;
            group.bench_function("select_nth baseline", |b| {
                b.iter_batched(magnitudes, |mut m| *m.select_nth_unstable(k - 1).1, BatchSize::PerIteration);
            });
            group.bench_function("sort baseline", |b| {
                b.iter_batched(magnitudes, |mut m| (m.sort_unstable(), m[k - 1]).1, BatchSize::PerIteration);
            });
        }
        group.finish();
    }
}

/// Writes `count` weights that are distributed like those of a trained layer: a bell curve with a standard deviation
/// of 0.05.
fn write_weights(path: &Path, data_type: DataType, count: u64) {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut file = std::io::BufWriter::new(File::create(path).expect("a new file"));
    for _ in 0..count {
        let weight = 0.1 * (uniform() + uniform() + uniform() + uniform() - 2.0) * 0.866;
        let written = match data_type {
            DataType::FLOAT => file.write_all(&weight.to_le_bytes()),
            _ => file.write_all(&f16::from_f32(weight).to_le_bytes()),
        };
        written.expect("room for the file");
    }
    file.flush().expect("room for the file");
}
