//! The Box-Muller transform: sixteen uniform numbers into sixteen normal ones, rounded as torch's AVX2 kernel rounds
//! them.
//!
//! torch's kernel has its own logarithm, sine and cosine: the single-precision ones of the Cephes
//! library (Moshier). Its compiler fused some products with the sum that follows, others not; where a
//! value is rounded is part of the result, so `mul_add` stands exactly where torch's build has it.

// The constants are written as Cephes gives them.
#![allow(clippy::excessive_precision)]

/// How many numbers torch makes at once.
pub(super) const BLOCK: usize = 16;

const FOUR_OVER_PI: f32 = 1.273_239_544_735_16;

/// Turns uniform numbers in [0, 1) into normal ones in place: the first eight give the radii, the last
/// eight the angles; cosines go to the first eight, sines to the last.
pub(super) fn box_muller(block: &mut [f32; BLOCK]) {
    for i in 0..BLOCK / 2 {
        let radius = (-2.0 * ln(1.0 - block[i])).sqrt();
        let (sine, cosine) = sin_cos(std::f32::consts::TAU * block[i + BLOCK / 2]);
        block[i] = radius * cosine;
        block[i + BLOCK / 2] = radius * sine;
    }
}

/// Evaluates a polynomial, highest power first.
fn polynomial(x: f32, coefficients: &[f32]) -> f32 {
    coefficients.iter().fold(0.0, |sum, coefficient| sum.mul_add(x, *coefficient))
}

/// Returns the natural logarithm for `x` in (0, 1].
fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    // x = mantissa * 2^exponent with the mantissa in [0.5, 1).
    let mut exponent = ((bits >> 23) as i32 - 126) as f32;
    let mut mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        mantissa = (mantissa - 1.0) + mantissa;
    } else {
        mantissa -= 1.0;
    }
    let square = mantissa * mantissa;
    let mut y = polynomial(
        mantissa,
        &[
            7.037_683_629_2e-2,
            -1.151_461_031_0e-1,
            1.167_699_874_0e-1,
            -1.242_014_084_6e-1,
            1.424_932_278_7e-1,
            -1.666_805_766_5e-1,
            2.000_071_476_5e-1,
            -2.499_999_399_3e-1,
            3.333_333_117_4e-1,
        ],
    );
    y = (y * mantissa).mul_add(square, exponent * -2.121_944_40e-4);
    y = square.mul_add(-0.5, y);
    exponent.mul_add(0.693_359_375, mantissa + y)
}

/// Returns sine and cosine for `x` in [0, 2 pi).
fn sin_cos(x: f32) -> (f32, f32) {
    // The octant, rounded up to an even one.
    let octant = ((x * FOUR_OVER_PI) as i32 + 1) & !1;
    let turns = octant as f32;
    let x = turns.mul_add(-0.785_156_25, x);
    let x = turns.mul_add(-2.418_756_484_985_351_562_5e-4, x);
    let x = turns.mul_add(-3.774_894_977_445_941_08e-8, x);
    let z = x * x;
    let cosine =
        polynomial(z, &[2.443_315_711_809_948e-5, -1.388_731_625_493_765e-3, 4.166_664_568_298_827e-2]);
    let cosine = (cosine * z).mul_add(z, z * -0.5) + 1.0;
    let sine = polynomial(z, &[-1.951_529_589_1e-4, 8.332_160_873_6e-3, -1.666_665_461_1e-1]);
    let sine = (sine * z).mul_add(x, x);
    match octant & 6 {
        0 => (sine, cosine),
        2 => (cosine, -sine),
        4 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}
