//! Previews: the clean latents that the network predicts in the middle of sampling, as images.

use std::time::Duration;

use super::model::Model;
use crate::{
    diffusion::{
        PipelineError,
        call::CallTensors,
        sampler::{Clean, Row},
        vae::{Decoder, Image, Tiling, VaeConfig},
    },
    engine::{Engine, SessionOptions},
};

/// Bytes of red, green and blue as linear functions of latents: for each channel of the latents its share in each, and what
/// is added. Close enough to what the VAE decodes to tell an image from a failure, at next to no cost.
#[derive(Debug, PartialEq)]
struct Colors {
    shares: [[f32; 3]; 4],
    added: [f32; 3],
}

/// Of Stable Diffusion 1 and 2, as fitted by their users (half the range of bytes times the known factors).
const STABLE_DIFFUSION: Colors = Colors {
    shares: [
        [37.995, 26.392_5, 26.52],
        [23.842_5, 36.465, 22.057_5],
        [-20.145, 24.097_5, 33.66],
        [-23.46, -34.552_5, -60.307_5],
    ],
    added: [127.5; 3],
};

/// Of SDXL, as diffusers' documentation has them.
const STABLE_DIFFUSION_XL: Colors = Colors {
    shares: [[60.0, 60.0, 60.0], [-60.0, -5.0, 10.0], [25.0, 15.0, -5.0], [-70.0, -50.0, -35.0]],
    added: [150.0, 140.0, 130.0],
};

impl Colors {
    /// Returns those of a VAE's latents, which are known by their scale.
    fn of(vae: &VaeConfig) -> Option<&'static Self> {
        let is = |scale: f64| (vae.scaling_factor - scale).abs() < 1e-9;
        let is_plain = vae.shift_factor.unwrap_or(0.0) == 0.0 && vae.latents_mean.is_none();
        match (vae.channels, vae.factor, is_plain) {
            (4, 8, true) if is(0.18215) => Some(&STABLE_DIFFUSION),
            (4, 8, true) if is(0.13025) => Some(&STABLE_DIFFUSION_XL),
            _ => None,
        }
    }

    /// Returns one image's latents, `[4, height, width]`, as `factor` times as large an image.
    fn image(&self, latents: &[f32], (height, width): (usize, usize), factor: usize) -> Image {
        let plane = height * width;
        let at = |y: usize, x: usize, color: usize| {
            let channels = latents.chunks_exact(plane.max(1)).zip(&self.shares);
            let shares =
                channels.map(|(values, shares)| values.get(y * width + x).unwrap_or(&0.0) * shares[color]);
            self.added[color] + shares.sum::<f32>()
        };
        // Linear between the centres of latents.
        let place = |pixel: usize, side: usize| {
            let from = ((pixel as f32 + 0.5) / factor as f32 - 0.5).clamp(0.0, (side - 1) as f32);
            let first = from as usize;
            (first, (first + 1).min(side - 1), from.fract())
        };
        let mut pixels = Vec::with_capacity(3 * plane * factor * factor);
        for y in 0..height * factor {
            let (top, bottom, down) = place(y, height);
            for x in 0..width * factor {
                let (left, right, along) = place(x, width);
                for color in 0..3 {
                    let row = |y: usize| at(y, left, color) * (1.0 - along) + at(y, right, color) * along;
                    let value = row(top) * (1.0 - down) + row(bottom) * down;
                    pixels.push(value.clamp(0.0, 255.0).round() as u8);
                }
            }
        }
        Image { height: height * factor, width: width * factor, pixels }
    }
}

/// The previews of a run.
pub(super) struct Previews<'a> {
    /// Made after every so many steps.
    pub(super) every: usize,
    /// How the clean latents follow from what the network is given and gives.
    pub(super) clean: Clean,
    /// Decodes latents whose colours are not known.
    pub(super) decoder: &'a mut Model,
    pub(super) vae: &'a VaeConfig,
    pub(super) engine: &'a dyn Engine,
    pub(super) options: &'a SessionOptions,
    pub(super) loading: &'a mut Duration,
    pub(super) sample: [usize; 4],
    pub(super) tiling: Tiling,
    /// The last step that one was made after.
    pub(super) last: Option<usize>,
}

impl Previews<'_> {
    /// Returns the images after a call of the networks, if it is time for them. `call` gives the network's input and output.
    pub(super) fn after(
        &mut self,
        row: &Row,
        call: CallTensors<'_>,
    ) -> Result<Option<Vec<Image>>, PipelineError> {
        let due = (row.step + 1).is_multiple_of(self.every.max(1)) && self.last != Some(row.step);
        let Some([of_input, of_output]) = due.then(|| self.clean.weights(row)).flatten() else {
            return Ok(None);
        };
        self.last = Some(row.step);
        let [input, output] = call()?;
        let latents: Vec<f32> =
            input.iter().zip(&output).map(|(input, output)| of_input * input + of_output * output).collect();
        let [_, channels, height, width] = self.sample;
        let images = latents.chunks_exact(channels * height * width);
        let images = images.map(|latents| match Colors::of(self.vae) {
            Some(colors) => Ok(colors.image(latents, (height, width), self.vae.factor)),
            None => {
                let model = self.decoder.path.clone();
                let session = self.decoder.session(self.engine, self.options, self.loading)?;
                Decoder { session, model: &model, config: self.vae }.decode(
                    latents,
                    height,
                    width,
                    self.tiling,
                )
            }
        });
        match images.collect() {
            // The decoder may fail on latents that are half noise; the image itself may still be a good one.
            Err(PipelineError::NotFinite { .. }) => Ok(None),
            other => other.map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_are_known_by_the_scale_of_latents() {
        let sd = VaeConfig::STABLE_DIFFUSION;
        assert_eq!(Colors::of(&sd), Some(&STABLE_DIFFUSION));
        let sdxl = VaeConfig { scaling_factor: 0.13025, ..sd.clone() };
        assert_eq!(Colors::of(&sdxl), Some(&STABLE_DIFFUSION_XL));
        for other in [
            VaeConfig { channels: 16, ..sd.clone() },
            VaeConfig { factor: 4, ..sd.clone() },
            VaeConfig { scaling_factor: 0.5, ..sd.clone() },
            VaeConfig { shift_factor: Some(0.1), ..sd },
        ] {
            assert_eq!(Colors::of(&other), None);
        }
    }

    /// The numbers of the functions that people paste: `latents @ factors / 2 + 0.5`, and diffusers' `latents_to_rgb`.
    #[test]
    fn latents_are_colored_as_the_known_factors_say() {
        let pixel = |colors: &Colors, latents: [f32; 4]| colors.image(&latents, (1, 1), 1).pixels;
        let factors =
            [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]];
        let latents = [0.9, -0.4, 1.1, 0.3];
        let expected = [0, 1, 2].map(|color: usize| {
            let sum: f32 = latents.iter().zip(factors).map(|(latent, factors)| latent * factors[color]).sum();
            ((sum / 2.0 + 0.5) * 255.0).round() as u8
        });
        assert_eq!(pixel(&STABLE_DIFFUSION, latents), expected);
        assert_eq!(pixel(&STABLE_DIFFUSION_XL, [0.0; 4]), [150, 140, 130]);
        assert_eq!(pixel(&STABLE_DIFFUSION_XL, [1.0, 0.0, 0.0, 1.0]), [140, 150, 155]);
        assert_eq!(pixel(&STABLE_DIFFUSION_XL, [9.0, 0.0, 0.0, -9.0]), [255; 3]);
        // Enlarged between the centres of the latents.
        let two = STABLE_DIFFUSION_XL.image(&[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], (1, 2), 2);
        let reds: Vec<u8> = two.pixels.iter().copied().step_by(3).collect();
        assert_eq!((two.height, two.width), (2, 4));
        assert_eq!(reds, [150, 165, 195, 210].repeat(2));
    }
}
