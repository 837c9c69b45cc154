//! Latents to images: the VAE's decoder, in one piece or in tiles, and diffusers' way to bytes.

use std::path::Path;

use serde_json::Value;

use super::{PipelineError, error::read_json};
use crate::{
    engine::{HostTensor, Session},
    onnx::DataType,
};

/// The scale of Stable Diffusion 1's latents, for configs that don't say it (as in `AutoencoderKL`).
const DEFAULT_SCALING: f64 = 0.18215;
/// The most that a VAE may enlarge.
const MOST_STAGES: usize = 10;
/// How much of a tile overlaps its neighbour (`tile_overlap_factor`).
const OVERLAP: f64 = 0.25;

/// The keys of `vae_decoder/config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Latents are divided by this before they are decoded.
    pub scaling_factor: f64,
    /// Added after that, where given.
    pub shift_factor: Option<f64>,
    /// A mean for each channel, with `latents_std`.
    pub latents_mean: Option<Vec<f64>>,
    /// A standard deviation for each channel.
    pub latents_std: Option<Vec<f64>>,
    /// Pixels for each latent, in each direction.
    pub factor: usize,
    /// Channels of the latents.
    pub channels: usize,
    /// Height and width of the images it was trained on, which is the size of a tile.
    pub sample_size: usize,
}

impl VaeConfig {
    /// The VAE of Stable Diffusion 1 and 2.
    pub const STABLE_DIFFUSION: Self = Self {
        scaling_factor: DEFAULT_SCALING,
        shift_factor: None,
        latents_mean: None,
        latents_std: None,
        factor: 8,
        channels: 4,
        sample_size: 512,
    };

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`PipelineError`] if it is missing, or a value in it is not what it should be.
    pub fn open(path: &Path) -> Result<Self, PipelineError> {
        let config = read_json(path)?;
        let wrong = |key: &str, expected: &str| {
            PipelineError::file(path, format!("`{key}` is {}; expected {expected}", config[key]))
        };
        let given = |key: &str| config.get(key).filter(|value| !value.is_null());
        let number = |key: &str| {
            let read = |value: &Value| {
                value.as_f64().filter(|n| n.is_finite()).ok_or_else(|| wrong(key, "a number"))
            };
            given(key).map(read).transpose()
        };
        let count = |key: &str, default: usize| match given(key) {
            None => Ok(default),
            Some(value) => {
                let value =
                    value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..1 << 16).contains(n));
                value.ok_or_else(|| wrong(key, "a whole number above 0"))
            }
        };
        let numbers = |key: &str| {
            let read = |value: &Value| {
                let list = value
                    .as_array()
                    .and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
                list.ok_or_else(|| wrong(key, "a list of numbers"))
            };
            given(key).map(read).transpose()
        };
        let stages = match given("block_out_channels") {
            None => 1,
            Some(value) => {
                let stages = value.as_array().map(Vec::len).filter(|n| (1..=MOST_STAGES).contains(n));
                stages.ok_or_else(|| wrong("block_out_channels", "a list of channels"))?
            }
        };
        let scaling_factor = number("scaling_factor")?.unwrap_or(DEFAULT_SCALING);
        if scaling_factor == 0.0 {
            return Err(wrong("scaling_factor", "a number other than 0"));
        }
        let channels = count("latent_channels", 4)?;
        let (latents_mean, latents_std) = (numbers("latents_mean")?, numbers("latents_std")?);
        for (key, list) in [("latents_mean", &latents_mean), ("latents_std", &latents_std)] {
            if list.as_ref().is_some_and(|list| list.len() != channels) {
                return Err(wrong(key, &format!("{channels} numbers, one for each of `latent_channels`")));
            }
        }
        Ok(Self {
            scaling_factor,
            shift_factor: number("shift_factor")?,
            latents_mean,
            latents_std,
            factor: 1 << (stages - 1),
            channels,
            sample_size: count("sample_size", 512)?,
        })
    }

    /// Returns height and width of a tile of latents.
    pub fn tile(&self) -> usize {
        (self.sample_size / self.factor).max(1)
    }

    /// Returns the sampler's latents, `[channels, height, width]`, as the decoder takes them.
    fn unscaled(&self, latents: &[f32]) -> Vec<f32> {
        let scale = self.scaling_factor as f32;
        if let (Some(mean), Some(std)) = (&self.latents_mean, &self.latents_std) {
            let plane = (latents.len() / self.channels).max(1);
            let channels = latents.chunks(plane).zip(mean.iter().zip(std));
            return channels
                .flat_map(|(plane, (mean, std))| plane.iter().map(|v| v * *std as f32 / scale + *mean as f32))
                .collect();
        }
        let shift = self.shift_factor.unwrap_or(0.0) as f32;
        latents.iter().map(|value| value / scale + shift).collect()
    }
}

/// Whether large images are decoded in tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tiling {
    /// In one piece.
    #[default]
    Whole,
    /// In overlapping tiles of the size that the VAE was trained on, where an image is larger: less memory, slightly
    /// other pixels. As diffusers' `enable_tiling`.
    Tiles,
}

/// An image: rows of red, green, blue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels from top to bottom.
    pub height: usize,
    /// Pixels from left to right.
    pub width: usize,
    /// `3 * height * width` bytes.
    pub pixels: Vec<u8>,
}

/// One or more planes of numbers, `[channels, height, width]`.
#[derive(Clone, Debug)]
struct Planes {
    channels: usize,
    height: usize,
    width: usize,
    values: Vec<f32>,
}

/// The decoder of a pipeline.
pub struct Decoder<'a> {
    /// Its session.
    pub session: &'a mut dyn Session,
    /// Its model.
    pub model: &'a Path,
    /// Its config.
    pub config: &'a VaeConfig,
}

impl Decoder<'_> {
    /// Decodes one image's latents, `[channels, height, width]`, as the sampler leaves them.
    ///
    /// # Errors
    /// [`PipelineError::NotFinite`] if the decoder returns NaN or infinities; [`PipelineError::Graph`] if its inputs or
    /// outputs are not a decoder's; [`PipelineError::Engine`] if it fails.
    pub fn decode(
        &mut self,
        latents: &[f32],
        height: usize,
        width: usize,
        tiling: Tiling,
    ) -> Result<Image, PipelineError> {
        let latents =
            Planes { channels: self.config.channels, height, width, values: self.config.unscaled(latents) };
        let tile = self.config.tile();
        let decoded = if tiling == Tiling::Tiles && (height > tile || width > tile) {
            self.tiles(&latents)?
        } else {
            self.run(latents)?
        };
        if !decoded.values.iter().all(|value| value.is_finite()) {
            return Err(PipelineError::NotFinite { stage: "the VAE", hint: String::new() });
        }
        Ok(to_image(&decoded))
    }

    fn run(&mut self, latents: Planes) -> Result<Planes, PipelineError> {
        let graph = |what: String| PipelineError::Graph { model: self.model.display().to_string(), what };
        let ([input], [output]) = (self.session.inputs(), self.session.outputs()) else {
            return Err(graph("a VAE decoder has one input and one output".to_string()));
        };
        let (input, output) = (input.clone(), output.name.clone());
        let dims = [1, latents.channels, latents.height, latents.width];
        let tensor = HostTensor::new(dims, latents.values)?;
        let tensor =
            if input.data_type == DataType::FLOAT { tensor } else { tensor.cast(input.data_type)? };
        let result = self.session.run(&[(&input.name, &tensor)], Some(&[&output]))?.into_iter().next();
        let (_, decoded) = result.ok_or_else(|| graph("it gave no output".to_string()))?;
        let factor = self.config.factor;
        let (height, width) = (latents.height * factor, latents.width * factor);
        if decoded.dims() != [1, 3, height, width] {
            let what =
                format!("it decoded {dims:?} to {:?}; expected [1, 3, {height}, {width}]", decoded.dims());
            return Err(graph(what));
        }
        Ok(Planes { channels: 3, height, width, values: decoded.to_f32() })
    }

    /// Decodes as `AutoencoderKL.tiled_decode` does: tiles a quarter of which overlaps, blended linearly.
    fn tiles(&mut self, latents: &Planes) -> Result<Planes, PipelineError> {
        let (tile, factor) = (self.config.tile(), self.config.factor);
        let step = ((tile as f64 * (1.0 - OVERLAP)) as usize).max(1);
        let blend = (self.config.sample_size as f64 * OVERLAP) as usize;
        let limit = self.config.sample_size - blend;
        let mut whole = Planes {
            channels: 3,
            height: latents.height * factor,
            width: latents.width * factor,
            values: vec![0.0; 3 * latents.height * factor * latents.width * factor],
        };
        let mut above: Vec<Planes> = Vec::new();
        for (row, top) in (0..latents.height).step_by(step).enumerate() {
            let mut current: Vec<Planes> = Vec::new();
            for (column, left) in (0..latents.width).step_by(step).enumerate() {
                let mut decoded = self.run(latents.crop(top, left, tile))?;
                if let Some(above) = above.get(column) {
                    decoded.blend_rows(above, blend);
                }
                if let Some(left) = current.last() {
                    decoded.blend_columns(left, blend);
                }
                whole.paste(&decoded, row * limit, column * limit, limit);
                current.push(decoded);
            }
            above = current;
        }
        Ok(whole)
    }
}

impl Planes {
    /// Returns the square of this size at a place, cut off at the edges.
    fn crop(&self, top: usize, left: usize, size: usize) -> Self {
        let (height, width) = (size.min(self.height - top), size.min(self.width - left));
        let mut values = Vec::with_capacity(self.channels * height * width);
        for plane in self.values.chunks(self.height * self.width) {
            for line in plane.chunks(self.width).skip(top).take(height) {
                values.extend(line.iter().skip(left).take(width));
            }
        }
        Self { channels: self.channels, height, width, values }
    }

    /// Puts the upper left square of `tile` into its place, as far as both reach.
    fn paste(&mut self, tile: &Self, top: usize, left: usize, size: usize) {
        let planes = self.values.chunks_mut(self.height * self.width);
        for (plane, source) in planes.zip(tile.values.chunks(tile.height * tile.width)) {
            let lines = plane.chunks_mut(self.width).skip(top).zip(source.chunks(tile.width)).take(size);
            for (line, source) in lines {
                for (value, source) in line.iter_mut().skip(left).zip(source).take(size) {
                    *value = *source;
                }
            }
        }
    }

    /// Goes over from the last rows of `above` to the first ones of this (`blend_v`).
    fn blend_rows(&mut self, above: &Self, extent: usize) {
        let extent = extent.min(above.height).min(self.height);
        let planes = self.values.chunks_mut(self.height * self.width);
        for (plane, above_plane) in planes.zip(above.values.chunks(above.height * above.width)) {
            let last = above_plane.chunks(above.width).skip(above.height - extent);
            for (y, (line, last)) in plane.chunks_mut(self.width).zip(last).enumerate() {
                let share = (y as f64 / extent as f64) as f32;
                for (value, last) in line.iter_mut().zip(last) {
                    *value = last * (1.0 - share) + *value * share;
                }
            }
        }
    }

    /// Goes over from the last columns of `left` to the first ones of this (`blend_h`).
    fn blend_columns(&mut self, left: &Self, extent: usize) {
        let extent = extent.min(left.width).min(self.width);
        for (line, left_line) in self.values.chunks_mut(self.width).zip(left.values.chunks(left.width)) {
            for (x, (value, last)) in
                line.iter_mut().zip(left_line.iter().skip(left.width - extent)).enumerate()
            {
                let share = (x as f64 / extent as f64) as f32;
                *value = last * (1.0 - share) + *value * share;
            }
        }
    }
}

/// Converts as diffusers' postprocessing does: -1..1 to 0..255, cut off, rounded to the nearest (even) byte, channels
/// last.
fn to_image(planes: &Planes) -> Image {
    let area = planes.height * planes.width;
    let mut pixels = vec![0; 3 * area];
    for (channel, plane) in planes.values.chunks(area.max(1)).take(3).enumerate() {
        for (pixel, value) in pixels.chunks_exact_mut(3).zip(plane) {
            let unit = (value * 0.5 + 0.5).clamp(0.0, 1.0);
            if let Some(byte) = pixel.get_mut(channel) {
                *byte = (unit * 255.0).round_ties_even() as u8;
            }
        }
    }
    Image { height: planes.height, width: planes.width, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_to_even_and_cut_off() {
        let values = vec![-2.0, -1.0, 0.0, 1.0, 2.0, 1.0 / 255.0];
        let planes = Planes { channels: 3, height: 1, width: 2, values };
        assert_eq!(to_image(&planes).pixels, [0, 128, 255, 0, 255, 128]);
    }

    #[test]
    fn a_config_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let open = |text: &str| {
            std::fs::write(&path, text).unwrap();
            VaeConfig::open(&path)
        };
        let config = open(r#"{"block_out_channels": [1, 2, 3, 4], "shift_factor": null}"#).unwrap();
        assert_eq!((config.factor, config.scaling_factor, config.tile()), (8, 0.18215, 64));
        let error = open(r#"{"scaling_factor": "big"}"#).unwrap_err().to_string();
        assert!(error.ends_with("`scaling_factor` is \"big\"; expected a number"), "{error}");
        assert!(open(r#"{"scaling_factor": 0}"#).is_err());
        assert!(open(r#"{"latents_mean": [1]}"#).is_err());
    }
}
