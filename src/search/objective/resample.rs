//! Resizing images as Pillow does, to the bit: what scorers were trained on.
//!
//! Source: `libImaging/Resample.c` of Pillow up to 12 (13 sometimes resizes columns first). The filter grows with the reduction, rows are resized before columns, and
//! each pass rounds to 8 bits, with coefficients of 22 fractional bits.

use crate::{diffusion::vae::Image, search::space::Resample};

const BITS: u32 = 22;
const CHANNELS: usize = 3;

/// Resizes `image`.
pub fn resize(image: &Image, height: usize, width: usize, filter: Resample) -> Image {
    let from = image.clone();
    if (from.height, from.width) == (height, width) || from.height == 0 || from.width == 0 {
        return from;
    }
    let Some((support, weigh)) = kernel(filter) else { return nearest(&from, height, width) };
    let rows = if from.width == width {
        from
    } else {
        let taps = taps(from.width, width, support, weigh);
        let mut pixels = Vec::with_capacity(from.height * width * CHANNELS);
        for row in from.pixels.chunks_exact(from.width * CHANNELS) {
            for tap in &taps {
                let part = row.get(tap.first * CHANNELS..).unwrap_or_default();
                pixels.extend(weighed(tap, part.chunks_exact(CHANNELS)));
            }
        }
        Image { height: from.height, width, pixels }
    };
    if rows.height == height {
        return rows;
    }
    let stride = width * CHANNELS;
    let mut pixels = Vec::with_capacity(height * stride);
    for tap in taps(rows.height, height, support, weigh) {
        for x in 0..width {
            let column = rows.pixels.get(tap.first * stride + x * CHANNELS..).unwrap_or_default();
            let column = column.chunks(stride).map(|from| from.get(..CHANNELS).unwrap_or(&[0; CHANNELS]));
            pixels.extend(weighed(&tap, column));
        }
    }
    Image { height, width, pixels }
}

/// Which pixels an output pixel is made of.
struct Tap {
    first: usize,
    weights: Vec<i64>,
}

fn weighed<'a>(tap: &Tap, pixels: impl Iterator<Item = &'a [u8]>) -> [u8; CHANNELS] {
    let mut sums = [1i64 << (BITS - 1); CHANNELS];
    for (weight, pixel) in tap.weights.iter().zip(pixels) {
        for (sum, value) in sums.iter_mut().zip(pixel) {
            *sum += weight * i64::from(*value);
        }
    }
    sums.map(|sum| (sum >> BITS).clamp(0, 255) as u8)
}

fn taps(from: usize, to: usize, support: f64, weigh: fn(f64) -> f64) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = support * stretch;
    let one = |at: usize| {
        let center = (at as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let inverse = 1.0 / stretch;
        let weights: Vec<f64> = (first..end).map(|x| weigh((x as f64 - center + 0.5) * inverse)).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let weight = if sum == 0.0 { *weight } else { weight / sum };
            (weight * f64::from(1u32 << BITS) + if weight < 0.0 { -0.5 } else { 0.5 }) as i64
        };
        Tap { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(one).collect()
}

/// A filter's reach, and its weight at a distance.
type Kernel = (f64, fn(f64) -> f64);

/// Returns the filter's shape; `None` for the nearest pixel.
fn kernel(filter: Resample) -> Option<Kernel> {
    match filter {
        Resample::Nearest => None,
        Resample::Bilinear => Some((1.0, |x| (1.0 - x.abs()).max(0.0))),
        Resample::Bicubic => Some((2.0, |x| {
            const A: f64 = -0.5;
            let x = x.abs();
            match x {
                x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                _ => 0.0,
            }
        })),
        Resample::Lanczos => Some((3.0, |x| {
            let sinc = |x: f64| {
                let x = x * std::f64::consts::PI;
                if x == 0.0 { 1.0 } else { x.sin() / x }
            };
            if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
        })),
    }
}

fn nearest(from: &Image, height: usize, width: usize) -> Image {
    // Added up as Pillow does, which rounds otherwise than multiplying.
    let sources = |from: usize, to: usize| -> Vec<usize> {
        let scale = from as f64 / to as f64;
        let positions = std::iter::successors(Some(scale * 0.5), |at| Some(at + scale));
        positions.take(to).map(|at| (at as usize).min(from - 1)).collect()
    };
    let columns = sources(from.width, width);
    let mut pixels = Vec::with_capacity(height * width * CHANNELS);
    for y in sources(from.height, height) {
        for x in &columns {
            let at = (y * from.width + x) * CHANNELS;
            pixels.extend_from_slice(from.pixels.get(at..at + CHANNELS).unwrap_or(&[0; CHANNELS]));
        }
    }
    Image { height, width, pixels }
}
