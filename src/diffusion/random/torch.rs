//! torch's CPU generator.

use super::box_muller::{BLOCK, box_muller};
use super::mt19937::Mt19937;
use half::f16;

/// `torch.Generator("cpu")` of torch 2.15: the same seed gives the same bits, call after call.
///
/// Draws of fewer than 16 values and longer ones take different ways through torch, so a draw is
/// one call of [`randn`](Self::randn): two calls of eight values are not one call of sixteen.
#[derive(Debug, Clone)]
pub struct TorchGenerator {
    engine: Mt19937,
    /// The second number of the last pair made in double precision; only short draws use it.
    spare: Option<f64>,
}

impl TorchGenerator {
    /// Returns a generator as `torch.Generator("cpu").manual_seed(seed)` leaves it. Like torch, only the low
    /// 32 bits of the seed count.
    pub fn new(seed: u64) -> Self {
        Self { engine: Mt19937::new(seed as u32), spare: None }
    }

    /// Fills `values` with standard normal numbers, as `torch.randn(shape, generator=g)` returns them
    /// for a shape of `values.len()` elements (float32, contiguous).
    pub fn randn(&mut self, values: &mut [f32]) {
        if values.len() < BLOCK {
            values.fill_with(|| self.normal() as f32);
            return;
        }
        values.fill_with(|| self.uniform());
        let (blocks, rest) = values.as_chunks_mut::<BLOCK>();
        blocks.iter_mut().for_each(box_muller);
        if !rest.is_empty() {
            let tail = values.len() - BLOCK;
            values[tail..].copy_from_slice(&self.block());
        }
    }

    /// Fills `values` as `torch.randn(shape, generator=g, dtype=torch.float16)` does: each number is
    /// made in float32 and rounded. It is what diffusers starts half-precision latents from.
    ///
    /// Unless the length is a multiple of 16 this uses up other bits than [`randn`](Self::randn).
    pub fn randn_f16(&mut self, values: &mut [f16]) {
        if values.len() < BLOCK {
            values.fill_with(|| f16::from_f32(self.normal() as f32));
            return;
        }
        let (blocks, rest) = values.as_chunks_mut::<BLOCK>();
        for block in blocks {
            *block = self.block().map(f16::from_f32);
        }
        if !rest.is_empty() {
            let tail = values.len() - BLOCK;
            values[tail..].copy_from_slice(&self.block().map(f16::from_f32));
        }
    }

    fn block(&mut self) -> [f32; BLOCK] {
        let mut block = std::array::from_fn(|_| self.uniform());
        box_muller(&mut block);
        block
    }

    /// Returns 24 random bits in [0, 1).
    fn uniform(&mut self) -> f32 {
        (self.engine.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// Returns 53 random bits in [0, 1), from two words, the first of them on top.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.engine.next_u32());
        let low = u64::from(self.engine.next_u32());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 / 9_007_199_254_740_992.0
    }

    /// Returns a normal number: Box and Muller's pair in double precision, one number a call.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = 2.0 * std::f64::consts::PI * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}
