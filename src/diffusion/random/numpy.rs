//! numpy's legacy generator.

use super::mt19937::Mt19937;

/// `numpy.random.RandomState(seed)`, which older Optimum pipelines draw their latents from.
#[derive(Debug, Clone)]
pub struct NumpyRandomState {
    engine: Mt19937,
    spare: Option<f64>,
}

impl NumpyRandomState {
    /// Returns a generator as `numpy.random.RandomState(seed)` makes it; numpy takes no seed above `u32::MAX`.
    pub fn new(seed: u32) -> Self {
        Self { engine: Mt19937::new(seed), spare: None }
    }

    /// Fills `values` with standard normal numbers, as `randn(values.len())` returns them.
    ///
    /// Marsaglia's polar method; of each pair the second number is kept for the next call.
    pub fn randn(&mut self, values: &mut [f64]) {
        values.fill_with(|| self.normal());
    }

    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let x = 2.0 * self.uniform() - 1.0;
            let y = 2.0 * self.uniform() - 1.0;
            let square = x * x + y * y;
            if square < 1.0 && square != 0.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                self.spare = Some(factor * x);
                return factor * y;
            }
        }
    }

    /// Returns 53 random bits in [0, 1), as `random_sample()` returns them.
    pub fn uniform(&mut self) -> f64 {
        let high = f64::from(self.engine.next_u32() >> 5);
        let low = f64::from(self.engine.next_u32() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }
}
